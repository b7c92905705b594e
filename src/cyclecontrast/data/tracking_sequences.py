"""Sequences of images with a box around one target, to run trackers on and to train their heads: OTB and GOT-10k.

OTB-2015 has 98 folders that are 100 sequences, named as by the GOT-10k toolkit: Jogging.1, Jogging.2, Human4. GOT-10k
has <split>/list.txt with the names of folders, each with images, boxes and labels of visibility; boxes that lie outside
of the image or have no size while the target is absent are kept as annotated.
"""

import dataclasses
import hashlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.folders import is_image, natural_order
from cyclecontrast.data.images import Pixels, load_image
from cyclecontrast.data.storage import file_size, is_outside, raise_problems, read_lines, read_text
from cyclecontrast.errors import UserError, attempt

Boxes = npt.NDArray[np.float64]
"""Corner and size of boxes in pixels as annotated, the first pixel being 1: x, y, w, h (num_boxes, 4)."""
Layout: TypeAlias = Literal["otb", "got10k"]
Got10kSplit: TypeAlias = Literal["train", "val", "test"]

OTB_ANNOTATED = {
    "david": (300, 770),
    "football1": (1, 74),
    "freeman3": (1, 460),
    "freeman4": (1, 283),
    "diving": (1, 215),
}
"""First and last number of the images that have boxes, where a folder of OTB holds more of them."""
TIGER1_START = 6
"""Number of the image at which the authors' code begins Tiger1; the GOT-10k toolkit begins at 1."""
MAX_COVER = 8
"""GOT-10k's label of a target that is fully visible."""


@dataclass(frozen=True)
class Sequence:
    """A tracking sequence: the frames of a folder and the boxes of one target.

    `boxes` has one row per frame, or only the first if no other is annotated. `cover` (num_frames,) is the visible part
    of the target, 0 to 8; `absent` (num_frames,) whether it is not in the image; both are None if not annotated.
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
    layout: Layout
    sequences: tuple[Sequence, ...]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def fingerprint(self) -> str:
        """Identifier of the content: names, annotations, and each image's name and size in bytes; 16 hex digits."""
        digest = hashlib.sha256(self.layout.encode())
        for sequence in self.sequences:
            names = "\n".join(["", sequence.name, *sequence.files, ""])
            digest.update(names.encode(errors="surrogateescape"))
            sizes = np.array([file_size(path) for path in sequence.images], np.int64)
            for column in (sequence.boxes, sequence.cover, sequence.absent, sizes):
                digest.update(b"none" if column is None else column.tobytes())
        return digest.hexdigest()[:16]


def _collect(root: Path, layout: Layout, readers: Iterable[Callable[[], Sequence]]) -> Sequences:
    """Read the sequences that can be used; raises UserError where there is none."""
    sequences: list[Sequence] = []
    problems: list[str] = []
    for read in readers:
        sequence = attempt(read, problems)
        if sequence is not None and sequence.name != sequence.name.encode(errors="replace").decode():
            problems.append(f"{sequence.folder}: the name is not UTF-8; rename it")
        elif sequence is not None:
            sequences.append(sequence)
    if not sequences:
        raise UserError(*(problems or [f"{root}: holds no sequences"]))
    return Sequences(root, layout, tuple(sequences), tuple(problems))


# --- what both layouts have in common


def _images_in(folder: Path) -> tuple[str, ...]:
    """Return the names of the images in a folder in natural order, one of each stem: 0001.jpg before 0001.png.

    Raises UserError where there are none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    names = sorted(os.listdir(folder), reverse=True)
    by_stem = {os.path.splitext(name)[0]: name for name in names if is_image(name)}
    if not by_stem:
        raise UserError(f"{folder}: holds no images")
    # Sequences have equal file names; interning stores each name only once.
    return tuple(sys.intern(name) for name in sorted(by_stem.values(), key=natural_order))


def read_rows(path: Path, columns: int, gaps: bool = False) -> Boxes:
    """Read finite numbers, `columns` to a line, between commas, tabs or spaces; raises UserError naming the line.

    With `gaps`, lines of nan alone are kept: UAV123 and LaSOT write them where the target is absent.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = [float(word) for word in line.replace(",", " ").split()]
        except ValueError:
            row = [math.nan]
        is_gap = gaps and len(row) == columns and all(map(math.isnan, row))
        if row and not is_gap and (len(row) != columns or not all(map(math.isfinite, row))):
            expected = "x, y, width and height in numbers" if columns == 4 else "one number"
            raise UserError(f"{path}:{number}: {line.strip()[:80]!r} is not {expected}; fix the line")
        rows += [row] if row else []
    return np.array(rows, np.float64).reshape(-1, columns)


def _check_boxes(path: Path, num_images: int, boxes: Boxes) -> None:
    """Raise UserError where boxes and images do not belong together, or there is nothing to track from the first."""
    if len(boxes) != num_images:
        raise UserError(f"{path}: {len(boxes)} boxes for {num_images} images; each image needs one")
    width, height = boxes[0, 2:]
    if not (width > 0 and height > 0):
        raise UserError(f"{path}: the box of the first frame is {width:g} x {height:g}; there is nothing to track")


