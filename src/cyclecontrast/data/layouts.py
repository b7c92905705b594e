"""Find labeled datasets below a folder by the names of their files and folders."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

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


def find_layouts(root: Path, depth: int = MAX_DEPTH) -> Iterator[Layout]:
    """Yield the data sets in a folder and its subfolders, in order of their paths.

    Folders inside a dataset are not searched.
    """
    kinds = list(_kinds(root))
    yield from (Layout(kind, root) for kind in kinds)
    if not kinds and depth:
        for name in sorted(os.listdir(root)):
            if not name.startswith(".") and (root / name).is_dir():
                yield from find_layouts(root / name, depth - 1)


def _kinds(root: Path) -> Iterator[Kind]:
    def has(*names: str) -> bool:
        return any((root / name).exists() for name in names)

    if has("train/list.txt", "val/list.txt", "test/list.txt"):
        yield "got10k"
    elif has("JPEGImages/480p") and has("Annotations/480p"):
        yield "davis"
    elif any(has(images) and has(masks) for images, masks in MASKS):
        yield "masks"
    elif has("videos", "UCF-101") and has("annotations", "ucfTrainTestlist", "testTrainMulti_7030_splits"):
        yield "videos"
    elif (has("train.txt") and has("test.txt")) or (has("train") and has("val") and not _is_r2v2(root / "train")):
        yield "images"
        if has("frames") and has("masks"):
            yield "masks"
    elif any((path / "img").is_dir() and any(path.glob("groundtruth_rect*.txt")) for path in root.iterdir()):
        yield "otb"


def _is_r2v2(folder: Path) -> bool:
    """Whether folders are named after the first two letters of the ids of their videos: these are not classes."""
    first = next((path for path in sorted(folder.iterdir()) if path.is_dir()), None)
    name = next((path.name for path in first.iterdir()), "") if first else ""
    return first is not None and re.fullmatch(rf"{re.escape(first.name)}[\w-]{{9}}_\d{{6}}\.jpg", name) is not None
