"""`FrameStore`: frames by (video, index), each read separately, from any storage.

One interface to a prepared store (tar shards and Parquet, on this machine or behind a URL), a tree of folders of
images, the R2V2 layout and a flat folder of images. Columns are arrays, never Python lists, so millions of frames take
megabytes.

There are two kinds of read errors. ValueError: the file is bad; the read is not retried, and the frame may be
replaced. OSError: the storage (disk, network share, server) failed, possibly temporarily; the read is retried, and
the frame is not recorded as unreadable.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cyclecontrast.config.types import is_url
from cyclecontrast.data.image_folders import ImageFiles, open_image_folder, text_pieces
from cyclecontrast.data.images import MAX_BYTES, Pixels, decode_image
from cyclecontrast.data.remote import RemoteFiles
from cyclecontrast.data.storage import is_passing, reason, retried, size_within_folder
from cyclecontrast.data.store_format import (
    FRAME_SCHEMA,
    FRAMES,
    STORE,
    STORE_VERSION,
    check_settings_exist,
    member_name,
    read_settings,
    shard_name,
)
from cyclecontrast.data.tables import read_about, read_batches
from cyclecontrast.errors import UserError, why_no_workers
from cyclecontrast.output import quoted

MAX_HANDLES = 256
NUMBERS_PER_PIECE = 4_096
MAX_PROBLEMS = 10
PLACES = ("shard", "offset", "size")

Numbers = npt.NDArray[np.integer]
OpenedFrames: TypeAlias = "tuple[str, pa.StringArray, npt.NDArray[np.int64], ImageFiles | Shards]"
"""Layout, video ids, `starts` of FrameStore, and where the frames are read from."""


class SharedArrays:
    """Read-only arrays by name, in memory that is shared with forked or spawned child processes.

    In other cases, pickling copies the data.
    """

    def __init__(self, memory: Mapping[str, tuple[str, Any]]) -> None:
        """Take the dtype of each array, and its memory."""
        self._memory = memory

    @staticmethod
    def of(arrays: Mapping[str, npt.NDArray[Any]]) -> "SharedArrays":
        """Copy one-dimensional arrays into shared memory."""
        memory: dict[str, tuple[str, Any]] = {}
        for name, array in arrays.items():
            try:
                memory[name] = array.dtype.str, RawArray(ctypes.c_byte, array.nbytes)
            except OSError as error:
                raise UserError(f"memory that processes share cannot be had: {why_no_workers(error)}") from error
            np.frombuffer(memory[name][1], array.dtype)[:] = array
        return SharedArrays(memory)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        dtype, memory = self._memory[name]
        array = np.frombuffer(memory, dtype)
        array.flags.writeable = False
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            return SharedArrays.of, ({name: self[name] for name in self._memory},)
        return SharedArrays, (self._memory,)


@dataclass(frozen=True)
class LocalFiles:
    """The files of a prepared store in a folder; recently read files stay open.

    Reads are positioned, so forked processes may share handles; threads may not. `advice` tells a user what to do
    about files that are missing or damaged.
    """

    root: Path
    handles: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def advice(self) -> str:
        """What repairs the store."""
        command = f"cyclecontrast prepare VIDEOS --out {quoted(self.root)}"
        return f"run `{command}` again, with the same options: it repairs the store"

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return a range of bytes of a file with one positioned read; raises OSError."""
        if name not in self.handles:
            while len(self.handles) >= MAX_HANDLES:
                os.close(self.handles.pop(next(iter(self.handles))))
            self.handles[name] = os.open(self.root / name, os.O_RDONLY)
        data = os.pread(self.handles[name], size, start)
        if len(data) != size:
            raise OSError(errno.ENODATA, "is shorter than frames.parquet says", str(self.root / name))
        return data

    def fetched(self, *names: str) -> AbstractContextManager[Path]:
        """Return a context manager that yields the store's folder."""
        return nullcontext(self.root)

    def sizes(self, names: Sequence[str]) -> Iterator[int | OSError | ValueError]:
        """Yield the size of each file, or the error of looking it up."""
        for name in names:
            try:
                yield size_within_folder(self.root / name)
            except (OSError, ValueError) as error:
                yield error

    def reopen(self) -> None:
        """Close all handles: handles become stale if the file server restarts."""
        while self.handles:
            with contextlib.suppress(OSError):
                os.close(self.handles.popitem()[1])

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "handles": {}}

    def __del__(self) -> None:
        self.reopen()


