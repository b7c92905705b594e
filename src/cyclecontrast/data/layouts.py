"""Find labeled datasets below a folder by the names of their files and folders."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cyclecontrast.data.folders import LeftOut, is_system_folder

MAX_DEPTH = 4

Kind = Literal["images", "videos", "otb", "got10k", "davis", "masks"]

MASKS = (
    ("JPEGImages", "SegmentationClass"),
    ("images/training", "annotations/training"),
    ("train/images", "train/masks"),
)
"""Folders of images and of their masks: of VOC, of ADE20K, and plain ones."""


class Layout(NamedTuple):
    """A data set's kind, and its root."""

    kind: Kind
    root: Path


def find_layouts(root: Path, depth: int = MAX_DEPTH, left_out: LeftOut | None = None) -> Iterator[Layout]:
    """Yield the data sets in a folder and its subfolders, in order of their paths.

    Folders inside a dataset are not searched. Those that cannot be listed are added to `left_out`.
    """
    left_out = left_out or LeftOut(root)
    folders = _subfolders(root, left_out)
    kinds = list(_kinds(root, folders, left_out))
    yield from (Layout(kind, root) for kind in kinds)
    if not kinds and depth:
        for folder in folders:
            yield from find_layouts(folder, depth - 1, left_out)


def _subfolders(folder: Path, left_out: LeftOut) -> list[Path]:
    names = [name for name in _listed(folder, left_out) if not name.startswith(".") and not is_system_folder(name)]
    return [folder / name for name in names if os.path.isdir(folder / name)]


def _listed(folder: Path, left_out: LeftOut) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        left_out.add_unlisted(folder, error)
        return []


def _kinds(root: Path, folders: Sequence[Path], left_out: LeftOut) -> Iterator[Kind]:
    def has(*names: str) -> bool:
        return any(os.path.exists(root / name) for name in names)

    if has("train/list.txt", "val/list.txt", "test/list.txt"):
        yield "got10k"
    elif has("JPEGImages/480p") and has("Annotations/480p"):
        yield "davis"
    elif any(has(images) and has(masks) for images, masks in MASKS):
        yield "masks"
    elif has("videos", "UCF-101") and has("annotations", "ucfTrainTestlist", "testTrainMulti_7030_splits"):
        yield "videos"
    elif (has("train.txt") and has("test.txt")) or (
        has("train") and has("val") and not _is_r2v2(root / "train", left_out)
    ):
        yield "images"
        if has("frames") and has("masks"):
            yield "masks"
    elif any(map(_is_otb, folders)):
        yield "otb"


def _is_otb(folder: Path) -> bool:
    return os.path.isdir(folder / "img") and any(folder.glob("groundtruth_rect*.txt"))


def _is_r2v2(folder: Path, left_out: LeftOut) -> bool:
    """Return whether folders are named after the first two letters of the ids of their videos, so are no classes."""
    first = next(iter(_subfolders(folder, left_out)), None)
    name = next(iter(_listed(first, left_out)), "") if first else ""
    return first is not None and re.fullmatch(rf"{re.escape(first.name)}[\w-]{{9}}_\d{{6}}\.jpg", name) is not None
