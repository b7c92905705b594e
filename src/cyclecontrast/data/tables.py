"""Read untrusted Parquet files in bounded memory and check them against a schema."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclecontrast.data.storage import is_passing, size_within_folder

FREE_UNPACKED_BYTES = 2**27
MAX_UNPACK_RATIO = 100
"""A table may unpack to FREE_UNPACKED_BYTES plus MAX_UNPACK_RATIO times its file size; tables of frames unpack to about
10 times."""
NUMBER = 8
ROWS_PER_BATCH = 65_536


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] = ()) -> pa.Table:
    """Return all columns of the schema, or some; raises ValueError and OSError as `read_batches` does."""
    return pa.Table.from_batches(read_batches(path, schema, columns), _wanted(schema, columns))


def read_batches(
    path: Path, schema: pa.Schema, columns: Sequence[str] = (), most_rows: int | None = None, first_group: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield all columns of the schema, or some, in batches of at most `most_rows`, from row group `first_group` on.

    Raises ValueError unless each column of the schema is there with exactly its type, and those that are read hold no
    nulls, no text that is not UTF-8, no negative integer and no infinite number. Raises OSError.
    """
    wanted = _wanted(schema, columns)
    num_rows, num_bytes = read_about(path).num_rows, 0
    _check_bytes(num_rows * NUMBER * sum(f.type.list_size for f in wanted if pa.types.is_fixed_size_list(f.type)), path)
    texts = [field.name for field in wanted if field.type == pa.string()]
    try:
        if problems := list(_schema_problems(pq.read_schema(path), schema)):
            raise ValueError(", ".join(problems))
        # Pre-buffering holds the whole file in memory, and each thread would keep a part of what it used.
        with pq.ParquetFile(path, read_dictionary=texts, pre_buffer=False) as file:
            groups, most_rows = range(first_group, file.num_row_groups), most_rows or ROWS_PER_BATCH
            for packed in file.iter_batches(most_rows, row_groups=groups, columns=wanted.names, use_threads=False):
                num_bytes += sum(_text_bytes(packed[name]) for name in texts)
                _check_bytes(num_bytes, path)
                columns = [packed[name].cast(wanted.field(name).type) for name in wanted.names]
                batch = pa.RecordBatch.from_arrays(columns, schema=wanted)
                batch.validate(full=True)
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    _check_values(name, column)
                yield batch
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error) from error


def read_about(path: Path) -> pq.FileMetaData:
    """Return the metadata of a Parquet file; raises ValueError where it is damaged or claims too much, and OSError."""
    size_within_folder(path)
    try:
        about = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error) from error
    groups = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    # Run-length encoded columns unpack to more than their pages hold. Column statistics may abort pyarrow: not used.
    _check_bytes(max(groups, about.num_rows * about.num_columns * NUMBER), path)
    return about


def _text_bytes(texts: pa.DictionaryArray) -> int:
    lengths = pc.take(pc.binary_length(texts.dictionary), texts.indices)
    return int(pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0)


def _check_bytes(unpacked: int, path: Path) -> None:
    if unpacked > FREE_UNPACKED_BYTES + MAX_UNPACK_RATIO * path.stat().st_size:
        raise ValueError(f"unpacks to {unpacked:,} bytes, more than any table of its size")


def _unreadable(error: Exception) -> Exception:
    if is_passing(error):
        return error
    return ValueError(f"cannot be read ({str(error).partition(chr(10))[0]})")


def _wanted(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in columns or schema.names])


def _schema_problems(found: pa.Schema, schema: pa.Schema) -> Iterator[str]:
    if missing := [name for name in schema.names if name not in found.names]:
        yield f"lacks {', '.join(missing)}"
    for field in schema:
        if found.names.count(field.name) > 1:
            yield f"has several columns {field.name}"
        elif field.name in found.names and found.field(field.name).type != field.type:
            yield f"has {found.field(field.name).type} for {field.type} in {field.name}"


def _check_values(name: str, column: pa.Array) -> None:
    if column.null_count:
        raise ValueError(f"has gaps in {name}")
    if pa.types.is_integer(column.type) and len(column) and pc.min(column).as_py() < 0:
        raise ValueError(f"has numbers below 0 in {name}")
    if pa.types.is_floating(column.type) and pc.any(pc.is_inf(column)).as_py():
        raise ValueError(f"has infinite numbers in {name}")
