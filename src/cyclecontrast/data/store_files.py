"""The files of a prepared store: their names, their columns, and the joining of the shards' tables into the store's."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclecontrast.data.regular_files import read_regular, size_of_own
from cyclecontrast.data.table_files import read_table
from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing

STORE_FORMAT, STORE_VERSION = "cyclecontrast-frames", 1
ROWS_PER_GROUP = 1_000_000
MOST_SETTINGS_BYTES = 1_000_000
STATUSES = ("ok", "skipped", "pending")
OUTSIDE = r"^/|(^|/)\.\.(/|$)"
"""What no path of a video has, which lies below the folder of videos."""
MOST_SHARDS = 2**30
"""Bound of the numbers of shards, whose column ends at twice as many."""

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


def shard_name(shard: int, suffix: str = "tar") -> str:
    """The name, below the root of a prepared store, of a shard or of one of its tables."""
    return f"shards/{shard:06d}.{suffix}"


def shard_path(root: Path, shard: int, suffix: str = "tar") -> Path:
    """The path of a shard of a prepared store, or of one of its tables."""
    return root / shard_name(shard, suffix)


def write_settings(root: Path, settings: Mapping[str, object]) -> None:
    """Writes store.json, which says that a folder is a store and with what settings it is made."""
    header = {"format": STORE_FORMAT, "version": STORE_VERSION, "settings": settings}
    with replacing(root / "store.json") as aside:
        aside.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def read_settings(root: Path) -> dict[str, object] | None:
    """The settings in store.json, empty where it names none; None where it is not that of a store of this version."""
    path = root / "store.json"
    try:
        size_of_own(path)
        header = json.loads(read_regular(path, MOST_SETTINGS_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(header, dict) or (header.get("format"), header.get("version")) != (STORE_FORMAT, STORE_VERSION):
        return None
    settings = header.get("settings", {})
    return settings if isinstance(settings, dict) else None


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
    """The rows of a table of videos; raises UserError where it is damaged, or names what a store cannot hold."""
    try:
        table = read_table(path, VIDEO_SCHEMA)
        if not pc.all(pc.is_in(table["status"], pa.array(STATUSES)), min_count=0).as_py():
            raise ValueError(f"has another status than {', '.join(STATUSES)}")
        if pc.any(pc.match_substring_regex(table["path"], OUTSIDE)).as_py():
            raise ValueError("has paths that lead out of the folder of videos")
        if len(table) and pc.max(table["shard"]).as_py() >= MOST_SHARDS:
            raise ValueError("has numbers of shards that are too large")
    except ValueError as error:
        raise UserError(_damaged(path, error)) from error
    return [VideoRow(**row) for row in table.to_pylist()]


def count_frames(root: Path) -> int:
    """The number of rows of the store's table of frames; raises UserError where it is damaged."""
    path = root / "frames.parquet"
    try:
        size_of_own(path)
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(_damaged(path, ValueError(str(error).partition("\n")[0]))) from error


def is_whole(root: Path, shard: int) -> bool:
    """Whether a shard's tables can be read and its tar is as long as its frames need."""
    try:
        frames = read_table(shard_path(root, shard, "frames.parquet"), FRAME_SCHEMA, ("offset", "size"))
        read_videos(shard_path(root, shard, "videos.parquet"))
        end = pc.max(pc.add(frames["offset"], frames["size"])).as_py() or 0
        return size_of_own(shard_path(root, shard)) >= end
    except (OSError, ValueError, UserError):
        return False


def join_shards(root: Path) -> None:
    """Rebuilds the store's two tables from those of the shards; the one of videos, last, makes the store complete."""
    # A video that was tried again stands in two shards; the later one counts.
    rows = {row.id: row for table in _tables(root, "videos.parquet") for row in read_videos(table)}
    _join_frames(root)
    write_videos(root / "videos.parquet", rows.values())


def _tables(root: Path, suffix: str) -> list[Path]:
    tables = [path for path in (root / "shards").glob(f"*.{suffix}") if path.name.split(".")[0].isdecimal()]
    return sorted(tables, key=lambda path: int(path.name.split(".")[0]))


def _join_frames(root: Path) -> None:
    """Joins without holding more than a row group or two in memory."""
    tables: list[pa.Table] = []
    with replacing(root / "frames.parquet") as aside, pq.ParquetWriter(aside, FRAME_SCHEMA) as writer:
        for path in _tables(root, "frames.parquet"):
            try:
                tables.append(read_table(path, FRAME_SCHEMA))
            except ValueError as error:
                raise UserError(_damaged(path, error)) from error
            if sum(map(len, tables)) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(tables))
                tables.clear()
        if tables:
            writer.write_table(pa.concat_tables(tables))


def _damaged(path: Path, error: ValueError) -> str:
    return f"out: {path} is damaged ({error}); make a new store in another folder"