@dataclass(frozen=True)
class FrameStore:
    """Videos and their frames, by number: `starts[v]` is the first frame of video v."""

    root: Path | str
    layout: str
    columns: SharedArrays
    source: "ImageFiles | Shards"

    @staticmethod
    def open(path: str | Path) -> "FrameStore":
        """Open a prepared store, a tree of frames, the R2V2 layout or a folder of images; raises UserError.

        Text with `://` in it is the URL of a prepared store.
        """
        root = path if is_url(path) else Path(path)
        opened: OpenedFrames
        if isinstance(root, str):
            opened = _open_remote(root)
        elif not root.is_dir():
            raise UserError(f"{root}: no such folder; name a prepared store or a folder of frames")
        else:
            check_settings_exist(root)
            opened = _open_local(root) if (root / STORE).exists() else open_image_folder(root)
        layout, ids, starts, source = opened
        # The id of a video is the text between two ends, as Arrow stores it.
        _, ends, text = ids.buffers()
        ends = np.frombuffer(ends, np.int32, len(ids) + 1, ids.offset * np.int32().nbytes)
        columns = {"starts": starts, "ends": ends, "text": np.frombuffer(text or b"", np.uint8)}
        store = FrameStore(root, layout, SharedArrays.of(columns), source)
        del opened, ids, starts, ends, text, columns
        # Release memory that Arrow and malloc keep after opening (half of the peak).
        pa.default_memory_pool().release_unused()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        return store

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first frame of each video, followed by the total number of frames."""
        return self.columns["starts"]

    @property
    def video_ids(self) -> pa.StringArray:
        """The id of each video."""
        ends, text = (pa.py_buffer(self.columns[name]) for name in ("ends", "text"))
        return pa.StringArray.from_buffers(self.num_videos, ends, text)

    @property
    def notes(self) -> tuple[str, ...]:
        """What else lies in a folder of images, one line, or nothing."""
        return self.source.notes if isinstance(self.source, ImageFiles) else ()

    @property
    def num_videos(self) -> int:
        """Number of videos that hold at least one frame."""
        return len(self.starts) - 1

    @property
    def num_frames(self) -> int:
        """Number of frames of all videos."""
        return int(self.starts[-1])

    def frames_in(self, video: int) -> int:
        """Return the number of frames of a video."""
        return int(self.starts[video + 1] - self.starts[video])

    def video_id(self, video: int) -> str:
        """Return the id of a video: its path below the root, or its YouTube id in the R2V2 layout."""
        return str(self.video_ids[video])

    def frame_path(self, video: int, index: int) -> str:
        """Return the path of a frame's image: below the folder of images, or within its shard."""
        frame = self._frame(video, index)
        if isinstance(self.source, ImageFiles):
            return str(self.source.names[frame])
        return member_name(self.video_id(video), index)

    def find(self, video_id: str) -> int:
        """Return the number of the video with this id, by a search through all of them; raises KeyError."""
        number = pc.index(self.video_ids, video_id).as_py()
        if number < 0:
            raise KeyError(video_id)
        return int(number)

    def read(self, video: int, index: int) -> bytes:
        """Return the encoded image of a frame.

        Raises IndexError for an index that the video does not have, OSError where the storage fails, and ValueError
        where the frame's own file is not a file, too large, or gone.
        """
        return self.source.read(self._frame(video, index))

    def read_with_retry(self, video: int, index: int, sleep: Callable[[float], object]) -> bytes:
        """Return the encoded image of a frame; while the storage fails, reopen the files, pause and read again.

        Raises ValueError as `read` does, and UserError where the storage still fails after the last pause. A read that
        hangs is not interrupted.
        """
        try:
            return retried(lambda: self.read(video, index), self.source.reopen, sleep, lambda error: True)
        except OSError as error:
            place = error.filename or self.source.file_of(self._frame(video, index))
            raise UserError(f"{place}: cannot be read ({reason(error)}); check the storage") from error

    def image(self, video: int, index: int) -> Pixels:
        """Return the decoded frame, RGB (height, width, 3); raises UserError naming the frame.

        Raises OSError where the storage fails.
        """
        try:
            return decode_image(retried(lambda: self.read(video, index), self.source.reopen))
        except (ValueError, OSError) as error:
            place = getattr(error, "filename", None) or self.source.file_of(self._frame(video, index))
            if isinstance(error, OSError) and is_passing(error):
                raise OSError(error.errno, error.strerror, str(place)) from error
            raise UserError(f"{place}: frame {index} of {self.video_id(video)}: {reason(error)}") from error

    def time(self, video: int, index: int) -> float:
        """Return the frame's time in seconds, nan where the layout has none."""
        return self.source.time(self._frame(video, index))

    @cached_property
    def fingerprint(self) -> str:
        """Identifier of the content: videos, their numbers of frames, and where the frames lie; 16 hex digits."""
        digest = hashlib.sha256(self.starts.data)
        for piece in chain(text_pieces(self.video_ids), self.source.pieces()):
            digest.update(piece)
        return digest.hexdigest()[:16]

    def _frame(self, video: int, index: int) -> int:
        if not 0 <= index < self.frames_in(video):
            raise IndexError(f"{self.video_id(video)} has {self.frames_in(video)} frames, no index {index}")
        return int(self.starts[video]) + index


