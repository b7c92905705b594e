"""Videos → a frame store on disk, as a job that may be killed at any moment and goes on where it was.

The plan (which video goes into which shard) is written first; a shard is done when its videos.parquet exists;
the store's own two tables are rebuilt from those of the shards. So an interruption costs at most the shards in
hand, one per worker, and the bytes of a store depend on the videos and the settings only, not on the number of
workers nor on interruptions.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.prepare_plan import is_in_part, make_plan, pending_jobs, settings_of
from cyclecontrast.data.prepare_workers import write_shards
from cyclecontrast.data.shard_writer import Progress, Report, ShardJob, write_shard
from cyclecontrast.data.store_files import VideoRow, count_frames, join_shards, read_videos, write_videos
from cyclecontrast.data.store_folder import (
    check_place,
    check_store,
    clear,
    joined_parts,
    locked_part,
    locked_store,
    take_back,
)
from cyclecontrast.data.video import FoundVideo, find_videos
from cyclecontrast.errors import UserError, attempt

REASONS_SHOWN = 5


class VideoNote(NamedTuple):
    """A file that gave no frame, or not all, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class PrepareSummary:
    """What a store holds after `prepare`; its text is a line, then one for each video that needs a look.

    `num_new`: files seen for the first time, or again after a change, since the store was last complete.
    `partial`: videos read in part, with what is missing. `changed`: ids of videos whose file is another size
    than when its frames were taken. Where only a part of the store is done, it is about that `part`, and `num_left`
    shards of the others are still to be made.
    """

    store: Path
    num_videos: int
    num_frames: int
    num_new: int
    skipped: tuple[VideoNote, ...]
    partial: tuple[VideoNote, ...]
    changed: tuple[str, ...]
    part: str = ""
    num_left: int = 0

    def __str__(self) -> str:
        changed = "changed since it was prepared: make a new store to take it in"
        lines = [self.line]
        lines += [f"  skipped  {video.id}: {video.reason}" for video in self.skipped]
        lines += [f"  in part  {video.id}: {video.reason}" for video in self.partial]
        lines += [f"  kept     {video_id}: {changed}" for video_id in self.changed]
        return "\n".join(lines)

    @property
    def line(self) -> str:
        """Such as `412 videos, 1,640 frames, 3 skipped: 1 no video stream, 2 invalid data`."""
        parts = [_count(self.num_videos, "video"), _count(self.num_frames, "frame")]
        if self.partial:
            parts.append(f"{len(self.partial):,} read in part")
        if self.skipped:
            kinds = Counter(video.reason.split(" (")[0] for video in self.skipped)
            reasons = ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items()))
            parts.append(f"{len(self.skipped):,} skipped: {reasons}")
        line = ("" if self.num_new else "nothing new: ") + ", ".join(parts)
        left = f"; {_count(self.num_left, 'shard')} of the other parts still to be made, then the store is complete"
        return f"part {self.part}: {line}{left}" if self.part else line


def prepare(config: PrepareConfig) -> PrepareSummary:
    """Takes the frames of all videos below a folder into a store, or goes on with a store begun earlier.

    Raises UserError before anything is written where videos, output or settings do not fit, and where not one
    video can be read; raises KeyboardInterrupt, with what to do next as its text, when interrupted.
    """
    settings = settings_of(config)
    found = _check(config, settings)
    try:
        if config.part is not None:
            return _prepare_part(config, settings, found, config.part)
        with locked_store(config.out, settings) as made:
            _write_pending(config, _plan(config, found))
            return _finish(config, found, made)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on where it was") from None
    except OSError as error:
        raise UserError(
            f"{error.filename or config.out}: {(error.strerror or str(error)).lower()}; "
            "put that right and give the same command again, it goes on where it was"
        ) from error


def _prepare_part(
    config: PrepareConfig, settings: dict[str, object], found: Sequence[FoundVideo], part: str
) -> PrepareSummary:
    """Writes a part's shards; the part that ends last makes the store's tables."""
    with locked_part(config.out, settings, part):
        with joined_parts(config.out):
            jobs = _plan(config, found)
        own_jobs = [job for job in jobs if is_in_part(job.shard, part)]
        _write_pending(config, own_jobs)
        with joined_parts(config.out):
            rows = make_plan(config.out, found, config.shard_mb)
            left = {row.shard for row in rows if row.status == "pending"}
            if not left:
                return _finish(config, found, [])
            own = [row for row in rows if is_in_part(row.shard, part)]
            return _summary_of(own, config.out, found, sum(len(job.rows) for job in own_jobs), part, len(left))


