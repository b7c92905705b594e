"""Labeled images to evaluate on: which file, which class, which video; pixels are decoded only when asked for.

Two layouts: folders of classes (`train/<class>`, `val/<class>`), and a frame tree with lists of labeled videos
(`train.txt`, `test.txt`). Columns are arrays, so that ImageNet costs megabytes.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.frames import IMAGE_SUFFIXES, Pixels, decode_image, natural_order
from cyclecontrast.errors import UserError

MAX_LISTED = 10

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images of one split: labels and video numbers are (num_images,); images of a video lie side by side."""

    root: Path
    names: pa.LargeStringArray
    labels: Numbers
    videos: Numbers
    video_ids: pa.LargeStringArray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_videos(self) -> int:
        """Number of videos; in folders of classes each image is its own."""
        return len(self.video_ids)

    @cached_property
    def video_labels(self) -> Numbers:
        """Label of each video (num_videos,)."""
        labels = np.zeros(self.num_videos, np.int64)
        labels[self.videos] = self.labels
        return labels

    def image(self, position: int) -> Pixels:
        """Return the decoded image, RGB (height, width, 3); raises UserError naming the file."""
        path = self.root / str(self.names[position])
        try:
            return decode_image(path.read_bytes())
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; mend or remove it") from error


@dataclass(frozen=True)
class LabeledImages:
    """What a classification protocol is trained and tested on; labels index `classes`."""

    root: Path
    classes: tuple[str, ...]
    train: Split
    test: Split

    @staticmethod
    def open(path: str | Path) -> "LabeledImages":
        """Read train/<class> and val/<class>, or train.txt and test.txt; raises UserError with all that is wrong."""
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; name one with train/<class> and val/<class>, or a frame tree")
        if (root / "train.txt").exists() or (root / "test.txt").exists():
            return _open_lists(root)
        if (root / "train").is_dir() or (root / "val").is_dir():
            return _open_folders(root)
        raise UserError(
            f"{root}: holds neither train/<class> and val/<class> nor train.txt and test.txt "
            "(lines `<video folder> <label>`)"
        )

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: classes, and each image's path, size in bytes, label and video; 16 hex digits."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for split in (self.train, self.test):
            digest.update("\n".join(split.names.to_pylist()).encode())
            digest.update(split.labels.tobytes() + split.videos.tobytes() + _file_sizes(split).tobytes())
        return digest.hexdigest()[:16]


def _file_sizes(split: Split) -> Numbers:
    try:
        return np.fromiter((os.stat(split.root / str(name)).st_size for name in split.names), np.int64, len(split))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


class _Video(NamedTuple):
    id: str
    label: int
    images: list[str]


def _split(root: Path, videos: Sequence[_Video]) -> Split:
    lengths = [len(video.images) for video in videos]
    names = pa.array((name for video in videos for name in video.images), pa.large_string())
    labels = np.repeat(np.array([video.label for video in videos], np.int64), lengths)
    numbers = np.repeat(np.arange(len(videos), dtype=np.int64), lengths)
    return Split(root, names, labels, numbers, pa.array((video.id for video in videos), pa.large_string()))


def _open_folders(root: Path) -> LabeledImages:
    absent = [split for split in ("train", "val") if not (root / split).is_dir()]
    if absent:
        raise UserError(f"{root / absent[0]}: no such folder; train/<class> and val/<class> belong together")
    train, val = (_classes(root / split) for split in ("train", "val"))
    problems = [
        f"{root / there}: class {name!r} is not in {root / other}; both need the same classes"
        for there, other, names in (("train", "val", train - val), ("val", "train", val - train))
        for name in sorted(names)
    ]
    if not train | val:
        problems.append(f"{root / 'train'}: holds no folders of classes")
    classes = tuple(sorted(train & val))
    splits = []
    for split in ("train", "val"):
        images = {name: list(_images_below(root, f"{split}/{name}")) for name in classes}
        problems += [f"{root / split / name}: holds no images" for name, found in images.items() if not found]
        splits.append(_split(root, [_Video(x, label, [x]) for label, c in enumerate(classes) for x in images[c]]))
    raise_problems(problems)
    return LabeledImages(root, classes, *splits)


