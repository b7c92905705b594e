"""How well masks agree, in their region and along their boundary, as DAVIS counts it (protocols.md §g)."""

import math

import cv2
import numpy as np

from cyclecontrast.evaluation.metrics.arrays import Masks

TOLERANCE = 0.008


def region_similarity(predicted: Masks, truth: Masks) -> float:
    """Return J, the intersection over the union of two masks (height, width); 1 where both are empty."""
    _check(predicted, truth)
    union = np.count_nonzero(predicted | truth)
    return float(np.count_nonzero(predicted & truth) / union) if union else 1.0


def boundary_f(predicted: Masks, truth: Masks, tolerance: float = TOLERANCE) -> float:
    """Return F, the harmonic mean of precision and recall of boundary pixels of two masks (height, width).

    A pixel is right where the other boundary passes within the tolerance: a part of the image's diagonal, rounded up to
    pixels, or a number of pixels from 1 on. F is 1 where neither mask has a boundary, 0 where one has none.
    """
    _check(predicted, truth)
    radius = math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(*truth.shape))
    ours, theirs = boundary(predicted), boundary(truth)
    if not (ours.any() and theirs.any()):
        return float(ours.any() == theirs.any())
    precision = np.count_nonzero(ours & _dilated(theirs, radius)) / np.count_nonzero(ours)
    recall = np.count_nonzero(theirs & _dilated(ours, radius)) / np.count_nonzero(theirs)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: Masks) -> Masks:
    """Return the pixels (height, width) that differ from their neighbor to the right, below, or right below.

    Outside the image its last row and column go on.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    found: Masks = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    return found


def _dilated(mask: Masks, radius: int) -> Masks:
    """Return the pixels (height, width) within the radius, that of a disk, of a pixel of the mask."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    return cv2.dilate(mask.astype(np.uint8), disk).astype(np.bool_)  # type: ignore[no-any-return]


def _check(predicted: Masks, truth: Masks) -> None:
    if predicted.shape != truth.shape or predicted.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ValueError(f"masks of {predicted.dtype} {predicted.shape} and {truth.dtype} {truth.shape}")
