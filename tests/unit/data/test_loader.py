"""The data loader: the same batches with any workers, start and processes, and workers that end in one line."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import pytest
import torch

from cyclecontrast.data import loader as module
from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.dataset import Batch, ViewDataset
from cyclecontrast.data.loader import StepSampler, load_batches, received
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import shard_path
from cyclecontrast.errors import UserError
from tests.unit.data.test_dataset import THREE_PAIRS
from tests.unit.data.test_storage import one_line, write_store, write_tree

RECIPE = RECIPES["moco-v2"]
BROKEN = {(0, 1), (2, 0), (2, 1), (2, 2), (6, 0), (6, 1)}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Eight videos of three frames, of which some cannot be read, seen in eight views each."""
    store = FrameStore.open(write_tree(tmp_path_factory.mktemp("broken") / "data", BROKEN))
    return ViewDataset(store, RECIPE, 8, seed=1, extra_frames=THREE_PAIRS)


@pytest.fixture
def dataset(tmp_path):
    """Eight videos of three frames."""
    return ViewDataset(FrameStore.open(write_tree(tmp_path / "data")), RECIPE, 8, 0)


def batches_of(dataset, steps, batch_size=4, rank=0, world_size=1, workers=0):
    """Return an iterator of the batches of these steps."""
    return load_batches(dataset, StepSampler(steps, batch_size, rank, world_size), workers)


def assert_equal(first, second):
    """Compare two batches bit by bit."""
    assert len(first.views) == len(second.views)
    for one, two in zip((*first.views, first.video, first.frames), (*second.views, *second[1:3]), strict=True):
        assert torch.equal(one, two)
    assert first[3:5] == second[3:5]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(broken, workers):
    """Batches of workers, over the end of an epoch and with unreadable frames, equal those made in this process."""
    here, there = (list(batches_of(broken, range(5), workers=number)) for number in (0, workers))
    assert len(here) == len(there) == 5
    for one, two in zip(here, there, strict=True):
        assert_equal(one, two)
    assert {error[:2] for batch in here for error in batch.read_errors} == BROKEN


def test_spawned_workers_change_nothing(broken):
    """As macOS starts them: a worker that inherits nothing makes the batches of this process."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        there = list(batches_of(broken, range(2), workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)
    for one, two in zip(batches_of(broken, range(2)), there, strict=True):
        assert_equal(one, two)


def test_batches_for_a_gpu_are_pinned(broken, monkeypatch):
    """Every tensor of a batch lies in pinned memory, which copies without waiting need, and its problems stay."""
    pinned = []

    def pin(tensor, *_):
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_, **__: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    usual = list(batches_of(broken, range(2)))
    assert not pinned
    found = list(load_batches(broken, StepSampler(range(2), 4), 0, pin_memory=True))
    for one, two in zip(usual, found, strict=True):
        assert isinstance(two, Batch)
        assert_equal(one, two)
        tensors = (*two.views, two.video, two.frames, two.device_params)
        assert all(any(tensor is each for each in pinned) for tensor in tensors)


def test_any_start_gives_the_same_batches(broken):
    """A run that resumes at a step gets the batches that an uninterrupted one would have got there."""
    whole = list(batches_of(broken, range(4)))
    for start in range(5):
        for one, two in zip(whole[start:], batches_of(broken, range(start, 4)), strict=True):
            assert_equal(one, two)


def test_processes_share_the_batch(broken):
    """The shares of two processes, one behind the other, are the batch of one process."""
    whole = batches_of(broken, range(4), batch_size=6)
    shares = [batches_of(broken, range(4), batch_size=6, rank=rank, world_size=2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *shares, strict=True):
        views = tuple(map(torch.cat, zip(first.views, second.views, strict=True)))
        video, frames = (torch.cat(parts) for parts in zip(first[1:3], second[1:3], strict=True))
        errors = tuple(dict.fromkeys((*first.read_errors, *second.read_errors)))
        assert_equal(batch, Batch(views, video, frames, first.num_replaced + second.num_replaced, errors))


def test_a_batch_that_cannot_be_shared_is_refused():
    """A batch of seven on two processes is an error at once."""
    with pytest.raises(UserError, match="batch_size: 7 cannot be shared by 2 processes; set a multiple of 2"):
        StepSampler(range(1), 7, rank=0, world_size=2)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", ["broken", "removed", "cut"])
def test_data_that_cannot_be_read_are_one_line(tmp_path, workers, harm):
    """Frames that all are broken, and a shard that vanishes or shrinks, end in a line, also from a worker."""
    root = write_store(tmp_path / "store")
    store = FrameStore.open(root)
    for number in range(2):
        path = shard_path(root, number)
        size = path.stat().st_size
        if harm == "removed":
            path.unlink()
        else:
            os.truncate(path, 10)
        if harm == "broken":
            os.truncate(path, size)
    dataset = ViewDataset(store, RECIPE, 8, 0, sleep=lambda seconds: None)
    words = "no frame of 8 videos can be read" if harm == "broken" else r"00000\d\.tar: .*; tried 6 times"
    with pytest.raises(UserError, match=words) as caught:
        list(batches_of(dataset, range(2), workers=workers))
    one_line(caught)


@dataclass
class Acting:
    """A source of bytes that does something before it reads a frame."""

    source: object
    act: object

    def read(self, frame):
        """Act, then return the bytes."""
        self.act(frame)
        return self.source.read(frame)

    def reopen(self):
        """Do nothing."""


def acting(dataset, act):
    """Return a dataset whose source acts before each read."""
    return replace(dataset, store=replace(dataset.store, source=Acting(dataset.store.source, act)))


def test_a_killed_worker_is_one_line(dataset, monkeypatch):
    """When the system kills a worker, as for lack of memory, the line says so and what to do."""
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.2)
    parent = os.getpid()

    def killed(frame):
        if os.getpid() != parent and frame > 12:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"a data loading process has died .*use fewer --workers") as caught:
        list(batches_of(acting(dataset, killed), range(8), workers=1))
    one_line(caught)


def test_a_worker_that_dies_early_is_reported_by_the_next_batch(dataset, monkeypatch):
    """Its death does not raise an exception amid the work between two batches, as PyTorch's signal handler does."""
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.2)
    batches = batches_of(dataset, range(8), workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with pytest.raises(UserError, match="a data loading process has died"):
        list(batches)


def test_workers_that_cannot_start_are_one_line(dataset, monkeypatch):
    """Where the system refuses a second process, the first is ended, and the command does not wait for it for ever."""
    fork, started = os.fork, []

    def refusing():
        if started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(fork())
        return started[0]

    monkeypatch.setattr(os, "fork", refusing)
    with pytest.raises(
        UserError, match=r"workers: processes cannot be started: resource temporarily .* \(ulimit -u\)"
    ) as caught:
        batches_of(dataset, range(2), workers=2)
    one_line(caught)
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="the number of open files at the start is that of Linux")
def test_too_few_files_end_a_program_in_one_line(dataset):
    """With a limit on open files that allows one worker, the program ends at once, without other output."""
    program = PROGRAM + (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 8,) * 2)\n"
        "try: list(load_batches(dataset, StepSampler(range(99), 4), 2))\n"
        "except module.UserError as error: sys.exit(str(error))"
    )
    words = [sys.executable, "-c", program, dataset.store.root]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.startswith("workers: processes cannot be started: too many open files; raise the limit")
    assert len(done.stderr.splitlines()) == 1


