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


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] = (), codes: Sequence[str] = ()) -> pa.Table:
    """Return all columns of the schema, or some; those named in `codes` are read as dictionaries.

    Raises ValueError, in a few words, unless each column of the schema is there with exactly its type, and those that
    are read hold no gaps, no text but UTF-8, no whole number below 0 and no infinite one. Raises OSError.
    """
    most = MOST_UNPACKED + MOST_TIMES * size_of_own(path)
    try:
        if (unpacked := _unpacked(pq.read_metadata(path))) > most:
            raise ValueError(f"unpacks to {unpacked:,} bytes, more than any table of its size")
        if problems := list(_unlike(pq.read_schema(path), schema)):
            raise ValueError(", ".join(problems))
        table = pq.read_table(path, columns=list(columns or schema.names), read_dictionary=list(codes))
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot be read ({str(error).partition(chr(10))[0]})") from error
    for name, column in zip(table.column_names, table.columns, strict=True):
        if what := _odd_values(column):
            raise ValueError(f"has {what} in {name}")
    return table


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


def _odd_values(column: pa.ChunkedArray) -> str:
    if column.null_count:
        return "gaps"
    if pa.types.is_integer(column.type) and len(column) and pc.min(column).as_py() < 0:
        return "numbers below 0"
    if pa.types.is_floating(column.type) and pc.any(pc.is_inf(column)).as_py():
        return "infinite numbers"
    return ""
