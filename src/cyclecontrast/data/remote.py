"""The files of a prepared store behind a URL, read by fsspec: whole tables and single frames.

fsspec and the package for a kind of URL are imported when the first such store is opened.
"""

import errno
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cyclecontrast.data.store_format import MAX_SETTINGS_BYTES, STORE
from cyclecontrast.errors import UserError

KINDS = ("http", "https", "s3", "gs", "az")
"""The kinds of URLs that are read; others of fsspec need arguments, run other programs, or lead to other files."""
REQUEST_SECONDS = 25.0
"""Timeout of a request, so short that all retries of a frame take less than the timeout of the data loader."""
TABLE_SECONDS = 600.0
MAX_REQUESTS = 16
"""Concurrent requests for the sizes of files."""
MAX_TABLE_BYTES = 2**31
"""The table of 100 million frames has 1.7 GB."""
IN_EXTRA = ("http", "https", "s3")
"""The kinds of URLs whose packages are in the extra `remote`."""


class _TooLongError(Exception):
    """A server sends more than it may."""


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
        try:
            data = self._range(name, start, size)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise UserError(
                f"{self.root}: its server sends more than the {size:,} bytes of {name} that are requested: it does not "
                "serve ranges; use one that does, or copy the store to this machine"
            ) from error
        if len(data) < size:
            raise OSError(errno.EIO, f"its server sends {len(data):,} of {size:,} bytes", f"{self.root}/{name}")
        return data

    def _range(self, name: str, start: int, size: int) -> bytes:
        files, _ = self._file_system()
        if self.root.startswith("http"):  # its cat_file would keep whatever a server sends
            headers = files.kwargs.get("headers", {}) | {"Range": f"bytes={start}-{start + size - 1}"}
            found = io.BytesIO()
            self._get(name, found, REQUEST_SECONDS, size, headers=headers)
            return found.getvalue()
        data: bytes = self._call("cat_file", name, REQUEST_SECONDS, start=start, end=start + size)
        return data

    @contextmanager
    def fetched(self, *names: str) -> Iterator[Path]:
        """Yield a temporary folder with copies of these files. Raises OSError that names the file."""
        with TemporaryDirectory(prefix="cyclecontrast-") as folder:
            for name in names:
                most = MAX_SETTINGS_BYTES if name == STORE else MAX_TABLE_BYTES
                self._get(name, str(Path(folder, name)), TABLE_SECONDS, min(most, shutil.disk_usage(folder).free // 2))
            yield Path(folder)

    def sizes(self, names: Sequence[str]) -> Iterator[int | OSError | None]:
        """Yield the size of each file, None where the server does not say, or the error of looking it up."""
        self._file_system()  # threads would each open one
        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
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

    def _get(self, name: str, target: object, seconds: float, most_bytes: int, **options: object) -> None:
        """Write a file to `target`; raises OSError, with EFBIG where the server sends more than `most_bytes`."""
        self._file_system()  # where fsspec is not installed, it says so
        from fsspec import Callback

        def check(size: int | None, value: int, **_: object) -> None:
            if value > most_bytes:
                raise _TooLongError(f"its server sends more than {most_bytes:,} bytes")

        self._call("get_file", name, seconds, target, callback=Callback(hooks={"most": check}), **options)

    def _call(self, method: str, name: str, seconds: float, *arguments: object, **options: object) -> Any:
        files, root = self._file_system()
        if files.async_impl:
            options["timeout"] = seconds
        try:
            return getattr(files, method)(f"{root}/{name}", *arguments, **options)
        except Exception as error:  # each file system raises its own exceptions
            number = errno.ENOENT if _is_missing(error) else errno.EIO
            number = errno.EFBIG if isinstance(error, _TooLongError) else number
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
    if kind not in KINDS:
        raise UserError(f"{url}: {kind}:// is not supported; use http, https, s3, gs or az, or a local path")
    try:
        import fsspec

        # A cached instance would share its connections with other users of fsspec in this process.
        files, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    except ImportError as error:
        how = "pip install 'cyclecontrast[remote]'" if kind in IN_EXTRA else "install the package it names"
        raise UserError(f"{url}: {kind} cannot be read ({_first_line(error)}); {how}") from error
    except Exception as error:  # each file system raises its own exceptions
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
