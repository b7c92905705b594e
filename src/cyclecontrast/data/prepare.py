"""Videos → a frame store on disk, as a job that may be killed at any moment and goes on where it was.

The plan (which video goes into which shard) is written first; a shard is done when its videos.parquet exists;
the store's own two tables are rebuilt from those of the shards. So an interruption costs at most the shards in
hand, one per worker, and the bytes of a store depend on the videos and the settings only, not on the number of
workers nor on interruptions.
"""

import fcntl
import json
import math
import multiprocessing
import os
import shutil
import signal
import tarfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.video import (
    DecodedFrame,
    EveryKth,
    FoundVideo,
    Image,
    Keyframes,
    PerSecond,
    Policy,
    SpreadEvenly,
    VideoError,
    find_videos,
    open_video,
)
from cyclecontrast.errors import UserError

FORMAT, VERSION = "cyclecontrast-frames", 1
DEFAULT_FPS = 2.0
MEGABYTE = 1_000_000
SMALLEST_SHARD = MEGABYTE
MOST_PARTS = 64
"""A small collection is cut into about this many shards, so that all workers have something to do."""
ROWS_PER_GROUP = 1_000_000
FRAMES_PER_MESSAGE = 32
REASONS_SHOWN = 5

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


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a store besides the videos; kept in store.json."""

    frames_per_video: int | None
    fps: float | None
    every: int | None
    keyframes: bool
    size: int
    quality: int
    max_pixels: int
    shard_mb: int

    @classmethod
    def of(cls, config: PrepareConfig) -> "Settings":
        """The settings of a command, with the policy resolved: 2 frames per second where none is named."""
        named = config.frames_per_video or config.every or config.keyframes
        return cls(
            frames_per_video=config.frames_per_video,
            fps=config.fps or (None if named else DEFAULT_FPS),
            every=config.every,
            keyframes=config.keyframes,
            size=config.size,
            quality=config.quality,
            max_pixels=config.max_pixels,
            shard_mb=config.shard_mb,
        )

    @property
    def policy(self) -> Policy:
        """Which frames of a video are taken."""
        if self.frames_per_video is not None:
            return SpreadEvenly(self.frames_per_video)
        if self.every is not None:
            return EveryKth(self.every)
        return Keyframes() if self.keyframes else PerSecond(self.fps or DEFAULT_FPS)


class VideoNote(NamedTuple):
    """A file that gave no frame, or not all, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class PrepareSummary:
    """What a store holds after `prepare`.

    `num_new`: files seen for the first time, or again after a change, since the store was last complete.
    `partial`: videos read in part, with what is missing. `changed`: ids of videos whose file is another size
    than when its frames were taken.
    """

    store: Path
    num_videos: int
    num_frames: int
    num_new: int
    skipped: tuple[VideoNote, ...]
    partial: tuple[VideoNote, ...]
    changed: tuple[str, ...]

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
        return ", ".join(parts) if self.num_new else "nothing new: " + ", ".join(parts)

    @property
    def lines(self) -> tuple[str, ...]:
        """The line, then one for each video that needs a look."""
        changed = "changed since it was prepared: make a new store to take it in"
        return (
            self.line,
            *(f"  skipped  {video.id}: {video.reason}" for video in self.skipped),
            *(f"  in part  {video.id}: {video.reason}" for video in self.partial),
            *(f"  kept     {video_id}: {changed}" for video_id in self.changed),
        )


def prepare(config: PrepareConfig) -> PrepareSummary:
    """Takes the frames of all videos below a folder into a store, or goes on with a store begun earlier.

    Raises UserError before anything is written where videos, output or settings do not fit, and where not one
    video can be read; raises KeyboardInterrupt, with what to do next as its text, when interrupted.
    """
    settings = Settings.of(config)
    found = _check(config, settings)
    try:
        with _opened_store(config.out, settings) as made:
            rows = _planned(_load(config.out), found, settings)
            _run(config, settings, rows)
            summary = _finish(config.out, found)
            if summary.num_videos == 0:
                _refuse_empty(summary, made)
            return summary
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on where it was") from None
    except OSError as error:
        raise UserError(
            f"{error.filename or config.out}: {(error.strerror or str(error)).lower()}; "
            "put that right and give the same command again, it goes on where it was"
        ) from error


# --- before anything is written --------------------------------------------------------------------------------


