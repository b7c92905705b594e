"""Labeled videos for evaluation: files in class folders, with the split lists of UCF101 or HMDB51. No video is opened.

UCF101 comes with classInd.txt, trainlist0N.txt and testlist0N.txt, HMDB51 with <class>_test_splitN.txt.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.storage import file_size, parse_digits, raise_problems, read_lines
from cyclecontrast.errors import UserError, some

VIDEO_FOLDERS = ("videos", "UCF-101", "hmdb51_org", ".")
UCF_FOLDERS = ("annotations", "ucfTrainTestlist", ".")
UCF_FILES = ("classInd.txt", "trainlist[0-9][0-9].txt", "testlist[0-9][0-9].txt")
NUMBERED = re.compile(r"(.*\S)\s+(\d+)")
WITH_COMMA = re.compile(r",\s*\d*$")
"""A number after a comma, where the lists have a space."""
HMDB_FOLDERS = ("testTrainMulti_7030_splits", "annotations", ".")
HMDB_FILES = "*_test_split[0-9]*.txt"
HMDB_NAME = re.compile(r"(.+)_test_split([0-9]+)\.txt")
HMDB_SPLITS = {"0": "unused", "1": "train", "2": "test"}
EXPECTED = "classInd.txt, trainlist01.txt and testlist01.txt (UCF101) or <class>_test_split1.txt (HMDB51)"


@dataclass(frozen=True)
class VideoSplit:
    """Videos of one split: posix paths relative to the root, and labels (num_videos,)."""

    root: Path
    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def files(self) -> Iterator[str]:
        """Yield the path of each video."""
        return (f"{self.root}/{path}" for path in self.paths)

    def path(self, number: int) -> Path:
        """Return the file of a video."""
        return self.root / self.paths[number]


@dataclass(frozen=True)
class LabeledVideos:
    """Videos to train and test on; labels index `classes`.

    `problems` has a line for each damaged line of a list and each listed video that is not there; neither is in a
    split. `notes` lists contradictions in the lists.
    """

    root: Path
    classes: tuple[str, ...]
    train: VideoSplit
    test: VideoSplit
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @staticmethod
    def open(root: Path, split: int = 1) -> "LabeledVideos":
        """Read the lists of this split; raises UserError where a list is missing or a class has nothing to train on."""
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; expected one with videos/<class> and lists in annotations/")
        problems: list[str] = []
        classes, listed, notes = _read_lists(root, split, problems)
        not_understood = some(problems)  # the likeliest reason why videos are missing
        folder = next(name for name in VIDEO_FOLDERS if (root / name).is_dir())
        videos = []
        for video in (once := list(_without_repeats(listed, problems))):
            path = root / folder / video.folder / video.name
            if os.path.isfile(path):
                videos.append(video)
            else:
                problems.append(f"{path}: no such video; listed in {video.where}, left out")
        if not videos:
            raise UserError(f"{root / folder}: holds none of the {len(once):,} listed videos", *some(problems))
        trained = {video.folder for video in videos if video.split == "train"}
        untrained = [
            f"{root / folder / name}: no videos to train on; expected those that the train list names"
            for name in classes
            if name not in trained
        ]
        raise_problems([*not_understood, *untrained] if untrained else [])
        splits = []
        for kind in ("train", "test"):
            chosen = [video for video in videos if video.split == kind]
            if not chosen:
                raise UserError(f"{root / folder}: holds no video of the {kind} list", *some(problems))
            paths = tuple(PurePosixPath(folder, video.folder, video.name).as_posix() for video in chosen)
            labels = np.array([classes.index(video.folder) for video in chosen], np.int64)
            splits.append(VideoSplit(root, paths, labels))
        return LabeledVideos(root, classes, splits[0], splits[1], tuple(problems), notes)

    @cached_property
    def fingerprint(self) -> str:
        """Identifier of the content: classes, and each video's path, size in bytes and label; 16 hex digits."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for split in (self.train, self.test):
            sizes = [file_size(split.root / path) for path in split.paths]
            digest.update("\n".join((*split.paths, *map(str, sizes))).encode())
            digest.update(split.labels.tobytes())
        return digest.hexdigest()[:16]


class _ListedVideo(NamedTuple):
    """A video as a list names it; `folder` is its class, `split` train or test."""

    where: str
    split: str
    folder: str
    name: str