@dataclass(frozen=True)
class Shards:
    """Frames stored as byte ranges of tar files.

    `columns` has the `offset` (in units) and `size` of each frame. For each run of consecutive frames in one shard, it
    has an entry of `shard` and the first frame of the run in `first`.
    """

    files: LocalFiles | RemoteFiles
    columns: SharedArrays
    unit: int

    @staticmethod
    def of(files: LocalFiles | RemoteFiles, shard: Numbers, offset: Numbers, size: Numbers) -> "Shards":
        """Return the frames, with their columns stored in the smallest integer types."""
        first = np.flatnonzero(np.r_[True, shard[1:] != shard[:-1]])
        # In units of a tar's blocks, the offsets of a shard of many GB fit into 4 bytes.
        unit = 1 if (offset % BLOCKSIZE).any() else BLOCKSIZE
        columns = {"first": first, "shard": shard[first], "offset": offset // unit, "size": size}
        narrow = {name: column.astype(np.min_scalar_type(int(column.max()))) for name, column in columns.items()}
        return Shards(files, SharedArrays.of(narrow), unit)

    def read(self, frame: int) -> bytes:
        """Return the bytes of a frame with one positioned read or one request; raises OSError."""
        start, size = self.unit * int(self.columns["offset"][frame]), int(self.columns["size"][frame])
        return self.files.read(self._shard_of(frame), start, size)

    def reopen(self) -> None:
        """Make the next read open its shard or connection again."""
        self.files.reopen()

    def file_of(self, frame: int) -> str:
        """Return the path or URL of the shard that holds a frame."""
        return f"{self.files.root}/{self._shard_of(frame)}"

    def time(self, frame: int) -> float:
        """Return the time of a frame; the first call reads all times, which only some commands need."""
        return float(self._times[frame])

    def pieces(self) -> Iterator[bytes]:
        """Yield the numbers of all frames, column after column."""
        first, shard, offset, size = (self.columns[name] for name in ("first", "shard", "offset", "size"))
        yield np.repeat(shard.astype(np.int32), np.diff(first, append=len(size))).tobytes()
        for start in range(0, len(offset), NUMBERS_PER_PIECE):
            yield (self.unit * offset[start : start + NUMBERS_PER_PIECE].astype(np.int64)).tobytes()
        yield size.astype(np.int32).tobytes()

    def _shard_of(self, frame: int) -> str:
        return shard_name(int(self.columns["shard"][self.columns["first"].searchsorted(frame, "right") - 1]))

    @cached_property
    def _times(self) -> npt.NDArray[np.float64]:
        name = f"{self.files.root}/{FRAMES}"
        try:
            with self.files.fetched(FRAMES) as folder:
                times = [batch["time"].to_numpy() for batch in read_batches(folder / FRAMES, FRAME_SCHEMA, ("time",))]
        except (OSError, ValueError) as error:
            raise UserError(f"{name}: {reason(error)}; {self.files.advice}") from error
        if sum(map(len, times)) != len(self.columns["size"]):
            raise UserError(f"{name}: has changed since it was opened; run the same command again")
        return np.concatenate(times)

    def __reduce__(self) -> tuple[type["Shards"], tuple[object, ...]]:
        return Shards, (self.files, self.columns, self.unit)  # without the cached times


# --- opening a prepared store: each frame must lie within a shard of the store


def _open_local(root: Path) -> OpenedFrames:
    """Open a store in a folder; its `shards` may be a link to another disk, a shard may not. Raises UserError."""
    if read_settings(root) is not None and not (root / FRAMES).exists():
        raise UserError(f"{root} is not finished; run the same `cyclecontrast prepare` again, it resumes")
    return _open_store(LocalFiles(root), root)


def _open_remote(url: str) -> OpenedFrames:
    """Fetch the tables of a store behind a URL; raises UserError, also where the server does not serve ranges."""
    files = RemoteFiles(url)
    try:
        with files.fetched(STORE, FRAMES) as folder:
            opened = _open_store(files, folder)
        files.read(STORE, 1, 1)
    except FileNotFoundError as error:
        raise UserError(
            f"{url}: holds no prepared store ({error.filename} {error.strerror}); make one with "
            "`cyclecontrast prepare`, and copy all of it there"
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); check the address, the network and the credentials "
            "in the environment or the configuration of fsspec"
        ) from error
    return opened


