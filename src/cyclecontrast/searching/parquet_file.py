"""The vectors of `embed` in a Parquet file, read within limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cyclecontrast.data.tables import read_about, read_batches, read_table
from cyclecontrast.searching.vector_file import LONGEST_TEXT, Columns


@dataclass(frozen=True)
class ParquetFile:
    """A table with the columns video, index, time and vector."""

    path: Path
    schema: pa.Schema
    dim: int
    about: dict[str, str]

    @staticmethod
    def open(path: Path) -> "ParquetFile":
        """Look at the columns; raises ValueError where they are not those of `embed`, and OSError."""
        read_about(path)
        try:
            found = pq.read_schema(path)
        except pa.ArrowException as error:
            raise ValueError(f"cannot be read ({str(error).partition(chr(10))[0]})") from error
        kind = found.field("vector").type if found.names.count("vector") == 1 else None
        if kind is None or not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise ValueError(f"has {'no column' if kind is None else kind} for lists of float32 in vector")
        columns = [("video", pa.string()), ("index", pa.int32()), ("time", pa.float64()), ("vector", kind)]
        about = {_text(name): _text(value) for name, value in (found.metadata or {}).items()}
        return ParquetFile(path, pa.schema(columns), kind.list_size, about)

    def columns(self) -> Columns:
        """Return which frames the rows are."""
        table = read_table(self.path, self.schema, ("video", "index", "time")).combine_chunks()
        video = pa.concat_arrays(table["video"].chunks) if len(table) else pa.array([], pa.string())
        return Columns(video, table["index"].to_numpy(), table["time"].to_numpy())

    def vectors(self, most_rows: int, start: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the vectors in order from the row `start`, at most so many rows at once."""
        about, group = read_about(self.path), 0
        while group < about.num_row_groups and start >= about.row_group(group).num_rows:
            start -= about.row_group(group).num_rows
            group += 1
        for batch in read_batches(self.path, self.schema, ("vector",), most_rows, group):
            numbers = batch["vector"].flatten()
            if numbers.null_count:
                raise ValueError("has gaps in vector")
            rows = numbers.to_numpy().reshape(-1, self.dim)[start:]
            start = max(0, start - len(batch))
            if len(rows):
                yield rows


def _text(data: bytes) -> str:
    return data[:LONGEST_TEXT].decode("utf-8", "replace")
