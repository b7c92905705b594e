"""Where the encoded frames of a store lie: in files of their own, or side by side in shards."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.images import MOST_BYTES
from cyclecontrast.data.regular_files import read_regular
from cyclecontrast.data.store_files import shard_path
from cyclecontrast.errors import UserError

MOST_HANDLES = 256


class Bytes(Protocol):
    """Where the encoded frames lie."""

    def read(self, frame: int) -> bytes:
        """Return the encoded image of the store's frame number `frame`."""
        ...


class FoundFrames(NamedTuple):
    """What a folder of frames holds: the frames of video v are `starts[v]` to `starts[v + 1]`, in order."""

    layout: str
    video_ids: pa.StringArray
    starts: npt.NDArray[np.int64]
    times: npt.NDArray[np.float64] | None
    source: Bytes


@dataclass(frozen=True)
class ImageFiles:
    """Each frame is a file below the root."""

    root: Path
    names: pa.StringArray

    def read(self, frame: int) -> bytes:
        """Return the file's bytes."""
        return read_regular(self.root / str(self.names[frame]), MOST_BYTES)


@dataclass(frozen=True)
class Shards:
    """Each frame is a run of bytes in a tar file; the handles of the shards last opened stay open.

    A read names its place, so processes that were forked may share handles; threads may not.
    """

    root: Path
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    handles: dict[int, int] = field(default_factory=dict, compare=False)

    def read(self, frame: int) -> bytes:
        """Return the frame's bytes with one positioned read."""
        shard = int(self.shard[frame])
        if shard not in self.handles:
            while len(self.handles) >= MOST_HANDLES:
                os.close(self.handles.pop(next(iter(self.handles))))
            self.handles[shard] = os.open(shard_path(self.root, shard), os.O_RDONLY)
        size = int(self.size[frame])
        data = os.pread(self.handles[shard], size, int(self.offset[frame]))
        if len(data) != size:
            raise UserError(f"{shard_path(self.root, shard)} is shorter than frames.parquet says; prepare it again")
        return data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "handles": {}}

    def __del__(self) -> None:
        for handle in self.handles.values():
            os.close(handle)
