"""Labeled videos to evaluate on: files in folders of classes, and the lists of UCF101 or HMDB51; none is opened."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from cyclecontrast.data.labels.action_lists import ListedVideo, read_action_lists
from cyclecontrast.data.labels.split import Numbers
from cyclecontrast.data.labels.text_lines import raise_problems
from cyclecontrast.errors import UserError

FOLDERS = ("videos", "UCF-101", "hmdb51_org", ".")
KINDS = ("train", "test")


@dataclass(frozen=True)
class VideoSplit:
    """Videos of one split: posix paths relative to the root, and labels (num_videos,)."""

    root: Path
    paths: tuple[str, ...]
    labels: Numbers

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, number: int) -> Path:
        """Return the file of a video."""
        return self.root / self.paths[number]


@dataclass(frozen=True)
class LabeledVideos:
    """What a protocol on videos is trained and tested on; labels index `classes`.

    `problems` has a line for each line of a list that is damaged and each listed video that is not there; neither is
    in a split. `notes` says where the lists contradict themselves.
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
        classes, listed, damaged, notes = read_action_lists(root, split)
        folder = next(name for name in FOLDERS if (root / name).is_dir())
        problems = list(damaged)
        once = list(_once(listed, problems))
        there = [video for video in once if _is_there(root / folder, video, problems)]
        _check(root / folder, classes, once, there, problems)
        splits = {kind: _split(root, folder, classes, [v for v in there if v.split == kind]) for kind in KINDS}
        return LabeledVideos(root, classes, splits["train"], splits["test"], tuple(problems), notes)

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: classes, and each video's path, size in bytes and label; 16 hex digits."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for split in (self.train, self.test):
            digest.update("\n".join((*split.paths, *map(str, _file_sizes(split)))).encode())
            digest.update(split.labels.tobytes())
        return digest.hexdigest()[:16]


def _file_sizes(split: VideoSplit) -> list[int]:
    try:
        return [os.stat(split.path(number)).st_size for number in range(len(split))]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


def _once(listed: Sequence[ListedVideo], problems: list[str]) -> Iterator[ListedVideo]:
    first: dict[tuple[str, str], ListedVideo] = {}
    both: list[str] = []
    for video in listed:
        before = first.setdefault((video.folder, video.name), video)
        if before is video:
            yield video
        elif before.split == video.split:
            problems.append(f"{video.where}: {video.name} is listed before, in {before.where}; counted once")
        else:
            both.append(
                f"{video.where}: {video.name} is listed in {before.where} too; no video may be in train and in test"
            )
    raise_problems(both)


def _is_there(folder: Path, video: ListedVideo, problems: list[str]) -> bool:
    path = folder / video.folder / video.name
    is_there = os.path.isfile(path)  # a path's own method fails where the name is too long
    if not is_there:
        problems.append(f"{path}: no such video; listed in {video.where}, left out")
    return is_there


def _check(
    folder: Path,
    classes: Sequence[str],
    listed: Sequence[ListedVideo],
    there: Sequence[ListedVideo],
    problems: Sequence[str],
) -> None:
    if not there:
        raise UserError(f"{folder}: holds none of the {len(listed):,} listed videos", *problems[:3])
    trained = {video.folder for video in there if video.split == "train"}
    raise_problems(
        [
            f"{folder / name}: " + ("no videos to train on" if os.path.isdir(folder / name) else "no such folder")
            + f"; expected those of class {name} that the train list names"
            for name in classes
            if name not in trained
        ]
    )  # fmt: skip
    if not any(video.split == "test" for video in there):
        raise UserError(f"{folder}: holds no video of the test list", *problems[:3])


def _split(root: Path, folder: str, classes: Sequence[str], videos: Sequence[ListedVideo]) -> VideoSplit:
    numbers = {name: number for number, name in enumerate(classes)}
    paths = tuple(PurePosixPath(folder, video.folder, video.name).as_posix() for video in videos)
    return VideoSplit(root, paths, np.array([numbers[video.folder] for video in videos], np.int64))