def _classes(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def _images_below(root: Path, top: str) -> Iterator[str]:
    seen = set()
    for folder, subfolders, files in os.walk(root / top, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(filter(_is_visible, subfolders), key=natural_order)
        if real not in seen:
            relative = Path(folder).relative_to(root)
            yield from ((relative / name).as_posix() for name in _images_among(files))
        seen.add(real)


def _images_among(files: Sequence[str]) -> list[str]:
    images = (name for name in files if _is_visible(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES)
    return sorted(images, key=natural_order)


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


class _Line(NamedTuple):
    where: str
    video: str
    label: int


def _open_lists(root: Path) -> LabeledImages:
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
    labels = sorted(known)
    splits = [_split(root, list(_listed_videos(root, lines, labels, problems))) for lines in (train, test)]
    names = _class_names(root / "classes.txt", labels, problems)
    raise_problems(problems)
    return LabeledImages(root, names, *splits)


def _read_list(path: Path, problems: list[str]) -> list[_Line]:
    if not path.exists():
        problems.append(f"{path}: no such file; it lists the videos of this split, `<video folder> <label>` a line")
        return []
    lines = []
    for where, words in _words(path, problems):
        if len(words) == 2 and words[1].isascii() and words[1].isdigit():
            lines.append(_Line(where, PurePosixPath(words[0]).as_posix(), int(words[1])))
        else:
            problems.append(
                f"{where}: {' '.join(words)!r} is not `<video folder> <label>` with a whole number as label"
            )
    if not lines and not problems:
        problems.append(f"{path}: lists no video")
    return lines


def _words(path: Path, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield where each line that is not blank stands, and its text before and after the last white space."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read as UTF-8 text ({error})")
        return
    for number, line in zip(count(1), text.splitlines(), strict=False):
        if line.strip():
            yield f"{path}:{number}", line.strip().rsplit(maxsplit=1)


def _repeated(lines: Sequence[_Line]) -> Iterator[str]:
    first: dict[str, _Line] = {}
    for line in lines:
        before = first.setdefault(line.video, line)
        if before is not line:
            yield f"{line.where}: video {line.video!r} is listed before, in {before.where}; a video is listed once"


def _listed_videos(root: Path, lines: Sequence[_Line], labels: list[int], problems: list[str]) -> Iterator[_Video]:
    base = "frames" if (root / "frames").is_dir() else ""
    for line in lines:
        folder = PurePosixPath(base, line.video)
        if not (root / folder).is_dir():
            problems.append(f"{line.where}: {root / folder}: no such folder of frames")
            continue
        images = [(folder / name).as_posix() for name in _images_among(os.listdir(root / folder))]
        if not images:
            problems.append(f"{line.where}: {root / folder}: holds no images")
        elif line.label in labels:
            yield _Video(line.video, labels.index(line.label), images)


def _class_names(path: Path, labels: Sequence[int], problems: list[str]) -> tuple[str, ...]:
    """Return the names of the labels in use: of classes.txt, lines `<label> <name>`, or else the numbers."""
    names: dict[int, str] = {}
    if not path.exists():
        return tuple(str(label) for label in labels)
    for where, words in _words(path, problems):
        label, _, name = " ".join(words).partition(" ")
        if label.isascii() and label.isdigit() and name:
            names[int(label)] = name
        else:
            problems.append(f"{where}: {' '.join(words)!r} is not `<label> <name>`")
    problems += [f"{path}: names no class for label {label}" for label in labels if label not in names]
    return tuple(names.get(label, str(label)) for label in labels)


def raise_problems(problems: Sequence[str]) -> None:
    """Raise UserError where there are problems: the first few, and how many more there are."""
    if problems:
        more = len(problems) - MAX_LISTED
        raise UserError(*problems[:MAX_LISTED], *([f"... and {more} more"] if more > 0 else []))
