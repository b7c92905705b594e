"""Labeled images for evaluation: file, class and video of each image.

Three layouts: folders of classes (`train/<class>`, `val/<class>`), the same with ImageNet's flat `val`, and a frame
tree with lists of labeled videos or images (`train.txt`, `test.txt`). Names and labels are stored as arrays, so
ImageNet takes a few MB of memory; images are decoded on access.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.folders import LeftOut, images_below, is_image, is_system_folder, natural_order
from cyclecontrast.data.images import Pixels, load_image
from cyclecontrast.data.storage import file_size, is_outside, parse_digits, raise_problems, read_lines, short_reason
from cyclecontrast.errors import UserError

Numbers = npt.NDArray[np.int64]
Where: TypeAlias = dict[str, str]
"""Classes to use, and where each is listed."""

Video: TypeAlias = tuple[str, int, list[str]]
"""Id, label and images, as paths below the root; a single image is a video, too."""

FLAT_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
LINES = "`<video folder> <label>` or `<image>,<label>`"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Split:
    """Images of one split: labels and video numbers are (num_images,); images of a video are adjacent."""

    root: Path
    names: pa.LargeStringArray
    labels: Numbers
    videos: Numbers
    video_ids: pa.LargeStringArray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_videos(self) -> int:
        """Number of videos; in folders of classes each image is its own video."""
        return len(self.video_ids)

    def files(self) -> Iterator[str]:
        """Yield the path of each image."""
        return (f"{self.root}/{name}" for name in self.names.to_pylist())

    @cached_property
    def video_labels(self) -> Numbers:
        """Label of each video (num_videos,)."""
        labels = np.zeros(self.num_videos, np.int64)
        labels[self.videos] = self.labels
        return labels

    def image(self, position: int) -> Pixels:
        """Return the decoded image, RGB (height, width, 3); raises UserError naming the file."""
        return load_image(self.root / str(self.names[position]))


@dataclass(frozen=True)
class LabeledImages:
    """Images to train and test a classifier on; labels index `classes`, `notes` says what else lies there."""

    root: Path
    classes: tuple[str, ...]
    train: Split
    test: Split
    notes: tuple[str, ...] = ()

    @staticmethod
    def open(path: str | Path, classes: Path | None = None) -> "LabeledImages":
        """Open a dataset in any of the layouts. `classes` is a text file with the classes to use (None: all).

        Raises UserError with all that is wrong.
        """
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; name one with train/<class> and val/<class>, or a frame tree")
        chosen = None if classes is None else _read_class_list(classes)
        if (root / "train.txt").exists() or (root / "test.txt").exists():
            return _open_lists(root, chosen)
        if (root / "train").is_dir() or (root / "val").is_dir():
            return _open_folders(root, chosen)
        raise UserError(
            f"{root}: holds neither train/<class> and val/<class> nor train.txt and test.txt (lines {LINES})"
        )

    @cached_property
    def fingerprint(self) -> str:
        """Identifier of the content: classes, and each image's path, size in bytes, label and video; 16 hex digits."""
        return fingerprint_of(self.classes, self.train, self.test)


