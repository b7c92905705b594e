"""Read files that others wrote, from storage that may fail for a while.

A read error is one of two kinds, and this is the place that distinguishes them. It is *of the file* where the content
is at fault or the file alone is gone: a ValueError, never retried, and the frame may be replaced. Any OSError is
*passing*: the storage (a disk, a network share, a server) does not answer; the read is retried, and the error is never
recorded as a property of the file.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cyclecontrast.errors import UserError

PAUSES = (0.1, 0.4, 1.6, 6.4, 25.6)
"""Seconds between the attempts to read."""
MOST_HANDLES = 256


class FrameSource(Protocol):
    """Where encoded frames are read from: single image files, or the shards of a store."""

    def read(self, frame: int) -> bytes:
        """Return the encoded image of a frame; raises OSError for passing errors, ValueError for those of the file."""
        ...

    def reopen(self) -> None:
        """Make the next read open its files or connections again."""
        ...

    def file_of(self, frame: int) -> Path | str:
        """Return the file or URL that holds a frame."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """The files of a prepared store in a folder; the files read last stay open.

    Reads name their position, so forked processes may share handles; threads may not. `advice` tells a user what to do
    about files that are missing or damaged.
    """

    root: Path
    handles: dict[str, int] = field(default_factory=dict, compare=False)
    advice = "prepare the videos again"

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return a range of bytes of a file with one positioned read; raises OSError."""
        if name not in self.handles:
            while len(self.handles) >= MOST_HANDLES:
                os.close(self.handles.pop(next(iter(self.handles))))
            self.handles[name] = os.open(self.root / name, os.O_RDONLY)
        data = os.pread(self.handles[name], size, start)
        if len(data) != size:
            raise OSError(errno.EIO, "is shorter than frames.parquet says", str(self.root / name))
        return data

    def fetched(self, *names: str) -> AbstractContextManager[Path]:
        """Give the folder itself."""
        return nullcontext(self.root)

    def sizes(self, names: Sequence[str]) -> Iterator[int | OSError | ValueError]:
        """Yield the size of each file, or the error of looking it up."""
        for name in names:
            try:
                yield size_within_folder(self.root / name)
            except (OSError, ValueError) as error:
                yield error

    def reopen(self) -> None:
        """Close all handles: a handle from before a file server's restart stays stale."""
        while self.handles:
            with contextlib.suppress(OSError):
                os.close(self.handles.popitem()[1])

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "handles": {}}

    def __del__(self) -> None:
        self.reopen()


def read_with_retry(source: FrameSource, frame: int, sleep: Callable[[float], object]) -> bytes:
    """Return the encoded image of a frame; after a passing error, reopen the files, pause and read again.

    Raises UserError where the storage still fails after the last pause, and any other error at once. A read that hangs
    is not interrupted.
    """
    for pause in PAUSES:
        try:
            return source.read(frame)
        except OSError:
            source.reopen()
            sleep(pause)
    try:
        return source.read(frame)
    except OSError as error:
        place = error.filename or source.file_of(frame)
        tried = f"tried {len(PAUSES) + 1} times in {sum(PAUSES):.0f} s"
        raise UserError(f"{place}: cannot be read ({reason(error)}; {tried}); check the storage") from error


def is_missing_alone(error: OSError, folder: Path) -> bool:
    """Whether one file is gone while its folder still holds others: an unmounted folder is gone or empty."""
    if not isinstance(error, FileNotFoundError):
        return False
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the content of a regular file; links are followed. Raises OSError.

    Raises ValueError for pipes, devices, sockets and files of more than `most_bytes`, before a byte is read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("is not a regular file")
        if about.st_size > most_bytes:
            raise ValueError(f"has {about.st_size:,} bytes, more than {most_bytes:,}")
        return file.read(about.st_size)


def size_within_folder(path: Path) -> int:
    """Return the size of a file that must lie in its folder, in bytes; raises OSError.

    The folder may be a link (large files often lie on another disk). Raises ValueError where the file is a link that
    leads out of its folder, or is not a regular file.
    """
    about = path.lstat()
    if stat.S_ISLNK(about.st_mode):
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(path.parent)):
            raise ValueError("is a link that leads out of its folder")
        about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is not a regular file")
    return about.st_size


def file_size(path: Path) -> int:
    """Return the size of a file in bytes, for fingerprints; raises UserError."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from error


def file_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file, for fingerprints; raises UserError."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return what went wrong, without the error number and the file name."""
    return getattr(error, "strerror", None) or str(error)


def short_reason(error: Exception) -> str:
    """Return why a file cannot be read, in a few lower-case words."""
    match error:
        case FileNotFoundError():
            return "no such file"
        case PermissionError():
            return "permission denied"
        case IsADirectoryError():
            return "a folder, not a file"
    return reason(error).lower()
