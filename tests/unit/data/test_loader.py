"""The data loader: damaged and missing frames, storage that fails, and workers that die or hang."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from cyclecontrast.data import dataset as dataset_module
from cyclecontrast.data import loader
from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.dataset import ReadError, ViewDataset
from cyclecontrast.data.loader import StepSampler, load_batches, received
from cyclecontrast.data.store import PAUSES, FrameStore
from cyclecontrast.data.store_format import shard_path
from cyclecontrast.errors import UserError
from tests.unit.data.test_storage import NUM_VIDEOS, Failing, no_sleep, one_line, write_store, write_tree

RECIPE = RECIPES["moco-v2"]


@dataclass
class Acting:
    """A source of bytes that does something before it reads a frame."""

    source: object
    act: object

    def read(self, frame):
        """Act, then return the bytes."""
        self.act(frame)
        return self.source.read(frame)


def test_a_read_that_fails_on_ends_in_a_line(tmp_path):
    """After the last pause the file, the error and the attempts are reported; nothing is replaced."""
    store, slept = FrameStore.open(write_tree(tmp_path / "data")), []
    error = OSError(errno.EIO, os.strerror(errno.EIO), "/far/v1/2.png")
    dataset = ViewDataset(replace(store, source=Failing(store.source, [error] * 99)), RECIPE, 8, 0, sleep=slept.append)
    with pytest.raises(UserError) as caught:
        dataset.sample(0)
    assert (
        one_line(caught)
        == "/far/v1/2.png: cannot be read (Input/output error; tried 6 times in 34 s); check the storage"
    )
    assert slept == list(PAUSES)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_shard_that_is_lost_ends_in_a_line(tmp_path, workers, harm):
    """A missing or shortened shard is an error that names it, also from a worker; no frame is replaced."""
    dataset = ViewDataset(FrameStore.open(write_store(tmp_path / "store")), RECIPE, 8, 0, sleep=lambda seconds: None)
    shard = shard_path(dataset.store.root, 1)
    shard.unlink() if harm == "removed" else os.truncate(shard, 10)
    with pytest.raises(UserError, match=r"000001\.tar") as caught:
        list(load_batches(dataset, StepSampler(range(8), 4), workers))
    assert "tried 6 times" in one_line(caught)


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_shard_that_comes_back_is_read_on(tmp_path, harm):
    """What a shard loses for less time than the pauses take is not missed."""
    dataset = ViewDataset(FrameStore.open(write_store(tmp_path / "store")), RECIPE, 8, 0)
    store = FrameStore.open(tmp_path / "store")
    whole = [dataset[position] for position in range(16)]
    shards = [shard_path(dataset.store.root, number) for number in range(2)]
    kept = [shard.read_bytes() for shard in shards]

    def restore(seconds):
        for shard, data in zip(shards, kept, strict=True):
            shard.write_bytes(data)

    for shard in shards:
        if harm == "removed":
            shard.unlink()
        else:
            os.truncate(shard, 10)
    again = ViewDataset(store, RECIPE, 8, 0, sleep=restore)
    for position, sample in enumerate(whole):
        assert all(map(np.array_equal, again[position].views, sample.views))
        assert again[position][1:] == sample[1:]


def test_a_file_that_is_gone_is_a_frame_to_replace(tmp_path):
    """A single image that was deleted, or a video's folder, is replaced at once, and named."""
    root = write_tree(tmp_path / "data")
    dataset = ViewDataset(FrameStore.open(root), RECIPE, 8, 0, sleep=no_sleep)
    (root / "v3" / "1.png").unlink()
    for path in (root / "v5").iterdir():
        path.unlink()
    (root / "v5").rmdir()
    named = {frame for position in range(160) for frame in dataset[position].read_errors}
    assert named == {ReadError(video, frame, "the file is gone") for video, frame in ((3, 1), (5, 0), (5, 1), (5, 2))}


@pytest.mark.parametrize("harm", ["removed", "emptied"])
def test_a_tree_that_is_gone_is_not_replaced(tmp_path, harm):
    """Where the whole folder is unmounted, the line says so; no other frame is looked for."""
    root = write_tree(tmp_path / "data")
    dataset = ViewDataset(FrameStore.open(root), RECIPE, 8, 0, sleep=lambda seconds: None)
    root.rename(tmp_path / "elsewhere")
    if harm == "emptied":
        root.mkdir()
    with pytest.raises(UserError, match=r"data/v\d/\d\.png: cannot be read \(No such file or directory; tried 6 times"):
        dataset.sample(0)


def more_frames(rng, query, num_frames):
    """Draw two further frames."""
    return tuple(int(frame) for frame in rng.integers(num_frames, size=2))


def test_broken_frames_are_the_same_in_any_process(tmp_path):
    """With frames that do not decode, batches, counts and names are equal with 0 and with 2 workers."""
    broken = {(0, 1), (2, 0), (2, 1), (2, 2), (6, 0), (6, 1)}
    store = FrameStore.open(write_tree(tmp_path / "data", broken))
    dataset = ViewDataset(store, RECIPE, 8, 1, further=more_frames)
    here, there = (list(load_batches(dataset, StepSampler(range(6), 8), workers)) for workers in (0, 2))
    for one, two in zip(here, there, strict=True):
        assert all(map(torch.equal, (*one.views, one.video, one.frames), (*two.views, two.video, two.frames)))
        assert (one.num_replaced, one.read_errors) == (two.num_replaced, two.read_errors)
    named = {frame[:2] for batch in here for frame in batch.read_errors}
    assert named == broken
    assert all(len(set(batch.read_errors)) == len(batch.read_errors) for batch in here)


