"""Read untrusted files: regular files of bounded size, and text lists with the line number of each entry."""

import contextlib
import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cyclecontrast.errors import PASSING, UserError, attempt

T = TypeVar("T")
PAUSES = (0.1, 0.4, 1.6, 6.4, 25.6)
"""Seconds between the attempts to read."""
NO_MEMORY = -4
"""The code of OpenCV's errors for lack of memory."""
ENOUGH_MEMORY = 2**30
"""Where this much memory can be had, a video that asks for more than there is does so by its own fault."""

MAX_LISTED = 10
MAX_TEXT_BYTES = 2**28
MAX_LINE_LENGTH = 1_000
MAX_DIGITS = 18
LAST_BYTES = 1024


def is_passing(error: BaseException) -> bool:
    """Whether an error is one of storage, memory or limits that may be gone later, not a property of the file."""
    return isinstance(error, OSError) and error.errno in PASSING


def is_memory_short() -> bool:
    """Whether the system refuses memory in an amount that decoding may need."""
    try:
        mmap.mmap(-1, ENOUGH_MEMORY).close()
    except (OSError, MemoryError):
        return True
    return False


def retried(
    action: Callable[[], T],
    reopen: Callable[[], object] = lambda: None,
    sleep: Callable[[float], object] = time.sleep,
    is_retried: Callable[[OSError], bool] = is_passing,
) -> T:
    """Return the result of an action; while it fails for a passing reason, reopen its file, pause and try it again.

    Raises OSError: the last error, which says how often it was tried, or the first that is not retried.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        except OSError as error:
            if not is_retried(error):
                raise
            if pause is None:
                tried = f"{reason(error)}; tried {len(PAUSES) + 1} times in {sum(PAUSES):.0f} s"
                raise OSError(error.errno, tried, error.filename) from error
            reopen()
            sleep(pause)
    raise AssertionError("the last attempt returns or raises")


class PatientFile:
    """A regular file for FFmpeg, read with retries; leaving its block raises the OSError that outlasted them.

    FFmpeg takes many errors of reading for the end of a file, so these are kept from it. Opening raises OSError, and
    ValueError for pipes and devices.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path}"
        self._path, self._position, self._handle = path, 0, -1
        self._failure: OSError | None = None
        self.size = retried(self._open)

    def read(self, size: int) -> bytes:
        """Return the next bytes, none at the end or if the storage fails."""
        if self._failure is not None:
            return b""
        try:
            data = retried(lambda: self._read(size), self._close)
        except OSError as error:
            self._failure = OSError(error.errno, error.strerror, str(self._path))
            return b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        self._position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence])
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def _open(self) -> int:
        self._handle = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        about = os.fstat(self._handle)
        if not stat.S_ISREG(about.st_mode):
            self._close()
            raise ValueError("a folder, not a file" if stat.S_ISDIR(about.st_mode) else "not a regular file")
        return about.st_size

    def _read(self, size: int) -> bytes:
        if self._handle < 0:
            self._open()
        return os.pread(self._handle, size, self._position)

    def _close(self) -> None:
        """Close the handle: handles become stale if the file server restarts."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.close(self._handle)
        self._handle = -1

    def __enter__(self) -> "PatientFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if self._failure is not None:
            raise self._failure


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


def read_file(path: Path, most_bytes: int) -> bytes:
    """Return the content of a regular file, read with retries.

    Raises OSError if the storage fails, and ValueError, with the reason, if only this file cannot be read.
    """
    try:
        return retried(lambda: read_regular(path, most_bytes))
    except OSError as error:
        if is_passing(error):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise ValueError(reason(error)) from error


def check_memory(error: Exception) -> None:
    """Raise MemoryError if a decoder fails for lack of memory, not because of what a file asks for."""
    if (isinstance(error, MemoryError) or getattr(error, "code", 0) == NO_MEMORY) and is_memory_short():
        raise MemoryError(str(error)) from error


def size_within_folder(path: Path) -> int:
    """Return the size of a file that must lie in its folder, in bytes; raises OSError.

    The folder may be a link (large files often lie on another disk). Raises ValueError where the file is a link that
    leads out of its folder, or is not a regular file.
    """
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(path.parent)):
        raise ValueError("is a link that leads out of its folder")
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is not a regular file")
    return about.st_size


def file_size(path: Path) -> int:
    """Return the size of a file in bytes, for fingerprints; -1 if it is a problem that its reader will report."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def file_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file, for fingerprints; raises UserError."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from error


def equal_files(paths: Iterable[str]) -> list[list[str]]:
    """Return the groups of files that equal each other byte for byte, in the order of the paths.

    Only files that agree in size and in their last bytes are read whole. Empty and unreadable ones are left out.
    """
    groups = [list(dict.fromkeys(paths))]
    for key in (os.path.getsize, _last_bytes, file_digest):
        groups = [alike for group in groups for alike in _grouped(group, key) if len(alike) > 1]
    return groups


def same_content(files: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Return the files that equal one of the others byte for byte, each with that one."""
    ours, theirs = dict.fromkeys(files), dict.fromkeys(others)
    found = {path: path for path in ours if path in theirs}
    for group in equal_files([*theirs, *ours]):
        if first := next((path for path in group if path in theirs), None):
            found |= {path: first for path in group if path in ours}
    return found


def _grouped(paths: Iterable[str], key: Callable[[Any], object]) -> list[list[str]]:
    groups: dict[object, list[str]] = {}
    for path in paths:
        with contextlib.suppress(OSError, UserError):
            if value := key(path):
                groups.setdefault(value, []).append(path)
    return list(groups.values())


def _last_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
        return file.read()


def reason(error: Exception) -> str:
    """Return what went wrong, without the error number and the file name."""
    return getattr(error, "strerror", None) or str(error)


def short_reason(error: Exception) -> str:
    """Return why a file cannot be read, in a few lower-case words."""
    match error:
        case FileNotFoundError():
            return "no such file"
        case IsADirectoryError():
            return "a folder, not a file"
    return reason(error).lower()


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text of a file; `errors` is how bytes that are not UTF-8 are decoded. Raises UserError."""
    try:
        return retried(lambda: read_regular(path, MAX_TEXT_BYTES)).decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {short_reason(error)}") from error


def read_lines(path: Path, problems: list[str], errors: str = "strict") -> list[tuple[str, str]]:
    """Return the lines that are not blank, stripped, each with its place `<file>:<number>`.

    A line that is too long for a list is left out and adds to `problems`, as does a file that cannot be read.
    """
    found = []
    for number, line in enumerate((attempt(lambda: read_text(path, errors), problems) or "").splitlines(), 1):
        if len(text := line.strip()) > MAX_LINE_LENGTH:
            problems.append(f"{path}:{number}: is {len(text):,} characters long, too long for a list; left out")
        elif text:
            found.append((f"{path}:{number}", text))
    return found


def is_outside(name: str) -> bool:
    """Return whether a relative path points outside of its folder."""
    return name.startswith("/") or ".." in name.split("/")


def parse_digits(text: str) -> int | None:
    """Return a text of ASCII digits as an integer, None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def raise_problems(problems: Sequence[str]) -> None:
    """Raise UserError with the first ten problems and the number of the others, if there are any."""
    if problems:
        more = len(problems) - MAX_LISTED
        raise UserError(*problems[:MAX_LISTED], *([f"... and {more} more"] if more > 0 else []))
