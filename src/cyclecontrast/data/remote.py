"""A prepared store behind a URL: whole tables and single frames, read by whatever fsspec knows to read.

fsspec, and what it needs for a kind of URL, is imported when the first such store is opened.
"""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.frame_bytes import Places, read_times
from cyclecontrast.data.store_files import shard_name
from cyclecontrast.errors import UserError

REQUEST_SECONDS = 25.0
"""After so long a request counts as lost; with its attempts a frame stays below what its reader waits for."""
TABLE_SECONDS = 600.0
MOST_REQUESTS = 16
"""Of those that ask for the sizes of files at the same time."""
OURS = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs"}
"""What the extra has for a kind of URL."""


class NoRangesError(UserError):
    """The server sends whole files where parts are asked for, and would do so again for each frame."""


@dataclass(frozen=True)
class Remote:
    """The files below a URL. `opened` holds a file system for each process, for those of others fail after a fork.

    That of the parent is never dropped in a child: it would close connections that the parent uses.
    """

    url: str
    opened: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return some bytes of a file with one request; raises OSError that names the file, and NoRangesError."""
        data: bytes = self._call("cat_file", name, REQUEST_SECONDS, start=start, end=start + size)
        if len(data) > size:
            raise NoRangesError(
                f"{self.url}: its server sends {len(data):,} bytes of {name} where {size:,} are asked for: it does not "
                "serve ranges; take one that does, or copy the store to this machine"
            )
        if len(data) < size:
            raise OSError(errno.EIO, f"its server sends {len(data):,} of {size:,} bytes", self.name(name))
        return data

    @contextmanager
    def fetched(self, *names: str) -> Iterator[Path]:
        """Give a folder that holds some of the files, for a while; raises OSError that names the file."""
        with TemporaryDirectory(prefix="cyclecontrast-") as folder:
            for name in names:
                self._call("get_file", name, TABLE_SECONDS, str(Path(folder, name)))
            yield Path(folder)

    def sizes(self, names: Sequence[str]) -> Iterator[int | OSError | None]:
        """Yield the bytes of each file, None where the server does not tell, or why they are not known."""
        self._file_system()  # before there are threads that would each open one
        with ThreadPoolExecutor(MOST_REQUESTS) as pool:
            yield from pool.map(self._size, names)

    def name(self, name: str) -> str:
        """Return the URL of a file."""
        return f"{self.url}/{name}"

    def forget(self) -> None:
        """Let the next request make a connection of its own."""
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
        except Exception as error:  # each file system has exceptions of its own
            number = errno.ENOENT if _is_missing(error) else errno.EIO
            raise OSError(number, _told(error, seconds), self.name(name)) from error

    def _file_system(self) -> Any:
        """Return this process's file system and its own name for the URL; raises UserError."""
        own = os.getpid()
        if own not in self.opened:
            self.opened[own] = _open(self.url)
        return self.opened[own]

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "opened": {}}


@dataclass(frozen=True)
class RemoteShards:
    """Each frame is a run of bytes in a tar file behind a URL."""

    remote: Remote
    places: Places

    def read(self, frame: int) -> bytes:
        """Return the frame's bytes with one request."""
        shard, start, size = self.places[frame]
        return self.remote.read(shard_name(shard), start, size)

    def time(self, frame: int) -> float:
        """Return the time that the table of frames tells; the table is fetched again when the first is asked for."""
        return float(self._times[frame])

    def pieces(self) -> Iterator[bytes]:
        """Yield the places."""
        return self.places.pieces()

    def file_of(self, frame: int) -> str:
        """Return the URL of the shard that the frame lies in."""
        return self.remote.name(shard_name(self.places[frame].shard))

    def forget(self) -> None:
        """Let the next read make a connection of its own."""
        self.remote.forget()

    @cached_property
    def _times(self) -> npt.NDArray[np.float64]:
        name = "frames.parquet"
        try:
            with self.remote.fetched(name) as folder:
                return read_times(folder / name, self.remote.name(name), len(self.places))
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; give the same command again") from error


def _open(url: str) -> tuple[Any, str]:
    kind = url.partition("://")[0]
    try:
        import fsspec

        # One that fsspec keeps would be shared with whoever else uses it, and its connections be theirs to close.
        files, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    except ImportError as error:
        way = "pip install 'cyclecontrast[remote]'" if kind in OURS else "install what it names"
        raise UserError(f"{url}: {kind} cannot be read ({_first_line(error)}); {way}") from error
    except ValueError as error:
        raise UserError(f"{url}: cannot be opened ({_first_line(error)}); name the URL of a prepared store") from error
    return files, root.rstrip("/")


def _is_missing(error: BaseException) -> bool:
    """Whether a file is not there; fsspec takes any trouble for that where it asks a web server for a size."""
    cause = error.__cause__
    is_other = isinstance(cause, OSError | TimeoutError) or getattr(cause, "status", 404) != 404
    return isinstance(error, FileNotFoundError) and not is_other


def _told(error: BaseException, seconds: float) -> str:
    if _is_missing(error):
        return "is missing"
    if isinstance(error, FileNotFoundError) and error.__cause__:
        return _told(error.__cause__, seconds)
    if isinstance(error, TimeoutError):
        return f"no answer in {seconds:.0f} s"
    if status := getattr(error, "status", None):
        return f"its server answers {status} {getattr(error, 'message', '')}".rstrip()
    return "its answer breaks off" if type(error).__name__ == "ClientPayloadError" else _first_line(error)


def _first_line(error: BaseException) -> str:
    """Return what an error says, without what a server may have signed."""
    return re.sub(r"\?\S*", "?…", str(error).partition("\n")[0]) or type(error).__name__
