"""Files that somebody else has made: no pipe or device is waited for, and no more is read than expected."""

import os
import stat
from pathlib import Path


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the content of a regular file, or of one that a link leads to; raises OSError.

    Pipes, devices and sockets, and files of more than `most_bytes`, are a ValueError before a byte of them is read.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("is no regular file")
        if about.st_size > most_bytes:
            raise ValueError(f"has {about.st_size:,} bytes, more than {most_bytes:,}")
        return file.read(about.st_size)


def size_of_own(path: Path) -> int:
    """Return the bytes of a file that belongs to its folder; raises OSError.

    A folder may be a link, for large files often lie on another disk. A file that is a link out of its folder is a
    ValueError, and so is what is no regular file.
    """
    about = path.lstat()
    if stat.S_ISLNK(about.st_mode):
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(path.parent)):
            raise ValueError("is a link that leads out of its folder")
        about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is no regular file")
    return about.st_size


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
