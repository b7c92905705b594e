"""Overlap, distance and curves of tracked boxes x, y, w, h; `predicted` and `truth` are (num_frames, 4) throughout."""

import numpy as np

from cyclecontrast.evaluation.metrics.neighbors import Floats

FARTHEST = 50
"""Largest distance of the precision curve, in pixels."""


def overlaps(predicted: Floats, truth: Floats, image_sizes: Floats | None = None) -> Floats:
    """Return intersection over union (num_frames,) of boxes as areas of the plane, as the GOT-10k toolkit does.

    With the images' width and height (num_frames, 2), boxes are first clipped as the toolkit clips them: a corner
    outside the image is moved to the edge, then the size is cut.
    """
    if image_sizes is not None:
        predicted, truth = _clip(predicted, image_sizes), _clip(truth, image_sizes)
    shared, union = _areas(predicted, truth)
    return np.clip(shared / (union + np.finfo(np.float64).eps), 0, 1)


def official_overlaps(predicted: Floats, truth: Floats) -> Floats:
    """Return intersection over union (num_frames,) as the authors of OTB do: -1 where the true box is not positive.

    They count whole pixels, a box ending at x + w - 1, and add 1 to each side, which gives the same area.
    """
    shared, union = _areas(predicted, truth)
    overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union != 0)
    return np.where((truth > 0).all(axis=1), overlap, -1)


def center_errors(predicted: Floats, truth: Floats) -> Floats:
    """Return the distance between the boxes' centers in pixels (num_frames,); a center is x + (w - 1) / 2."""
    centers = (boxes[:, :2] + (boxes[:, 2:] - 1) / 2 for boxes in (predicted, truth))
    errors: Floats = np.linalg.norm(np.subtract(*centers), axis=1)
    return errors


def official_center_errors(predicted: Floats, truth: Floats) -> Floats:
    """Return the distance between centers as the authors of OTB do: rounded to 4 digits, -1 without a positive box.

    A distance of -1 is a hit at every threshold.
    """
    return np.where((truth > 0).all(axis=1), center_errors(predicted, truth).round(4), -1)


def success_curve(overlap: Floats, num_bins: int = 21) -> Floats:
    """Return the fraction of frames whose overlap is above each of `num_bins` thresholds from 0 to 1 (num_bins,).

    No overlap is above 1: the mean of a perfect curve is 20/21.
    """
    curve: Floats = (overlap[:, None] > np.linspace(0, 1, num_bins)).mean(axis=0)
    return curve


def precision_curve(errors: Floats) -> Floats:
    """Return the fraction of frames whose center error is at most 0, 1, ... 50 pixels (51,)."""
    curve: Floats = (errors[:, None] <= np.arange(FARTHEST + 1)).mean(axis=0)
    return curve


def _areas(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Return the areas (num_frames,) of the intersection and of the union."""
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[:, 0] * sides[:, 1]
    return shared, first[:, 2] * first[:, 3] + second[:, 2] * second[:, 3] - shared


def _clip(boxes: Floats, image_sizes: Floats) -> Floats:
    corners = np.clip(boxes[:, :2], 0, image_sizes)
    return np.hstack([corners, np.clip(boxes[:, 2:], 0, image_sizes - corners)])
