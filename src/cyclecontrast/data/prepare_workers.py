"""Many shards at once, in processes that may die: a video that takes its process down costs itself only."""

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
from typing import NamedTuple, ParamSpec, TypeVar

import cv2

from cyclecontrast.data.shard_writer import Progress, Report, ShardJob, try_shard, write_shard
from cyclecontrast.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

_reports: Connection | None = None
"""In a worker process: where it reports to."""


def write_shards(jobs: Iterable[ShardJob], num_workers: int, report: Report) -> None:
    """Writes all shards; raises UserError where processes do not start or die without a video's doing."""
    waiting = deque(jobs)
    while waiting:
        for job in _run(_write_shard, waiting, min(num_workers, len(waiting)), report):
            if not job.is_done:
                _write_alone(job, report)


def _write_alone(job: ShardJob, report: Report) -> None:
    """Finds the videos that kill their process, and writes the shard without them."""
    crashing: set[str] = set()
    to_try = deque(job._replace(rows=(row,)) for row in job.rows)
    while to_try:
        crashing.update(row.id for tried in _run(try_shard, to_try, 1, report) for row in tried.rows)
    rows = (row._replace(reason="the decoder crashed") if row.id in crashing else row for row in job.rows)
    if _run(_write_shard, deque([job._replace(rows=tuple(rows))]), 1, report):
        raise UserError(
            f"workers: a process was killed twice at shard {job.shard} of {job.config.out}, not by one video alone; "
            "is the memory full? The same command goes on, try it with 1 worker"
        )


def _run(work: Callable[[ShardJob], None], jobs: deque[ShardJob], num_workers: int, report: Report) -> list[ShardJob]:
    """Takes jobs off until there are none; if a process dies, returns those that were in hand."""
    in_hand: dict[Future[None], ShardJob] = {}
    with _started_pool(num_workers) as pool:
        try:
            while jobs or in_hand:
                while jobs and len(in_hand) < num_workers:
                    future = _submit(pool.executor, work, jobs[0])
                    in_hand[future] = jobs.popleft()
                done, _ = wait(in_hand, timeout=0.2, return_when=FIRST_COMPLETED)
                _pass_on(pool.reports, report)
                for future in done:
                    future.result()
                    del in_hand[future]
        except BrokenProcessPool:
            return list(in_hand.values())
    return []


def _pass_on(reports: Connection, report: Report) -> None:
    while reports.poll():
        report(Progress(*map(int, reports.recv_bytes().split())))


class _Pool(NamedTuple):
    executor: ProcessPoolExecutor
    reports: Connection


@contextmanager
def _started_pool(num_workers: int) -> Iterator[_Pool]:
    """Processes that end at once when the block is left or when this process is killed."""
    context = multiprocessing.get_context("spawn")
    lifeline_end, lifeline = context.Pipe(duplex=False)
    reports, reports_end = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (lifeline_end, reports_end))
    with lifeline_end, reports, reports_end:
        try:
            _check_start(executor)
            yield _Pool(executor, reports)
        finally:
            lifeline.close()
            executor.shutdown(wait=True, cancel_futures=True)


def _check_start(executor: ProcessPoolExecutor) -> None:
    try:
        _submit(executor, os.getpid).result()
    except BrokenProcessPool:
        raise UserError(
            "workers: no process can be started; in a script, call prepare below "
            '`if __name__ == "__main__":`, or choose 0 workers'
        ) from None


def _submit(executor: ProcessPoolExecutor, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> Future[T]:
    """Submits with Ctrl-C held back, so that the processes started by it never get one."""
    # Python's helper process lifts the mask while it starts, so it has to be there before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(work, *args, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(lifeline: Connection, reports: Connection) -> None:
    """First act of a worker: the end of the parent, or its wish to stop, is to be the worker's end."""
    global _reports
    _reports = reports
    cv2.setNumThreads(1)
    threading.Thread(target=_follow, args=(lifeline,), daemon=True).start()


def _follow(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)


def _write_shard(job: ShardJob) -> None:
    write_shard(job, _send)


def _send(progress: Progress) -> None:
    """One short write, which the kernel keeps whole: workers share the pipe without a lock that may die held."""
    if _reports is not None:
        _reports.send_bytes("{} {} {}".format(*progress).encode())
