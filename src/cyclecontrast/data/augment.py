"""Random augmentation: draws the parameters of a view, then applies them deterministically.

This file applies them with OpenCV in the workers; device_augment.py applies them to batches on the device.
"""

import math
import pickle
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError

Augmentation: TypeAlias = Callable[[Pixels, np.random.Generator, int], Pixels]
"""A custom augmentation: (frame, generator, size) → view; RGB uint8 (height, width, 3) → (size, size, 3)."""


class Recipe(NamedTuple):
    """The strengths and probabilities of the random transforms."""

    jitter: tuple[float, float, float, float]
    jitter_probability: float
    gray_probability: float
    blur_probability: float
    min_crop: float = 0.2
    flip: bool = True


# Differs from the release of MoCo v1: gray is applied after the jitter, as in v2, not before.
RECIPES = {
    "moco-v1": Recipe((0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0),
    "moco-v2": Recipe((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5),
}
BLUR_SIGMA = (0.1, 2.0)
BLUR_AT_SIDE = 224
MIN_SIGMA = 1e-3
ASPECT = (3 / 4, 4 / 3)


class Jitter(NamedTuple):
    """Color jitter: factors around 1, hue shift as a fraction of a full turn, and the order of the four changes."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...]


class View(NamedTuple):
    """All random parameters of one view.

    `crop`: left, top, width, height in pixels of the frame; `blur`: σ in pixels at a side of 224, 0 for none.
    """

    crop: tuple[int, int, int, int]
    flip: bool
    jitter: Jitter | None
    gray: bool
    blur: float


def smallest_crop(recipe: Recipe) -> float:
    """Return the smallest possible side of a crop, as a fraction of the short side of the frame."""
    return math.sqrt(recipe.min_crop * ASPECT[0])


def draw_view(rng: np.random.Generator, height: int, width: int, recipe: Recipe) -> View:
    """Draw the parameters of one view of a frame of this size."""
    crop = _draw_crop(rng, height, width, recipe.min_crop)
    flip = bool(rng.random() < 0.5) and recipe.flip
    jitter = _draw_jitter(rng, recipe.jitter) if rng.random() < recipe.jitter_probability else None
    gray = bool(rng.random() < recipe.gray_probability)
    blur = float(rng.uniform(*BLUR_SIGMA)) if rng.random() < recipe.blur_probability else 0.0
    return View(crop, flip, jitter, gray, blur)


def apply_view(image: Pixels, view: View, size: int) -> Pixels:
    """Apply a view with OpenCV: RGB (height, width, 3) → (size, size, 3); the crop comes first.

    Differs from the release: σ of the blur scales with the size, so that small views keep their content.
    """
    pixels = crop_view(image, view, size)
    if view.jitter is not None:
        for change in view.jitter.order:
            pixels = _changed(pixels, change, view.jitter[:4][change])
    if view.gray:
        pixels = cv2.cvtColor(_luma(pixels), cv2.COLOR_GRAY2RGB)
    if view.blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), max(view.blur * size / BLUR_AT_SIDE, MIN_SIGMA))
    return pixels


def crop_view(image: Pixels, view: View, size: int) -> Pixels:
    """Return the cropped, resized (size, size, 3) and flipped frame.

    The part of a view that always runs in the worker.
    """
    left, top, width, height = view.crop
    pixels = _resized(image[top : top + height, left : left + width], size)
    return cv2.flip(pixels, 1) if view.flip else pixels


def _resized(pixels: Pixels, size: int) -> Pixels:
    """Resize to (size, size, 3); shrink by averaging whole blocks of pixels, which is fastest in OpenCV."""
    height, width = pixels.shape[:2]
    if min(height, width) > size:
        blocks = max(2, round((height + width) / (2 * size))) * size
        pixels = cv2.resize(pixels, (blocks, blocks), interpolation=cv2.INTER_LINEAR)
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)  # type: ignore[no-any-return]


def _draw_crop(rng: np.random.Generator, height: int, width: int, min_crop: float) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * rng.uniform(min_crop, 1.0)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def _draw_jitter(rng: np.random.Generator, strength: tuple[float, float, float, float]) -> Jitter:
    brightness, contrast, saturation = (float(rng.uniform(1 - s, 1 + s)) for s in strength[:3])
    hue = float(rng.uniform(-strength[3], strength[3]))
    return Jitter(brightness, contrast, saturation, hue, tuple(int(i) for i in rng.permutation(4)))


def _luma(pixels: Pixels) -> Pixels:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)  # type: ignore[no-any-return]


def _changed(pixels: Pixels, change: int, factor: float) -> Pixels:
    """Return the pixels after one change of a `Jitter`, given its index: brightness, contrast, saturation, hue."""
    match change:
        case 0:  # brightness
            pixels = cv2.convertScaleAbs(pixels, alpha=factor)
        case 1:  # contrast
            mean = round(cv2.mean(_luma(pixels))[0])
            pixels = cv2.addWeighted(pixels, factor, pixels, 0, (1 - factor) * mean)
        case 2:  # saturation
            gray = cv2.cvtColor(_luma(pixels), cv2.COLOR_GRAY2RGB)
            pixels = cv2.addWeighted(pixels, factor, gray, 1 - factor, 0)
        case 3:  # hue, in float, because OpenCV's 8-bit HSV changes colors by up to 8 of 255
            hsv = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2HSV)
            hsv = cv2.add(hsv, (factor % 1 * 360, 0.0, 0.0, 0.0))
            pixels = cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    return pixels


def user_view(augmentation: Augmentation, image: Pixels, rng: np.random.Generator, size: int) -> Pixels:
    """Return a view computed by a custom augmentation on a copy of the frame. Raises UserError for a wrong result."""
    view: object = augmentation(image.copy(), rng, size)
    expected = f"uint8 ({size}, {size}, 3)"
    if not isinstance(view, np.ndarray):
        raise UserError(f"augmentation: returns a {type(view).__name__}, not an array {expected}")
    if view.dtype != np.uint8 or view.shape != (size, size, 3):
        raise UserError(f"augmentation: returns {view.dtype} {view.shape}, not {expected}")
    return view


def check_augmentation(augmentation: Augmentation, image: Pixels, size: int) -> None:
    """Call a user-defined function twice on an image; raises UserError if it fails or the two views differ."""
    try:
        first, second = (
            user_view(augmentation, image, np.random.Generator(np.random.Philox(key=0)), size) for _ in "12"
        )
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"augmentation: fails on a frame {image.shape} ({type(error).__name__}: {reason})") from error
    if not np.array_equal(first, second):
        raise UserError(
            "augmentation: returns two different views for the same frame and generator; draw random numbers from "
            "the generator only, so that runs are reproducible"
        )


def check_picklable(name: str, function: object) -> None:
    """Raise UserError if a function cannot be pickled for the data loading processes."""
    try:
        pickle.dumps(function)
    except Exception as error:  # pickle raises many kinds
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{name}: cannot be sent to the processes that load data ({reason}); define it with def or class at the "
            "top of a file, or set workers=0"
        ) from error
