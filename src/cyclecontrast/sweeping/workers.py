"""All cells of a table, one after the other or several at once; one that fails does not stop the others."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import torch
from threadpoolctl import threadpool_limits

from cyclecontrast.errors import UserError
from cyclecontrast.models.hardware import num_cores
from cyclecontrast.sweeping.cells import Cell, is_trained, run_cell

DIED = (
    "its process was killed (is the memory full?) or could not start (in a script, call sweep below "
    '`if __name__ == "__main__":`); --jobs 1 does without processes'
)
FAILURES = (UserError, OSError, RuntimeError, MemoryError)
"""What ends one cell alone: bad settings, a full disk, no memory."""


class Finished(NamedTuple):
    """A cell with its metrics by protocol, as fractions, or with why there are none; `was_trained`: before."""

    cell: Cell
    metrics: dict[str, dict[str, float]]
    problems: tuple[str, ...]
    was_trained: bool
    seconds: float


def run_cells(cells: Sequence[Cell], jobs: int, tell: Callable[[Finished], None], processes: int = 1) -> list[Finished]:
    """Run all cells, `jobs` at a time, in order; `tell` hears of each as it ends.

    So many `processes` do so on this machine. Where it is not the only one, each cell has a process of its own, for
    what a person would see goes to a log then.
    """
    if jobs * processes == 1:
        return list(_told((_attempt(cell, run_cell) for cell in cells), tell))
    with _threads(jobs) as executor:
        futures = [executor.submit(_attempt, cell, lambda cell: _in_process(cell, jobs * processes)) for cell in cells]
        return list(_told((future.result() for future in as_completed(futures)), tell))


def _told(finished: Iterator[Finished], tell: Callable[[Finished], None]) -> Iterator[Finished]:
    for one in finished:
        tell(one)
        yield one


@contextmanager
def _threads(jobs: int) -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(jobs)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _attempt(cell: Cell, run: Callable[[Cell], dict[str, dict[str, float]]]) -> Finished:
    began = time.monotonic()
    was_trained = False
    metrics: dict[str, dict[str, float]] = {}
    problems: tuple[str, ...] = ()
    try:
        was_trained = is_trained(cell)
        metrics = run(cell)
    except FAILURES as error:
        problems = error.problems if isinstance(error, UserError) else (f"{type(error).__name__}: {error}",)
    return Finished(cell, metrics, problems, was_trained, time.monotonic() - began)


def _in_process(cell: Cell, at_once: int) -> dict[str, dict[str, float]]:
    """Run a cell in a process of its own, so that one that is killed takes no other along."""
    log = cell.run.with_name(f"{cell.run.name}.log")
    share = max(1, num_cores() // at_once)
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_settle, initargs=(share, log)) as pool:
        future: Future[dict[str, dict[str, float]]] = pool.submit(run_cell, cell)
        try:
            return future.result()
        except BrokenProcessPool:
            raise UserError(DIED) from None
        except SystemExit:
            raise UserError("its process was terminated; the same command goes on with it") from None


def _settle(num_threads: int, log: Path) -> None:
    """Keep to a share of the cores, write to a log what a person would see, and end when the parent is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    threadpool_limits(num_threads)
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())


def _end_with_parent() -> None:
    """Leave no run to a process that nobody waits for: the same command would go on with it beside."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
