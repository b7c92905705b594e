"""Write many shards at once, in processes that may die: a video that crashes its process costs only itself."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

import cv2

from cyclecontrast.data.store_writer import Report, ShardJob, try_shard, write_shard
from cyclecontrast.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

_reports: Connection | None = None
"""In a worker process: the pipe for its progress."""


def write_shards(jobs: Iterable[ShardJob], num_workers: int, report: Report) -> None:
    """Write all shards; raises UserError where processes do not start, or die without a video being the cause."""
    waiting = deque(jobs)
    while waiting:
        for job in _run(_write_shard, waiting, min(num_workers, len(waiting)), report):
            if not job.is_done():
                _write_alone(job, report)


def _write_alone(job: ShardJob, report: Report) -> None:
    """Find the videos that kill their process, and write the shard without them."""
    crashing: set[str] = set()
    to_try = deque(job._replace(rows=(row,)) for row in job.rows)
    while to_try:
        crashing.update(row.id for tried in _run(try_shard, to_try, 1, report) for row in tried.rows)
    rows = (row._replace(reason="the decoder crashed") if row.id in crashing else row for row in job.rows)
    if _run(_write_shard, deque([job._replace(rows=tuple(rows))]), 1, report):
        raise UserError(
            f"workers: a process was killed twice at shard {job.shard} of {job.out}, not by a single video; "
            "is the memory full? Run the same command again with --workers 1, it resumes"
        )


def _run(work: Callable[[ShardJob], None], jobs: deque[ShardJob], num_workers: int, report: Report) -> list[ShardJob]:
    """Take jobs from the queue until it is empty; if a process dies, return those that were in progress."""
    in_progress: dict[Future[None], ShardJob] = {}
    with _started_pool(num_workers) as (executor, reports):
        try:
            while jobs or in_progress:
                while jobs and len(in_progress) < num_workers:
                    future = _submit(executor, work, jobs[0])
                    in_progress[future] = jobs.popleft()
                done, _ = wait(in_progress, timeout=0.2, return_when=FIRST_COMPLETED)
                while reports.poll():
                    report(*map(int, reports.recv_bytes().split()))
                for future in done:
                    future.result()
                    del in_progress[future]
        except BrokenProcessPool:
            return list(in_progress.values())
    return []


@contextmanager
def _started_pool(num_workers: int) -> Iterator[tuple[ProcessPoolExecutor, Connection]]:
    """Start processes that end at once when the block is left or this process is killed."""
    context = multiprocessing.get_context("spawn")
    lifeline_end, lifeline = context.Pipe(duplex=False)
    reports, reports_end = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (lifeline_end, reports_end))
    with lifeline_end, reports, reports_end:
        try:
            try:
                _submit(executor, os.getpid).result()
            except BrokenProcessPool:
                raise UserError(
                    "workers: processes cannot be started; in a script, call prepare below "
                    '`if __name__ == "__main__":`, or set workers to 0'
                ) from None
            yield executor, reports
        finally:
            lifeline.close()
            executor.shutdown(wait=True, cancel_futures=True)


def _submit(executor: ProcessPoolExecutor, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> Future[T]:
    """Submit with Ctrl-C blocked, so that the processes started by it never receive one."""
    # The resource tracker unblocks signals while it starts, so it must be running before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(work, *args, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(lifeline: Connection, reports: Connection) -> None:
    """Initialize a worker process, which ends when the parent closes the lifeline or dies."""
    global _reports
    _reports = reports
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)


def _write_shard(job: ShardJob) -> None:
    write_shard(job, _send)


def _send(videos: int, frames: int, num_bytes: int) -> None:
    """Send progress in one short, atomic write: workers share the pipe without a lock that could die held."""
    if _reports is not None:
        _reports.send_bytes(f"{videos} {frames} {num_bytes}".encode())
