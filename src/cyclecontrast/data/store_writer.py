"""Write the shards of a store: reproducible tar files and their tables.

Shards are written in parallel processes. If a video crashes its process, only this video is lost.
"""

import multiprocessing
import os
import signal
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from cyclecontrast.data.decode import DecodedFrame, Policy, VideoError, open_video
from cyclecontrast.data.store_format import (
    FRAME_SCHEMA,
    FRAMES,
    VIDEOS,
    VideoRow,
    damaged,
    member_name,
    read_videos,
    shard_path,
    write_rows,
    write_videos,
)
from cyclecontrast.data.tables import read_table
from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing

ROWS_PER_GROUP = 1_000_000


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
    with replacing(shard_path(job.out, job.shard)) as aside, open(aside, "wb") as file:
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
    rows = {row.id: row for table in _shard_tables(root, VIDEOS) for row in read_videos(table)}
    with replacing(root / FRAMES) as aside, pq.ParquetWriter(aside, FRAME_SCHEMA) as writer:
        tables: list[pa.Table] = []
        for path in _shard_tables(root, FRAMES):
            try:
                tables.append(read_table(path, FRAME_SCHEMA))
            except ValueError as error:
                raise damaged(path, error) from error
            if sum(map(len, tables)) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(tables))
                tables.clear()
        if tables:
            writer.write_table(pa.concat_tables(tables))
    write_videos(root / VIDEOS, rows.values())


def _shard_tables(root: Path, suffix: str) -> list[Path]:
    numbers = {path: path.name.split(".")[0] for path in (root / "shards").glob(f"*.{suffix}")}
    return sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path]))


# --- many shards at once


def write_shards(jobs: Iterable[ShardJob], num_workers: int, report: Report) -> None:
    """Write all shards, in this process if there are no workers.

    Raises UserError where processes do not start, or die without a video being the cause.
    """
    if not num_workers:
        for job in jobs:
            report(job, write_shard(job))
        return
    waiting = deque(jobs)
    while waiting:
        for job in _run(write_shard, waiting, min(num_workers, len(waiting)), report):
            if not shard_path(job.out, job.shard, VIDEOS).exists():
                _write_alone(job, report)


def _write_alone(job: ShardJob, report: Report) -> None:
    """Find the videos that kill their process, and write the shard without them."""
    crashing: set[str] = set()
    to_try = deque(job._replace(rows=(row,)) for row in job.rows)
    while to_try:
        crashing.update(row.id for tried in _run(try_shard, to_try, 1, lambda *_: None) for row in tried.rows)
    rows = (row._replace(reason="the decoder crashed") if row.id in crashing else row for row in job.rows)
    if _run(write_shard, deque([job._replace(rows=tuple(rows))]), 1, report):
        raise UserError(
            f"workers: a process was killed twice while writing shard {job.shard} of {job.out}, but by no single "
            f"video; "
            "the machine may be out of memory. Run the same command again with --workers 1, it resumes"
        )


def _run(work: Callable[[ShardJob], int], jobs: deque[ShardJob], num_workers: int, report: Report) -> list[ShardJob]:
    """Take jobs from the queue until it is empty; if a process dies, return those that were in progress."""
    in_progress: dict[Future[int], ShardJob] = {}
    with _started_pool(num_workers) as executor:
        try:
            while jobs or in_progress:
                while jobs and len(in_progress) < num_workers:
                    future = _submit(executor, work, jobs[0])
                    in_progress[future] = jobs.popleft()
                done, _ = wait(in_progress, return_when=FIRST_COMPLETED)
                for future in done:
                    report(in_progress[future], future.result())
                    del in_progress[future]
        except BrokenProcessPool:
            return list(in_progress.values())
    return []


@contextmanager
def _started_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes that end at once when the block is left or this process is killed."""
    context = multiprocessing.get_context("spawn")
    lifeline_end, lifeline = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (lifeline_end,))
    with lifeline_end:
        try:
            try:
                _submit(executor, os.getpid).result()
            except BrokenProcessPool:
                raise UserError(
                    "workers: processes cannot be started; in a script, call prepare below "
                    '`if __name__ == "__main__":`, or set workers to 0'
                ) from None
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
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)
