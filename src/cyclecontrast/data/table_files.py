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
    size_of_own(path)
    try:
        if problems := list(_unlike(pq.read_schema(path), schema)):
            raise ValueError(", ".join(problems))
        table = read_bounded(path, columns or schema.names, codes)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot be read ({str(error).partition(chr(10))[0]})") from error
    for name, column in zip(table.column_names, table.columns, strict=True):
        if what := _odd_values(column):
            raise ValueError(f"has {what} in {name}")
    return table


def read_bounded(path: Path, columns: Sequence[str], codes: Sequence[str] = ()) -> pa.Table:
    """Return columns of any Parquet file; those named in `codes` are read as dictionaries.

    Raises ValueError before it takes memory out of all proportion to the file, and what pyarrow raises.
    """
    most = MOST_UNPACKED + MOST_TIMES * path.stat().st_size
    _check_bytes(_unpacked(pq.read_metadata(path)), most)
    texts = [field.name for field in pq.read_schema(path) if field.type == pa.string() and field.name in columns]
    table = pq.read_table(path, columns=list(columns), read_dictionary=texts)
    for name in texts:
        _check_bytes(sum(map(_text_bytes, table[name].chunks)), most)
        if name not in codes:
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
    return table


def _unpacked(about: pq.FileMetaData) -> int:
    """Return the bytes that a file says it unpacks to; runs of one value unpack to more than its pages hold."""
    groups = [about.row_group(group) for group in range(about.num_row_groups)]
    numbers = sum(group.column(column).num_values for group in groups for column in range(group.num_columns))
    return int(max(sum(group.total_byte_size for group in groups), numbers * NUMBER))


def _text_bytes(texts: pa.DictionaryArray) -> int:
    lengths = pc.take(pc.binary_length(texts.dictionary), texts.indices)
    return int(pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0)


def _check_bytes(unpacked: int, most: int) -> None:
    if unpacked > most:
        raise ValueError(f"unpacks to {unpacked:,} bytes, more than any table of its size")


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
