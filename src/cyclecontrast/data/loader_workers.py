"""The worker processes of a loader: what they listen to, how they end, and one line for how they died."""

import atexit
import contextlib
import ctypes
import math
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import TypeVar

import cv2

from cyclecontrast.errors import UserError

T = TypeVar("T")
PR_SET_PDEATHSIG = 1
"""Of Linux: the signal that a process gets when its parent dies."""
QUIET_SECONDS = 5.0
"""After so long without a batch it is looked whether the workers live."""
LONGEST_READ = 300.0
"""After so many seconds without a batch, and one more for each of its videos, reading counts as hung."""


def begin_worker(_: int) -> None:
    """Give a worker one thread, and let it work on when a signal comes to all: its parent ends it, or its own death."""
    cv2.setNumThreads(0)
    with contextlib.suppress(OSError, AttributeError):  # torch's own watch sees nothing while a read hangs
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def received(batches: Iterator[T | UserError], place: object, longest: float) -> Iterator[T]:
    """Yield what a loader gives, and end its workers; `place` is what is read, `longest` in seconds.

    The loader's own timeout is to be QUIET_SECONDS.

    Raises UserError where it is given one, where a worker died, and where nothing came for the longest time.
    """
    workers: Sequence[BaseProcess] = getattr(batches, "_workers", ())
    end = partial(_kill, workers)
    atexit.register(end)  # or else Python would wait for workers that are deaf
    try:
        while (batch := _next(batches, workers, place, longest)) is not None:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        getattr(batches, "_shutdown_workers", lambda: None)()
        end()
        atexit.unregister(end)


def _next(batches: Iterator[T], workers: Sequence[BaseProcess], place: object, longest: float) -> T | None:
    for _ in range(math.ceil(longest / QUIET_SECONDS)):
        try:
            return next(batches, None)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].rstrip(". ")
            if reason.startswith("DataLoader worker (pid"):
                raise UserError(
                    f"a process that loads data has died ({reason}), most likely because the memory or /dev/shm is "
                    "full; use fewer --workers"
                ) from error
            if not reason.startswith("DataLoader timed out"):
                raise
    _kill(workers)
    raise UserError(f"{place}: gave no data for {longest:.0f} s: its storage hangs, or is too slow; mend it")


def _kill(workers: Sequence[BaseProcess]) -> None:
    """Kill the workers that are still there: one that waits for a dead file system would keep us from ending."""
    for worker in workers:
        with contextlib.suppress(RuntimeError):  # torch raises it for this death, too
            if worker.is_alive():
                worker.kill()
                worker.join(QUIET_SECONDS)