def test_a_frame_is_decoded_once(tmp_path, monkeypatch):
    """To know that a frame decodes costs no second decoding of it."""
    decoded, decode = [], dataset_module.decode_image
    monkeypatch.setattr(dataset_module, "decode_image", lambda data, _: decoded.append(data) or decode(data))
    dataset = ViewDataset(FrameStore.open(write_tree(tmp_path / "data")), RECIPE, 8, 0)
    for position in range(NUM_VIDEOS):
        dataset[position]
    assert len(decoded) == len(set(decoded)) == 2 * NUM_VIDEOS


def test_many_videos_without_a_frame_end_in_a_line(tmp_path, monkeypatch):
    """Where stand-ins fail, too, the search has an end, and the last frame is named."""
    monkeypatch.setattr(dataset_module, "MAX_STAND_INS", 3)
    store = FrameStore.open(write_tree(tmp_path / "data", {(v, i) for v in range(NUM_VIDEOS) for i in range(3)}))
    with pytest.raises(UserError, match=r"data: no frame of 3 videos can be read, the last is frame \d of v\d: the im"):
        ViewDataset(store, RECIPE, 8, 0).sample(0)


def test_a_worker_that_is_killed_ends_in_a_line(tmp_path):
    """A worker killed by the system, as when memory is full, is reported with what to do."""
    store = FrameStore.open(write_tree(tmp_path / "data"))
    parent = os.getpid()

    def killed(frame):
        if os.getpid() != parent and frame > 12:
            os.kill(os.getpid(), signal.SIGKILL)

    dataset = ViewDataset(replace(store, source=Acting(store.source, killed)), RECIPE, 8, 0)
    with pytest.raises(UserError, match=r"a data loading process has died .*use fewer --workers") as caught:
        list(load_batches(dataset, StepSampler(range(8), 4), 1))
    one_line(caught)


def test_reading_that_hangs_ends_in_a_line(tmp_path, monkeypatch):
    """A worker that ignores signals and sends nothing is killed after the longest wait."""
    monkeypatch.setattr(loader, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(loader, "HANG_SECONDS", 0.0)
    store = FrameStore.open(write_tree(tmp_path / "data"))
    dataset = ViewDataset(replace(store, source=Acting(store.source, lambda frame: time.sleep(3600))), RECIPE, 8, 0)
    batches = load_batches(dataset, StepSampler(range(8), 2), 1)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(UserError, match=r"data: gave no data for 2 s: its storage hangs or is too slow") as caught:
        next(batches)
    one_line(caught)
    assert not worker.is_alive()


def test_a_worker_that_is_quiet_for_a_while_is_waited_for():
    """A batch that comes late, but before the longest wait, is a batch like any other; other errors are raised."""

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
def test_workers_work_on_after_a_signal_to_all(tmp_path, number):
    """A signal to the whole process group does not end the workers: their parent may still need their batches."""
    dataset = ViewDataset(FrameStore.open(write_tree(tmp_path / "data")), RECIPE, 8, 0)
    alone = list(load_batches(dataset, StepSampler(range(8), 4), 0))
    batches = load_batches(dataset, StepSampler(range(8), 4), 1)
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    assert all(torch.equal(a.views[0], b.views[0]) for a, b in zip(alone, [first, *batches], strict=True))
    assert not worker.is_alive()


def test_a_program_that_ends_while_loading_ends(tmp_path):
    """Workers that ignore signals do not keep Python from ending, even while their batches are referenced."""
    program = (
        "from cyclecontrast.data.dataset import *\nfrom cyclecontrast.data.loader import *\n"
        "from cyclecontrast.data.augment import RECIPES\n"
        f"store = FrameStore.open({str(write_tree(tmp_path / 'data'))!r})\n"
        "batches = load_batches(ViewDataset(store, RECIPES['moco-v2'], 8, 0), StepSampler(range(99), 4), 2)\n"
        "held = [batches, next(batches)]\nheld.append(held)\ndel batches"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process that its parent died")
def test_a_worker_whose_read_hangs_dies_with_its_parent(tmp_path):
    """kill -9 leaves no process behind, not even one that waits for a dead file system and watches nothing."""
    program = (
        "import multiprocessing, time\nfrom cyclecontrast.data import dataset as module\n"
        "from cyclecontrast.data.loader import StepSampler, load_batches\n"
        "from cyclecontrast.data.augment import RECIPES\n"
        f"store = module.FrameStore.open({str(write_tree(tmp_path / 'data'))!r})\n"
        "module.decode_image = lambda *_: time.sleep(1000)\n"
        "batches = load_batches(module.ViewDataset(store, RECIPES['moco-v2'], 8, 0), StepSampler(range(9), 4), 1)\n"
        "import threading\nthreading.Thread(target=next, args=(batches,), daemon=True).start()\n"
        "while not (workers := multiprocessing.active_children()): time.sleep(0.05)\n"
        "time.sleep(1)\nprint(workers[0].pid, flush=True)\ntime.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 60
    while time.monotonic() < until and os.path.exists(f"/proc/{worker}"):
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")
