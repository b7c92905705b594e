"""The files of a prepared store: their names, their columns, and the joining of the shards' tables into the store's."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing

STORE_FORMAT, STORE_VERSION = "cyclecontrast-frames", 1
ROWS_PER_GROUP = 1_000_000

VIDEO_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("shard", pa.int32()),
        ("num_frames", pa.int32()),
        ("duration", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("size_bytes", pa.int64()),
    ]
)
FRAME_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("index", pa.int32()),
        ("time", pa.float64()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


class VideoRow(NamedTuple):
    """One row of videos.parquet; the fields are its columns."""

    id: str
    path: str
    status: str
    reason: str
    shard: int
    num_frames: int = 0
    duration: float = math.nan
    width: int = 0
    height: int = 0
    size_bytes: int = 0


# No tuple: its method `index` would stand in the way of the column.
@dataclass(frozen=True, slots=True)
class FrameRow:
    """One row of frames.parquet; the fields are its columns."""

    video: str
    index: int
    time: float
    shard: int
    offset: int
    size: int
    width: int
    height: int


def shard_path(root: Path, shard: int, suffix: str = "tar") -> Path:
    """The path of a shard of a prepared store, or of one of its tables."""
    return root / "shards" / f"{shard:06d}.{suffix}"


def write_settings(root: Path, settings: Mapping[str, object]) -> None:
    """Writes store.json, which says that a folder is a store and with what settings it is made."""
    header = {"format": STORE_FORMAT, "version": STORE_VERSION, "settings": settings}
    with replacing(root / "store.json") as aside:
        aside.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def read_settings(root: Path) -> dict[str, object]:
    """The settings in store.json; raises UserError where it is not that of a store of this version."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        header = json.loads((root / "store.json").read_text(encoding="utf-8"))
        if (header["format"], header["version"]) == (STORE_FORMAT, STORE_VERSION):
            return dict(header["settings"])
    raise UserError(
        f"out: {root}/store.json is not that of a frame store of version {STORE_VERSION}; name a new folder"
    )


def write_videos(path: Path, rows: Iterable[VideoRow]) -> None:
    """Writes a table of videos, in the order of the format."""
    _write_rows(path, sorted(rows, key=lambda row: (row.shard, row.id)), VIDEO_SCHEMA)


def write_frames(path: Path, rows: list[FrameRow]) -> None:
    """Writes a table of frames."""
    _write_rows(path, rows, FRAME_SCHEMA)


def _write_rows(path: Path, rows: list[VideoRow] | list[FrameRow], schema: pa.Schema) -> None:
    table = pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)
    with replacing(path) as aside:
        pq.write_table(table, aside)


def read_videos(path: Path) -> list[VideoRow]:
    """The rows of a table of videos; raises UserError where it is damaged."""
    try:
        return [VideoRow(**row) for row in pq.read_table(path, schema=VIDEO_SCHEMA).to_pylist()]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"out: {path} is damaged; make a new store in another folder") from error


def join_shards(root: Path) -> None:
    """Rebuilds the store's two tables from those of the shards; the one of videos, last, makes the store complete."""
    # A video that was tried again stands in two shards; the later one counts.
    rows = {row.id: row for table in _tables(root, "videos.parquet") for row in read_videos(table)}
    _join_frames(root)
    write_videos(root / "videos.parquet", rows.values())


def _tables(root: Path, suffix: str) -> list[Path]:
    return sorted((root / "shards").glob(f"*.{suffix}"), key=lambda path: int(path.name.split(".")[0]))


def _join_frames(root: Path) -> None:
    """Joins without holding more than a row group or two in memory."""
    tables: list[pa.Table] = []
    with replacing(root / "frames.parquet") as aside, pq.ParquetWriter(aside, FRAME_SCHEMA) as writer:
        for path in _tables(root, "frames.parquet"):
            tables.append(pq.read_table(path, schema=FRAME_SCHEMA))
            if sum(map(len, tables)) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(tables))
                tables.clear()
        if tables:
            writer.write_table(pa.concat_tables(tables))
