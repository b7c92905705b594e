"""The layout of GOT-10k: <split>/list.txt names the folders, each with images, boxes and labels of visibility.

Boxes may lie outside of the image or have no size while the target is absent; these are kept as annotated.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.labels.text_lines import leads_out, raise_problems, read_lines
from cyclecontrast.data.tracking_sequences import Boxes, Sequence, Sequences, check_boxes, images_in, read_rows, usable
from cyclecontrast.errors import UserError

MOST_COVER = 8
"""The label of a target that can be seen whole."""

Split = Literal["train", "val", "test"]


def open_got10k(root: str | Path, split: Split) -> Sequences:
    """Read the sequences of a split, in the order of its list; raises UserError where there is none (§a)."""
    folder = Path(root) / split
    path = folder / "list.txt"
    if not path.is_file():
        raise UserError(f"{path}: no such file; it names the sequences of GOT-10k's {split}, one folder a line")
    problems: list[str] = []
    names = [name for line in read_lines(path, problems) for name in line.text.split()]
    raise_problems(problems)
    if not names:
        raise UserError(f"{path}: names no sequence; one folder of {folder} belongs on each line")
    return usable(Path(root), "got10k", _read_all(folder, names, split))


def _read_all(folder: Path, names: list[str], split: Split) -> Iterator[Sequence | UserError]:
    for name in dict.fromkeys(names):
        try:
            if leads_out(name):
                raise UserError(f"{folder / 'list.txt'}: {name!r} leads out of {folder}; name a folder below it")
            yield _read(folder / name, split)
        except UserError as error:
            yield error


def _read(folder: Path, split: Split) -> Sequence:
    if not os.path.isdir(folder):  # a path's own method fails where the name is too long
        raise UserError(f"{folder}: no such folder, but list.txt names it")
    files, path = images_in(folder), folder / "groundtruth.txt"
    boxes = read_rows(path, 4)
    only_first = split == "test" and len(boxes) == 1
    check_boxes(path, 1 if only_first else len(files), boxes)
    cover = _labels(folder / "cover.label", len(files), MOST_COVER)
    absent = _labels(folder / "absence.label", len(files), 1)
    return Sequence(
        folder.name,
        folder,
        files,
        boxes,
        None if cover is None else cover.astype(np.int64),
        None if absent is None else absent.astype(np.bool_),
    )


def _labels(path: Path, num_images: int, highest: int) -> npt.NDArray[np.float64] | None:
    if not path.exists():
        return None
    labels: Boxes = read_rows(path, 1)[:, 0]
    if len(labels) != num_images:
        raise UserError(f"{path}: {len(labels)} labels for {num_images} images; each image needs one")
    if not np.isin(labels, range(highest + 1)).all():
        raise UserError(f"{path}: holds other labels than the whole numbers from 0 to {highest}; mend it")
    return labels
