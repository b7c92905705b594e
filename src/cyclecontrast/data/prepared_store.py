"""A prepared store → its frames by number, once all that its files say of one another has been checked."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.frame_bytes import FoundFrames, Shards
from cyclecontrast.data.images import MOST_BYTES
from cyclecontrast.data.regular_files import size_of_own
from cyclecontrast.data.store_files import FRAME_SCHEMA, STORE_VERSION, read_settings, shard_path
from cyclecontrast.data.table_files import read_table
from cyclecontrast.errors import UserError

COLUMNS = ("video", "index", "time", "shard", "offset", "size")
MOST_PROBLEMS = 10


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
        table = read_table(path, FRAME_SCHEMA, COLUMNS, codes=("video",))
        if not len(table):
            raise UserError(f"{root} holds no frames; prepare a folder of videos that can be read")
        video, index, times, shard, offset, size = (
            column.unify_dictionaries().combine_chunks() for column in table.columns
        )
        video_ids, starts = _videos(video, index.to_numpy())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {_told(error)}; prepare the videos again") from error
    shards = Shards(root, shard.to_numpy(), offset.to_numpy(), size.to_numpy())
    _check_places(shards)
    return FoundFrames("store", video_ids, starts, times.to_numpy(), shards)


def _videos(video: pa.DictionaryArray, index: npt.NDArray[np.int32]) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    codes = video.indices.to_numpy()
    first = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    starts = np.r_[first, len(codes)].astype(np.int64)
    in_order = np.arange(len(codes)) - np.repeat(first, np.diff(starts))
    if np.bincount(codes[first]).max() > 1 or not np.array_equal(index, in_order):
        raise ValueError("its rows are not in order (video after video, index 0, 1, ...)")
    return video.dictionary.take(pa.array(codes[first])), starts


def _check_places(shards: Shards) -> None:
    """Raise UserError with the first problems of the shards, and how many more have one."""
    problems = _problems(shards)
    told = list(islice(problems, MOST_PROBLEMS))
    if more := sum(1 for _ in problems):
        told.append(f"{shards.root}: so are {more:,} other shards")
    if told:
        raise UserError(*told)


def _problems(shards: Shards) -> Iterator[str]:
    # No sum of these overflows: neither is below 0, and the larger one has a bit to spare.
    shard, offset, size = shards.shard, shards.offset.view(np.uint64), shards.size.astype(np.uint64)
    if not _is_sorted(shard, offset):
        order = np.lexsort((offset, shard))
        shard, offset, size = shard[order], offset[order], size[order]
    is_first = np.r_[True, shard[1:] != shard[:-1]]
    first, end = np.flatnonzero(is_first), offset + size
    needed, largest = np.maximum.reduceat(end, first), np.maximum.reduceat(size, first)
    has_shared = np.logical_or.reduceat(~is_first & np.r_[False, end[:-1] > offset[1:]], first)
    for at, number in enumerate(shard[first].tolist()):
        path = shard_path(shards.root, number)
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
