"""Images with labels as columns, so that ImageNet costs megabytes; pixels are decoded only when asked for."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.folder_walk import natural_order
from cyclecontrast.data.image_folders import IMAGE_SUFFIXES
from cyclecontrast.data.images import Pixels, load_image
from cyclecontrast.errors import UserError

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
        return load_image(self.root / str(self.names[position]))

    def file_sizes(self) -> Numbers:
        """Return the bytes of each image's file (num_images,); raises UserError."""
        try:
            return np.fromiter((os.stat(self.root / str(name)).st_size for name in self.names), np.int64, len(self))
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from error


class Video(NamedTuple):
    """Images of one label, by their paths below the root; a single image is a video, too."""

    id: str
    label: int
    images: list[str]


class Contents(NamedTuple):
    """What a layout was read as; labels index `classes`."""

    classes: tuple[str, ...]
    train: Split
    test: Split


def make_split(root: Path, videos: Sequence[Video]) -> Split:
    """Turn videos into columns; raises UserError for a name that is not UTF-8."""
    lengths = [len(video.images) for video in videos]
    labels = np.repeat(np.array([video.label for video in videos], np.int64), lengths)
    numbers = np.repeat(np.arange(len(videos), dtype=np.int64), lengths)
    try:
        names = pa.array((name for video in videos for name in video.images), pa.large_string())
        ids = pa.array((video.id for video in videos), pa.large_string())
    except UnicodeEncodeError as error:
        raise UserError(f"{root}: the name {error.object!r} is not UTF-8; rename it") from error
    return Split(root, names, labels, numbers, ids)


def images_below(root: Path, top: str) -> Iterator[str]:
    """Yield the paths below `root` of all images in the folder `top` and its subfolders, links followed."""
    seen = set()
    for folder, subfolders, files in os.walk(root / top, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(filter(is_visible, subfolders), key=natural_order)
        if real not in seen:
            relative = Path(folder).relative_to(root)
            yield from ((relative / name).as_posix() for name in images_among(files))
        seen.add(real)


def images_among(files: Sequence[str]) -> list[str]:
    """Return the names that are images, frame_2 before frame_10."""
    images = (name for name in files if is_visible(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES)
    return sorted(images, key=natural_order)


def is_visible(name: str) -> bool:
    """Whether a file or folder is not hidden."""
    return not name.startswith(".")
