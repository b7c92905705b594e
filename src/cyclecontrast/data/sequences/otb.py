"""The layout of OTB-2015 with all that is odd about it: 98 folders are 100 sequences (protocols.md §a).

Names are those of the GOT-10k toolkit: Jogging.1, Jogging.2, Human4.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from cyclecontrast.data.labels.text_lines import read_text
from cyclecontrast.data.tracking_sequences import Sequence, Sequences, check_boxes, images_in, read_rows, usable
from cyclecontrast.errors import UserError

ANNOTATED = {
    "david": (300, 770),
    "football1": (1, 74),
    "freeman3": (1, 460),
    "freeman4": (1, 283),
    "diving": (1, 215),
}
"""First and last number of the images that have boxes, where a folder holds more of them."""
TIGER1_START = 6
"""Number of the image at which the authors' code begins Tiger1; the GOT-10k toolkit begins at 1."""


def open_otb(root: str | Path, *, official_tiger1: bool = False) -> Sequences:
    """Read all sequences below the root, in order of their names; raises UserError where there is none.

    Tiger1 has its 354 frames, or the 349 that the authors' code tracks.
    """
    folders = [path for path in sorted(Path(root).iterdir()) if path.is_dir() and _is_sequence(path)]
    if not folders:
        raise UserError(
            f"{root}: holds no sequences; an OTB root has <Sequence>/img and <Sequence>/groundtruth_rect.txt, "
            "a GOT-10k root has <split>/list.txt"
        )
    opened = usable(Path(root), "otb", (item for folder in folders for item in _read_folder(folder)))
    if not official_tiger1:
        return opened
    return dataclasses.replace(opened, sequences=tuple(map(from_official_start, opened.sequences)))


def from_official_start(sequence: Sequence) -> Sequence:
    """Return Tiger1 without its first five frames, any other sequence as it is."""
    first = next((at for at, name in enumerate(sequence.files) if _number(name) >= TIGER1_START), 0)
    if sequence.name.lower() != "tiger1" or first == 0:
        return sequence
    return dataclasses.replace(sequence, files=sequence.files[first:], boxes=sequence.boxes[first:])


def _is_sequence(folder: Path) -> bool:
    if folder.name.startswith("."):
        return False
    return any(folder.glob("groundtruth_rect*.txt")) or any((folder / name).is_dir() for name in ("img", "jpg"))


def _read_folder(folder: Path) -> Iterator[Sequence | UserError]:
    """Yield a sequence for each file of boxes that is not empty."""
    paths = sorted(folder.glob("groundtruth_rect*.txt"))
    filled = [path for path in paths if not _is_empty(path)]
    numbered = [path for path in filled if path.name != "groundtruth_rect.txt"]
    targets = numbered if len(numbered) > 1 else filled[:1]
    if not targets:
        what = "is empty" if paths else "no such file"
        yield UserError(f"{folder / 'groundtruth_rect.txt'}: {what}; it has a line x,y,w,h for each image")
    for number, path in enumerate(targets, 1):
        try:
            yield _read(folder, path, f"{folder.name}.{number}" if len(targets) > 1 else folder.name)
        except UserError as error:
            yield error


def _is_empty(path: Path) -> bool:
    """Whether a file is blank; of one that cannot be read, its reading tells."""
    try:
        return not read_text(path, "replace").strip()
    except UserError:
        return False


def _read(folder: Path, path: Path, name: str) -> Sequence:
    images = next((folder / inside for inside in ("img", "jpg") if (folder / inside).is_dir()), folder / "img")
    files, boxes = images_in(images), read_rows(path, 4)
    if len(files) != len(boxes) and folder.name.lower() in ANNOTATED:
        first, last = ANNOTATED[folder.name.lower()]
        files = tuple(file for file in files if first <= _number(file) <= last)
    check_boxes(path, len(files), boxes)
    return Sequence(name, images, files, boxes)


def _number(name: str) -> int:
    digits = re.match(r"\d+", name)
    return int(digits[0]) if digits else 0