def _check(config: PrepareConfig, settings: Settings) -> list[FoundVideo]:
    problems = list(_place_problems(config.videos, config.out) or _store_problems(config.out, settings))
    found: list[FoundVideo] = []
    if not config.videos.is_dir():
        problems.append(f"videos: {config.videos} is not a folder; name the folder that holds the videos")
    elif not problems:
        try:
            found = find_videos(config.videos)
        except OSError as error:
            raise UserError(f"videos: {config.videos} cannot be read: {error.strerror}") from error
        if not found:
            problems.append(f"videos: no video file in {config.videos} or its subfolders")
    if problems:
        raise UserError(*problems)
    return found


def _place_problems(videos: Path, out: Path) -> list[str]:
    source, target = videos.resolve(), out.resolve()
    if source == target or source in target.parents:
        return [f"out: {out} lies inside the folder of videos {videos}; choose a place outside of it"]
    if target in source.parents:
        return [f"out: {out} holds the folder of videos {videos}; choose a place of its own"]
    return []


def _store_problems(out: Path, settings: Settings) -> Iterator[str]:
    if not out.exists():
        return
    if not out.is_dir():
        yield f"out: {out} is a file; name a folder to make"
    elif (out / "store.json").exists():
        yield from _setting_problems(out, settings)
    elif any(entry.name != ".lock" and entry.suffix != ".part" for entry in out.iterdir()):
        yield f"out: {out} has something else in it and is no frame store; name a new folder"


def _setting_problems(out: Path, settings: Settings) -> Iterator[str]:
    try:
        header = json.loads((out / "store.json").read_text(encoding="utf-8"))
        stored = dict(header["settings"])
        known = header["format"] == FORMAT and header["version"] == VERSION
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        yield f"out: {out}/store.json is not that of a frame store of version {VERSION}; name a new folder"
        return
    for name, asked in asdict(settings).items():
        if stored.get(name) != asked:
            yield f"{name}: {_shown(stored.get(name))} in the store, {_shown(asked)} asked; {out} keeps its own"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- files that are there wholly or not at all -----------------------------------------------------------------


@contextmanager
def _opened_store(out: Path, settings: Settings) -> Iterator[list[Path]]:
    """Makes and locks the store; gives the folders made for it, innermost first."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"out: another prepare is at work in {out}; wait for it or stop it") from None
        # A process that has ended in the meantime may have made the store with other settings.
        if problems := list(_store_problems(out, settings)):
            raise UserError(*problems)
        _clear(out)
        if not (out / "store.json").exists():
            header = {"format": FORMAT, "version": VERSION, "settings": asdict(settings)}
            with _replaced(out / "store.json") as file:
                file.write((json.dumps(header, indent=2) + "\n").encode())
        (out / "shards").mkdir(exist_ok=True)
        yield made


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write aside, which takes the place of `path` once it is complete and on the disk."""
    # The name is the process's own: a worker that outlives its parent for a moment meets no other's file.
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _clear(out: Path) -> None:
    """Removes what killed processes left half-written."""
    for leftover in (*out.glob("*.part"), *(out / "shards").glob("*.part")):
        leftover.unlink(missing_ok=True)


def _table(rows: Sequence[VideoRow] | Sequence[FrameRow], schema: pa.Schema) -> pa.Table:
    return pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)


def _write_videos(path: Path, rows: Sequence[VideoRow]) -> None:
    with _replaced(path) as file:
        pq.write_table(_table(rows, VIDEO_SCHEMA), file)


def _read_videos(path: Path) -> list[VideoRow]:
    try:
        columns = pq.read_table(path, schema=VIDEO_SCHEMA).to_pydict()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"out: {path} is damaged; make a new store in another folder") from error
    return [VideoRow(*values) for values in zip(*columns.values(), strict=True)]


def _shard_path(out: Path, shard: int, suffix: str) -> Path:
    return out / "shards" / f"{shard:06d}.{suffix}"


# --- the plan --------------------------------------------------------------------------------------------------


def _load(out: Path) -> dict[str, VideoRow]:
    """The row of each video that the store knows; shards done since the last plan count as done."""
    plan = out / "videos.parquet"
    rows = {row.id: row for row in _read_videos(plan)} if plan.exists() else {}
    for shard in {row.shard for row in rows.values() if row.status == "pending"}:
        done = _shard_path(out, shard, "videos.parquet")
        if done.exists():
            rows.update({row.id: row for row in _read_videos(done)})
    return rows


