"""Index files that `embed` wrote, .parquet or .npz: the frames, how their vectors were made, the vectors in blocks.

An index is untrusted: nothing in it is unpickled, and its memory is bounded by the file size.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cyclecontrast.data.storage import size_within_folder
from cyclecontrast.data.tables import FREE_UNPACKED_BYTES, MAX_UNPACK_RATIO, read_about, read_batches, read_table
from cyclecontrast.errors import UserError, did_you_mean
from cyclecontrast.evaluation.metrics import Floats, unit_vectors
from cyclecontrast.progress import with_progress

ROWS_PER_BLOCK = 16_384
COLUMNS = ("video", "index", "time", "vector")
ABOUT = ("model", "seed", "model_fingerprint", "image_size", "data", "data_fingerprint")
MAX_ABOUT_LENGTH = 4096
MAX_SECONDS = 1e9
"""The longest time of a frame in its video; `search --time` accepts no more either."""
MAX_IDS_COMPARED = 10_000
"""Maximum number of ids that are searched for a suggestion if an id is not in the index."""


@dataclass(frozen=True)
class FrameIndex:
    """The frames of an index: row r is frame `index[r]` of video `video_ids[video[r]]`, at `time[r]` seconds or nan.

    `dim` is the length of the vectors; `about` says with which model and from which data they were made.
    `read_vectors` yields them as stored, in blocks (num_rows, dim), from a row on.
    """

    path: Path
    video_ids: tuple[str, ...]
    video: npt.NDArray[np.int32]
    index: npt.NDArray[np.int32]
    time: npt.NDArray[np.float64]
    dim: int
    about: Mapping[str, str]
    read_vectors: Callable[[int], Iterator[Floats]]

    @staticmethod
    def open(path: Path) -> "FrameIndex":
        """Read everything but the vectors of a Parquet file; raises UserError where it is not an index."""
        try:
            index = _open_parquet(path) if path.suffix.lower() == ".parquet" else _open_npz(path)
            if (np.abs(index.time) > MAX_SECONDS).any():
                raise ValueError(f"has times of more than {MAX_SECONDS:.0e} seconds")
        except (ValueError, OSError) as error:
            raise _damaged(path, error) from error
        if not len(index):
            raise UserError(f"index: {path} holds no frames; make it again with `cyclecontrast embed`")
        return index

    def __len__(self) -> int:
        return len(self.index)

    def blocks(self, first: int = 0) -> Iterator[tuple[int, Floats]]:
        """Yield (start, vectors scaled to length 1) in order from row `first` on; raises UserError."""
        try:
            start = first
            for vectors in self.read_vectors(first):
                if not np.isfinite(vectors).all():
                    raise ValueError("has vectors that are not finite")
                yield start, unit_vectors(vectors)
                start += len(vectors)
            if start != len(self):
                raise ValueError(f"has {start:,} vectors for {len(self):,} frames")
        except (ValueError, OSError) as error:
            raise _damaged(self.path, error) from error

    def blocks_with_progress(self, title: str) -> Iterator[tuple[int, Floats]]:
        """Yield all blocks, and show the progress."""
        yield from with_progress(self.blocks(), title, -(-len(self) // ROWS_PER_BLOCK))

    def load_vectors(self) -> Floats:
        """Return all vectors, scaled to length 1 (num_rows, dim)."""
        loaded = np.empty((len(self), self.dim), np.float32)
        for start, vectors in self.blocks_with_progress("loading the vectors"):
            loaded[start : start + len(vectors)] = vectors
        return loaded

    def vector(self, row: int) -> Floats:
        """Return the vector of a row, scaled to length 1 (dim,)."""
        _, vectors = next(self.blocks(row))
        return vectors[0].copy()  # type: ignore[no-any-return]

    def row_of_frame(self, video_id: str, frame: int) -> int:
        """Return the row of a video's frame; raises UserError."""
        rows = self._rows_of(video_id)
        found = rows[self.index[rows] == frame]
        if not len(found):
            known = f"{self.index[rows].min()} to {self.index[rows].max()}"
            raise UserError(
                f"frame: {video_id} has no frame {frame} in {self.path}; it has {len(rows):,}, from {known}"
            )
        return int(found[0])

    def row_at(self, video_id: str, seconds: float) -> int:
        """Return the row of a video's frame that is nearest in time; raises UserError."""
        rows = self._rows_of(video_id)
        rows = rows[~np.isnan(self.time[rows])]
        if not len(rows):
            raise UserError(f"time: {self.path} has no times for {video_id}; select a frame by its index: --frame N")
        return int(rows[np.argmin(np.abs(self.time[rows] - seconds))])

    def _rows_of(self, video_id: str) -> npt.NDArray[np.int64]:
        if video_id in self.video_ids:
            return np.flatnonzero(self.video == self.video_ids.index(video_id))
        longer = next((f"; did you mean {known}?" for known in self.video_ids if video_id in known), None)
        hint = longer or did_you_mean(video_id, self.video_ids[:MAX_IDS_COMPARED])
        raise UserError(f"video: {video_id} is not in {self.path}{hint or f'; its first is {self.video_ids[0]}'}")


