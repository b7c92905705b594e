"""The data loader of the training: a sampler that can start at any step, and error handling for workers."""

import atexit
import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import cv2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from cyclecontrast.data.dataset import Batch, ViewDataset, collate
from cyclecontrast.errors import UserError, system_error, why_no_workers

T = TypeVar("T")
PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent dies."""
CHECK_SECONDS = 5.0
"""Timeout after which the loader checks whether its workers are alive."""
HANG_SECONDS = 300.0
"""Timeout after which reading a batch counts as hung, plus one second per video of the batch."""

SPARE_HANDLES = 16
"""Files that a worker must still be able to open when it passes on a batch."""


class StepSampler(Sampler[list[int]]):
    """Batch sampler that yields this rank's positions of each batch, for any range of `steps`, so that runs can resume.

    Step s takes the positions s·B to (s + 1)·B - 1 of the training. Differs from the release: a
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
    seconds = HANG_SECONDS + sampler.share
    return loaded(dataset, sampler, collate, workers, dataset.store.root, seconds, pin_memory)


def loaded(
    dataset: Dataset[Any],
    batches: Iterable[Sequence[int]],
    collate: Callable[[list[Any]], T | UserError],
    workers: int,
    source: object,
    max_seconds: float,
    pin_memory: bool = False,
) -> Generator[T, None, None]:
    """Return an iterator over the collated batches of these positions; raises UserError if workers cannot start.

    The iterator raises UserError if `collate` returns one, or if a worker dies or hangs. `source` is named in messages.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=partial(_collate_to_share, collate),
        num_workers=workers,
        timeout=CHECK_SECONDS if workers else 0,
        worker_init_fn=init_worker,
        pin_memory=pin_memory,
    )
    return received(_started(loader), source, max_seconds)


def _started(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Start the workers; raises UserError, without leaving any, if the system refuses."""
    before, on_death = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    except (OSError, RuntimeError, MemoryError) as error:
        _kill([worker for worker in multiprocessing.active_children() if worker not in before])
        problem = why_no_workers(error)
        # The half-made iterator complains when it is deleted.
        with _unraisable_ignored():
            traceback.clear_frames(error.__traceback__)
        raise UserError(f"workers: processes cannot be started: {problem}") from None
    finally:
        # PyTorch's handler raises anywhere in a step if a worker dies; loading the next batch reports it.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, on_death or signal.SIG_DFL)


@contextlib.contextmanager
def _unraisable_ignored() -> Iterator[None]:
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _collate_to_share(collate: Callable[[list[Any]], T | UserError], items: list[Any]) -> T | UserError:
    """Collate a batch, in a worker into shared memory.

    Later, PyTorch would do the same in a thread whose errors do not reach the other process.
    """
    batch = collate(items)
    if get_worker_info() is not None and not isinstance(batch, UserError):
        try:
            _share(batch)
            for handle in [os.open(os.devnull, os.O_RDONLY) for _ in range(SPARE_HANDLES)]:
                os.close(handle)
        except (OSError, RuntimeError) as error:
            return UserError(f"a data loading process cannot pass on a batch: {why_no_workers(error)}")
    return batch


def _share(value: object) -> None:
    if isinstance(value, Tensor):
        value.share_memory_()  # type: ignore[no-untyped-call]
    elif isinstance(value, tuple):
        for part in value:
            _share(part)


def init_worker(_: int) -> None:
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
        except (OSError, RuntimeError, EOFError) as error:
            text = str(error).partition("\n")[0].rstrip(". ")
            if text.startswith("DataLoader timed out"):
                continue
            if not workers or text.startswith("Caught "):  # raised in the dataset
                raise
            if text.startswith("DataLoader worker (pid") or not all(worker.is_alive() for worker in workers):
                raise UserError(
                    f"a data loading process has died ({text}), most likely because memory or /dev/shm is full; "
                    "use fewer --workers"
                ) from error
            if system_error(error) is None:
                raise
            raise UserError(f"the data loading processes cannot pass on a batch: {why_no_workers(error)}") from error
    _kill(workers)
    raise UserError(f"{source}: no data for {max_seconds:.0f} s; the storage hangs or is too slow")


def _kill(workers: Sequence[BaseProcess]) -> None:
    """Kill the remaining workers; one that waits for a dead file system would keep this process from exiting."""
    for worker in workers:
        with contextlib.suppress(RuntimeError):  # torch raises it for killed workers
            if worker.is_alive():
                worker.kill()
                worker.join(CHECK_SECONDS)
