"""The exemplar and the search crop that a pair is trained on: drawn first, then cut (protocols.md §a, "Augment")."""

from typing import NamedTuple

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.evaluation.tracking.crops import Target, crop_squares
from cyclecontrast.evaluation.tracking.presets import SEARCH_SIZE, Preset
from cyclecontrast.evaluation.tracking.tracker import Box

STRETCH = 0.05
MARGIN = 8
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LANCZOS4)
LAPLACE_SCALE = 0.25


class ViewDraw(NamedTuple):
    """The random choices of one view; `dy` and `dx` shift the crop by parts of its side."""

    stretch: float
    interpolation: int
    top: int
    left: int
    dy: float = 0.0
    dx: float = 0.0
    flip: bool = False


def draw_view(rng: np.random.Generator, preset: Preset, jitter: float) -> ViewDraw:
    """Draw a view; `jitter` is that of the preset for the exemplar or the search crop, and moves nothing if 0."""
    stretch = 1 + float(rng.uniform(-STRETCH, STRETCH))
    interpolation = INTERPOLATIONS[int(rng.integers(len(INTERPOLATIONS)))]
    top, left = rng.integers(MARGIN + 1, size=2).tolist()
    if preset.jitter is None:
        return ViewDraw(stretch, interpolation, top, left)
    dy, dx = (jitter * np.clip(rng.laplace(0, LAPLACE_SCALE, 2), -1, 1)).tolist()
    return ViewDraw(stretch, interpolation, top, left, dy, dx, bool(rng.random() < 0.5))


def exemplar_view(image: Pixels, box: Box, draw: ViewDraw, preset: Preset) -> Pixels:
    """Return the exemplar (exemplar_size, exemplar_size, 3)."""
    if preset.jitter is None:
        return _middle(_cut_from_larger(image, box, draw, preset), preset.exemplar_size)
    return _cut_at_once(image, box, draw, preset, preset.exemplar_size)


def search_view(image: Pixels, box: Box, draw: ViewDraw, preset: Preset) -> Pixels:
    """Return the search crop (train_size, train_size, 3)."""
    if preset.jitter is None:
        return _cut_from_larger(image, box, draw, preset)
    return _cut_at_once(image, box, draw, preset, preset.train_size)


def target_shift(draw: ViewDraw, preset: Preset) -> tuple[float, float]:
    """Return where the target lies from the middle of the search crop, y and x in its pixels.

    The crops that are cut from a larger one are taken for centred, as in the release.
    Differs from the release: VINCE moves its labels by the part of 17 cells by which the crop moved, but the crop is
    31 cells wide, and the target moves by that part of those.
    """
    dy, dx = (-part * preset.train_size for part in (draw.dy, draw.dx))
    return dy, -dx if draw.flip else dx


def _cut_from_larger(image: Pixels, box: Box, draw: ViewDraw, preset: Preset) -> Pixels:
    target = Target.of(box)
    side = target.exemplar_side() * SEARCH_SIZE / preset.exemplar_size
    crop = crop_squares(image, target.y, target.x, [side], SEARCH_SIZE)[0]
    size = round(SEARCH_SIZE * draw.stretch)
    stretched = np.asarray(cv2.resize(crop, (size, size), interpolation=draw.interpolation), np.uint8)
    middle = _middle(stretched, preset.train_size + MARGIN)
    return middle[draw.top :, draw.left :][: preset.train_size, : preset.train_size]


def _cut_at_once(image: Pixels, box: Box, draw: ViewDraw, preset: Preset, size: int) -> Pixels:
    """Stretch, shift and crop in one resampling, as VINCE does; the shift is a part of the search crop's side."""
    target = Target.of(box)
    per_pixel = target.exemplar_side() / preset.exemplar_size / draw.stretch
    reach = preset.train_size * per_pixel
    y, x = target.y + draw.dy * reach, target.x + draw.dx * reach
    crop: Pixels = crop_squares(image, y, x, [size * per_pixel], size)[0]
    return crop[:, ::-1] if draw.flip else crop


def _middle(image: Pixels, size: int) -> Pixels:
    """Return the middle (size, size, 3), with the mean colour where the image ends."""
    spare = image.shape[0] - size
    start = round(spare / 2)
    if spare >= 0:
        return image[start : start + size, start : start + size]
    before, after = -start, start - spare
    mean = cv2.mean(image)[:3]
    bordered = cv2.copyMakeBorder(image, before, after, before, after, cv2.BORDER_CONSTANT, value=mean)
    return np.asarray(bordered, np.uint8)
