"""Scores of masks: of single objects, by region and boundary as in DAVIS; of classes, over the pixels of all images.

Pixels of all images are counted together, and those of the ignored label not at all.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt

from cyclecontrast.evaluation.metrics.classification import confusion_matrix
from cyclecontrast.evaluation.metrics.neighbors import Integers

Masks = npt.NDArray[np.bool_]

TOLERANCE = 0.008
IGNORE = 255


def region_similarity(predicted: Masks, truth: Masks) -> float:
    """Return J, the intersection over the union of two masks (height, width); 1 where both are empty."""
    _check(predicted, truth)
    union = np.count_nonzero(predicted | truth)
    return float(np.count_nonzero(predicted & truth) / union) if union else 1.0


def boundary_f(predicted: Masks, truth: Masks, tolerance: float = TOLERANCE) -> float:
    """Return F, the harmonic mean of precision and recall of boundary pixels of two masks (height, width).

    A pixel is right where the other boundary passes within the tolerance: a fraction of the image's diagonal, rounded
    up to pixels, or from 1 on a number of pixels. F is 1 where neither mask has a boundary, 0 where one has none.
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

    Beyond the image its last row and column are repeated.
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


def pixel_confusion(
    predicted: Integers, truth: Integers, num_classes: int, ignore: int = IGNORE
) -> npt.NDArray[np.int64]:
    """Count pixels by true class (rows) and predicted class (columns); both arrays have one shape, any.

    Raises ValueError for a class outside 0..num_classes - 1 on a pixel that is not ignored.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {truth.shape} differ in shape")
    counted = truth != ignore
    predicted, truth = predicted[counted].astype(np.int64), truth[counted].astype(np.int64)
    for name, values in (("predicted", predicted), ("true", truth)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(f"{name} classes {values.min()}..{values.max()} of {num_classes}")
    return confusion_matrix(predicted, truth, num_classes)


def iou_per_class(confusion: Integers) -> npt.NDArray[np.float64]:
    """Return intersection over union of each class (num_classes,); nan for one that is neither true nor predicted."""
    both = np.diag(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    iou: npt.NDArray[np.float64] = np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)
    return iou


def mean_iou(predicted: Integers, truth: Integers, num_classes: int, ignore: int = IGNORE) -> float:
    """Return the mean over classes of intersection over union, pixels counted together over all images.

    A class that is neither true nor predicted anywhere is left out of the mean; one that is predicted but never true
    counts as 0. Raises ValueError where no pixel counts.
    """
    confusion = pixel_confusion(predicted, truth, num_classes, ignore)
    if not confusion.any():
        raise ValueError("every pixel is ignored")
    return float(np.nanmean(iou_per_class(confusion)))


def pixel_accuracy(confusion: Integers) -> float:
    """Return the fraction of the counted pixels that is predicted right."""
    return float(np.trace(confusion) / confusion.sum())