def fingerprint_of(classes: Sequence[str], *splits: Split) -> str:
    """Return an identifier of classes, and of each image's path, size in bytes, label and video; 16 hex digits."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for split in splits:
        names = split.names.to_pylist()
        sizes = np.array([file_size(split.root / name) for name in names], np.int64)
        digest.update("\n".join(names).encode())
        digest.update(split.labels.tobytes() + split.videos.tobytes() + sizes.tobytes())
    return digest.hexdigest()[:16]


def make_split(root: Path, videos: Sequence[Video]) -> Split:
    """Return the images of these videos as arrays; raises UserError if a name is not UTF-8."""
    lengths = [len(images) for _, _, images in videos]
    labels = np.repeat(np.array([label for _, label, _ in videos], np.int64), lengths)
    numbers = np.repeat(np.arange(len(videos), dtype=np.int64), lengths)
    try:
        names = pa.array((name for _, _, images in videos for name in images), pa.large_string())
        ids = pa.array((video_id for video_id, _, _ in videos), pa.large_string())
    except UnicodeEncodeError as error:
        raise UserError(f"{root}: the name {error.object!r} is not UTF-8; rename it") from error
    return Split(root, names, labels, numbers, ids)


def _read_class_list(path: Path) -> Where:
    """Return the classes of a list file (one name per line, as for ImageNet-100), with the place of each.

    Order is ignored.
    """
    problems: list[str] = []
    where: Where = {}
    for place, name in read_lines(path, problems):
        if name in where:
            problems.append(f"{place}: class {name!r} is listed before, in {where[name]}")
        where.setdefault(name, place)
    if not where and not problems:
        problems.append(f"{path}: lists no class; it takes one name a line, as the folders of classes are named")
    raise_problems(problems)
    return where


def _not_found(chosen: Where, found: Collection[str], place: Path) -> list[str]:
    return [
        f"{where}: class {name!r} is not in {place}; add it there, or leave it out of the list"
        for name, where in chosen.items()
        if name not in found
    ]


# --- folders of classes


def _open_folders(root: Path, chosen: Where | None) -> LabeledImages:
    """Read train/<class> and val/<class>; labels are indices into the sorted class names."""
    if absent := [split for split in ("train", "val") if not (root / split).is_dir()]:
        raise UserError(f"{root / absent[0]}: no such folder; train/<class> and val/<class> belong together")
    problems: list[str] = []
    is_flat = any(FLAT_IMAGE.fullmatch(path.name) for path in (root / "val").iterdir())
    flat = _read_flat(root, problems) if is_flat else {}
    raise_problems(problems)
    train, val = class_folders(root / "train"), set(flat) if is_flat else class_folders(root / "val")
    if chosen is None:
        problems += _mismatched(root, train, val)
    else:
        problems += [*_not_found(chosen, train, root / "train"), *_not_found(chosen, val, root / "val")]
    classes = tuple(sorted(train & val if chosen is None else train & val & chosen.keys()))
    splits, left_out = [], LeftOut(root)
    for split in ("train", "val"):
        videos = []
        for label, name in enumerate(classes):
            found = flat[name] if is_flat and split == "val" else list(images_below(root, f"{split}/{name}", left_out))
            videos += [(image, label, [image]) for image in found]
            if not found:
                problems.append(f"{root / split / name}: {_why_empty(root / split / name)}")
        splits.append(make_split(root, videos))
    raise_problems(problems)
    return LabeledImages(root, classes, splits[0], splits[1], left_out.notes)


def _why_empty(folder: Path) -> str:
    try:
        os.listdir(folder)
    except OSError as error:
        return f"cannot be listed ({short_reason(error)})"
    return "holds no images"


def class_folders(folder: Path) -> set[str]:
    """Return the names of the folders in a folder, without hidden ones and those of the system."""
    names = (name for name in os.listdir(folder) if not name.startswith(".") and not is_system_folder(name))
    return {name for name in names if os.path.isdir(folder / name)}


def _mismatched(root: Path, train: set[str], val: set[str]) -> list[str]:
    problems = [
        f"{root / one}: class {name!r} is not in {root / other}; both need the same classes, "
        "or name those to use with --classes FILE"
        for one, other, names in (("train", "val", train - val), ("val", "train", val - train))
        for name in sorted(names)
    ]
    return problems if train | val else [f"{root / 'train'}: holds no folders of classes"]


# --- ImageNet's validation images as they are unpacked: one flat folder


def _read_flat(root: Path, problems: list[str]) -> dict[str, list[str]]:
    """Return the images of <root>/val by class, as paths below the root; mistakes are added to `problems`.

    Line i of the ground truth is the ILSVRC2012 id of image i; imagenet_synsets.txt has the WordNet id of each id.
    """
    matches = (FLAT_IMAGE.fullmatch(path.name) for path in (root / "val").iterdir())
    images = {int(match[1]): match[0] for match in matches if match}
    folders = [root / "val", root, *sorted(path / "data" for path in root.glob("*devkit*"))]
    truth = next((folder / GROUND_TRUTH for folder in folders if (folder / GROUND_TRUTH).exists()), None)
    if truth is None:
        problems.append(
            f"{root / 'val' / GROUND_TRUTH}: no such file; images in one flat folder need it, there, in {root} or in "
            "devkit/data"
        )
        return {}
    synsets = imagenet_synsets()
    labels = []
    for where, text in read_lines(truth, problems):
        number = parse_digits(text) or 0
        if 1 <= number <= len(synsets):
            labels.append(synsets[number - 1])
        else:
            problems.append(f"{where}: {text!r} is not the number of a class, 1 to {len(synsets):,}")
            labels.append("")
    if len(labels) != len(images):
        problems.append(
            f"{truth}: has {len(labels):,} lines for the {len(images):,} images of {root / 'val'}; "
            "unpack all of them again"
        )
    if gaps := sorted(set(range(1, len(images) + 1)) - images.keys()):
        problems.append(f"{root / 'val'}: image number {gaps[0]} of {len(images):,} is missing; unpack it again")
    by_class: dict[str, list[str]] = {wnid: [] for wnid in labels}
    for number, wnid in enumerate(labels, 1):
        if number in images:
            by_class[wnid].append(f"val/{images[number]}")
    return by_class


@cache
def imagenet_synsets() -> list[str]:
    """Return the WordNet ids of ImageNet's 1,000 classes in the order of their ILSVRC2012 ids, which begin at 1."""
    return files("cyclecontrast.data").joinpath("imagenet_synsets.txt").read_text().split()


