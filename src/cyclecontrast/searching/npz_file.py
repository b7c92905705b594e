"""The vectors of `embed` in an npz file, read within limits and never as a whole."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.storage import size_within_folder
from cyclecontrast.data.tables import MOST_TIMES, MOST_UNPACKED
from cyclecontrast.searching.vector_file import LONGEST_TEXT, Columns


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    num_bytes: int


@dataclass(frozen=True)
class NpzFile:
    """An archive of arrays: video, index, time and vector, and texts about them."""

    path: Path
    num_rows: int
    dim: int
    about: dict[str, str]

    @staticmethod
    def open(path: Path) -> "NpzFile":
        """Look at the arrays; raises ValueError where they are not those of `embed`, and OSError."""
        size = size_within_folder(path)
        with _archive(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > MOST_UNPACKED + MOST_TIMES * size:
                raise ValueError(f"unpacks to {unpacked:,} bytes, more than any of its size")
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if missing := [name for name in ("video", "index", "time", "vector") if name not in names]:
                raise ValueError(f"lacks {', '.join(missing)}")
            header = _header_of(archive, "vector")
            if len(header.shape) != 2 or header.dtype != np.float32 or header.shape[1] < 1:
                raise ValueError(f"has {header.dtype} of shape {header.shape} for rows of float32 in vector")
            about = {name: text for name in names if (text := _read_text(archive, name)) is not None}
        return NpzFile(path, header.shape[0], header.shape[1], about)

    def columns(self) -> Columns:
        """Return which frames the rows are."""
        with _archive(self.path) as archive:
            video = _read(archive, "video", self.num_rows, "U")
            indices = _read(archive, "index", self.num_rows, "i").astype(np.int32)
            times = _read(archive, "time", self.num_rows, "f").astype(np.float64)
        if len(indices) and indices.min() < 0:
            raise ValueError("has numbers below 0 in index")
        if np.isinf(times).any():
            raise ValueError("has infinite numbers in time")
        return Columns(pa.array(video.tolist(), pa.string()), indices, times)

    def vectors(self, most_rows: int, start: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the vectors in order from the row `start`, at most so many rows at once."""
        row_bytes = self.dim * np.dtype(np.float32).itemsize
        with _archive(self.path) as archive, archive.open("vector.npy") as file:
            _header(file)
            file.seek(start * row_bytes, os.SEEK_CUR)
            for first in range(start, self.num_rows, most_rows):
                num_rows = min(most_rows, self.num_rows - first)
                data = file.read(num_rows * row_bytes)
                if len(data) != num_rows * row_bytes:
                    raise ValueError("is cut off")
                yield np.frombuffer(data, np.float32).reshape(num_rows, self.dim)


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"cannot be read ({error})") from error


def _header_of(archive: zipfile.ZipFile, name: str) -> _Header:
    with archive.open(f"{name}.npy") as file:
        header = _header(file)
    if header.num_bytes > archive.getinfo(f"{name}.npy").file_size:
        raise ValueError(f"has fewer numbers in {name} than it says")
    return header


def _header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject or (is_fortran and len(shape) > 1):
        raise ValueError("holds arrays of another kind than `embed` writes")
    count = 1
    for side in shape:
        count *= side
    return _Header(shape, dtype, count * dtype.itemsize)


def _read(archive: zipfile.ZipFile, name: str, num_rows: int, kind: str) -> npt.NDArray[np.generic]:
    """Return a whole array, once it is known to be no larger than its bytes; raises ValueError."""
    header = _header_of(archive, name)
    if header.shape != (num_rows,):
        raise ValueError(f"has {header.shape} values in {name} for {num_rows:,} vectors")
    if header.dtype.kind != kind:
        raise ValueError(f"has {header.dtype} in {name}")
    with archive.open(f"{name}.npy") as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _read_text(archive: zipfile.ZipFile, name: str) -> str | None:
    """Return a text about the arrays, None where it is an array itself, or too long."""
    header = _header_of(archive, name)
    if header.shape != () or header.dtype.kind != "U" or header.dtype.itemsize > LONGEST_TEXT * np.dtype("U1").itemsize:
        return None
    with archive.open(f"{name}.npy") as file:
        return str(np.lib.format.read_array(file, allow_pickle=False))