def _without_repeats(listed: Sequence[_ListedVideo], problems: list[str]) -> Iterator[_ListedVideo]:
    """Yield each video once; raises UserError for videos that are in train and in test."""
    first: dict[tuple[str, str], _ListedVideo] = {}
    in_both: list[str] = []
    for video in listed:
        before = first.setdefault((video.folder, video.name), video)
        if before is video:
            yield video
        elif before.split == video.split:
            problems.append(f"{video.where}: {video.name} is listed before, in {before.where}; counted once")
        else:
            in_both.append(
                f"{video.where}: {video.name} is also listed in {before.where}; a video must not be in both train "
                f"and test"
            )
    raise_problems(in_both)


# --- the lists

Lists = tuple[tuple[str, ...], list[_ListedVideo], tuple[str, ...]]
"""Classes in the order of their labels, listed videos, and notes on contradictions."""


def _read_lists(root: Path, split: int, problems: list[str]) -> Lists:
    """Read the lists of a split; lines that cannot be used are added to `problems`. Raises UserError."""
    for names, patterns, read in ((UCF_FOLDERS, UCF_FILES, _read_ucf), (HMDB_FOLDERS, (HMDB_FILES,), _read_hmdb)):
        for folder in (root / name for name in names):
            if any(any(folder.glob(pattern)) for pattern in patterns):
                return read(folder, split, problems)
    raise UserError(f"{root}: holds no lists of videos; expected {EXPECTED} in {root / 'annotations'}")


def _read_ucf(folder: Path, split: int, problems: list[str]) -> Lists:
    index = folder / "classInd.txt"
    lists = {kind: folder / f"{kind}list{split:02d}.txt" for kind in ("train", "test")}
    found = ", ".join(sorted(path.name for pattern in UCF_FILES for path in folder.glob(pattern)))
    raise_problems(
        [f"{path}: no such file; there is {found}" for path in (index, *lists.values()) if not path.exists()]
    )
    classes = _ucf_classes(index)
    videos: list[_ListedVideo] = []
    contradictions = []
    for kind, path in lists.items():
        for where, text in read_lines(path, problems, "backslashreplace"):
            # The folder determines the class; the file name may differ, and the number after it is often wrong.
            numbered = NUMBERED.fullmatch(text)
            parent, _, name = (numbered[1] if numbered else text).rpartition("/")
            if parent not in classes or not name or WITH_COMMA.search(name):
                problems.append(f"{where}: {text!r} is not <class>/<video> with a class of {index.name}; left out")
                continue
            videos.append(_ListedVideo(where, kind, parent, name))
            number = classes.index(parent) + 1
            if numbered and parse_digits(numbered[2]) != number:
                contradictions.append(f"{where}: {text!r}, but {index.name} has {number} {parent}")
    if not contradictions:
        return classes, videos, ()
    note = f"lines whose number is not that of their folder, which counts: {len(contradictions)}; {contradictions[0]}"
    return classes, videos, (note,)


def _ucf_classes(path: Path) -> tuple[str, ...]:
    problems: list[str] = []
    names: list[str] = []
    for where, text in read_lines(path, problems, "backslashreplace"):
        number, name = (*text.split(maxsplit=1), "")[:2]
        names.append(name)
        if number != str(len(names)) or not name or "/" in name or name == ".." or name in names[:-1]:
            problems.append(f"{where}: {text!r} is not `{len(names)} <class>` with a new name")
    if not names:
        problems.append(f"{path}: names no class; expected `1 ApplyEyeMakeup` and so on, a line each")
    raise_problems(problems)
    return tuple(names)


def _read_hmdb(folder: Path, split: int, problems: list[str]) -> Lists:
    found = [match for path in folder.glob(HMDB_FILES) if (match := HMDB_NAME.fullmatch(path.name))]
    classes = tuple(sorted({match[1] for match in found}))
    splits = ", ".join(sorted({match[2] for match in found}))
    lists = {name: folder / f"{name}_test_split{split}.txt" for name in classes}
    raise_problems([f"{path}: no such file; there are splits {splits}" for path in lists.values() if not path.exists()])
    videos: list[_ListedVideo] = []
    for label, path in lists.items():
        for where, text in read_lines(path, problems, "backslashreplace"):
            name, number = ("", *text.rsplit(maxsplit=1))[-2:]
            kind = HMDB_SPLITS.get(number)
            if kind is None or not name or "/" in name:
                problems.append(f"{where}: {text!r} is not `<video> 0` (unused), 1 (train) or 2 (test); left out")
            elif kind != "unused":
                videos.append(_ListedVideo(where, kind, label, name))
    return classes, videos, ()