def check_in_image(where: str, box: Boxes, image: Pixels) -> None:
    """Raise UserError where a box (4,) lies outside of this image, or is more than twice as large."""
    (height, width), (x, y, w, h) = image.shape[:2], box
    touches = x - 1 < width and y - 1 < height and x - 1 + w > 0 and y - 1 + h > 0
    if not touches or w > 2 * width or h > 2 * height:
        what = "lies outside of" if not touches else "is far larger than"
        raise UserError(f"{where}: the box {x:g},{y:g},{w:g},{h:g} {what} the image of {width} x {height} pixels")


# --- OTB


def open_otb(root: str | Path) -> Sequences:
    """Read all sequences below the root, in order of their names; raises UserError where there is none."""
    folders = [path for path in sorted(Path(root).iterdir()) if os.path.isdir(path) and _is_otb_sequence(path)]
    if not folders:
        raise UserError(
            f"{root}: holds no sequences; an OTB root has <Sequence>/img and <Sequence>/groundtruth_rect.txt, "
            "a GOT-10k root has <split>/list.txt"
        )
    return _collect(Path(root), "otb", (read for folder in folders for read in _otb_readers(folder)))


def from_official_start(sequence: Sequence) -> Sequence:
    """Return Tiger1 with the 349 frames that the authors' code tracks, any other sequence as it is."""
    first = next((at for at, name in enumerate(sequence.files) if _number(name) >= TIGER1_START), 0)
    if sequence.name.lower() != "tiger1" or first == 0:
        return sequence
    absent = None if sequence.absent is None else sequence.absent[first:]
    return dataclasses.replace(sequence, files=sequence.files[first:], boxes=sequence.boxes[first:], absent=absent)


def _is_otb_sequence(folder: Path) -> bool:
    if folder.name.startswith("."):
        return False
    return any(folder.glob("groundtruth_rect*.txt")) or any(os.path.isdir(folder / name) for name in ("img", "jpg"))


def _otb_readers(folder: Path) -> Iterator[Callable[[], Sequence]]:
    """Yield a reader of a sequence for each file of boxes that is not blank."""
    filled = [path for path in sorted(folder.glob("groundtruth_rect*.txt")) if not _is_blank(path)]
    numbered = [path for path in filled if path.name != "groundtruth_rect.txt"]
    targets = numbered if len(numbered) > 1 else filled[:1] or [folder / "groundtruth_rect.txt"]
    for number, path in enumerate(targets, 1):
        yield partial(_read_otb, folder, path, f"{folder.name}.{number}" if len(targets) > 1 else folder.name)


def _is_blank(path: Path) -> bool:
    """Whether a file is blank; one that cannot be read is reported when its boxes are read."""
    try:
        return not read_text(path, "replace").strip()
    except UserError:
        return False


def _read_otb(folder: Path, path: Path, name: str) -> Sequence:
    images = next((folder / inside for inside in ("img", "jpg") if (folder / inside).is_dir()), folder / "img")
    files, boxes = _images_in(images), read_rows(path, 4, gaps=True)
    if not len(boxes):
        raise UserError(f"{path}: is empty; it has a line x,y,w,h for each image")
    if len(files) != len(boxes) and folder.name.lower() in OTB_ANNOTATED:
        first, last = OTB_ANNOTATED[folder.name.lower()]
        files = tuple(file for file in files if first <= _number(file) <= last)
    _check_boxes(path, len(files), boxes)
    absent = np.isnan(boxes[:, 0])
    return Sequence(name, images, files, boxes, absent=absent if absent.any() else None)


def _number(name: str) -> int:
    digits = re.match(r"\d+", name)
    return int(digits[0]) if digits else 0


# --- GOT-10k


def open_got10k(root: str | Path, split: Got10kSplit) -> Sequences:
    """Read the sequences of a split, in the order of its list; raises UserError where there is none."""
    folder = Path(root) / split
    path = folder / "list.txt"
    if not path.is_file():
        raise UserError(f"{path}: no such file; it names the sequences of GOT-10k's {split}, one folder a line")
    problems: list[str] = []
    names = [name for _, text in read_lines(path, problems) for name in text.split()]
    raise_problems(problems)
    if not names:
        raise UserError(f"{path}: names no sequence; one folder of {folder} belongs on each line")
    return _collect(Path(root), "got10k", (partial(_read_got10k, folder, name, split) for name in dict.fromkeys(names)))


def _read_got10k(root: Path, name: str, split: Got10kSplit) -> Sequence:
    if is_outside(name):
        raise UserError(f"{root / 'list.txt'}: {name!r} leads out of {root}; name a folder below it")
    folder = root / name
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder, but list.txt names it")
    files, path = _images_in(folder), folder / "groundtruth.txt"
    boxes = read_rows(path, 4)
    only_first = split == "test" and len(boxes) == 1
    _check_boxes(path, 1 if only_first else len(files), boxes)
    cover = _read_labels(folder / "cover.label", len(files), MAX_COVER)
    absent = _read_labels(folder / "absence.label", len(files), 1)
    return Sequence(folder.name, folder, files, boxes, cover, None if absent is None else absent.astype(np.bool_))


def _read_labels(path: Path, num_images: int, highest: int) -> npt.NDArray[np.int64] | None:
    if not path.exists():
        return None
    labels = read_rows(path, 1)[:, 0]
    if len(labels) != num_images:
        raise UserError(f"{path}: {len(labels)} labels for {num_images} images; each image needs one")
    if not np.isin(labels, range(highest + 1)).all():
        raise UserError(f"{path}: holds other labels than the whole numbers from 0 to {highest}; fix it")
    return labels.astype(np.int64)