# --- a frame tree with lists of its labeled videos


ListedVideo: TypeAlias = tuple[str, str, int]
"""Where a video is listed, its folder, and its label."""


def _open_lists(root: Path, chosen: Where | None) -> LabeledImages:
    """Read train.txt and test.txt, and the names of labels in classes.txt."""
    problems: list[str] = []
    train, test = (_read_list(root / name, problems) for name in ("train.txt", "test.txt"))
    first: dict[str, str] = {}
    for where, video, _ in (*train, *test):
        if video in first:
            problems.append(f"{where}: video {video!r} is listed before, in {first[video]}; a video is listed once")
        first.setdefault(video, where)
    known = {label for _, _, label in train}
    unknown = {label: where for where, _, label in reversed(test) if known and label not in known}
    problems += [
        f"{where}: label {label} has no video in {root / 'train.txt'}; it cannot be learned"
        for label, where in unknown.items()
    ]
    names = _class_names(root / "classes.txt", sorted(known), problems)
    if chosen is not None:
        problems += _not_found(chosen, names.values(), root / "train.txt")
        names = {label: name for label, name in names.items() if name in chosen}
    splits = [make_split(root, list(_listed(root, videos, list(names), problems))) for videos in (train, test)]
    raise_problems(problems)
    return LabeledImages(root, tuple(names.values()), splits[0], splits[1])


def _read_list(path: Path, problems: list[str]) -> list[ListedVideo]:
    if not path.exists():
        problems.append(f"{path}: no such file; it lists the videos or images of this split, {LINES} a line")
        return []
    videos = []
    for where, text in read_lines(path, problems):
        video, _, label = text.rpartition(",")
        if not video or parse_digits(label.strip()) is None:
            video, *rest = text.rsplit(maxsplit=1)
            label = "".join(rest)
        number = parse_digits(label.strip())
        if number is None:
            problems.append(f"{where}: {text!r} is not {LINES} with a whole number as label")
        else:
            videos.append((where, PurePosixPath(video.strip()).as_posix(), number))
    if not videos and not problems:
        problems.append(f"{path}: lists no video")
    return videos


def _listed(root: Path, videos: Sequence[ListedVideo], labels: list[int], problems: list[str]) -> Iterator[Video]:
    base = next((name for name in ("frames", "imgs") if (root / name).is_dir()), "")
    for where, video, label in videos:
        folder = PurePosixPath(base, video)
        if is_outside(video):
            problems.append(f"{where}: {video!r} leads out of {root}; name a folder below it")
            continue
        if is_image(video) and os.path.isfile(root / folder):
            if label in labels:
                yield video, labels.index(label), [folder.as_posix()]
            continue
        if not os.path.isdir(root / folder):
            problems.append(f"{where}: {root / folder}: no such folder of frames, and no such image")
            continue
        try:
            names = sorted(filter(is_image, os.listdir(root / folder)), key=natural_order)
        except OSError as error:
            problems.append(f"{where}: {root / folder}: {short_reason(error)}")
            continue
        if not names:
            problems.append(f"{where}: {root / folder}: holds no images")
        elif label in labels:
            yield video, labels.index(label), [(folder / name).as_posix() for name in names]


def _class_names(path: Path, labels: Sequence[int], problems: list[str]) -> dict[int, str]:
    """Return the names of the labels in use: of classes.txt, lines `<label> <name>`, or else the numbers."""
    names: dict[int, str] = {}
    if not path.exists():
        return {label: str(label) for label in labels}
    for where, text in read_lines(path, problems):
        label, *name = text.split(maxsplit=1)
        number = parse_digits(label)
        if number is None or not name:
            problems.append(f"{where}: {text!r} is not `<label> <name>`")
        else:
            names[number] = name[0]
    problems += [f"{path}: names no class for label {label}" for label in labels if label not in names]
    return {label: names.get(label, str(label)) for label in labels}
