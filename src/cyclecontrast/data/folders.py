"""List the images and videos below a folder, in an order that does not depend on the file system."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.data.storage import is_passing, retried, short_reason

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".apng", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".ivf", ".m1v", ".m2ts"),
    *(".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m"),
)


class FoundVideo(NamedTuple):
    """A file with a video suffix; `reason` is why it cannot be read, "" if no problem is known."""

    id: str
    path: Path
    size_bytes: int
    reason: str


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which frame_2 comes before frame_10; no two names are equal."""
    parts = re.split(r"([0-9]+)", name)
    key = ((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part)
    return (*key, (-1, 0, name))


def is_image(name: str) -> bool:
    """Whether a visible file is named like an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def walk(root: Path, on_error: Callable[[Path, OSError], object]) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Yield each folder below `root` and its visible files, parents first, subfolders in natural order.

    Links are followed, but no folder is visited twice, so link cycles terminate. `on_error` is called
    for each folder that cannot be listed.
    """
    seen: set[str] = set()
    waiting = [(root, os.path.realpath(root))]
    while waiting:
        path, real = waiting.pop()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = [e for e in retried(partial(os.scandir, path)) if not e.name.startswith(".")]
        except OSError as error:
            if is_passing(error):
                raise
            on_error(path, error)
            continue
        # DirEntry.is_dir needs no look at the disk, but raises for a link that leads to itself.
        folders = [e for e in entries if (os.path.isdir(e) if e.is_symlink() else e.is_dir())]
        names = {entry.name for entry in folders}
        yield path, [entry for entry in entries if entry.name not in names]
        folders.sort(key=lambda entry: natural_order(entry.name), reverse=True)
        for folder in folders:
            # Only a link can lead elsewhere; resolving every folder would take most of the time in deep trees.
            inside = os.path.realpath(folder.path) if folder.is_symlink() else os.path.join(real, folder.name)
            waiting.append((path / folder.name, inside))


def images_below(root: Path, top: str = "") -> Iterator[str]:
    """Yield the images in the folder `top` and its subfolders as paths below `root`; none if `top` does not exist."""
    for folder, entries in walk(root / top, lambda *_: None):
        names = sorted((entry.name for entry in entries if is_image(entry.name)), key=natural_order)
        yield from ((folder.relative_to(root) / name).as_posix() for name in names)


def find_videos(root: Path) -> list[FoundVideo]:
    """Return all files below root that are named like videos, sorted by id: the posix path relative to root.

    Links are followed; names that begin with a dot are skipped. Raises OSError where root itself cannot be listed.
    """
    found: list[FoundVideo] = []

    def add(path: Path, size_bytes: int, reason: str) -> None:
        name = path.relative_to(root).as_posix()
        video_id = os.fsencode(name).decode("utf-8", "backslashreplace")
        if video_id != name and not reason:
            reason = "the name is not valid UTF-8"
        found.append(FoundVideo(video_id, path, size_bytes, reason))

    def note(folder: Path, error: OSError) -> None:
        if folder == root:
            raise error
        add(folder, 0, f"folder not readable: {short_reason(error)}")

    for _, entries in walk(root, note):
        for path in map(Path, entries):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                add(path, *_size_and_reason(path))
    found.sort(key=lambda video: (video.id, video.reason))
    # An escaped name can equal a real one; the real one, whose reason sorts first, is kept.
    return [video for i, video in enumerate(found) if i == 0 or video.id != found[i - 1].id]


def _size_and_reason(path: Path) -> tuple[int, str]:
    """Return the size of a video, and why it cannot be decoded, "" where it may be."""
    try:
        status = retried(path.stat)
    except OSError as error:
        if is_passing(error):
            raise
        return 0, short_reason(error)
    if not stat.S_ISREG(status.st_mode):
        return 0, "not a regular file"
    return (status.st_size, "") if os.access(path, os.R_OK) else (0, "permission denied")
