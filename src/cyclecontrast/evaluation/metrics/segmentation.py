"""Scores of segmentation: pixels of all images are counted together, and those to be ignored not at all."""

import numpy as np
import numpy.typing as npt

from cyclecontrast.evaluation.metrics.arrays import Integers
from cyclecontrast.evaluation.metrics.classification import confusion_matrix

IGNORE = 255


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
    """Return the part of the counted pixels that is predicted right."""
    return float(np.trace(confusion) / confusion.sum())
