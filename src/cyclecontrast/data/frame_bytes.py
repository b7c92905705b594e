"""Where the encoded frames of a store lie: in files of their own, or side by side in shards."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.images import MOST_BYTES
from cyclecontrast.data.regular_files import read_regular
from cyclecontrast.data.shared_arrays import SharedArrays
from cyclecontrast.data.store_files import FRAME_SCHEMA, shard_path
from cyclecontrast.data.table_files import read_batches
from cyclecontrast.errors import UserError

MOST_HANDLES = 256
PIECE = 4_096
Numbers = npt.NDArray[np.integer]


class Bytes(Protocol):
    """Where the encoded frames lie."""

    def read(self, frame: int) -> bytes:
        """Return the encoded image of the store's frame number `frame`."""
        ...

    def time(self, frame: int) -> float:
        """Return the frame's time in seconds, nan where it is not known."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """Yield what tells these frames from others."""
        ...


class FoundFrames(NamedTuple):
    """What a folder of frames holds: the frames of video v are `starts[v]` to `starts[v + 1]`, in order."""

    layout: str
    video_ids: pa.StringArray
    starts: npt.NDArray[np.int64]
    source: Bytes


@dataclass(frozen=True)
class ImageFiles:
    """Each frame is a file below the root."""

    root: Path
    names: pa.StringArray

    def read(self, frame: int) -> bytes:
        """Return the file's bytes."""
        return read_regular(self.root / str(self.names[frame]), MOST_BYTES)

    def time(self, frame: int) -> float:
        """Return nan."""
        return float("nan")

    def pieces(self) -> Iterator[bytes]:
        """Yield the names."""
        return pieces_of(self.names)


class Place(NamedTuple):
    """The bytes of a shard that are a frame."""

    shard: int
    start: int
    size: int


@dataclass(frozen=True)
class Places:
    """Where each frame lies in the shards.

    `columns` are `offset`, in units, and `size` by frame, and `shard` by runs of frames that lie in the same, whose
    first ones are `first`.
    """

    columns: SharedArrays
    unit: int

    @staticmethod
    def of(shard: Numbers, offset: Numbers, size: Numbers) -> "Places":
        """Keep the shard, the offset and the size of each frame, in no more bytes than the numbers need."""
        first = np.flatnonzero(np.r_[True, shard[1:] != shard[:-1]])
        unit = 1 if (offset % BLOCKSIZE).any() else BLOCKSIZE  # so that those in a tar of many GB fit into 4 bytes
        columns = {"first": first, "shard": shard[first], "offset": offset // unit, "size": size}
        return Places(SharedArrays.of({name: _narrowed(column) for name, column in columns.items()}), unit)

    def __len__(self) -> int:
        return len(self.columns["size"])

    def __getitem__(self, frame: int) -> Place:
        columns = self.columns
        shard = columns["shard"][columns["first"].searchsorted(frame, "right") - 1]
        return Place(int(shard), self.unit * int(columns["offset"][frame]), int(columns["size"][frame]))

    def pieces(self) -> Iterator[bytes]:
        """Yield the numbers, column after column."""
        first, shard, offset, size = (self.columns[name] for name in ("first", "shard", "offset", "size"))
        yield np.repeat(shard.astype(np.int32), np.diff(first, append=len(size))).tobytes()
        for start in range(0, len(offset), PIECE):
            yield (self.unit * offset[start : start + PIECE].astype(np.int64)).tobytes()
        yield size.astype(np.int32).tobytes()


@dataclass(frozen=True)
class Shards:
    """Each frame is a run of bytes in a tar file; the handles of the shards last opened stay open.

    A read names its place, so processes that were forked may share handles; threads may not.
    """

    root: Path
    places: Places
    handles: dict[int, int] = field(default_factory=dict, compare=False)

    def read(self, frame: int) -> bytes:
        """Return the frame's bytes with one positioned read."""
        shard, start, size = self.places[frame]
        if shard not in self.handles:
            while len(self.handles) >= MOST_HANDLES:
                os.close(self.handles.pop(next(iter(self.handles))))
            self.handles[shard] = os.open(shard_path(self.root, shard), os.O_RDONLY)
        data = os.pread(self.handles[shard], size, start)
        if len(data) != size:
            raise UserError(f"{shard_path(self.root, shard)} is shorter than frames.parquet says; prepare it again")
        return data

    def time(self, frame: int) -> float:
        """Return the time that the table of frames tells; all are read when the first is asked for."""
        return float(self._times[frame])

    def pieces(self) -> Iterator[bytes]:
        """Yield the places."""
        return self.places.pieces()

    def file_of(self, frame: int) -> Path:
        """Return the shard that the frame lies in."""
        return shard_path(self.root, self.places[frame].shard)

    def forget(self) -> None:
        """Let the next read open its shard anew: a handle from before a server's restart stays stale."""
        while self.handles:
            with contextlib.suppress(OSError):
                os.close(self.handles.popitem()[1])

    @cached_property
    def _times(self) -> npt.NDArray[np.float64]:
        """Times by frame, which only some commands need, and no worker."""
        path = self.root / "frames.parquet"
        return read_times(path, path, len(self.places))

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "places": self.places, "handles": {}}

    def __del__(self) -> None:
        for handle in self.handles.values():
            os.close(handle)


def read_times(path: Path, name: object, num_frames: int) -> npt.NDArray[np.float64]:
    """Return the times in a table of frames, which users know by a name; raises UserError where it does not fit."""
    try:
        times = [batch["time"].to_numpy() for batch in read_batches(path, FRAME_SCHEMA, ("time",))]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: {reason}; prepare the videos again") from error
    if sum(map(len, times)) != num_frames:
        raise UserError(f"{name}: has changed since it was opened; give the same command again")
    return np.concatenate(times)


def pieces_of(texts: pa.Array) -> Iterator[bytes]:
    """Yield texts line by line, some at a time."""
    for start in range(0, len(texts), PIECE):
        yield "\n".join([*texts[start : start + PIECE].to_pylist(), ""]).encode()


def _narrowed(column: Numbers) -> Numbers:
    return column.astype(np.min_scalar_type(int(column.max())))
