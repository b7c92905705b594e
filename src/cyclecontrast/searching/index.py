"""A file of `embed`, opened: which frames it has, what it says of its making, and its vectors block by block."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from cyclecontrast.errors import UserError, did_you_mean
from cyclecontrast.evaluation.metrics import Floats, unit_vectors
from cyclecontrast.searching.npz_file import NpzFile
from cyclecontrast.searching.parquet_file import ParquetFile
from cyclecontrast.searching.vector_file import VectorFile

ROWS_PER_BLOCK = 16_384
LONGEST_TIME = 1e9
"""Seconds from the start of a video, some thirty years: what `search --time` takes too."""
MOST_COMPARED = 10_000
"""So many ids are looked through for one that was meant."""


class UnitBlock(NamedTuple):
    """Vectors of length 1, float32 (num_rows, dim), of the rows from `start`."""

    start: int
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True)
class FrameIndex:
    """The frames of an index: row r is frame `index[r]` of the video `video_ids[video[r]]`."""

    path: Path
    file: VectorFile
    video_ids: tuple[str, ...]
    video: npt.NDArray[np.int32]
    index: npt.NDArray[np.int32]
    time: npt.NDArray[np.float64]

    @staticmethod
    def open(path: Path) -> "FrameIndex":
        """Read what an index says of its frames, not yet its vectors; raises UserError."""
        try:
            file = _open(path.resolve())
            videos, indices, times = file.columns()
            if (np.abs(times) > LONGEST_TIME).any():
                raise ValueError(f"has times of more than {LONGEST_TIME:.0e} seconds")
        except (ValueError, OSError) as error:
            raise _damaged(path, error) from error
        if not len(indices):
            raise UserError(f"index: {path} holds no frames; make it again with `cyclecontrast embed`")
        coded = videos.dictionary_encode()
        ids = tuple(coded.dictionary.to_pylist())
        return FrameIndex(path, file, ids, coded.indices.to_numpy(), indices, times)

    def __len__(self) -> int:
        return len(self.index)

    def about(self, name: str) -> str:
        """Return what the file says of its making, "" where it says nothing."""
        return self.file.about.get(name, "")

    def blocks(self, title: str) -> Iterator[UnitBlock]:
        """Yield all vectors, scaled to length 1, in bounded memory, with a progress bar where someone watches."""
        console = Console(stderr=True)
        total = -(-len(self) // ROWS_PER_BLOCK)
        yield from track(self._blocks(), title, total, console=console, disable=not console.is_terminal, transient=True)

    def load(self, title: str) -> UnitBlock:
        """Return all vectors in one block."""
        vectors = np.empty((len(self), self.file.dim), np.float32)
        for block in self.blocks(title):
            vectors[block.start : block.start + len(block.vectors)] = block.vectors
        return UnitBlock(0, vectors)

    def _blocks(self, first: int = 0) -> Iterator[UnitBlock]:
        try:
            start = first
            for vectors in self.file.vectors(ROWS_PER_BLOCK, first):
                if not np.isfinite(vectors).all():
                    raise ValueError("has vectors that are not finite")
                yield UnitBlock(start, unit_vectors(vectors))
                start += len(vectors)
            if start != len(self):
                raise ValueError("has not as many vectors as frames")
        except (ValueError, OSError) as error:
            raise _damaged(self.path, error) from error

    def vector(self, row: int) -> Floats:
        """Return the vector of a row, scaled to length 1."""
        vector: Floats = next(self._blocks(row)).vectors[0].copy()
        return vector

    def row_of_frame(self, video_id: str, frame: int) -> int:
        """Return the row of a video's frame by its index; raises UserError."""
        rows = self._rows_of(video_id)
        found = rows[self.index[rows] == frame]
        if not len(found):
            known = f"{self.index[rows].min()} to {self.index[rows].max()}"
            raise UserError(
                f"frame: {video_id} has no frame {frame} in {self.path}; it has {len(rows):,}, from {known}"
            )
        return int(found[0])

    def row_at(self, video_id: str, seconds: float) -> int:
        """Return the row of the frame of a video that is nearest to a moment; raises UserError."""
        rows = self._rows_of(video_id)
        rows = rows[~np.isnan(self.time[rows])]
        if not len(rows):
            raise UserError(f"time: {self.path} knows no times of {video_id}; name a frame by its index: --frame N")
        return int(rows[np.argmin(np.abs(self.time[rows] - seconds))])

    def _rows_of(self, video_id: str) -> npt.NDArray[np.int64]:
        if video_id not in self._numbers:
            raise UserError(f"video: {video_id} is not in {self.path}{self._meant(video_id)}")
        return np.flatnonzero(self.video == self._numbers[video_id])

    def _meant(self, video_id: str) -> str:
        holding = next((known for known in self.video_ids if video_id in known), None)
        if holding is not None:
            return f"; did you mean {holding}?"
        return did_you_mean(video_id, self.video_ids[:MOST_COMPARED]) or f"; its first is {self.video_ids[0]}"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {video_id: number for number, video_id in enumerate(self.video_ids)}


def _open(path: Path) -> VectorFile:
    return ParquetFile.open(path) if path.suffix.lower() == ".parquet" else NpzFile.open(path)


def _damaged(path: Path, error: ValueError | OSError) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"index: {path}: {reason}; make it again with `cyclecontrast embed`")
