"""What the numbers in a mask's file mean: tables from the number to the label, one per kind of mask."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.images import Pixels
from cyclecontrast.data.masks.files import Indices
from cyclecontrast.errors import UserError

IGNORE = 255
"""The label of pixels that count for nothing, whatever number they have in the file."""

OUTSIDE = -1
NUM_VALUES = 256

Table = npt.NDArray[np.int16]
"""Label of each number (256,): a class, IGNORE, or OUTSIDE."""


def labels_as_they_are(num_classes: int, ignore_label: int) -> Table:
    """Return the table in which a number is its own label."""
    return _table(np.arange(num_classes), ignore_label)


def labels_from_one(num_classes: int, ignore_label: int) -> Table:
    """Return the table of ADE20K: 0 is to be ignored, and the classes are numbered from 1."""
    return _table(np.r_[IGNORE, np.arange(num_classes)], ignore_label)


def figure(label: int) -> Table:
    """Return the table of a figure on a background: 0 stays, and every other number is this label."""
    table: Table = np.full(NUM_VALUES, label, np.int16)
    table[0] = 0
    return table


def black_and_white() -> Table:
    """Return the table of masks that hold 0 for the background and 255 for the figure."""
    table: Table = np.full(NUM_VALUES, OUTSIDE, np.int16)
    table[[0, NUM_VALUES - 1]] = 0, 1
    return table


def to_labels(indices: Indices, table: Table, path: Path) -> Pixels:
    """Return the labels uint8 (height, width) of a mask; raises UserError where a number has none."""
    high = int(indices.max(initial=0))
    labels = table[indices] if indices.min(initial=0) >= 0 and high < NUM_VALUES else None
    if labels is None or (labels == OUTSIDE).any():
        wrong = high if labels is None else int(indices[labels == OUTSIDE].max())
        raise UserError(f"{path}: holds the label {wrong}, which is none of {_known(table)}; mend or remove it")
    return labels.astype(np.uint8)


def _table(labels: npt.NDArray[np.integer], ignore_label: int) -> Table:
    table = np.full(NUM_VALUES, OUTSIDE, np.int16)
    table[: len(labels)] = labels
    table[ignore_label] = IGNORE
    return table


def _known(table: Table) -> str:
    numbers = np.flatnonzero(table != OUTSIDE)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
