"""The lists that come with UCF101 and HMDB51: which videos are in which split, and of which class; no video is touched.

UCF101: classInd.txt, trainlist0N.txt and testlist0N.txt. HMDB51: <class>_test_splitN.txt.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.data.labels.text_lines import Line, raise_problems, read_text, short_ones, whole_number
from cyclecontrast.errors import UserError

UCF_FOLDERS = ("annotations", "ucfTrainTestlist", ".")
UCF_FILES = ("classInd.txt", "trainlist[0-9][0-9].txt", "testlist[0-9][0-9].txt")
NUMBERED = re.compile(r"(.*) (\d+)")
HMDB_FOLDERS = ("testTrainMulti_7030_splits", "annotations", ".")
HMDB_FILES = "*_test_split[0-9]*.txt"
HMDB_NAME = re.compile(r"(.+)_test_split([0-9]+)\.txt")
HMDB_SPLITS = {"0": "unused", "1": "train", "2": "test"}
EXPECTED = "classInd.txt, trainlist01.txt and testlist01.txt (UCF101) or <class>_test_split1.txt (HMDB51)"


class ListedVideo(NamedTuple):
    """A video as a list names it; `folder` is its class, `split` train or test."""

    where: str
    split: str
    folder: str
    name: str


class ActionLists(NamedTuple):
    """The classes in the order of their labels, the videos, and a line for each line that could not be used.

    `notes` says where the lists contradict themselves.
    """

    classes: tuple[str, ...]
    videos: tuple[ListedVideo, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_action_lists(root: Path, split: int) -> ActionLists:
    """Read the lists of this split; raises UserError, a line each, where one is missing or no classes are told."""
    ucf = _find(root, UCF_FOLDERS, UCF_FILES)
    if ucf is not None:
        return _read_ucf(ucf, split)
    hmdb = _find(root, HMDB_FOLDERS, (HMDB_FILES,))
    if hmdb is not None:
        return _read_hmdb(hmdb, split)
    raise UserError(f"{root}: holds no lists of videos; expected {EXPECTED} in {root / 'annotations'}")


def _find(root: Path, folders: Sequence[str], patterns: Sequence[str]) -> Path | None:
    """Return the first of these folders that holds one of the files."""
    return next((root / name for name in folders if any(any((root / name).glob(p)) for p in patterns)), None)


def _read_ucf(folder: Path, split: int) -> ActionLists:
    index = folder / "classInd.txt"
    lists = {kind: folder / f"{kind}list{split:02d}.txt" for kind in ("train", "test")}
    there = ", ".join(sorted(path.name for pattern in UCF_FILES for path in folder.glob(pattern)))
    raise_problems(
        [f"{path}: no such file; there is {there}" for path in (index, *lists.values()) if not path.exists()]
    )
    classes = _ucf_classes(index)
    videos: list[ListedVideo] = []
    problems: list[str] = []
    contradictions = []
    for kind, path in lists.items():
        for where, text in short_ones(_lines(path), problems):
            # What a video shows, its folder says; neither its name nor the number behind that is ever used.
            found = NUMBERED.fullmatch(text)
            parent, _, name = (found[1] if found else text).rpartition("/")
            if parent not in classes or not name:
                problems.append(f"{where}: {text!r} is not <class>/<video> with a class of {index.name}; left out")
                continue
            videos.append(ListedVideo(where, kind, parent, name))
            number = classes.index(parent) + 1
            if found and whole_number(found[2]) != number:
                contradictions.append(f"{where}: {text!r}, but {index.name} has {number} {parent}")
    return ActionLists(classes, tuple(videos), tuple(problems), _counted(contradictions))


def _counted(contradictions: Sequence[str]) -> tuple[str, ...]:
    """Return a note with the number of these lines and the first of them, where there are any."""
    if not contradictions:
        return ()
    return (
        f"lines whose number is not that of their folder, which counts: {len(contradictions)}; {contradictions[0]}",
    )


def _ucf_classes(path: Path) -> tuple[str, ...]:
    problems: list[str] = []
    names: list[str] = []
    for where, text in short_ones(_lines(path), problems):
        number, _, name = text.partition(" ")
        names.append(name)
        if number != str(len(names)) or not name or "/" in name or name == ".." or name in names[:-1]:
            problems.append(f"{where}: {text!r} is not `{len(names)} <class>` with a name of its own")
    if not names:
        problems.append(f"{path}: names no class; expected `1 ApplyEyeMakeup` and so on, a line each")
    raise_problems(problems)
    return tuple(names)


def _read_hmdb(folder: Path, split: int) -> ActionLists:
    found = [match for path in folder.glob(HMDB_FILES) if (match := HMDB_NAME.fullmatch(path.name))]
    classes = tuple(sorted({match[1] for match in found}))
    splits = ", ".join(sorted({match[2] for match in found}))
    lists = {name: folder / f"{name}_test_split{split}.txt" for name in classes}
    raise_problems([f"{path}: no such file; there are splits {splits}" for path in lists.values() if not path.exists()])
    videos: list[ListedVideo] = []
    problems: list[str] = []
    for label, path in lists.items():
        for where, text in short_ones(_lines(path), problems):
            name, _, number = text.rpartition(" ")
            kind = HMDB_SPLITS.get(number)
            if kind is None or not name or "/" in name:
                problems.append(f"{where}: {text!r} is not `<video> 0` (unused), 1 (train) or 2 (test); left out")
            elif kind != "unused":
                videos.append(ListedVideo(where, kind, label, name))
    return ActionLists(classes, tuple(videos), tuple(problems))


def _lines(path: Path) -> Iterator[Line]:
    """Yield the lines that are not blank, white space made single; bytes that are no text stay visible in theirs."""
    for number, line in enumerate(read_text(path, "backslashreplace").split("\n"), start=1):
        if line.strip():
            yield Line(f"{path}:{number}", " ".join(line.split()))
