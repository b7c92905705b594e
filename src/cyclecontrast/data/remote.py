"""The files of a prepared store behind a URL, read by fsspec: whole tables and single frames.

fsspec and the package for a kind of URL are imported when the first such store is opened.
"""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cyclecontrast.errors import UserError

REQUEST_SECONDS = 25.0
"""Timeout of a request, so short that all retries of a frame take less than the timeout of the data loader."""
TABLE_SECONDS = 600.0
MOST_REQUESTS = 16
"""Concurrent requests for the sizes of files."""
IN_EXTRA = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs"}
"""The package in the extra `remote` for each kind of URL."""


@dataclass(frozen=True)
class RemoteFiles:
    """The files below a URL.

    `opened` has one file system per process id, because connections do not survive a fork, and closing the parent's
    connections in a child would break the parent.
    """

    root: str
    opened: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)
    advice = "copy the whole store there again"

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return a range of bytes of a file with one request.

        Raises OSError that names the file, and UserError where the server sends whole files instead of ranges.
        """
        data: bytes = self._call("cat_file", name, REQUEST_SECONDS, start=start, end=start + size)
        if len(data) > size:
            raise UserError(
                f"{self.root}: its server sends {len(data):,} bytes of {name} where {size:,} are requested: it does "
                "not serve ranges; use one that does, or copy the store to this machine"
            )
        if len(data) < size:
            raise OSError(errno.EIO, f"its server sends {len(data):,} of {size:,} bytes", f"{self.root}/{name}")
        return data

    @contextmanager
    def fetched(self, *names: str) -> Iterator[Path]:
        """Yield a temporary folder with copies of these files. Raises OSError that names the file."""
        with TemporaryDirectory(prefix="cyclecontrast-") as folder:
            for name in names:
                self._call("get_file", name, TABLE_SECONDS, str(Path(folder, name)))
            yield Path(folder)

    def sizes(self, names: Sequence[str]) -> Iterator[int | OSError | None]:
        """Yield the size of each file, None where the server does not say, or the error of looking it up."""
        self._file_system()  # threads would each open one
        with ThreadPoolExecutor(MOST_REQUESTS) as pool:
            yield from pool.map(self._size, names)

    def reopen(self) -> None:
        """Make the next request open a new connection."""
        self.opened.pop(os.getpid(), None)

    def _size(self, name: str) -> int | OSError | None:
        try:
            size = self._call("info", name, REQUEST_SECONDS).get("size")
        except OSError as error:
            return error
        return None if size is None else int(size)

    def _call(self, method: str, name: str, seconds: float, *arguments: object, **options: object) -> Any:
        files, root = self._file_system()
        if files.async_impl:
            options["timeout"] = seconds
        try:
            return getattr(files, method)(f"{root}/{name}", *arguments, **options)
        except Exception as error:  # each file system raises its own exceptions
            number = errno.ENOENT if _is_missing(error) else errno.EIO
            raise OSError(number, _explain(error, seconds), f"{self.root}/{name}") from error

    def _file_system(self) -> Any:
        """Return this process's file system and its path of the URL; raises UserError."""
        process = os.getpid()
        if process not in self.opened:
            self.opened[process] = _open(self.root)
        return self.opened[process]

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "opened": {}}


def _open(url: str) -> tuple[Any, str]:
    kind = url.partition("://")[0]
    try:
        import fsspec

        # A cached instance would share its connections with other users of fsspec in this process.
        files, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    except ImportError as error:
        how = "pip install 'cyclecontrast[remote]'" if kind in IN_EXTRA else "install the package it names"
        raise UserError(f"{url}: {kind} cannot be read ({_first_line(error)}); {how}") from error
    except ValueError as error:
        raise UserError(f"{url}: cannot be opened ({_first_line(error)}); name the URL of a prepared store") from error
    return files, root.rstrip("/")


def _is_missing(error: BaseException) -> bool:
    """Whether a file is not there; for sizes on web servers, fsspec reports any error as a missing file."""
    cause = error.__cause__
    is_other = isinstance(cause, OSError | TimeoutError) or getattr(cause, "status", 404) != 404
    return isinstance(error, FileNotFoundError) and not is_other


def _explain(error: BaseException, seconds: float) -> str:
    if _is_missing(error):
        return "is missing"
    if isinstance(error, FileNotFoundError) and error.__cause__:
        return _explain(error.__cause__, seconds)
    if isinstance(error, TimeoutError):
        return f"no answer in {seconds:.0f} s"
    if status := getattr(error, "status", None):
        return f"its server answers {status} {getattr(error, 'message', '')}".rstrip()
    return "its answer breaks off" if type(error).__name__ == "ClientPayloadError" else _first_line(error)


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, without the query of a URL, which may hold a signature."""
    return re.sub(r"\?\S*", "?…", str(error).partition("\n")[0]) or type(error).__name__
