"""Sequences of images with a box around one target: what trackers run on, and what their heads are trained on.

Where the files of a data set lie, and what is odd about them, is known to otb.py and got10k.py only.
"""

import hashlib
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.folder_walk import natural_order
from cyclecontrast.data.image_folders import IMAGE_SUFFIXES
from cyclecontrast.data.images import Pixels, load_image
from cyclecontrast.data.labels.text_lines import read_text
from cyclecontrast.errors import UserError

Boxes = npt.NDArray[np.float64]
"""Corner and size of boxes in pixels as annotated, the first pixel being 1: x, y, w, h (num_boxes, 4)."""


@dataclass(frozen=True)
class Sequence:
    """One target in the frames of one folder.

    `boxes` has a row per frame, or the first alone where no other is annotated. `cover` (num_frames,) says how much
    of the target is visible, 0 to 8, and `absent` (num_frames,) whether it is gone; None where nobody annotated it.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    boxes: Boxes
    cover: npt.NDArray[np.int64] | None = None
    absent: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def images(self) -> tuple[Path, ...]:
        """Return the path of each frame."""
        return tuple(self.folder / name for name in self.files)

    def image(self, index: int) -> Pixels:
        """Return a decoded frame, RGB (height, width, 3); raises UserError naming the file."""
        return load_image(self.folder / self.files[index])


@dataclass(frozen=True)
class Sequences:
    """The sequences of a data set that can be used, and one line for each that cannot."""

    root: Path
    layout: Literal["otb", "got10k"]
    sequences: tuple[Sequence, ...]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: names, annotations, and each image's name and size in bytes; 16 hex digits."""
        digest = hashlib.sha256(self.layout.encode())
        for sequence in self.sequences:
            names = "\n".join(["", sequence.name, *sequence.files, ""])
            digest.update(names.encode(errors="surrogateescape"))
            for column in (sequence.boxes, sequence.cover, sequence.absent, _file_sizes(sequence)):
                digest.update(b"none" if column is None else column.tobytes())
        return digest.hexdigest()[:16]


def usable(root: Path, layout: Literal["otb", "got10k"], found: Iterable[Sequence | UserError]) -> Sequences:
    """Collect the sequences that can be used; raises UserError where there is none."""
    sequences: list[Sequence] = []
    problems: list[str] = []
    for item in found:
        if isinstance(item, UserError):
            problems += item.problems
        elif item.name != item.name.encode(errors="replace").decode():
            problems.append(f"{item.folder}: the name is not UTF-8; rename it")
        else:
            sequences.append(item)
    if not sequences:
        raise UserError(*(problems or [f"{root}: holds no sequences"]))
    return Sequences(root, layout, tuple(sequences), tuple(problems))


def images_in(folder: Path) -> tuple[str, ...]:
    """Return the names of the images in a folder in their natural order, one of each stem: 0001.jpg before 0001.png.

    Raises UserError where there are none.
    """
    by_stem: dict[str, str] = {}
    names = sorted(os.listdir(folder), reverse=True) if folder.is_dir() else []
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
            by_stem[stem] = name
    if not by_stem:
        raise UserError(f"{folder}: {'holds no images' if folder.is_dir() else 'no such folder of images'}")
    # All sequences share their files' names: a million of them cost no more than one sequence's.
    return tuple(sys.intern(name) for name in sorted(by_stem.values(), key=natural_order))


def read_rows(path: Path, columns: int) -> Boxes:
    """Read finite numbers, `columns` to a line, between commas, tabs or spaces; raises UserError naming the line."""
    lines = read_text(path).splitlines()
    rows = [_numbers(line, f"{path}:{number}", columns) for number, line in enumerate(lines, 1) if line.strip()]
    return np.array(rows, np.float64).reshape(-1, columns)


def _numbers(line: str, where: str, columns: int) -> list[float]:
    words = line.replace(",", " ").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != columns or not all(map(math.isfinite, numbers)):
        expected = "x, y, width and height in numbers" if columns == 4 else "one number"
        raise UserError(f"{where}: {line.strip()[:80]!r} is not {expected}; mend the line")
    return numbers


def check_boxes(path: Path, num_images: int, boxes: Boxes) -> None:
    """Raise UserError where boxes and images do not belong together, or there is nothing to track from the first."""
    if len(boxes) != num_images:
        raise UserError(f"{path}: {len(boxes)} boxes for {num_images} images; each image needs one")
    width, height = boxes[0, 2:]
    if width <= 0 or height <= 0:
        raise UserError(f"{path}: the box of the first frame is {width:g} x {height:g}; there is nothing to track")


def check_in_image(where: str, box: Boxes, image: Pixels) -> None:
    """Raise UserError where a box (4,) shows nothing of this image, or is more than twice as large as all of it."""
    height, width = image.shape[:2]
    x, y, w, h = box
    touches = x - 1 < width and y - 1 < height and x - 1 + w > 0 and y - 1 + h > 0
    if not touches or w > 2 * width or h > 2 * height:
        what = "lies outside of" if not touches else "is far larger than"
        raise UserError(f"{where}: the box {x:g},{y:g},{w:g},{h:g} {what} the image of {width} x {height} pixels")


def _file_sizes(sequence: Sequence) -> npt.NDArray[np.int64]:
    try:
        return np.array([os.stat(path).st_size for path in sequence.images], np.int64)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
