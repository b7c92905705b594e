"""Squares around a target, cut from an image and brought to one size; it knows nothing of networks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.evaluation.tracking.tracker import Box

CONTEXT = 0.5
SMALLEST_SIDE = 2.0


class Target(NamedTuple):
    """Centre and size in pixels, the first pixel being 0."""

    y: float
    x: float
    height: float
    width: float

    @staticmethod
    def of(box: Box) -> "Target":
        """Take a box x, y, w, h, whose first pixel is 1."""
        x, y, width, height = map(float, box)
        return Target(y - 1 + (height - 1) / 2, x - 1 + (width - 1) / 2, height, width)

    def box(self) -> Box:
        """Return x, y, w, h, the first pixel being 1."""
        left, top = self.x + 1 - (self.width - 1) / 2, self.y + 1 - (self.height - 1) / 2
        return np.array([left, top, self.width, self.height])

    def exemplar_side(self) -> float:
        """Return the side of the square that shows the target with its context."""
        context = CONTEXT * (self.width + self.height)
        return math.sqrt((self.width + context) * (self.height + context))


def crop_squares(image: Pixels, y: float, x: float, sides: Sequence[float], size: int) -> Pixels:
    """Cut squares with these sides around a point (first pixel: 0) and resize them to (num_sides, size, size, 3).

    Corners are rounded; the part inside of the image is resized by itself, and the rest has the mean colour of the
    image. A square entirely outside is black (protocols.md §a, "Crop").
    """
    spans = [(_Span.of(y, side, image.shape[0], size), _Span.of(x, side, image.shape[1], size)) for side in sides]
    crops = np.zeros((len(sides), size, size, 3), np.uint8)
    inside = [span for span in spans if all(part.is_inside for part in span)]
    if any(part.out_size < size for span in inside for part in span):
        crops[[all(part.is_inside for part in span) for span in spans]] = np.rint(cv2.mean(image)[:3])
    for crop, (rows, columns) in zip(crops, spans, strict=True):
        if rows.is_inside and columns.is_inside:
            part = image[rows.start : rows.stop, columns.start : columns.stop]
            resized = cv2.resize(part, (columns.out_size, rows.out_size), interpolation=cv2.INTER_LINEAR)
            crop[rows.out_start :, columns.out_start :][: rows.out_size, : columns.out_size] = resized
    return crops


class _Span(NamedTuple):
    """The pixels start:stop of the image along one axis, and where they come to lie in the crop."""

    start: int
    stop: int
    out_start: int
    out_size: int

    @property
    def is_inside(self) -> bool:
        return self.start < self.stop

    @staticmethod
    def of(center: float, side: float, length: int, size: int) -> "_Span":
        side = max(side, SMALLEST_SIDE)
        first, last = round(center - side / 2), round(center + side / 2)
        start, stop = max(first, 0), min(last, length)
        out_start = min(int(max(0.0, -first * size / (last - first))), size - 1)
        out_size = max(1, round(size * (stop - start) / (last - first)))
        return _Span(start, stop, out_start, min(out_size, size - out_start))