def _open_parquet(path: Path) -> FrameIndex:
    file = path.resolve()
    read_about(file)
    try:
        found = pq.read_schema(file)
    except pa.ArrowException as error:
        raise ValueError(f"cannot be read ({str(error).partition(chr(10))[0]})") from error
    kind = found.field("vector").type if found.names.count("vector") == 1 else None
    if kind is None or not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise ValueError(f"has {'no column' if kind is None else kind} for lists of float32 in vector")
    schema = pa.schema([("video", pa.string()), ("index", pa.int32()), ("time", pa.float64()), ("vector", kind)])
    table = read_table(file, schema, COLUMNS[:3]).combine_chunks()
    videos = pa.concat_arrays(table["video"].chunks) if len(table) else pa.array([], pa.string())
    metadata = found.metadata or {}
    about = {name: metadata.get(name.encode(), b"")[:MAX_ABOUT_LENGTH].decode("utf-8", "replace") for name in ABOUT}
    return FrameIndex(
        path,
        *_numbered(videos),
        table["index"].to_numpy(),
        table["time"].to_numpy(),
        kind.list_size,
        about,
        lambda start: _read_parquet_vectors(file, schema, start),
    )


def _read_parquet_vectors(path: Path, schema: pa.Schema, start: int) -> Iterator[Floats]:
    metadata, group = read_about(path), 0
    while group < metadata.num_row_groups and start >= (num_rows := metadata.row_group(group).num_rows):
        start, group = start - num_rows, group + 1
    for batch in read_batches(path, schema, ("vector",), ROWS_PER_BLOCK, group):
        numbers = batch["vector"].flatten()
        if numbers.null_count:
            raise ValueError("has gaps in vector")
        rows = numbers.to_numpy().reshape(len(batch), -1)[start:]
        start = max(0, start - len(batch))
        if len(rows):
            yield rows


def _open_npz(path: Path) -> FrameIndex:
    """Read all of an npz file: NumPy cannot read a part of an array in an archive."""
    arrays, about = _load_npz(path.resolve())
    videos, indices, times, vectors = (arrays[name] for name in COLUMNS)
    if vectors.ndim != 2 or vectors.dtype != np.float32 or not vectors.shape[1]:
        raise ValueError(f"has {vectors.dtype} of shape {vectors.shape} for rows of float32 in vector")
    for name, kind in zip(COLUMNS[:3], "Uif", strict=True):
        if arrays[name].shape != vectors.shape[:1] or arrays[name].dtype.kind != kind:
            raise ValueError(
                f"has {arrays[name].dtype} of shape {arrays[name].shape} in {name} for {len(vectors):,} vectors"
            )
    if len(indices) and indices.min() < 0:
        raise ValueError("has numbers below 0 in index")
    if len(indices) and indices.max() > np.iinfo(np.int32).max:
        raise ValueError(f"has numbers above {np.iinfo(np.int32).max:,} in index")
    if np.isinf(times).any():
        raise ValueError("has infinite numbers in time")

    return FrameIndex(
        path,
        *_numbered(pa.array(videos.tolist(), pa.string())),
        indices.astype(np.int32),
        times.astype(np.float64),
        vectors.shape[1],
        about,
        lambda start: (vectors[first : first + ROWS_PER_BLOCK] for first in range(start, len(vectors), ROWS_PER_BLOCK)),
    )


def _load_npz(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Return the columns and the texts of an archive that does not unpack to far more than its size."""
    limit = FREE_UNPACKED_BYTES + MAX_UNPACK_RATIO * size_within_folder(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > limit:
            raise ValueError(f"unpacks to {unpacked:,} bytes, more than any index of its size")
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in COLUMNS if name not in file.files]:
                raise ValueError(f"lacks {', '.join(missing)}")
            arrays = {name: file[name] for name in COLUMNS}
            return arrays, {name: str(file[name])[:MAX_ABOUT_LENGTH] for name in ABOUT if name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, MemoryError) as error:
        raise ValueError(f"cannot be read ({error})") from error


def _numbered(videos: pa.StringArray) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Return the distinct ids, and for each row the number of its id."""
    coded = videos.dictionary_encode()
    return tuple(coded.dictionary.to_pylist()), coded.indices.to_numpy()


def _damaged(path: Path, error: ValueError | OSError) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"index: {path}: {reason}; make it again with `cyclecontrast embed`")
