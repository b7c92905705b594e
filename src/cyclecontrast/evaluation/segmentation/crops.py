"""Random crops of an image together with its mask, for training."""

from dataclasses import dataclass

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.data.mask_layouts import IGNORE
from cyclecontrast.data.pairs import QUERY, random_stream

SCALES = (0.5, 2.0)

Color = tuple[int, int, int]


@dataclass(frozen=True)
class RandomCrop:
    """Scale by 0.5 to 2, cut a square, mirror half of them: a function of (seed, epoch, position).

    What the image does not fill has the colour `fill` and the label IGNORE.
    """

    seed: int
    epoch: int
    size: int
    flip: bool
    fill: Color

    def __call__(self, image: Pixels, position: int) -> Pixels:
        """Return the crop (size, size, 4) of RGB and label (height, width, 4)."""
        rng = random_stream(self.seed, self.epoch, position, QUERY)
        image = _scaled(image, float(rng.uniform(*SCALES)))
        height, width = image.shape[:2]
        top, left = (int(rng.integers(max(side - self.size, 0) + 1)) for side in (height, width))
        part = image[top : top + self.size, left : left + self.size]
        crop = np.full((self.size, self.size, 4), (*self.fill, IGNORE), np.uint8)
        crop[: part.shape[0], : part.shape[1]] = part
        return crop[:, ::-1].copy() if rng.random() < 0.5 and self.flip else crop


def _scaled(image: Pixels, scale: float) -> Pixels:
    """Scale colours by averaging or linearly, and labels by the nearest one."""
    target = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    colors = cv2.resize(np.ascontiguousarray(image[..., :3]), target, interpolation=method)
    labels = cv2.resize(np.ascontiguousarray(image[..., 3]), target, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.dstack([colors, labels])
