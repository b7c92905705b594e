"""Write the shards of a store: reproducible tar files and their tables.

Shards are written in parallel processes. If a video crashes its process, only this video is lost.
"""

import errno
import multiprocessing
import os
import signal
import tarfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclecontrast.data.decode import DecodedFrame, Policy, VideoError, open_video
from cyclecontrast.data.storage import is_passing, size_within_folder
from cyclecontrast.data.store_format import (
    FRAME_SCHEMA,
    FRAMES,
    VIDEOS,
    VideoRow,
    damaged,
    member_name,
    read_videos,
    shard_name,
    shard_path,
    write_rows,
    write_videos,
)
from cyclecontrast.data.tables import read_table
from cyclecontrast.errors import UserError, why_no_workers
from cyclecontrast.files import atomic_write

ROWS_PER_GROUP = 1_000_000
MAX_FAILURES = 3
"""Shards that may fail for a passing reason, each after many attempts, before the remaining ones are given up."""


class ShardJob(NamedTuple):
    """The unit of work: the pending rows of one shard, and how to make it; a row with a reason is not decoded."""

    videos: Path
    out: Path
    policy: Policy
    size: int
    quality: int
    max_pixels: int
    deinterlace: bool
    shard: int
    rows: tuple[VideoRow, ...]


Report = Callable[[ShardJob, int], object]
"""Called with each shard that is done, and its number of frames."""


def write_shard(job: ShardJob) -> int:
    """Write the shard's tar and its two tables, the table of videos last: it marks the shard as done.

    Returns the number of frames.
    """
    with atomic_write(shard_path(job.out, job.shard)) as aside, open(aside, "wb") as file:
        written = [_write_video(job, row, file) for row in job.rows]
        file.write(bytes(2 * tarfile.BLOCKSIZE))
    rows = [frame for _, frames in written for frame in frames]
    write_rows(shard_path(job.out, job.shard, FRAMES), rows, FRAME_SCHEMA)
    write_videos(shard_path(job.out, job.shard, VIDEOS), [row for row, _ in written])
    return len(rows)


def try_shard(job: ShardJob) -> int:
    """Decode the videos of a job without writing files, to find out whether the process survives."""
    with open(os.devnull, "wb") as file:
        return sum(len(_write_video(job, row, file)[1]) for row in job.rows)


def _write_video(job: ShardJob, row: VideoRow, file: BinaryIO) -> tuple[VideoRow, list[dict[str, Any]]]:
    """Append the frames of one video; return its row with the outcome, and the rows of its frames."""
    frames: list[dict[str, Any]] = []
    path = job.videos / row.path
    try:
        if row.reason:
            raise VideoError(row.reason)
        # Size 0 where the file cannot be read: so it counts as changed once it can.
        row = row._replace(size_bytes=path.stat().st_size if os.access(path, os.R_OK) else 0)
        with open_video(path, job.max_pixels, job.deinterlace) as video:
            for frame in video.frames(job.policy, job.size):
                frames.append(_write_frame(job, row.id, len(frames), frame, file))
    except VideoError as error:
        return row._replace(status="skipped", reason=str(error)), []
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path)) from error
    done = row._replace(status="ok", reason=video.notice, num_frames=len(frames), duration=video.duration)
    return done._replace(width=video.width, height=video.height), frames


def _write_frame(job: ShardJob, video_id: str, index: int, frame: DecodedFrame, file: BinaryIO) -> dict[str, Any]:
    _, encoded = cv2.imencode(".jpg", frame.image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, job.quality])
    data = bytes(encoded)
    member = tarfile.TarInfo(member_name(video_id, index))
    member.size = len(data)
    file.write(member.tobuf(tarfile.PAX_FORMAT))
    place = {"shard": job.shard, "offset": file.tell(), "size": len(data)}
    file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
    height, width = frame.image.shape[:2]
    return {"video": video_id, "index": index, "time": frame.time, **place, "width": width, "height": height}


def join_shards(root: Path) -> None:
    """Rebuild the store's two tables from those of the shards; the table of videos, written last, completes the store.

    A video that was tried again is in two shards; the later one counts.
    """
    tables = {shard: read_videos(shard_path(root, shard, VIDEOS)) for shard in shards_with(root, VIDEOS)}
    rows = {row.id: row for table in tables.values() for row in table}
    latest = {row.id: shard for shard, table in tables.items() for row in table}
    with atomic_write(root / FRAMES) as aside, pq.ParquetWriter(aside, FRAME_SCHEMA) as writer:
        waiting: list[pa.Table] = []
        for shard, table in tables.items():
            path = shard_path(root, shard, FRAMES)
            try:
                frames = read_table(path, FRAME_SCHEMA)
            except ValueError as error:
                raise damaged(path, error) from error
            if outdated := [row.id for row in table if latest[row.id] != shard]:
                frames = frames.filter(pc.invert(pc.is_in(frames["video"], value_set=pa.array(outdated))))
            waiting.append(frames)
            if sum(map(len, waiting)) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    write_videos(root / VIDEOS, rows.values())


def shards_with(root: Path, suffix: str) -> list[int]:
    """Return the numbers of the shards that have a table, of videos or of frames, ascending."""
    names = (path.name.split(".")[0] for path in (root / "shards").glob(f"*.{suffix}"))
    return sorted(int(name) for name in names if name.isdecimal() and shard_path(Path(), int(name)).stem == name)


