"""A frame tree with lists of its labeled videos: train.txt and test.txt, lines `<video folder> <label>`.

A file classes.txt, lines `<label> <name>`, may name the labels.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cyclecontrast.data.labels.class_list import ClassList
from cyclecontrast.data.labels.split import Contents, Video, images_among, make_split
from cyclecontrast.data.labels.text_lines import leads_out, raise_problems, read_lines, whole_number


class _Line(NamedTuple):
    where: str
    video: str
    label: int


def open_lists(root: Path, chosen: ClassList | None) -> Contents:
    """Read the videos of all labels, or of the classes chosen; raises UserError with all that is wrong."""
    problems: list[str] = []
    train, test = (_read_list(root / name, problems) for name in ("train.txt", "test.txt"))
    problems += _repeated([*train, *test])
    known = {line.label for line in train}
    unknown = {line.label: line for line in reversed(test) if line.label not in known}
    problems += [
        f"{line.where}: label {line.label} has no video in {root / 'train.txt'}; it cannot be learned"
        for line in unknown.values()
        if known
    ]
    names = _class_names(root / "classes.txt", sorted(known), problems)
    if chosen is not None:
        problems += chosen.absent(names.values(), root / "train.txt")
        names = {label: name for label, name in names.items() if name in chosen.where}
    splits = [make_split(root, list(_listed_videos(root, lines, list(names), problems))) for lines in (train, test)]
    raise_problems(problems)
    return Contents(tuple(names.values()), *splits)


def _read_list(path: Path, problems: list[str]) -> list[_Line]:
    if not path.exists():
        problems.append(f"{path}: no such file; it lists the videos of this split, `<video folder> <label>` a line")
        return []
    lines = []
    for where, text in read_lines(path, problems):
        video, *label = text.rsplit(maxsplit=1)
        number = whole_number("".join(label))
        if number is None:
            problems.append(f"{where}: {text!r} is not `<video folder> <label>` with a whole number as label")
        else:
            lines.append(_Line(where, PurePosixPath(video).as_posix(), number))
    if not lines and not problems:
        problems.append(f"{path}: lists no video")
    return lines


def _repeated(lines: Sequence[_Line]) -> Iterator[str]:
    first: dict[str, _Line] = {}
    for line in lines:
        before = first.setdefault(line.video, line)
        if before is not line:
            yield f"{line.where}: video {line.video!r} is listed before, in {before.where}; a video is listed once"


def _listed_videos(root: Path, lines: Sequence[_Line], labels: list[int], problems: list[str]) -> Iterator[Video]:
    base = "frames" if (root / "frames").is_dir() else ""
    for line in lines:
        folder = PurePosixPath(base, line.video)
        if leads_out(line.video):
            problems.append(f"{line.where}: {line.video!r} leads out of {root}; name a folder below it")
            continue
        if not os.path.isdir(root / folder):  # a path's own method fails where the name is too long
            problems.append(f"{line.where}: {root / folder}: no such folder of frames")
            continue
        images = [(folder / name).as_posix() for name in images_among(os.listdir(root / folder))]
        if not images:
            problems.append(f"{line.where}: {root / folder}: holds no images")
        elif line.label in labels:
            yield Video(line.video, labels.index(line.label), images)


def _class_names(path: Path, labels: Sequence[int], problems: list[str]) -> dict[int, str]:
    """Return the names of the labels in use: of classes.txt, lines `<label> <name>`, or else the numbers."""
    names: dict[int, str] = {}
    if not path.exists():
        return {label: str(label) for label in labels}
    for where, text in read_lines(path, problems):
        label, *name = text.split(maxsplit=1)
        number = whole_number(label)
        if number is None or not name:
            problems.append(f"{where}: {text!r} is not `<label> <name>`")
        else:
            names[number] = name[0]
    problems += [f"{path}: names no class for label {label}" for label in labels if label not in names]
    return {label: names.get(label, str(label)) for label in labels}