def _finish(config: PrepareConfig, found: Sequence[FoundVideo], made: Sequence[Path]) -> PrepareSummary:
    """Joins the shards where that is still to be done."""
    # An earlier command may have been stopped when its shards were done and the tables were not.
    num_new = sum(row.status == "pending" for row in read_videos(config.out / "videos.parquet"))
    if num_new:
        clear(config.out)
        join_shards(config.out)
    summary = _summary(config.out, found, num_new)
    if summary.num_videos == 0:
        # A store without a frame is none.
        take_back(config.out, made)
        raise _nothing_read(summary.skipped)
    return summary


def _check(config: PrepareConfig, settings: dict[str, object]) -> list[FoundVideo]:
    problems: list[str] = []
    attempt(lambda: check_place(config.videos, config.out), problems)
    if not problems:
        attempt(lambda: check_store(config.out, settings), problems)
    found = attempt(lambda: _find(config.videos), problems)
    if found is None or problems:
        raise UserError(*problems)
    _check_same_folder(config, found)
    return found


def _check_same_folder(config: PrepareConfig, found: Sequence[FoundVideo]) -> None:
    table = config.out / "videos.parquet"
    stored = {row.id for row in read_videos(table)} if table.exists() else set()
    if stored and stored.isdisjoint(video.id for video in found):
        raise UserError(
            f"out: {config.out} holds other videos: none of its {len(stored):,} is in {config.videos}; "
            "name another folder with --out"
        )


def _find(videos: Path) -> list[FoundVideo]:
    if not videos.is_dir():
        raise UserError(f"videos: {videos} is not a folder; name the folder that holds the videos")
    try:
        found = find_videos(videos)
    except OSError as error:
        raise UserError(f"videos: {videos} cannot be read: {error.strerror}") from error
    if not found:
        raise UserError(f"videos: no video file in {videos} or its subfolders")
    return found


def _plan(config: PrepareConfig, found: Sequence[FoundVideo]) -> list[ShardJob]:
    """Writes the plan and returns the shards that are not done."""
    rows = make_plan(config.out, found, config.shard_mb)
    if jobs := pending_jobs(config, rows):
        write_videos(config.out / "videos.parquet", rows)
    return jobs


def _write_pending(config: PrepareConfig, jobs: Sequence[ShardJob]) -> None:
    num_workers = _num_cores() if config.workers is None else config.workers
    with _progress_bar(jobs) as report:
        if num_workers and jobs:
            write_shards(jobs, num_workers, report)
        else:
            for job in jobs:
                write_shard(job, report)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress_bar(jobs: Sequence[ShardJob]) -> Iterator[Report]:
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    sizes = [row.size_bytes for job in jobs for row in job.rows]
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(sizes))
        num_videos = num_frames = 0

        def report(progress: Progress) -> None:
            nonlocal num_videos, num_frames
            num_videos += progress.num_videos
            num_frames += progress.num_frames
            text = f"{num_videos:,} of {_count(len(sizes), 'video')}, {_count(num_frames, 'frame')}"
            bar.update(task, advance=progress.num_bytes, description=text)

        yield report


def _summary(out: Path, found: Sequence[FoundVideo], num_new: int) -> PrepareSummary:
    summary = _summary_of(read_videos(out / "videos.parquet"), out, found, num_new)
    if summary.num_frames != count_frames(out):
        raise UserError(f"out: {out}: videos.parquet does not fit frames.parquet; make a new store in another folder")
    return summary


def _summary_of(
    rows: Sequence[VideoRow], out: Path, found: Sequence[FoundVideo], num_new: int, part: str = "", num_left: int = 0
) -> PrepareSummary:
    rows = sorted(rows, key=lambda row: row.id)
    ok = [row for row in rows if row.status == "ok"]
    sizes = {video.id: video.size_bytes for video in found}
    return PrepareSummary(
        store=out,
        num_videos=len(ok),
        num_frames=sum(row.num_frames for row in ok),
        num_new=num_new,
        skipped=tuple(VideoNote(row.id, row.reason) for row in rows if row.status == "skipped"),
        partial=tuple(VideoNote(row.id, row.reason) for row in ok if row.reason),
        changed=tuple(row.id for row in ok if sizes.get(row.id, row.size_bytes) != row.size_bytes),
        part=part,
        num_left=num_left,
    )


def _nothing_read(skipped: Sequence[VideoNote]) -> UserError:
    lines = [f"videos: not one of {_count(len(skipped), 'file')} could be read; nothing was written"]
    lines += [f"{video.id}: {video.reason}" for video in skipped[:REASONS_SHOWN]]
    if len(skipped) > REASONS_SHOWN:
        lines.append(f"and {len(skipped) - REASONS_SHOWN:,} more")
    return UserError(*lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
