"""The data loader of the training: a sampler that can start at any step, and error handling for workers."""

import atexit
import contextlib
import ctypes
import math
import signal
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import TypeVar

import cv2
from torch.utils.data import DataLoader, Sampler

from cyclecontrast.data.dataset import Batch, ViewDataset, collate
from cyclecontrast.errors import UserError

T = TypeVar("T")
PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent dies."""
CHECK_SECONDS = 5.0
"""Timeout after which the loader checks whether its workers are alive."""
HANG_SECONDS = 300.0
"""Timeout after which reading a batch counts as hung, plus one second per video of the batch."""


class StepSampler(Sampler[list[int]]):
    """Batch sampler that yields this rank's positions of each batch, for the given `steps` (any range.

    So runs can resume). Step s takes the positions s·B to (s + 1)·B - 1 of the training. Differs from the release: a
    batch may extend into the next epoch, so that no video is dropped at the end of an epoch.
    """

    def __init__(self, steps: range, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.share, rest = divmod(batch_size, world_size)
        self.offset = rank * self.share
        if rest:
            raise UserError(
                f"batch_size: {batch_size} cannot be shared by {world_size} processes; set a multiple of {world_size}"
            )

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = step * self.batch_size + self.offset
            yield list(range(start, start + self.share))

    def __len__(self) -> int:
        return len(self.steps)


def load_batches(
    dataset: ViewDataset, sampler: StepSampler, workers: int, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """Return an iterator over the sampler's batches.

    It raises UserError if no frame can be read, the storage fails, or a worker dies or hangs. Without workers there is
    no timeout.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        timeout=CHECK_SECONDS if workers else 0,
        worker_init_fn=begin_worker,
        pin_memory=pin_memory,
    )
    return received(iter(loader), dataset.store.root, HANG_SECONDS + sampler.share)


def begin_worker(_: int) -> None:
    """Initialize a worker process: one thread, SIGINT and SIGTERM ignored, killed if its parent dies."""
    cv2.setNumThreads(0)
    with contextlib.suppress(OSError, AttributeError):  # torch's watchdog does not run while a read hangs
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def received(batches: Iterator[T | UserError], source: object, max_seconds: float) -> Generator[T, None, None]:
    """Yield the batches of a DataLoader (timeout CHECK_SECONDS); stop its workers at the end.

    `source` is named in messages. Raises UserError if the loader returns one, if a worker died, and if there was no
    batch for `max_seconds`.
    """
    workers: Sequence[BaseProcess] = getattr(batches, "_workers", ())
    end = partial(_kill, workers)
    atexit.register(end)  # otherwise Python would wait at exit for workers that ignore signals
    try:
        while (batch := _next(batches, workers, source, max_seconds)) is not None:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        getattr(batches, "_shutdown_workers", lambda: None)()
        end()
        atexit.unregister(end)


def _next(batches: Iterator[T], workers: Sequence[BaseProcess], source: object, max_seconds: float) -> T | None:
    for _ in range(math.ceil(max_seconds / CHECK_SECONDS)):
        try:
            return next(batches, None)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].rstrip(". ")
            if reason.startswith("DataLoader worker (pid"):
                raise UserError(
                    f"a data loading process has died ({reason}), most likely because memory or /dev/shm is full; "
                    "use fewer --workers"
                ) from error
            if not reason.startswith("DataLoader timed out"):
                raise
    _kill(workers)
    raise UserError(f"{source}: no data for {max_seconds:.0f} s; the storage hangs or is too slow")


def _kill(workers: Sequence[BaseProcess]) -> None:
    """Kill the remaining workers; one that waits for a dead file system would keep this process from exiting."""
    for worker in workers:
        with contextlib.suppress(RuntimeError):  # torch raises it for killed workers
            if worker.is_alive():
                worker.kill()
                worker.join(CHECK_SECONDS)
