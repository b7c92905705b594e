"""Folders of images read in place as videos: a tree of frames, the R2V2 layout, or a flat folder of images."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cyclecontrast.data.folder_walk import natural_order, walk
from cyclecontrast.data.frame_bytes import FoundFrames, ImageFiles
from cyclecontrast.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
R2V2_NAME = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{6}\.jpg")


class _Video(NamedTuple):
    id: str
    frames: list[str]


def open_images(root: Path) -> FoundFrames:
    """List the images below a folder by video; raises UserError.

    Links are followed, wherever they lead. Pipes and devices are no images; what a link leads to is asked when the
    frame is read.
    """
    folders = list(_folders_of_images(root))
    flat = len(folders) == 1 and folders[0].id == "."
    if flat:
        videos = [_Video(name, [name]) for name in folders[0].frames]
    else:
        videos = [video for folder in folders if folder.id != "." for video in _videos_of(folder)]
    if not videos:
        raise UserError(
            f"{root}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and no store.json; "
            "videos must be prepared first: cyclecontrast prepare"
        )
    starts = np.cumsum([0, *(len(video.frames) for video in videos)], dtype=np.int64)
    layout = "flat folder of images" if flat else "tree of frames"
    try:
        names = pa.array([name for video in videos for name in video.frames], pa.large_string())
        ids = pa.array([video.id for video in videos], pa.string())
    except UnicodeEncodeError as error:
        raise UserError(f"{root}: the name {error.object!r} is not UTF-8; rename it") from error
    return FoundFrames(layout, ids, starts, ImageFiles(root, names))


def _folders_of_images(root: Path) -> Iterator[_Video]:
    for folder in walk(root, _refuse):
        relative = folder.path.relative_to(root)
        images = [entry.name for entry in folder.entries if _may_be_image(entry)]
        if images:
            images.sort(key=natural_order)
            yield _Video(relative.as_posix(), [(relative / name).as_posix() for name in images])


def _may_be_image(entry: os.DirEntry[str]) -> bool:
    is_image = os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
    return is_image and (entry.is_symlink() or entry.is_file(follow_symlinks=False))


def _refuse(folder: Path, error: OSError) -> None:
    raise UserError(f"{folder}: cannot be listed ({error.strerror}); mend it or take it away") from error


def _videos_of(folder: _Video) -> list[_Video]:
    parent, _, prefix = f"/{folder.id}".rpartition("/")
    videos: dict[str, list[str]] = {}
    for path in folder.frames:
        name = path.rpartition("/")[2]
        # A file system that ignores case keeps AB and ab in one folder.
        in_r2v2 = R2V2_NAME.fullmatch(name) and name[:2].lower() == prefix.lower()
        videos.setdefault(f"{parent}/{name[:11]}"[1:] if in_r2v2 else folder.id, []).append(path)
    return [_Video(video_id, frames) for video_id, frames in videos.items()]
