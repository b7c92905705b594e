"""A prepared store → its frames by number, once all that its files say of one another has been checked."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cyclecontrast.data.frame_bytes import FoundFrames, Places, Shards
from cyclecontrast.data.images import MOST_BYTES
from cyclecontrast.data.regular_files import size_of_own
from cyclecontrast.data.remote import Remote, RemoteShards
from cyclecontrast.data.store_files import FRAME_SCHEMA, STORE_VERSION, read_settings, shard_name
from cyclecontrast.data.table_files import read_about, read_batches
from cyclecontrast.errors import UserError

PLACES = {"shard": np.int32, "offset": np.int64, "size": np.int32}
OUT_OF_ORDER = "its rows are not in order (video after video, index 0, 1, ...)"
MISCOUNTED = "has not as many rows as it says"
MOST_PROBLEMS = 10


class _Store(NamedTuple):
    """Where a store's tables can be read, how users know it, and what the sizes of files are, or why it is not known.

    `mend` is what a user can do where its files do not fit.
    """

    folder: Path
    root: Path | str
    sizes: Callable[[Sequence[str]], Iterator[int | OSError | ValueError | None]]
    mend: str = "prepare the videos again"

    def name(self, file: str) -> str:
        """Return a file's place as users know it."""
        return f"{self.root}/{file}"


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
    if read_settings(root) is not None and not (root / "frames.parquet").exists():
        raise UserError(f"{root} is not finished; run the same `cyclecontrast prepare` again, it goes on")
    table = _checked_table(_Store(root, root, partial(_sizes, root)))
    return FoundFrames("store", table.video_ids, table.starts, Shards(root, _places(table)))


def open_remote(url: str) -> FoundFrames:
    """Fetch the tables of a store behind a URL, and check all that is checked of one on this machine; raises UserError.

    A server that sends whole files for parts is refused. A size that it does not tell is not checked.
    """
    remote = Remote(url)
    try:
        with remote.fetched("store.json", "frames.parquet") as folder:
            table = _checked_table(_Store(folder, url, remote.sizes, "copy the whole store there again"))
        remote.read("store.json", 1, 1)
    except FileNotFoundError as error:
        raise UserError(
            f"{url}: holds no prepared store ({error.filename} {error.strerror}); make one with "
            "`cyclecontrast prepare`, and copy all of it there"
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); see to the address, the network and the credentials "
            "in the environment or the configuration of fsspec"
        ) from error
    return FoundFrames("store", table.video_ids, table.starts, RemoteShards(remote, _places(table)))


def _checked_table(store: _Store) -> _Table:
    if read_settings(store.folder) is None:
        raise UserError(f"{store.name('store.json')}: is not of a frame store of version {STORE_VERSION}; {store.mend}")
    try:
        table = _read(store.folder / "frames.parquet")
    except (OSError, ValueError) as error:
        raise UserError(f"{store.name('frames.parquet')}: {_told(error)}; {store.mend}") from error
    if table is None:
        raise UserError(f"{store.root} holds no frames; prepare a folder of videos that can be read")
    _check_places(store, table)
    return table


def _places(table: _Table) -> Places:
    return Places.of(table.shard, table.offset, table.size)


def _sizes(root: Path, names: Sequence[str]) -> Iterator[int | OSError | ValueError]:
    for name in names:
        try:
            yield size_of_own(root / name)
        except (OSError, ValueError) as error:
            yield error


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


def _check_places(store: _Store, table: _Table) -> None:
    """Raise UserError with the first problems of the shards, and how many more have one."""
    problems = _problems(store, table)
    told = list(islice(problems, MOST_PROBLEMS))
    if more := sum(1 for _ in problems):
        told.append(f"{store.root}: so are {more:,} other shards")
    if told:
        raise UserError(*told)


def _problems(store: _Store, table: _Table) -> Iterator[str]:
    shard, offset, size = table.shard, table.offset.view(np.uint64), table.size
    if not _is_sorted(shard, offset):
        order = np.lexsort((offset, shard))
        shard, offset, size = shard[order], offset[order], size[order]
    is_first = np.r_[True, shard[1:] != shard[:-1]]
    # No sum of these overflows: neither is below 0, and the larger one has a bit to spare.
    first, end = np.flatnonzero(is_first), np.add(offset, size, dtype=np.uint64, casting="unsafe")
    needed, largest = np.maximum.reduceat(end, first), np.maximum.reduceat(size, first)
    has_shared = np.logical_or.reduceat(~is_first & np.r_[False, end[:-1] > offset[1:]], first)
    names = [shard_name(number) for number in shard[first].tolist()]
    for at, (name, there) in enumerate(zip(names, store.sizes(names), strict=True)):
        if isinstance(there, OSError | ValueError):
            problem = "is missing" if isinstance(there, FileNotFoundError) else _told(there)
        elif there is not None and there < needed[at]:
            problem = f"frames.parquet points outside of it (byte {needed[at]:,} of {there:,})"
        elif largest[at] > MOST_BYTES:
            problem = f"has a frame of {largest[at]:,} bytes, more than {MOST_BYTES:,}"
        elif has_shared[at]:
            problem = "frames.parquet gives some of its bytes to two frames"
        else:
            continue
        yield f"{store.name(name)}: {problem}; {store.mend}"


def _is_sorted(shard: npt.NDArray[np.int32], offset: npt.NDArray[np.uint64]) -> bool:
    """Whether the frames stand in the order of their bytes, as `prepare` writes them."""
    is_next = (shard[1:] > shard[:-1]) | ((shard[1:] == shard[:-1]) & (offset[1:] >= offset[:-1]))
    return bool(is_next.all())


def _told(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
