"""Parquet files of a known schema: what is read from them has its columns, of its types, with nothing odd in them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclecontrast.data.regular_files import size_of_own

MOST_UNPACKED = 2**27
MOST_TIMES = 100
"""A table may take so many times its file in memory, and any table so many bytes: tables of frames take about 10."""
NUMBER = 8
ROWS_PER_BATCH = 65_536


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] = ()) -> pa.Table:
    """Return all columns of the schema, or some; raises ValueError and OSError as `read_batches` does."""
    wanted = _wanted(schema, columns)
    return pa.Table.from_batches(read_batches(path, schema, columns), wanted)


def read_batches(path: Path, schema: pa.Schema, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all columns of the schema, or of some; no more than a batch of them is held in memory.

    Raises ValueError, in a few words, unless each column of the schema is there with exactly its type, and those that
    are read hold no gaps, no text but UTF-8, no whole number below 0 and no infinite one. Raises OSError.
    """
    wanted = _wanted(schema, columns)
    read_about(path)
    try:
        if problems := list(_unlike(pq.read_schema(path), schema)):
            raise ValueError(", ".join(problems))
        with pq.ParquetFile(path) as file:
            # Threads would each keep some memory for later.
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=wanted.names, use_threads=False):
                batch = pa.RecordBatch.from_arrays([batch[name] for name in wanted.names], schema=wanted)
                batch.validate(full=True)
                _check_values(batch)
                yield batch
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot be read ({str(error).partition(chr(10))[0]})") from error


def read_about(path: Path) -> pq.FileMetaData:
    """Return what a table says of itself; raises ValueError where that is nothing, or too much, and OSError."""
    most = MOST_UNPACKED + MOST_TIMES * size_of_own(path)
    try:
        about = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot be read ({str(error).partition(chr(10))[0]})") from error
    if (unpacked := _unpacked(about)) > most:
        raise ValueError(f"unpacks to {unpacked:,} bytes, more than any table of its size")
    return about


def _wanted(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in columns or schema.names])


def _unpacked(about: pq.FileMetaData) -> int:
    """Return the bytes that a file says it unpacks to; runs of one value unpack to more than its pages hold."""
    groups = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    return int(max(groups, about.num_rows * about.num_columns * NUMBER))


def _unlike(found: pa.Schema, schema: pa.Schema) -> Iterator[str]:
    if missing := [name for name in schema.names if name not in found.names]:
        yield f"lacks {', '.join(missing)}"
    for field in schema:
        if found.names.count(field.name) > 1:
            yield f"has several columns {field.name}"
        elif field.name in found.names and found.field(field.name).type != field.type:
            yield f"has {found.field(field.name).type} for {field.type} in {field.name}"


def _check_values(batch: pa.RecordBatch) -> None:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if what := _odd_values(column):
            raise ValueError(f"has {what} in {name}")


def _odd_values(column: pa.Array) -> str:
    if column.null_count:
        return "gaps"
    if pa.types.is_integer(column.type) and len(column) and pc.min(column).as_py() < 0:
        return "numbers below 0"
    if pa.types.is_floating(column.type) and pc.any(pc.is_inf(column)).as_py():
        return "infinite numbers"
    return ""
