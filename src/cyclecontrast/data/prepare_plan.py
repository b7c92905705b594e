"""The plan: which video goes into which shard, and which of them are still to be done."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.policies import PerSecond, policy_of
from cyclecontrast.data.shard_writer import ShardJob
from cyclecontrast.data.store_files import VideoRow, is_whole, read_videos, shard_path
from cyclecontrast.data.video import FoundVideo

SCALING = "area, before RGB"
"""How frames are scaled: a store that was begun by other means is not gone on with."""
MEGABYTE = 1_000_000
SMALLEST_SHARD = MEGABYTE
MOST_PARTS = 64
"""A small collection is cut into about this many shards, so that all workers have something to do."""


def settings_of(config: PrepareConfig) -> dict[str, object]:
    """What decides the bytes of a store besides the videos, with the policy resolved; kept in store.json."""
    policy = policy_of(config)
    fps = policy.fps if isinstance(policy, PerSecond) else None
    return config.model_dump(exclude={"videos", "out", "workers", "part"}) | {"fps": fps, "scaling": SCALING}


def make_plan(out: Path, found: Sequence[FoundVideo], shard_mb: int) -> list[VideoRow]:
    """Known rows and, in shards of their own, pending rows for the videos that are new or are tried again."""
    known = _known_rows(out)
    new = [video for video in found if _is_to_do(known.get(video.id), video)]
    total = sum(video.size_bytes for video in new)
    shard_bytes = min(shard_mb * MEGABYTE, max(SMALLEST_SHARD, total // MOST_PARTS))
    shard = 1 + max((row.shard for row in known.values()), default=-1)
    filled = 0
    for video in new:
        if filled and filled + video.size_bytes > shard_bytes:
            shard, filled = shard + 1, 0
        filled += video.size_bytes
        known[video.id] = VideoRow(video.id, video.id, "pending", video.reason, shard, size_bytes=video.size_bytes)
    return list(known.values())


def _known_rows(out: Path) -> dict[str, VideoRow]:
    """The row of each video that the store knows; shards done since the last plan count as done."""
    plan = out / "videos.parquet"
    rows = {row.id: row for row in read_videos(plan)} if plan.exists() else {}
    for shard in {row.shard for row in rows.values() if row.status == "pending"}:
        if is_whole(out, shard):
            rows.update({row.id: row for row in read_videos(shard_path(out, shard, "videos.parquet"))})
    return rows


def _is_to_do(row: VideoRow | None, video: FoundVideo) -> bool:
    return row is None or (row.status == "skipped" and row.size_bytes != video.size_bytes)


def pending_jobs(config: PrepareConfig, rows: Sequence[VideoRow]) -> list[ShardJob]:
    """The shards that are not done, in order."""
    pending = sorted((row for row in rows if row.status == "pending"), key=lambda row: (row.shard, row.id))
    return [ShardJob(config, shard, tuple(members)) for shard, members in groupby(pending, key=lambda row: row.shard)]


def is_in_part(shard: int, part: str) -> bool:
    """Whether a shard is of the part `i/n`."""
    number, all_parts = map(int, part.split("/"))
    return shard % all_parts == number - 1
