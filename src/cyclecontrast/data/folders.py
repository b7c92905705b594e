"""List the images and videos below a folder, in an order that does not depend on the file system."""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.data.storage import equal_files, is_passing, retried, short_reason
from cyclecontrast.output import printable

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff"}
)
VIDEO_SUFFIXES = frozenset(
    {
        *(".264", ".265", ".3g2", ".3gp", ".3gpp", ".3gp2", ".apng", ".asf", ".av1", ".avc", ".avi", ".dav", ".divx"),
        *(".dv", ".evo", ".f4v", ".flv", ".gif", ".h261", ".h263", ".h264", ".h265", ".hevc", ".ivf", ".lrv"),
        *(".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mod", ".mov", ".mp4", ".mp4v"),
        *(".mpe", ".mpeg", ".mpeg4", ".mpg", ".mpg4", ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".ogx"),
        *(".qt", ".rm", ".rmvb", ".tod", ".tp", ".trp", ".ts", ".vc1", ".vob", ".vro", ".webm", ".wmv", ".wtv"),
        *(".xvid", ".y4m"),
    }
)
SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@sharebin", "lost+found", "__macosx"),
        *("$recycle.bin", "system volume information"),
    }
)
"""Folders that file systems and network storage add, in lower case: thumbnails, deleted files, metadata."""
COPY = "same bytes as another video"
DATASET_TEXTS = frozenset(
    {"readme", "readme.md", "readme.txt", "license", "license.txt", "train.txt", "val.txt", "test.txt", "classes.txt"}
)
"""Lists and descriptions that belong to a dataset, in lower case; nobody expects them to be used as media."""


class LeftOut:
    """What a search of folders passes over: how many of each kind, and an example."""

    def __init__(self, root: Path) -> None:
        """Begin with nothing; examples are relative to the root."""
        self._root = root
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, kind: str, folder: Path, names: Sequence[str]) -> None:
        """Count files or folders of a kind, such as `image` or `folder of the system`."""
        self._counts[kind] += len(names)
        if names and kind not in self._examples:
            self._examples[kind] = (folder / min(names, key=natural_order)).relative_to(self._root).as_posix()

    def add_unlisted(self, path: Path, error: OSError) -> None:
        """Count a folder that cannot be listed."""
        self.add(f"folder that cannot be listed ({short_reason(error)})", path.parent, [path.name])

    @property
    def notes(self) -> tuple[str, ...]:
        """One line, such as `left out: 3 images, such as a/cover.jpg; 1 folder of the system, ...`, or none."""
        parts = [
            f"{number:,} {kind if number == 1 else _plural(kind)}, such as {self._examples[kind]}"
            for kind, number in sorted(self._counts.items())
            if number
        ]
        return (printable(f"left out: {'; '.join(parts)}"),) if parts else ()


def _plural(kind: str) -> str:
    noun, *rest = kind.split(" ", 1)
    return " ".join([f"{noun}s", *rest])


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


def is_video(name: str) -> bool:
    """Return whether a file is named like a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def walk(
    root: Path, on_error: Callable[[Path, OSError], object], left_out: LeftOut | None = None
) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Yield each folder below `root` and its visible files, parents first, subfolders in natural order.

    Links are followed, but no folder is visited twice, so link cycles terminate. `on_error` is called
    for each folder that cannot be listed. Folders of the system, such as those of thumbnails, are left out.
    """
    left_out = left_out or LeftOut(root)
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
        left_out.add("folder of the system", path, [entry.name for entry in folders if is_system_folder(entry.name)])
        folders = [entry for entry in folders if not is_system_folder(entry.name)]
        folders.sort(key=lambda entry: natural_order(entry.name), reverse=True)
        for folder in folders:
            # Only a link can lead elsewhere; resolving every folder would take most of the time in deep trees.
            inside = os.path.realpath(folder.path) if folder.is_symlink() else os.path.join(real, folder.name)
            waiting.append((path / folder.name, inside))


def is_dataset_text(name: str) -> bool:
    """Return whether a file is a list or description of a dataset, such as train.txt or README.md."""
    return name.lower() in DATASET_TEXTS


def is_system_folder(name: str) -> bool:
    """Return whether a folder has a name that only file systems and network storage give."""
    return name.lower() in SYSTEM_FOLDERS


def images_below(root: Path, top: str = "", left_out: LeftOut | None = None) -> Iterator[str]:
    """Yield the images in the folder `top` and its subfolders as paths below `root`; none if `top` does not exist."""
    left_out = left_out or LeftOut(root)

    def note(folder: Path, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            left_out.add_unlisted(folder, error)

    for folder, entries in walk(root / top, note, left_out):
        names = sorted((entry.name for entry in entries if is_image(entry.name)), key=natural_order)
        yield from ((folder.relative_to(root) / name).as_posix() for name in names)
        others = [entry.name for entry in entries if not is_image(entry.name) and not is_dataset_text(entry.name)]
        left_out.add("file without the suffix of an image", folder, others)


def find_videos(root: Path, left_out: LeftOut | None = None) -> list[FoundVideo]:
    """Return all files below root that are named like videos, sorted by id: the posix path relative to root.

    Links are followed; names that begin with a dot are skipped. Raises OSError where root itself cannot be listed.
    """
    found: list[FoundVideo] = []
    left_out = left_out or LeftOut(root)

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

    for folder, entries in walk(root, note, left_out):
        others = []
        for entry in entries:
            if is_video(entry.name):
                add(Path(entry), *_size_and_reason(Path(entry)))
            elif not is_dataset_text(entry.name):
                others.append(entry.name)
        images = [name for name in others if is_image(name)]
        left_out.add("image", folder, images)
        left_out.add("file without the suffix of a video", folder, [name for name in others if not is_image(name)])
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


def mark_copies(videos: Sequence[FoundVideo], known: Collection[str] = ()) -> list[FoundVideo]:
    """Return the videos; all but one of those with the same bytes get that as their reason not to be read.

    The one that is read is the first of the `known` ids, otherwise the first by id.
    """
    order = sorted((video for video in videos if not video.reason), key=lambda video: (video.id not in known, video))
    ids = {str(video.path): video.id for video in order}
    copies = {ids[copy]: ids[first] for first, *copies in equal_files(ids) for copy in copies}
    return [video._replace(reason=copy_of(copies[video.id])) if video.id in copies else video for video in videos]


def copy_of(video_id: str) -> str:
    """Return the reason not to read a video that has the same bytes as this one."""
    return f"{COPY} ({video_id})"


def is_copy(reason: str) -> bool:
    """Return whether a video is not read because another one has the same bytes."""
    return reason.startswith(f"{COPY} (")