def test_a_batch_that_cannot_be_shared_is_one_line(dataset, monkeypatch):
    """Where /dev/shm is full, a worker says so at once; PyTorch would lose the batch, and the parent wait for it."""

    def full(batch):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(module, "_share", full)
    with pytest.raises(
        UserError, match=r"cannot pass on a batch: /dev/shm: no space .* \(docker run --shm-size=1g\)"
    ) as caught:
        list(batches_of(dataset, range(2), workers=1))
    one_line(caught)


def test_a_read_that_hangs_is_one_line(dataset, monkeypatch):
    """A worker that ignores signals and gives nothing is given up after the longest wait, and killed."""
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(module, "HANG_SECONDS", 0.0)
    batches = batches_of(acting(dataset, lambda frame: time.sleep(3600)), range(8), batch_size=2, workers=1)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(UserError, match=r"data: no data for 2 s; the storage hangs or is too slow") as caught:
        next(batches)
    one_line(caught)
    assert not worker.is_alive()


def test_a_slow_worker_is_waited_for():
    """A batch that is late, but within the longest wait, is a batch like any other; other errors are raised."""

    class Late:
        answers = iter([RuntimeError("DataLoader timed out after 5 seconds"), 1, 2, RuntimeError("a bug")])

        def __next__(self):
            answer = next(self.answers)
            if isinstance(answer, RuntimeError):
                raise answer
            return answer

        def __iter__(self):
            return self

    batches = received(Late(), "data", 300)
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(RuntimeError, match="a bug"):
        next(batches)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_ignore_signals_to_their_group(dataset, number):
    """A signal to the whole process group does not end the workers, whose batches the parent may still need."""
    alone = list(batches_of(dataset, range(4)))
    batches = batches_of(dataset, range(4), workers=1)
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    for one, two in zip(alone, [first, *batches], strict=True):
        assert_equal(one, two)
    assert not worker.is_alive()


PROGRAM = """
import multiprocessing, os, sys, threading, time
from cyclecontrast.data import dataset as module
from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.loader import StepSampler, load_batches
dataset = module.ViewDataset(module.FrameStore.open(sys.argv[1]), RECIPES["moco-v2"], 8, 0)
"""


def test_a_program_that_ends_while_loading_ends(dataset):
    """Workers that ignore signals do not keep Python from ending, even if something still refers to the loader."""
    program = PROGRAM + (
        "batches = load_batches(dataset, StepSampler(range(99), 4), 2)\n"
        "held = [batches, next(batches)]\nheld.append(held)\ndel batches"
    )
    subprocess.run([sys.executable, "-c", program, dataset.store.root], check=True, timeout=100)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_worker_whose_read_hangs_dies_with_its_parent(dataset):
    """kill -9 leaves no process behind, not even one that waits for a dead file system."""
    program = PROGRAM + (
        "module.decode_image = lambda *_: time.sleep(1000)\n"
        "batches = load_batches(dataset, StepSampler(range(9), 4), 1)\n"
        "threading.Thread(target=next, args=(batches,), daemon=True).start()\n"
        "while not (workers := multiprocessing.active_children()): time.sleep(0.05)\n"
        "time.sleep(1)\nprint(workers[0].pid, flush=True)\ntime.sleep(1000)"
    )
    words = [sys.executable, "-c", program, dataset.store.root]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 60
    while time.monotonic() < until and os.path.exists(f"/proc/{worker}"):
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")
