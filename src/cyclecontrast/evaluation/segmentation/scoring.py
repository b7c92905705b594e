"""Masks of a record → intersection over union; it knows nothing of networks."""

import math

import numpy as np

from cyclecontrast.config import SegmentationConfig
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.mask_layouts import IGNORE
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.mask_files import decode_mask
from cyclecontrast.evaluation.metrics import iou_per_class, pixel_accuracy, pixel_confusion
from cyclecontrast.evaluation.record import Record
from cyclecontrast.evaluation.segmentation.picture import draw_pairs
from cyclecontrast.evaluation.two_steps import Score

NUM_DRAWN = 8


def score(record: Record, config: SegmentationConfig) -> Score:
    """Count the pixels of all test images together: mean IoU over classes, and accuracy over pixels.

    A class that is neither true nor predicted anywhere is left out of the mean, and has no IoU in the breakdown.
    """
    classes = record.about.details["classes"]
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    for row in range(record.table.num_rows):
        truth, predicted = _masks(record, row)
        confusion += pixel_confusion(predicted, truth, len(classes), IGNORE)
    if not confusion.any():
        raise UserError(f"{record.about.data.path}: every pixel of the test masks is to be ignored; nothing to score")
    iou = iou_per_class(confusion)
    predicted_classes = [name for name, column in zip(classes, confusion.T, strict=True) if column.any()]
    alone = f"every pixel is predicted as {predicted_classes[0]}; train longer, or with another learning_rate"
    return Score(
        {"mean_iou": float(np.nanmean(iou)), "pixel_accuracy": pixel_accuracy(confusion)},
        {
            "classes": classes,
            "num_pixels": confusion.sum(axis=1).tolist(),
            "iou": [None if math.isnan(value) else value for value in iou.tolist()],
            "confusion": confusion.tolist(),
        },
        notes=(alone,) if len(predicted_classes) == 1 else (),
        files={"png": draw_pairs([_masks(record, row) for row in _shown(record.table.num_rows)])},
    )


def _masks(record: Record, row: int) -> tuple[Pixels, Pixels]:
    truth, predicted = (decode_mask(record.table[name][row].as_py()) for name in ("truth", "predicted"))
    return truth, predicted


def _shown(num_rows: int) -> list[int]:
    """Return the rows that are drawn, spread evenly."""
    return sorted(set(np.linspace(0, num_rows - 1, NUM_DRAWN).astype(int).tolist()))