def _planned(known: dict[str, VideoRow], found: Sequence[FoundVideo], settings: Settings) -> dict[str, VideoRow]:
    """Known rows and, in shards of their own, pending rows for the videos that are new or are tried again."""
    new = [video for video in found if _is_to_do(known.get(video.id), video)]
    total = sum(video.size_bytes for video in new)
    shard_bytes = min(settings.shard_mb * MEGABYTE, max(SMALLEST_SHARD, total // MOST_PARTS))
    shard = 1 + max((row.shard for row in known.values()), default=-1)
    rows, filled = dict(known), 0
    for video in new:
        if filled and filled + video.size_bytes > shard_bytes:
            shard, filled = shard + 1, 0
        filled += video.size_bytes
        rows[video.id] = VideoRow(video.id, video.id, "pending", video.reason, shard, size_bytes=video.size_bytes)
    return rows


def _is_to_do(row: VideoRow | None, video: FoundVideo) -> bool:
    return row is None or (row.status == "skipped" and row.size_bytes != video.size_bytes)


# --- one shard -------------------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """What has been done since the last report."""

    num_videos: int
    num_frames: int
    num_bytes: int


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class ShardJob:
    """The unit of work: the rows of one shard, all pending; `crashing`: ids not to be touched again."""

    videos: Path
    out: Path
    settings: Settings
    shard: int
    rows: tuple[VideoRow, ...]
    crashing: frozenset[str] = frozenset()


def member_name(video_id: str, index: int) -> str:
    """Name of a frame in its shard: a WebDataset key holds no dot, and a tar path no foreign slash."""
    return f"{quote(video_id, safe='').replace('.', '%2E')}/{index:06d}.jpg"


class _ShardWriter:
    """A tar whose bytes depend on names and frames only, and the rows that say where each frame is."""

    def __init__(self, job: ShardJob, file: BinaryIO) -> None:
        self.rows: list[FrameRow] = []
        self._job, self._file = job, file

    def add(self, video_id: str, index: int, frame: DecodedFrame) -> None:
        """Appends a frame as JPEG."""
        data = _jpeg(frame.image, self._job.settings.quality)
        member = tarfile.TarInfo(member_name(video_id, index))
        member.size = len(data)
        self._file.write(member.tobuf(tarfile.PAX_FORMAT))
        offset = self._file.tell()
        self._file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        height, width = frame.image.shape[:2]
        self.rows.append(FrameRow(video_id, index, frame.time, self._job.shard, offset, len(data), width, height))

    def close(self) -> None:
        """Writes the end mark."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))


def _jpeg(image: Image, quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data)


def _write_shard(job: ShardJob, report: Report) -> None:
    """Writes the shard's tar and its two tables; the table of videos, written last, says that it is done."""
    videos: list[VideoRow] = []
    with _replaced(_shard_path(job.out, job.shard, "tar")) as file:
        writer = _ShardWriter(job, file)
        for row in job.rows:
            videos.append(_take_video(job, row, writer.add, report))
        writer.close()
    with _replaced(_shard_path(job.out, job.shard, "frames.parquet")) as file:
        pq.write_table(_table(writer.rows, FRAME_SCHEMA), file)
    _write_videos(_shard_path(job.out, job.shard, "videos.parquet"), videos)


def _take_video(
    job: ShardJob, row: VideoRow, add: Callable[[str, int, DecodedFrame], None], report: Report
) -> VideoRow:
    """Hands the frames of one video on; the row says what came of it."""
    path, num_frames = job.videos / row.path, 0
    row = row._replace(size_bytes=_size_bytes(path))
    try:
        if row.reason or row.id in job.crashing:
            raise VideoError(row.reason or "the decoder crashed")
        with open_video(path, job.settings.max_pixels) as video:
            for frame in video.frames(job.settings.policy, job.settings.size):
                add(row.id, num_frames, frame)
                num_frames += 1
                if num_frames % FRAMES_PER_MESSAGE == 0:
                    report(Progress(0, FRAMES_PER_MESSAGE, 0))
    except VideoError as error:
        report(Progress(1, 0, row.size_bytes))
        return row._replace(status="skipped", reason=str(error))
    report(Progress(1, num_frames % FRAMES_PER_MESSAGE, row.size_bytes))
    return row._replace(
        status="ok",
        reason=video.notice,
        num_frames=num_frames,
        duration=video.duration,
        width=video.width,
        height=video.height,
    )


def _size_bytes(path: Path) -> int:
    """Size of a file, 0 where it cannot be read: so it counts as changed once it can."""
    return path.stat().st_size if os.access(path, os.R_OK) else 0


def _try_videos(job: ShardJob) -> None:
    """Decodes without keeping anything, to see whether the process survives it."""
    for row in job.rows:
        _take_video(job, row, lambda video_id, index, frame: None, lambda progress: None)


# --- many shards, in processes that may die --------------------------------------------------------------------

_reports: Connection | None = None
"""In a worker process: where it reports to."""


def _start_worker(lifeline: Connection, reports: Connection) -> None:
    """First act of a worker: the end of the parent, or its wish to stop, is to be the worker's end."""
    global _reports
    _reports = reports
    cv2.setNumThreads(1)
    threading.Thread(target=_follow, args=(lifeline,), daemon=True).start()


def _follow(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)


def _send(progress: Progress) -> None:
    """One short write, which the kernel keeps whole: workers share the pipe without a lock that may die held."""
    if _reports is not None:
        _reports.send_bytes("{} {} {}".format(*progress).encode())


def _write_shard_and_report(job: ShardJob) -> None:
    _write_shard(job, _send)


def _ready() -> None:
    """Work that only a process which has started can do."""


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; processes started in it never get it."""
    # Python's helper process lifts the mask while it starts, so it has to be there before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Workers:
    """A pool whose processes end at once when it is left by an exception or when this process is killed."""

    def __init__(self, num_workers: int, report: Report) -> None:
        context = multiprocessing.get_context("spawn")
        self.num_workers, self._report = num_workers, report
        self._lifeline_end, self._lifeline = context.Pipe(duplex=False)
        self._reports, self._reports_end = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(num_workers, context, _start_worker, (self._lifeline_end, self._reports_end))

    def __enter__(self) -> "_Workers":
        try:
            self._submit(_ready).result()
        except BrokenProcessPool:
            self._close()
            raise UserError(
                "workers: no process can be started; in a script, call prepare below "
                '`if __name__ == "__main__":`, or choose 0 workers'
            ) from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._lifeline.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for end in (self._lifeline_end, self._reports, self._reports_end):
            end.close()

    def run(self, work: Callable[[ShardJob], None], jobs: deque[ShardJob]) -> list[ShardJob]:
        """Takes jobs off until there are none; if a process dies, returns those that were in hand."""
        in_hand: dict[Future[None], ShardJob] = {}
        try:
            while jobs or in_hand:
                while jobs and len(in_hand) < self.num_workers:
                    future = self._submit(work, jobs[0])
                    in_hand[future] = jobs.popleft()
                done, _ = wait(in_hand, timeout=0.2, return_when=FIRST_COMPLETED)
                self._pass_on_reports()
                for future in done:
                    future.result()
                    del in_hand[future]
        except BrokenProcessPool:
            return list(in_hand.values())
        return []

    def _submit(self, work: Callable[..., None], *args: ShardJob) -> Future[None]:
        with _interrupts_held():
            return self._pool.submit(work, *args)

    def _pass_on_reports(self) -> None:
        while self._reports.poll():
            self._report(Progress(*map(int, self._reports.recv_bytes().split())))


def _run_in_processes(jobs: Iterable[ShardJob], num_workers: int, report: Report) -> None:
    waiting = deque(jobs)
    while waiting:
        with _Workers(min(num_workers, len(waiting)), report) as workers:
            stranded = workers.run(_write_shard_and_report, waiting)
        for job in stranded:
            if not _shard_path(job.out, job.shard, "videos.parquet").exists():
                _run_alone(job, report)


def _run_alone(job: ShardJob, report: Report) -> None:
    """Finds the videos that kill their process, and writes the shard without them."""
    crashing: set[str] = set()
    to_try = deque(replace(job, rows=(row,)) for row in job.rows)
    while to_try:
        with _Workers(1, report) as worker:
            crashing.update(row.id for tried in worker.run(_try_videos, to_try) for row in tried.rows)
    with _Workers(1, report) as worker:
        if worker.run(_write_shard_and_report, deque([replace(job, crashing=frozenset(crashing))])):
            raise UserError(
                f"workers: a process was killed twice at shard {job.shard} of {job.out}, not by one video alone; "
                "is the memory full? The same command goes on, try it with 1 worker"
            )


def _run(config: PrepareConfig, settings: Settings, rows: dict[str, VideoRow]) -> None:
    """Writes the plan and then all shards that are not done."""
    pending = [row for row in _in_order(rows.values()) if row.status == "pending"]
    if not pending:
        return
    _write_videos(config.out / "videos.parquet", _in_order(rows.values()))
    jobs = [
        ShardJob(config.videos, config.out, settings, shard, tuple(members))
        for shard, members in groupby(pending, key=lambda row: row.shard)
    ]
    num_workers = _num_cores() if config.workers is None else config.workers
    with _progress_bar(pending) as report:
        if num_workers == 0:
            for job in jobs:
                _write_shard(job, report)
        else:
            _run_in_processes(jobs, num_workers, report)


def _in_order(rows: Iterable[VideoRow]) -> list[VideoRow]:
    return sorted(rows, key=lambda row: (row.shard, row.id))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress_bar(pending: Sequence[VideoRow]) -> Iterator[Report]:
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(row.size_bytes for row in pending))
        num_videos = num_frames = 0

        def report(progress: Progress) -> None:
            nonlocal num_videos, num_frames
            num_videos += progress.num_videos
            num_frames += progress.num_frames
            text = f"{num_videos:,} of {_count(len(pending), 'video')}, {_count(num_frames, 'frame')}"
            bar.update(task, advance=progress.num_bytes, description=text)

        yield report


# --- the end ---------------------------------------------------------------------------------------------------


def _finish(out: Path, found: Sequence[FoundVideo]) -> PrepareSummary:
    """Rebuilds the store's two tables from those of the shards; the one of videos, last, makes it complete."""
    table = out / "videos.parquet"
    num_pending = sum(row.status == "pending" for row in _read_videos(table))
    if num_pending:
        _clear(out)
        # A video that was tried again stands in two shards; the later one counts.
        rows = {row.id: row for shard in _shards(out, "videos.parquet") for row in _read_videos(shard)}
        _join_frames(out)
        _write_videos(table, _in_order(rows.values()))
    return _summary(out, _read_videos(table), found, num_pending)


def _shards(out: Path, suffix: str) -> list[Path]:
    return sorted((out / "shards").glob(f"*.{suffix}"), key=lambda path: int(path.name.split(".")[0]))


def _join_frames(out: Path) -> None:
    """Joins the shards' tables of frames without holding more than a row group or two in memory."""
    tables: list[pa.Table] = []
    with _replaced(out / "frames.parquet") as file, pq.ParquetWriter(file, FRAME_SCHEMA) as writer:
        for shard in _shards(out, "frames.parquet"):
            tables.append(pq.read_table(shard, schema=FRAME_SCHEMA))
            if sum(map(len, tables)) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(tables))
                tables.clear()
        if tables:
            writer.write_table(pa.concat_tables(tables))


def _summary(out: Path, rows: Sequence[VideoRow], found: Sequence[FoundVideo], num_new: int) -> PrepareSummary:
    ordered = sorted(rows, key=lambda row: row.id)
    ok = [row for row in ordered if row.status == "ok"]
    sizes = {video.id: video.size_bytes for video in found}
    return PrepareSummary(
        store=out,
        num_videos=len(ok),
        num_frames=sum(row.num_frames for row in ok),
        num_new=num_new,
        skipped=tuple(VideoNote(row.id, row.reason) for row in ordered if row.status == "skipped"),
        partial=tuple(VideoNote(row.id, row.reason) for row in ok if row.reason),
        changed=tuple(row.id for row in ok if sizes.get(row.id, row.size_bytes) != row.size_bytes),
    )


def _refuse_empty(summary: PrepareSummary, made: Sequence[Path]) -> None:
    """Takes back all that was written, for a store without a frame is none."""
    for name in ("store.json", "videos.parquet", "frames.parquet", ".lock"):
        (summary.store / name).unlink(missing_ok=True)
    shutil.rmtree(summary.store / "shards")
    for folder in made:
        folder.rmdir()
    first = [f"{video.id}: {video.reason}" for video in summary.skipped[:REASONS_SHOWN]]
    more = len(summary.skipped) - len(first)
    raise UserError(
        f"videos: not one of {_count(len(summary.skipped), 'file')} could be read; nothing was written",
        *first,
        *([f"and {more:,} more"] if more else []),
    )