def _open_store(files: LocalFiles | RemoteFiles, tables: Path) -> OpenedFrames:
    """Read and check the table of frames in the folder `tables`."""
    if read_settings(tables) is None:
        raise UserError(
            f"{files.root}/{STORE}: is not of a frame store of version {STORE_VERSION}; restore it, or make a new store"
        )
    try:
        ids, starts, shard, offset, size = _read_frames(tables / FRAMES)
    except (OSError, ValueError) as error:
        raise UserError(f"{files.root}/{FRAMES}: {reason(error)}; {files.advice}") from error
    if not len(ids):
        raise UserError(f"{files.root} holds no frames; prepare a folder of videos that can be read")
    problems = _shard_problems(files, shard, offset, size)
    shown = list(islice(problems, MAX_PROBLEMS))
    if more := sum(1 for _ in problems):
        shown.append(f"{files.root}: the same holds for {more:,} other shards")
    if shown:
        raise UserError(*shown)
    return "store", ids, starts, Shards.of(files, shard, offset, size)


def _read_frames(path: Path) -> tuple[pa.StringArray, npt.NDArray[np.int64], Numbers, Numbers, Numbers]:
    """Return video ids, first frames, and shard, offset and size of each frame; raises ValueError and OSError.

    Times are not checked: they may be nan, and run backwards where a video was joined from several.
    """
    # Large arrays are returned to the system when freed; many small ones would fragment the heap.
    num_frames, done = read_about(path).num_rows, 0
    places = {name: np.empty(num_frames, FRAME_SCHEMA.field(name).type.to_pandas_dtype()) for name in PLACES}
    is_first, video_ids = np.zeros(num_frames, bool), [pa.array([], pa.string())]
    last_video, last_index = None, np.int32(-1)
    for batch in read_batches(path, FRAME_SCHEMA, ("video", "index", "time", *PLACES)):
        rows, video, index = slice(done, done + len(batch)), batch["video"], batch["index"].to_numpy()
        is_first[rows] = np.r_[video[0].as_py() != last_video, pc.not_equal(video[1:], video[:-1])]
        if not np.array_equal(index, np.where(is_first[rows], 0, np.r_[last_index, index[:-1]] + 1)):
            raise ValueError("its rows are not in order (video after video, index 0, 1, ...)")
        video_ids.append(video.filter(pa.array(is_first[rows])))
        for name, column in places.items():
            column[rows] = batch[name]
        done, last_video, last_index = rows.stop, video[-1].as_py(), index[-1]
    if done != num_frames:
        raise ValueError("does not have as many rows as it says")
    ids = pa.concat_arrays(video_ids)
    # Ids as `prepare` writes them ascend, and then need no table of them all.
    if not pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py() and len(pc.unique(ids)) < len(ids):
        raise ValueError("its rows are not in order (video after video, index 0, 1, ...)")
    return ids, np.r_[np.flatnonzero(is_first), num_frames], places["shard"], places["offset"], places["size"]


def _shard_problems(files: LocalFiles | RemoteFiles, shard: Numbers, offset: Numbers, size: Numbers) -> Iterator[str]:
    """Yield a line for each shard that is missing or too short, or that has a frame that is too large."""
    first = np.flatnonzero(np.r_[True, shard[1:] != shard[:-1]])
    # The sums cannot overflow: both numbers are positive, and uint64 has a bit to spare.
    ends = np.maximum.reduceat(np.add(offset, size, dtype=np.uint64, casting="unsafe"), first)
    shards, run = np.unique(shard[first], return_inverse=True)
    needed, largest = np.zeros(len(shards), np.uint64), np.zeros(len(shards), np.int64)
    np.maximum.at(needed, run, ends)
    np.maximum.at(largest, run, np.maximum.reduceat(size, first))
    names = [shard_name(number) for number in shards.tolist()]
    for at, (name, found) in enumerate(zip(names, files.sizes(names), strict=True)):
        if isinstance(found, OSError | ValueError):
            problem = "is missing" if isinstance(found, FileNotFoundError) else reason(found)
        elif found is not None and found < needed[at]:
            problem = f"{FRAMES} points outside of it (byte {needed[at]:,} of {found:,})"
        elif largest[at] > MAX_BYTES:
            problem = f"has a frame of {largest[at]:,} bytes, more than {MAX_BYTES:,}"
        else:
            continue
        yield f"{files.root}/{name}: {problem}; {files.advice}"
