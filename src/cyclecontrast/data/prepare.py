"""The command `prepare`: extracts frames of videos into a frame store; it can be killed at any time and resumes.

The plan (which video goes into which shard) is written first; a shard is complete when its videos.parquet exists;
the two tables of the store are built from those of the shards. An interruption therefore loses at most the shards in
progress, one per worker. The bytes of a store depend only on videos and settings, not on the number of workers or on
interruptions.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.decode import PerSecond, Policy, make_policy
from cyclecontrast.data.folders import FoundVideo, LeftOut, copy_of, find_videos, is_copy, mark_copies
from cyclecontrast.data.storage import retried
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import (
    FRAMES,
    STORE,
    STORE_VERSION,
    VIDEOS,
    VideoRow,
    check_settings_exist,
    read_settings,
    read_videos,
    read_videos_folder,
    relative_folder,
    shard_name,
    shard_path,
    write_settings,
    write_videos,
)
from cyclecontrast.data.store_writer import ShardJob, join_shards, shard_problem, shards_with, write_shards
from cyclecontrast.errors import PASSING, UserError, attempt, explained, some
from cyclecontrast.files import LOCK_FILE, check_folder, locked
from cyclecontrast.output import join_lines
from cyclecontrast.progress import ProgressLines

SCALING = "area, before RGB, square pixels, BT.709 in HD"
"""The scaling method, stored in store.json; a store with another method cannot be continued."""
MEGABYTE = 1_000_000
SMALLEST_SHARD = MEGABYTE
MAX_PARTS = 64
"""A small collection is split into about this many shards, to keep all workers busy."""
LONGEST_WAIT = 600.0
"""Seconds that one machine may take to plan or to join the work of all."""
REASONS_SHOWN = 5
PASSING_REASONS = frozenset(os.strerror(number).lower() for number in PASSING)
"""Reasons that an earlier version recorded for videos although they are not about the video."""


class VideoNote(NamedTuple):
    """A video that was skipped or read in part, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class PrepareSummary:
    """The result of `prepare`; `str` is a summary line, followed by one line per video with problems.

    `num_new`: files seen for the first time, or again after a change, since the store was last complete.
    `partial`: videos read in part, with what is missing. `changed`: ids of videos whose file has another size than
    when its frames were taken. Where only a part of the store is done, the summary is about that `part`, and `num_left`
    shards of the others remain. `repaired`: damaged files that were rebuilt, and what was wrong with them.
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
    repaired: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.line, *(f"  rebuilt  {what}" for what in self.repaired)]
        copies = [video for video in self.skipped if is_copy(video.reason)]
        lines += [f"  skipped  {video.id}: {video.reason}" for video in self.skipped if not is_copy(video.reason)]
        if copies:
            example = f"such as {copies[0].id}: {copies[0].reason}"
            lines.append(
                f"  skipped  {_count(len(copies), 'copy', 'copies')}, {example}; to use all: prepare --keep-duplicates"
            )
        lines += [f"  in part  {video.id}: {video.reason}" for video in self.partial]
        what = "changed since it was prepared; create a new store to include the new version"
        lines += [f"  kept     {name}: {what}" for name in self.changed]
        return join_lines([*lines, *(f"  {note}" for note in self.notes)])

    @property
    def line(self) -> str:
        """Such as `412 videos, 1,640 frames, 3 skipped: 1 no video stream, 2 invalid data`."""
        counts = [_count(self.num_videos, "video"), _count(self.num_frames, "frame")]
        if self.partial:
            counts.append(f"{len(self.partial):,} read in part")
        if self.skipped:
            kinds = Counter(video.reason.split(" (")[0] for video in self.skipped)
            reasons = ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items()))
            counts.append(f"{len(self.skipped):,} skipped: {reasons}")
        if self.repaired:
            counts.append(f"{_count(len(self.repaired), 'damaged file')} rebuilt")
        line = ("" if self.num_new or self.repaired else "nothing new: ") + ", ".join(counts)
        left = f"; the store is complete once the other parts have made {_count(self.num_left, 'shard')}"
        return f"part {self.part}: {line}{left}" if self.part else line


def prepare(config: PrepareConfig) -> PrepareSummary:
    """Extract frames of all videos below a folder into a store, or continue an existing store; returns a summary.

    Raises UserError before anything is written if videos, output or settings are invalid, or if no video can be read.
    If interrupted, raises KeyboardInterrupt with advice as its message.
    """
    policy = _policy(config)  # store.json holds what decides the bytes of a store besides the videos
    settings = config.model_dump(exclude={"videos", "out", "workers", "part", "keep_duplicates"})
    settings |= {"fps": policy.fps if isinstance(policy, PerSecond) else None, "scaling": SCALING}
    left_out = LeftOut(config.videos)
    try:
        found = _check(config, settings, left_out)
        if config.part is not None:
            summary = _prepare_part(config, settings, found, config.part)
        else:
            with _locked_store(config, settings) as made:
                jobs, damage = _plan(config, found)
                _write_pending(config, jobs)
                summary = _finish(config.out, found, damage, made)
        return replace(summary, notes=left_out.notes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command resumes it") from None
    except OSError as error:
        raise UserError(_how_to_resume(error, config.out)) from error


def _how_to_resume(error: OSError, out: Path) -> str:
    return f"{explained(error, out, 'fix that')}; then run the same command again, it resumes"


def _prepare_part(
    config: PrepareConfig, settings: Mapping[str, object], found: Sequence[FoundVideo], part: str
) -> PrepareSummary:
    """Write a part's shards; the part that ends last makes the store's tables."""
    number, all_parts = map(int, part.split("/"))
    lock_store = partial(locked, config.out, "out", patience=LONGEST_WAIT)  # held for moments: all parts share it
    with locked(config.out, "part", f"{LOCK_FILE}-{part.replace('/', '-of-')}"):
        with lock_store():
            _make_store(config, settings)
            jobs, damage = _plan(config, found)
        jobs = [job for job in jobs if job.shard % all_parts == number - 1]
        _write_pending(config, jobs)
        with lock_store():
            rows, _ = _plan_rows(config.out, found, config.shard_mb)
            left = {row.shard for row in rows if row.status == "pending"}
            if not left:
                return _finish(config.out, found, damage, [])
            rows = [row for row in rows if row.shard % all_parts == number - 1]
            return _summary(rows, config.out, found, sum(len(job.rows) for job in jobs), part=part, num_left=len(left))


def _finish(out: Path, found: Sequence[FoundVideo], damage: dict[str, str], made: Sequence[Path]) -> PrepareSummary:
    """Build the tables of the store if necessary and return the summary.

    Removes a store without frames and raises UserError.
    """
    # An earlier command may have been stopped when its shards were done and the tables were not.
    rows = read_videos(out / VIDEOS)
    pending = [row for row in rows if row.status == "pending"]
    if not pending and (problem := _frames_problem(out, rows)):
        damage[FRAMES] = problem
    if pending or FRAMES in damage:
        _remove_leftovers(out)
        join_shards(out)
    num_new = sum(shard_name(row.shard) not in damage for row in pending)
    summary = _summary(read_videos(out / VIDEOS), out, found, num_new, damage)
    if summary.num_videos == 0:
        _remove_store(out, made)
        lines = [f"videos: not one of {_count(len(summary.skipped), 'file')} could be read; nothing was written"]
        reasons = [f"{video.id}: {video.reason}" for video in summary.skipped]
        raise UserError(*lines, *some(reasons, REASONS_SHOWN))
    return summary


def _frames_problem(out: Path, rows: Sequence[VideoRow]) -> str:
    """Return what is wrong with the table of all frames of a store that should be complete, "" if nothing is."""
    if not (out / FRAMES).exists():
        return f"{FRAMES}: was missing"
    try:
        is_whole = FrameStore.open(out).num_frames == sum(row.num_frames for row in rows)
    except UserError:
        is_whole = False
    return "" if is_whole else f"{FRAMES}: was damaged"


def _summary(
    rows: Sequence[VideoRow],
    out: Path,
    found: Sequence[FoundVideo],
    num_new: int,
    damage: Mapping[str, str] = MappingProxyType({}),
    part: str = "",
    num_left: int = 0,
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
        repaired=tuple(damage.values()),
    )


# --- what is checked before anything is written


def _check(config: PrepareConfig, settings: Mapping[str, object], left_out: LeftOut) -> list[FoundVideo]:
    """Return the videos below the folder; raises UserError where they, the output or the settings do not fit."""
    problems: list[str] = []
    attempt(partial(_check_out, config.videos, config.out, settings), problems)
    found = attempt(partial(_find, config.videos, left_out), problems)
    if found is None or problems:
        raise UserError(*problems)
    stored, _ = _stored_rows(config.out, {video.id: video for video in found})
    if stored and stored.keys().isdisjoint(video.id for video in found):
        raise UserError(
            f"out: {config.out} holds other videos: none of its {len(stored):,} is in {config.videos}; "
            "name another folder with --out"
        )
    return found if config.keep_duplicates else _with_copies_marked(found, stored)


def _with_copies_marked(found: Sequence[FoundVideo], stored: Mapping[str, VideoRow]) -> list[FoundVideo]:
    """Return the videos, with copies marked.

    What the store says of a video stays, but a copy is compared again where the store no longer has its original.
    """
    sizes = {video.id: video.size_bytes for video in found}
    same = {row.id for row in stored.values() if sizes.get(row.id) == row.size_bytes}
    of_use = {row.id for row in stored.values() if row.status != "skipped" and not is_copy(row.reason)}
    used = {name for name in of_use if stored[name].status == "ok" or name in same}  # the store has or gets its frames
    copies = {copy_of(name) for name in used}
    known: dict[str, FoundVideo] = {}
    for video in found:
        row = stored.get(video.id)
        if video.id in used:
            known[video.id] = video
        elif row is not None and video.id in same and row.reason in copies:
            known[video.id] = video._replace(reason=row.reason)
        elif row is not None and video.id in same and _is_unreadable(row):
            known[video.id] = video
    to_compare = [video for video in found if video.id not in known or video.id in used & same]
    marked = {video.id: video for video in mark_copies(to_compare, used)} if len(known) < len(found) else {}
    return [known.get(video.id) or marked[video.id] for video in found]


def _check_out(videos: Path, out: Path, settings: Mapping[str, object]) -> None:
    """Raise UserError where the folder neither is a store of these settings nor can become one."""
    source, target = videos.resolve(), out.resolve()
    if source in (target, *target.parents):
        raise UserError(f"out: {out} is inside the folder of videos {videos}; choose a folder outside of it")
    if target in source.parents:
        raise UserError(f"out: {out} holds the folder of videos {videos}; choose another folder")
    check_folder(out)
    check_settings_exist(out)
    if not (out / STORE).exists():
        if out.exists() and any(not e.name.startswith(LOCK_FILE) and e.suffix != ".part" for e in out.iterdir()):
            raise UserError(f"out: {out} is not empty and not a frame store; name a new folder")
        return
    stored = read_settings(out)
    if stored is None:
        raise UserError(f"out: {out}/{STORE} is not of a frame store of version {STORE_VERSION}; name a new folder")
    pairs = ((name, stored.get(name), value) for name, value in settings.items())
    if differences := [
        f"{name}: {'none' if old is None else old} in the store, {'none' if new is None else new} requested; "
        f"use the same value, or another folder than {out}"
        for name, old, new in pairs
        if old != new
    ]:
        raise UserError(*differences)


def _find(videos: Path, left_out: LeftOut) -> list[FoundVideo]:
    if not videos.is_dir():
        raise UserError(f"videos: {videos} is not a folder; name the folder that holds the videos")
    try:
        found = find_videos(videos, left_out)
    except OSError as error:
        raise UserError(f"videos: {videos} cannot be read: {error.strerror}") from error
    if not found:
        raise UserError(f"videos: no video file in {videos} or its subfolders", *left_out.notes)
    return found


# --- the plan


def _policy(config: PrepareConfig) -> Policy:
    return make_policy(config.frames_per_video, config.fps, config.every, config.keyframes)


def _plan(config: PrepareConfig, found: Sequence[FoundVideo]) -> tuple[list[ShardJob], dict[str, str]]:
    """Write the plan and return the shards that are not done, in order, and what is wrong with damaged files."""
    rows, damage = _plan_rows(config.out, found, config.shard_mb)
    pending = sorted((row for row in rows if row.status == "pending"), key=lambda row: (row.shard, row.id))
    if pending or damage:
        write_videos(config.out / VIDEOS, rows)
    for shard in {row.shard for row in pending}:  # of a damaged shard, the table would say that it is done
        shard_path(config.out, shard, VIDEOS).unlink(missing_ok=True)
    how = config.videos, config.out, _policy(config), config.size, config.quality, config.max_pixels, config.deinterlace
    return [ShardJob(*how, shard, tuple(group)) for shard, group in groupby(pending, key=lambda row: row.shard)], damage


def _plan_rows(out: Path, found: Sequence[FoundVideo], shard_mb: int) -> tuple[list[VideoRow], dict[str, str]]:
    """Return the known rows, pending in damaged shards, with pending rows in new shards for videos that are new.

    Videos that were skipped are new if they have changed, or were skipped for a passing reason. The second value says
    what is wrong with damaged files.
    """
    by_id = {video.id: video for video in found}
    rows, damage = _stored_rows(out, by_id)
    for name, known in rows.items():
        if known.status == "pending":  # its original may be gone since the plan was written
            rows[name] = known._replace(reason=by_id[name].reason if name in by_id else "")
    new = []
    for video in found:
        row = rows.get(video.id)
        changed = row is None or row.size_bytes != video.size_bytes
        is_wanted = row is not None and is_copy(row.reason) and not video.reason
        if row is None or (row.status == "skipped" and (changed or is_wanted or _was_passing(row))):
            new.append(video)
    total = sum(video.size_bytes for video in new)
    shard_bytes = min(shard_mb * MEGABYTE, max(SMALLEST_SHARD, total // MAX_PARTS))
    shard = 1 + max((row.shard for row in rows.values()), default=-1)
    filled = 0
    for video in new:
        if filled and filled + video.size_bytes > shard_bytes:
            shard, filled = shard + 1, 0
        filled += video.size_bytes
        rows[video.id] = VideoRow(video.id, video.id, "pending", video.reason, shard, size_bytes=video.size_bytes)
    return list(rows.values()), damage


def _stored_rows(out: Path, found: Mapping[str, FoundVideo]) -> tuple[dict[str, VideoRow], dict[str, str]]:
    """Return the row of each known video, pending if its shard is damaged, and what is wrong with damaged files."""
    planned, problem = _read_rows(out, VIDEOS)
    tables = {shard: _read_rows(out, shard_name(shard, VIDEOS)) for shard in shards_with(out, VIDEOS)}
    rows = {row.id: row for row in planned or ()}
    for row in chain.from_iterable(table or () for table, _ in tables.values()):
        if row.id not in rows or rows[row.id].shard <= row.shard:
            rows[row.id] = row
    damage = {VIDEOS: problem} if planned is None and tables else {}
    by_shard: dict[int, list[VideoRow]] = {shard: [] for shard in tables}
    for row in rows.values():
        by_shard.setdefault(row.shard, []).append(row)
    for shard, group in sorted(by_shard.items()):
        is_done = shard in tables or any(row.status != "pending" for row in group)
        table, problem = tables.get(shard, (None, f"{shard_name(shard, VIDEOS)}: was missing"))
        if is_done and (problem := problem or shard_problem(out, shard, table or ()) or _cut_in(shard, group, found)):
            damage[shard_name(shard)] = problem
            for row in group:
                reason = row.reason if is_copy(row.reason) else ""
                rows[row.id] = VideoRow(row.id, row.path, "pending", reason, shard, size_bytes=row.size_bytes)
    return rows, damage


def _cut_in(shard: int, rows: Sequence[VideoRow], found: Mapping[str, FoundVideo]) -> str:
    """Return which video of a shard an earlier version cut because the storage failed, "" if its videos changed."""
    ok = [row for row in rows if row.status == "ok"]
    if any(row.id not in found or found[row.id].size_bytes != row.size_bytes for row in ok):
        return ""
    cut = next((row for row in ok if _was_passing(row)), None)
    return f"{shard_name(shard)}: lacked a part of {cut.id} ({cut.reason})" if cut else ""


def _is_unreadable(row: VideoRow) -> bool:
    """Whether the video was skipped, and neither as a copy nor for a passing reason."""
    return row.status == "skipped" and not is_copy(row.reason) and not _was_passing(row)


def _was_passing(row: VideoRow) -> bool:
    """Whether an earlier version took an error of the storage for a property of the video."""
    return row.reason.rpartition(": ")[2] in PASSING_REASONS


def _read_rows(out: Path, name: str) -> tuple[list[VideoRow] | None, str]:
    """Return the rows of a table of videos, or what is wrong with it; raises OSError if the storage fails."""
    try:
        return retried(lambda: read_videos(out / name)), ""
    except FileNotFoundError:
        return None, f"{name}: was missing"
    except UserError as error:
        return None, f"{name}: was damaged ({error.__cause__})"


# --- the work


def _write_pending(config: PrepareConfig, jobs: Sequence[ShardJob]) -> None:
    num_workers = config.workers
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    sizes = [row.size_bytes for job in jobs for row in job.rows]
    num_videos = num_frames = 0

    def report(job: ShardJob, frames: int) -> None:
        nonlocal num_videos, num_frames
        num_videos, num_frames = num_videos + len(job.rows), num_frames + frames
        text = f"{num_videos:,} of {_count(len(sizes), 'video')}, {_count(num_frames, 'frame')}"
        bar.update(task, advance=sum(row.size_bytes for row in job.rows), description=text)
        if bar.disable:
            lines.advance(_count(num_frames, "frame"), len(job.rows))

    lines = ProgressLines("prepare", len(sizes))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(sizes))
        failures = write_shards(jobs, num_workers, report)
    if failures:
        raise UserError(*dict.fromkeys(_how_to_resume(error, config.out) for error in failures))


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


# --- locks and leftovers


@contextmanager
def _locked_store(config: PrepareConfig, settings: Mapping[str, object]) -> Iterator[list[Path]]:
    """Make and lock the store with all its parts; give the folders made for it, innermost first."""
    out = config.out
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    with ExitStack() as locks:
        locks.enter_context(locked(out, "out"))
        for lock in sorted(out.glob(f"{LOCK_FILE}-*")):
            locks.enter_context(locked(out, "out", lock.name))
        _make_store(config, settings)
        _remove_leftovers(out)
        yield made


def _make_store(config: PrepareConfig, settings: Mapping[str, object]) -> None:
    # Another process may have made the store with other settings since the first check.
    out = config.out
    _check_out(config.videos, out, settings)
    if read_videos_folder(out) != out.resolve() / relative_folder(out, config.videos):
        write_settings(out, settings, config.videos)
    (out / "shards").mkdir(exist_ok=True)


def _remove_leftovers(out: Path) -> None:
    """Remove half-written files of killed processes, and the locks of parts; nobody else may be writing."""
    for leftover in (*out.glob("*.part"), *out.glob("shards/*.part"), *out.glob(f"{LOCK_FILE}-*")):
        leftover.unlink(missing_ok=True)


def _remove_store(out: Path, made: Sequence[Path]) -> None:
    _remove_leftovers(out)
    for name in (STORE, VIDEOS, FRAMES, LOCK_FILE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "shards")
    for folder in made:
        folder.rmdir()