def shard_problem(root: Path, shard: int, rows: Sequence[VideoRow]) -> str:
    """Return what is wrong with a finished shard whose videos have these rows, "" if nothing is; raises OSError."""
    name = shard_name(shard, FRAMES)
    try:
        frames = read_table(root / name, FRAME_SCHEMA, ("video", "offset", "size"))
        counts = Counter(frames["video"].to_pylist())
        if {row.id: row.num_frames for row in rows if row.num_frames} != counts:
            return f"{name}: had other frames than {shard_name(shard, VIDEOS)} says"
        name, end = shard_name(shard), pc.max(pc.add(frames["offset"], frames["size"])).as_py() or 0
        expected = end + -end % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE
        size = size_within_folder(root / name)
    except FileNotFoundError:
        return f"{name}: was missing"
    except ValueError as error:
        return f"{name}: was damaged ({error})"
    return "" if size == expected else f"{name}: had {size:,} bytes, not {expected:,}"


# --- many shards at once


def write_shards(jobs: Iterable[ShardJob], num_workers: int, report: Report) -> list[OSError]:
    """Write all shards, in this process if there are no workers; return the passing errors that prevented some.

    Raises OSError for other errors, and UserError where processes do not start, or die without a video being the cause.
    """
    failures: list[OSError] = []
    waiting = deque(jobs)
    while waiting and len(failures) < MAX_FAILURES:
        if num_workers:
            for job in _run(write_shard, waiting, min(num_workers, len(waiting)), report, failures):
                if not shard_path(job.out, job.shard, VIDEOS).exists():
                    _write_alone(job, report, failures)
        else:
            with _noting(failures):
                report(waiting[0], write_shard(waiting.popleft()))
    return failures


def _write_alone(job: ShardJob, report: Report, failures: list[OSError]) -> None:
    """Find the videos that kill their process, and write the shard without them."""
    crashing, lost = set[str](), list[OSError]()
    to_try = deque(job._replace(rows=(row,)) for row in job.rows)
    while to_try and not lost:
        crashing.update(row.id for tried in _run(try_shard, to_try, 1, lambda *_: None, lost) for row in tried.rows)
    if lost:
        failures.extend(lost)
        return
    rows = (row._replace(reason="the decoder crashed") if row.id in crashing else row for row in job.rows)
    if _run(write_shard, deque([job._replace(rows=tuple(rows))]), 1, report, failures):
        raise UserError(
            f"workers: a process was killed twice while writing shard {job.shard} of {job.out}, but by no single "
            "video; the machine may be out of memory. Run the same command again with --workers 1, it resumes"
        )


def _run(
    work: Callable[[ShardJob], int], jobs: deque[ShardJob], num_workers: int, report: Report, failures: list[OSError]
) -> list[ShardJob]:
    """Take jobs from the queue until it is empty or too many failed; if a process dies, return those in progress."""
    in_progress: dict[Future[int], ShardJob] = {}
    with _started_pool(num_workers) as executor:
        workers = multiprocessing.active_children()
        try:
            while in_progress or (jobs and len(failures) < MAX_FAILURES):
                while jobs and len(in_progress) < num_workers and len(failures) < MAX_FAILURES:
                    future = _submit(executor, work, jobs[0])
                    in_progress[future] = jobs.popleft()
                done, _ = wait(in_progress, return_when=FIRST_COMPLETED)
                for future in done:
                    with _noting(failures):
                        report(in_progress[future], future.result())
                    del in_progress[future]
        except BrokenProcessPool:
            pass
    # The state of a process is known once the pool has joined it.
    if in_progress and work is try_shard and any(worker.exitcode == -signal.SIGKILL for worker in workers):
        (job,) = in_progress.values()
        failures.append(OSError(errno.ENOMEM, "its process was killed", str(job.videos / job.rows[0].path)))
        return []
    return list(in_progress.values())


@contextmanager
def _noting(failures: list[OSError]) -> Iterator[None]:
    """Add a passing error to the failures; its shard stays pending."""
    try:
        yield
    except OSError as error:
        if not is_passing(error):
            raise
        failures.append(error)


@contextmanager
def _started_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes that end at once when the block is left or this process is killed."""
    context = multiprocessing.get_context("spawn")
    try:
        lifeline_end, lifeline = context.Pipe(duplex=False)
        executor = ProcessPoolExecutor(num_workers, context, _start_worker, (lifeline_end,))
    except OSError as error:
        raise UserError(f"workers: processes cannot be started: {why_no_workers(error)}") from error
    with lifeline_end:
        try:
            try:
                _submit(executor, os.getpid).result()
            except BrokenProcessPool:
                raise UserError(
                    "workers: processes cannot be started; in a script, call prepare below "
                    '`if __name__ == "__main__":`; else raise the limits on processes and memory (ulimit -u, -v), or '
                    "set workers to 0"
                ) from None
            except (OSError, RuntimeError) as error:
                raise UserError(f"workers: processes cannot be started: {why_no_workers(error)}") from error
            yield executor
        finally:
            lifeline.close()
            executor.shutdown(wait=True, cancel_futures=True)


def _submit(executor: ProcessPoolExecutor, work: Callable[..., int], *args: ShardJob) -> Future[int]:
    """Submit with Ctrl-C blocked, so that the processes started by it never receive one."""
    # The resource tracker unblocks signals while it starts, so it must be running before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(work, *args)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(lifeline: Connection) -> None:
    """Initialize a worker process, which ends when the parent closes the lifeline or dies."""
    cv2.setNumThreads(1)
    try:
        threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    except RuntimeError:  # too many threads; the parent says what to do
        os._exit(1)


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)
