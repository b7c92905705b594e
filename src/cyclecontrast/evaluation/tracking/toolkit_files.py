"""Files of boxes as the GOT-10k toolkit writes them: reads those of other trackers, writes ours.

OTB: <tracker>/<sequence>.txt; GOT-10k: <tracker>/<sequence>/<sequence>_001.txt; a line x,y,w,h for each frame.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cyclecontrast.data.tracking_sequences import read_rows
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Floats
from cyclecontrast.evaluation.tracking.scores import Tracked

ONE_OF_TWO = "human4.2"
"""Human4, in lists that count its empty file of boxes as a first target."""
REPETITION = "_001"
MAX_NAMED = 3


def trackers_in(folder: Path) -> list[Path]:
    """Return the folders of trackers; raises UserError where there are none."""
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise UserError(f"others: {folder}: holds no folders of trackers; name one that holds <tracker>/<sequence>.txt")
    return found


def read_results(
    folder: Path, lengths: Mapping[str, int], skipped: Mapping[str, int]
) -> tuple[dict[str, Floats], list[str]]:
    """Read a tracker's boxes (num_frames, 4) for the sequences of these lengths; returns a line for each problem too.

    A file may begin `skipped` frames before the sequence: its first rows are then ignored.
    """
    paths = {same_name(path.stem.removesuffix(REPETITION)): path for path in _files(folder)}
    boxes: dict[str, Floats] = {}
    problems: list[str] = []
    missing = []
    for name, length in lengths.items():
        path = paths.get(same_name(name))
        if path is None:
            missing.append(name)
            continue
        try:
            boxes[name] = _read(path, length, skipped.get(name, 0))
        except UserError as error:
            problems += error.problems
    if missing:
        named = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        problems.append(f"{folder}: has no file for {len(missing)} of {len(lengths)} sequences ({named})")
    return boxes, problems


def same_name(name: str) -> str:
    """Return one name for all spellings of a sequence: Jogging.1, Jogging-1, jogging_1; Human4, Human4-2."""
    name = re.sub(r"[-_](\d)$", r".\1", name.lower())
    return name.partition(".")[0] if name == ONE_OF_TWO else name


def zip_results(tracked: Mapping[str, Tracked], layout: str) -> bytes:
    """Return a zip archive of all boxes in the toolkit's layout; that of GOT-10k is what its server takes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, item in tracked.items():
            for path, text in _files_of(name, item, layout):
                archive.writestr(zipfile.ZipInfo(path), text, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob(f"*/*{REPETITION}.txt"))
    yield from sorted(folder.glob("*.txt"))


def _read(path: Path, length: int, skipped: int) -> Floats:
    boxes = read_rows(path, 4)
    if len(boxes) == length + skipped:
        return boxes[skipped:]
    if len(boxes) != length:
        raise UserError(f"{path}: {len(boxes)} boxes, expected {length}, one for each frame")
    return boxes


def _files_of(name: str, item: Tracked, layout: str) -> Iterator[tuple[str, str]]:
    boxes = "".join(f"{','.join(f'{number:.3f}' for number in box)}\n" for box in item.predicted.tolist())
    if layout == "otb":
        yield f"{name}.txt", boxes
    else:
        yield f"{name}/{name}{REPETITION}.txt", boxes
        yield f"{name}/{name}_time.txt", "".join(f"{seconds:.8f}\n" for seconds in item.seconds.tolist())
