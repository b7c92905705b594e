"""The format of a prepared store: the names of its files, their columns, and how they are read and written."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclecontrast.data.storage import read_regular, size_within_folder
from cyclecontrast.data.tables import read_table
from cyclecontrast.errors import UserError
from cyclecontrast.files import atomic_write

STORE_FORMAT, STORE_VERSION = "cyclecontrast-frames", 1
STORE, FRAMES, VIDEOS = "store.json", "frames.parquet", "videos.parquet"
MAX_SETTINGS_BYTES = 1_000_000
LEADS_OUT = r"^/|(^|/)\.\.(/|$)"
"""A path that leaves the folder of videos."""
MAX_SHARDS = 2**30
"""Bound on the numbers of shards, well below the largest number of their column."""

VIDEO_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "path", "status", "reason")),
        *((name, pa.int32()) for name in ("shard", "num_frames")),
        ("duration", pa.float64()),
        *((name, pa.int32()) for name in ("width", "height")),
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
        *((name, pa.int32()) for name in ("size", "width", "height")),
    ]
)


class VideoRow(NamedTuple):
    """One row of videos.parquet; the fields are its columns. `status` is ok, skipped or pending."""

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


def shard_name(shard: int, suffix: str = "tar") -> str:
    """Return the name of a shard, or of one of its tables, relative to the store."""
    return f"shards/{shard:06d}.{suffix}"


def shard_path(root: Path, shard: int, suffix: str = "tar") -> Path:
    """Return the path of a shard, or of one of its tables."""
    return root / shard_name(shard, suffix)


def member_name(video_id: str, index: int) -> str:
    """Return the name of a frame in its shard: a WebDataset key without dots, in a folder without slashes."""
    return f"{quote(video_id, safe='').replace('.', '%2E')}/{index:06d}.jpg"


def write_settings(root: Path, settings: Mapping[str, object], videos: Path | None = None) -> None:
    """Write store.json: it marks a folder as a store, and has the settings and the folder of videos it is made with."""
    header: dict[str, object] = {"format": STORE_FORMAT, "version": STORE_VERSION, "settings": settings}
    if videos is not None:
        header["videos"] = relative_folder(root, videos)
    with atomic_write(root / STORE) as aside:
        aside.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def read_settings(root: Path) -> dict[str, object] | None:
    """Return the settings in store.json, None where it is not that of a store of this version."""
    header = _read_header(root)
    settings = header.get("settings", {})
    is_known = (header.get("format"), header.get("version")) == (STORE_FORMAT, STORE_VERSION)
    return settings if is_known and isinstance(settings, dict) else None


def read_videos_folder(root: Path) -> Path | None:
    """Return the folder of videos that store.json names; None if it names none."""
    videos = _read_header(root).get("videos")
    return root.resolve() / videos if isinstance(videos, str) else None


def relative_folder(root: Path, videos: Path) -> str:
    """Return the path of a folder of videos from a store: it stays right if both are moved together."""
    return os.path.relpath(videos.resolve(), root.resolve())


def _read_header(root: Path) -> dict[str, Any]:
    try:
        size_within_folder(root / STORE)
        header = json.loads(read_regular(root / STORE, MAX_SETTINGS_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def check_settings_exist(root: Path) -> None:
    """Raise UserError for a store whose store.json is missing: nothing else says how its frames were made."""
    if (root / FRAMES).exists() and (root / "shards").is_dir() and not (root / STORE).exists():
        raise UserError(f"{root / STORE} is missing; restore this file, or prepare the videos into a new folder")


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Write a table of videos or of frames."""
    with atomic_write(path) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside)


def write_videos(path: Path, rows: Iterable[VideoRow]) -> None:
    """Write a table of videos, ordered by shard and id."""
    write_rows(path, [row._asdict() for row in sorted(rows, key=lambda row: (row.shard, row.id))], VIDEO_SCHEMA)


def read_videos(path: Path) -> list[VideoRow]:
    """Return the rows of a table of videos; raises UserError where it is damaged, or names what a store cannot hold."""
    try:
        table = read_table(path, VIDEO_SCHEMA)
        if pc.any(pc.match_substring_regex(table["path"], LEADS_OUT)).as_py():
            raise ValueError("has paths that lead out of the folder of videos")
        if len(table) and pc.max(table["shard"]).as_py() >= MAX_SHARDS:
            raise ValueError("has numbers of shards that are too large")
    except ValueError as error:
        raise damaged(path, error) from error
    return [VideoRow(**row) for row in table.to_pylist()]


def damaged(path: Path, error: Exception) -> UserError:
    """Return the error for a damaged table of a store."""
    return UserError(
        f"out: {path} is damaged ({error}); run the same `cyclecontrast prepare` again, it repairs the store"
    )
