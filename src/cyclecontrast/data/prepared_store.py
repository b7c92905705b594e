"""A prepared store → its frames by number, once all that its files say of one another has been checked."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cyclecontrast.data.frame_bytes import FoundFrames, Shards
from cyclecontrast.data.images import MOST_BYTES
from cyclecontrast.data.regular_files import size_of_own
from cyclecontrast.data.store_files import FRAME_SCHEMA, STORE_VERSION, read_settings, shard_path
from cyclecontrast.data.table_files import read_about, read_batches
from cyclecontrast.errors import UserError

PLACES = {"shard": np.int32, "offset": np.int64, "size": np.int32}
OUT_OF_ORDER = "its rows are not in order (video after video, index 0, 1, ...)"
MISCOUNTED = "has not as many rows as it says"
MOST_PROBLEMS = 10


class _Table(NamedTuple):
    """What the table of frames says, but for the times."""

    video_ids: pa.StringArray
    starts: npt.NDArray[np.int64]
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]


def open_prepared(root: Path) -> FoundFrames:
    """Read the table of frames, and check that each frame lies within a shard of the store and shares no byte.

    Times may be nan, where a video does not tell, and may run backwards, where a video is joined of several. The folder
    `shards` may be a link to another disk, a shard may not. Raises UserError.
    """
    if read_settings(root) is None:
        raise UserError(
            f"{root / 'store.json'}: is not of a frame store of version {STORE_VERSION}; prepare the videos again"
        )
    path = root / "frames.parquet"
    if not path.exists():
        raise UserError(f"{root} is not finished; run the same `cyclecontrast prepare` again, it goes on")
    try:
        table = _read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {_told(error)}; prepare the videos again") from error
    if table is None:
        raise UserError(f"{root} holds no frames; prepare a folder of videos that can be read")
    _check_places(root, table)
    return FoundFrames("store", table.video_ids, table.starts, Shards.of(root, table.shard, table.offset, table.size))


def _read(path: Path) -> _Table | None:
    """Return what the table says, None where it has no row; raises ValueError where rows are not in order."""
    # Room for all at once, which goes back to the system as a whole: of many pieces some would stay.
    num_frames, done = read_about(path).num_rows, 0
    places = {name: np.empty(num_frames, kind) for name, kind in PLACES.items()}
    is_first, video_ids = np.zeros(num_frames, bool), list[pa.StringArray]()
    last_video, last_index = None, np.int32(-1)
    for batch in read_batches(path, FRAME_SCHEMA, ("video", "index", "time", *PLACES)):
        rows, video, index = slice(done, done + len(batch)), batch["video"], batch["index"].to_numpy()
        if rows.stop > num_frames:
            raise ValueError(MISCOUNTED)
        is_first[rows] = np.r_[video[0].as_py() != last_video, pc.not_equal(video[1:], video[:-1])]
        if not np.array_equal(index, np.where(is_first[rows], 0, np.r_[last_index, index[:-1]] + 1)):
            raise ValueError(OUT_OF_ORDER)
        video_ids.append(video.filter(pa.array(is_first[rows])))
        for name, column in places.items():
            column[rows] = batch[name]
        done, last_video, last_index = rows.stop, video[-1].as_py(), index[-1]
    if done < num_frames:
        raise ValueError(MISCOUNTED)
    if not num_frames:
        return None
    return _Table(_unique(pa.concat_arrays(video_ids)), np.r_[np.flatnonzero(is_first), num_frames], **places)


def _unique(ids: pa.StringArray) -> pa.StringArray:
    """Return the ids, or raise ValueError; as `prepare` writes them they ascend, and then need no table of them all."""
    if not pc.all(pc.less(ids[:-1], ids[1:])).as_py() and len(pc.unique(ids)) < len(ids):
        raise ValueError(OUT_OF_ORDER)
    return ids


def _check_places(root: Path, table: _Table) -> None:
    """Raise UserError with the first problems of the shards, and how many more have one."""
    problems = _problems(root, table)
    told = list(islice(problems, MOST_PROBLEMS))
    if more := sum(1 for _ in problems):
        told.append(f"{root}: so are {more:,} other shards")
    if told:
        raise UserError(*told)


def _problems(root: Path, table: _Table) -> Iterator[str]:
    shard, offset, size = table.shard, table.offset.view(np.uint64), table.size
    if not _is_sorted(shard, offset):
        order = np.lexsort((offset, shard))
        shard, offset, size = shard[order], offset[order], size[order]
    is_first = np.r_[True, shard[1:] != shard[:-1]]
    # No sum of these overflows: neither is below 0, and the larger one has a bit to spare.
    first, end = np.flatnonzero(is_first), np.add(offset, size, dtype=np.uint64, casting="unsafe")
    needed, largest = np.maximum.reduceat(end, first), np.maximum.reduceat(size, first)
    has_shared = np.logical_or.reduceat(~is_first & np.r_[False, end[:-1] > offset[1:]], first)
    for at, number in enumerate(shard[first].tolist()):
        path = shard_path(root, number)
        try:
            there = size_of_own(path)
        except (OSError, ValueError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else _told(error)
            yield f"{path}: {what}; prepare the videos again"
            continue
        if there < needed[at]:
            place = f"byte {needed[at]:,} of {there:,}"
            yield f"{path}: frames.parquet points outside of it ({place}); prepare the videos again"
        elif largest[at] > MOST_BYTES:
            yield f"{path}: has a frame of {largest[at]:,} bytes, more than {MOST_BYTES:,}; prepare the videos again"
        elif has_shared[at]:
            yield f"{path}: frames.parquet gives some of its bytes to two frames; prepare the videos again"


def _is_sorted(shard: npt.NDArray[np.int32], offset: npt.NDArray[np.uint64]) -> bool:
    """Whether the frames stand in the order of their bytes, as `prepare` writes them."""
    is_next = (shard[1:] > shard[:-1]) | ((shard[1:] == shard[:-1]) & (offset[1:] >= offset[:-1]))
    return bool(is_next.all())


def _told(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
