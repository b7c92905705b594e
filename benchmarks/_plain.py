"""The usual way to a view, restated: Pillow decodes a frame and changes it as MoCo v2's recipe does, then CHW floats.

Written from the recipe's numbers: a crop of .2 to 1 of the area, jitter (.4, .4, .4, .1) with p .8, gray with p .2,
blur of σ .1 to 2 pixels with p .5, mirrored with p .5, ImageNet's mean and deviation.
"""

import io
import math
import random

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from cyclecontrast.models.backbone import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))


def decode(data: bytes) -> Image.Image:
    """Return the image of a JPEG file's bytes."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def random_view(image: Image.Image, size: int, rng: random.Random) -> Tensor:
    """Return one random view, normalized: float (3, size, size)."""
    view = image.crop(_random_box(image, rng)).resize((size, size), Image.Resampling.BILINEAR)
    if rng.random() < 0.8:
        view = _jittered(view, rng)
    if rng.random() < 0.2:
        view = view.convert("L").convert("RGB")
    if rng.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < 0.5:
        view = ImageOps.mirror(view)
    pixels = torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()
    return (pixels.float() / 255 - MEAN) / STD


def _random_box(image: Image.Image, rng: random.Random) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = image.width * image.height * rng.uniform(0.2, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
            return left, top, left + width, top + height
    return 0, 0, image.width, image.height


def _jittered(view: Image.Image, rng: random.Random) -> Image.Image:
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for change in rng.sample(range(4), 4):
        if change < 3:
            view = enhancers[change](view).enhance(rng.uniform(0.6, 1.4))
        else:
            hue, saturation, value = view.convert("HSV").split()
            shift = round(rng.uniform(-0.1, 0.1) * 255)
            hue = hue.point([(level + shift) % 256 for level in range(256)])
            view = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return view
