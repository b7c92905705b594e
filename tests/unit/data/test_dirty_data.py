"""Data that go bad while a training reads them: what is replaced, what is tried again, and what ends it in one line."""

import errno
import json
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
import torch.distributed as dist
import torch.multiprocessing as mp
from cyclecontrast.data.further_views import three_pairs
from cyclecontrast.data.pairs import BadFrame, FramePairs
from cyclecontrast.training.unreadable import UNREADABLE, Unreadable, read_unreadable

import cyclecontrast as cc
from cyclecontrast.data import pairs as pairs_module
from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.dataset import Batch
from cyclecontrast.data.loader import load_batches, received
from cyclecontrast.data.storage import PAUSES
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import shard_path
from cyclecontrast.distributed import World
from cyclecontrast.errors import UserError
from tests.unit.data.test_storage import NUM_VIDEOS, Failing, no_sleep, one_line, write_store, write_tree
from tests.unit.training.test_pretrain import lines_of, run

RECIPE = RECIPES["moco-v2"]
ALONE = World(0, 1)


@dataclass
class Acting:
    """A source of bytes that does something before it reads a frame."""

    source: object
    act: object

    def read(self, frame):
        """Act, then return the bytes."""
        self.act(frame)
        return self.source.read(frame)


# --- a storage that fails


def test_a_read_that_fails_on_ends_in_a_line(tmp_path):
    """After the last pause the file, the error and the attempts are reported; nothing is replaced."""
    store, slept = FrameStore.open(write_tree(tmp_path / "data")), []
    error = OSError(errno.EIO, os.strerror(errno.EIO), "/far/v1/2.png")
    pairs = FramePairs(replace(store, source=Failing(store.source, [error] * 99)), RECIPE, 8, 0, sleep=slept.append)
    with pytest.raises(UserError) as caught:
        pairs[0]
    assert (
        one_line(caught)
        == "/far/v1/2.png: cannot be read (Input/output error; tried 6 times in 34 s); check the storage"
    )
    assert slept == list(PAUSES)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_shard_that_is_lost_ends_in_a_line(tmp_path, workers, harm):
    """A missing or shortened shard is an error that names it, also from a worker; no frame is replaced."""
    pairs = FramePairs(FrameStore.open(write_store(tmp_path / "store")), RECIPE, 8, 0, sleep=lambda seconds: None)
    shard = shard_path(pairs.store.root, 1)
    shard.unlink() if harm == "removed" else os.truncate(shard, 10)
    with pytest.raises(UserError, match=r"000001\.tar") as caught:
        list(load_batches(pairs, range(8), 4, 0, 1, workers))
    assert "tried 6 times" in one_line(caught)


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_shard_that_comes_back_is_read_on(tmp_path, harm):
    """What a shard loses for less time than the pauses take is not missed."""
    pairs = FramePairs(FrameStore.open(write_store(tmp_path / "store")), RECIPE, 8, 0)
    store = FrameStore.open(tmp_path / "store")
    whole = [pairs[position] for position in range(16)]
    shards = [shard_path(pairs.store.root, number) for number in range(2)]
    kept = [shard.read_bytes() for shard in shards]

    def mend(seconds):
        for shard, data in zip(shards, kept, strict=True):
            shard.write_bytes(data)

    for shard in shards:
        if harm == "removed":
            shard.unlink()
        else:
            os.truncate(shard, 10)
    again = FramePairs(store, RECIPE, 8, 0, sleep=mend)
    for position, pair in enumerate(whole):
        mended = again[position]
        assert np.array_equal(mended.query, pair.query)
        assert np.array_equal(mended.positive, pair.positive)
        assert mended[2:] == pair[2:]


def test_a_file_that_is_gone_is_a_frame_to_replace(tmp_path):
    """A single image that was deleted, or a video's folder, is replaced at once, and named."""
    root = write_tree(tmp_path / "data")
    pairs = FramePairs(FrameStore.open(root), RECIPE, 8, 0, sleep=no_sleep)
    (root / "v3" / "1.png").unlink()
    for path in (root / "v5").iterdir():
        path.unlink()
    (root / "v5").rmdir()
    named = {frame for position in range(160) for frame in pairs[position].unreadable}
    assert named == {BadFrame(video, frame, "the file is gone") for video, frame in ((3, 1), (5, 0), (5, 1), (5, 2))}


@pytest.mark.parametrize("harm", ["removed", "emptied"])
def test_a_tree_that_is_gone_is_not_replaced(tmp_path, harm):
    """Where the whole folder is unmounted, the line says so; no other frame is looked for."""
    root = write_tree(tmp_path / "data")
    pairs = FramePairs(FrameStore.open(root), RECIPE, 8, 0, sleep=lambda seconds: None)
    root.rename(tmp_path / "elsewhere")
    if harm == "emptied":
        root.mkdir()
    with pytest.raises(UserError, match=r"data/v\d/\d\.png: cannot be read \(No such file or directory; tried 6 times"):
        pairs[0]


# --- workers


def test_broken_frames_are_the_same_in_any_process(tmp_path):
    """With frames that do not decode, batches, counts and names are equal with 0 and with 2 workers."""
    broken = {(0, 1), (2, 0), (2, 1), (2, 2), (6, 0), (6, 1)}
    store = FrameStore.open(write_tree(tmp_path / "data", broken))
    pairs = FramePairs(store, RECIPE, 8, 1, further=three_pairs)
    here, there = (list(load_batches(pairs, range(6), 8, 0, 1, workers)) for workers in (0, 2))
    for one, two in zip(here, there, strict=True):
        views = zip((*one[:3], *one.more, one.frames), (*two[:3], *two.more, two.frames), strict=True)
        assert all(torch.equal(a, b) for a, b in views)
        assert (one.replaced, one.unreadable) == (two.replaced, two.unreadable)
    named = {frame[:2] for batch in here for frame in batch.unreadable}
    assert named == broken
    assert all(len(set(batch.unreadable)) == len(batch.unreadable) for batch in here)


def test_a_frame_is_decoded_once(tmp_path, monkeypatch):
    """To know that a frame decodes costs no second decoding of it."""
    decoded, decode = [], pairs_module.decode_image
    monkeypatch.setattr(pairs_module, "decode_image", lambda data, _: decoded.append(data) or decode(data))
    pairs = FramePairs(FrameStore.open(write_tree(tmp_path / "data")), RECIPE, 8, 0)
    for position in range(NUM_VIDEOS):
        pairs[position]
    assert len(decoded) == len(set(decoded)) == 2 * NUM_VIDEOS


def test_many_videos_without_a_frame_end_in_a_line(tmp_path, monkeypatch):
    """Where stand-ins fail, too, the search has an end, and the last frame is named."""
    monkeypatch.setattr(pairs_module, "MOST_STAND_INS", 3)
    store = FrameStore.open(write_tree(tmp_path / "data", {(v, i) for v in range(NUM_VIDEOS) for i in range(3)}))
    with pytest.raises(UserError, match=r"data: no frame of 3 videos can be read, the last is frame \d of v\d: the im"):
        FramePairs(store, RECIPE, 8, 0)[0]


def test_a_worker_that_is_killed_ends_in_a_line(tmp_path):
    """A worker killed by the system, as when memory is full, is reported with what to do."""
    store = FrameStore.open(write_tree(tmp_path / "data"))
    parent = os.getpid()

    def killed(frame):
        if os.getpid() != parent and frame > 12:
            os.kill(os.getpid(), signal.SIGKILL)

    pairs = FramePairs(replace(store, source=Acting(store.source, killed)), RECIPE, 8, 0)
    with pytest.raises(UserError, match=r"a process that loads data has died .*use fewer --workers") as caught:
        list(load_batches(pairs, range(8), 4, 0, 1, 1))
    one_line(caught)


def test_reading_that_hangs_ends_in_a_line(tmp_path, monkeypatch):
    """A worker that hears no signal and gives nothing is given up after the longest wait, and is gone then."""
    monkeypatch.setattr(pairs_module, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(pairs_module, "HANG_SECONDS", 0.0)
    store = FrameStore.open(write_tree(tmp_path / "data"))
    pairs = FramePairs(replace(store, source=Acting(store.source, lambda frame: time.sleep(3600))), RECIPE, 8, 0)
    batches = load_batches(pairs, range(8), 2, 0, 1, 1)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(UserError, match=r"data: gave no data for 2 s: its storage hangs, or is too slow") as caught:
        next(batches)
    one_line(caught)
    assert not worker.is_alive()


def test_a_worker_that_is_quiet_for_a_while_is_waited_for():
    """A batch that comes late, but before the longest wait, is a batch like any other; other errors go on."""

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
    """A signal that reaches a whole group leaves the workers to their parent, who may still want their batches."""
    pairs = FramePairs(FrameStore.open(write_tree(tmp_path / "data")), RECIPE, 8, 0)
    alone = list(load_batches(pairs, range(8), 4, 0, 1, 0))
    batches = load_batches(pairs, range(8), 4, 0, 1, 1)
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    assert all(torch.equal(a.query, b.query) for a, b in zip(alone, [first, *batches], strict=True))
    assert not worker.is_alive()


def test_a_program_that_ends_while_loading_ends(tmp_path):
    """Workers that hear no signal do not keep Python from ending, whoever still holds what they load."""
    program = (
        "from cyclecontrast.data.pairs import *\nfrom cyclecontrast.data.augment import RECIPES\n"
        f"store = FrameStore.open({str(write_tree(tmp_path / 'data'))!r})\n"
        "batches = load_batches(FramePairs(store, RECIPES['moco-v2'], 8, 0), range(99), 4, 0, 1, 2)\n"
        "held = [batches, next(batches)]\nheld.append(held)\ndel batches"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process that its parent died")
def test_a_worker_whose_read_hangs_dies_with_its_parent(tmp_path):
    """kill -9 leaves no process behind, not even one that waits for a dead file system and watches nothing."""
    program = (
        "import multiprocessing, time\nfrom cyclecontrast.data import pairs as module\n"
        "from cyclecontrast.data.augment import RECIPES\n"
        f"store = module.FrameStore.open({str(write_tree(tmp_path / 'data'))!r})\n"
        "module.decode_image = lambda *_: time.sleep(1000)\n"
        "batches = module.load_batches(module.FramePairs(store, RECIPES['moco-v2'], 8, 0), range(9), 4, 0, 1, 1)\n"
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


# --- what a run reports


def batch_of(num_videos, *bad, replaced=0):
    """A batch without pixels."""
    return Batch(torch.empty(0), torch.empty(0), torch.arange(num_videos), replaced, unreadable=bad)


@pytest.fixture
def store(tmp_path):
    """A tree of frames."""
    return FrameStore.open(write_tree(tmp_path / "data"))


def noted(store, batches):
    """What is known after these batches."""
    unreadable = Unreadable()
    for step, batch in enumerate(batches, start=1):
        unreadable.note(batch, store, step, ALONE, None)
    return unreadable


BATCHES = (
    batch_of(10),
    batch_of(10, BadFrame(1, 2, "empty"), BadFrame(0, 1, "broken"), replaced=1),
    batch_of(10, BadFrame(1, 2, "empty"), replaced=2),
    batch_of(10, BadFrame(1, 0, "[red]gone"), BadFrame(0, 1, "broken"), replaced=2),
)


@pytest.mark.parametrize("stopped", range(5))
def test_what_is_known_survives_a_stop(store, tmp_path, stopped):
    """Written after any step and read again, the counts and names go on to those of an uninterrupted run."""
    noted(store, BATCHES[:stopped]).write(tmp_path)
    resumed = read_unreadable(tmp_path)
    for step, batch in enumerate(BATCHES[stopped:], start=stopped + 1):
        resumed.note(batch, store, step, ALONE, None)
    resumed.write(tmp_path)
    assert resumed == noted(store, BATCHES)
    assert json.loads((tmp_path / UNREADABLE).read_text()) == {
        "views": 80,
        "replaced": 5,
        "frames": [
            {"video": "v0", "frame": 1, "reason": "broken", "step": 2},
            {"video": "v1", "frame": 2, "reason": "empty", "step": 2},
            {"video": "v1", "frame": 0, "reason": "[red]gone", "step": 4},
        ],
    }


def test_more_than_a_hundredth_is_warned_of_once(store, capsys):
    """The warning comes when enough views were shown, names some frames, and comes once."""
    bad = [BadFrame(video, frame, "broken") for video in range(2) for frame in range(3)]
    unreadable = Unreadable()
    for step in range(1, 100):
        unreadable.note(batch_of(10, *bad, replaced=1), store, step, ALONE, None)
        unreadable.warn_once()
        told = capsys.readouterr().err
        assert bool(told) == (step == 50)
        if told:
            assert told == (
                "warning: 50 of 1,000 views (5.0%) show another frame than was drawn, for 6 frames cannot be read: "
                "frame 0 of v0: broken; frame 1 of v0: broken; frame 2 of v0: broken; and 3 more\n"
            )


def test_a_hundredth_is_not_warned_of(store, capsys):
    """A few damaged files among many cause no warning."""
    unreadable = noted(store, [batch_of(500, BadFrame(0, 0, "broken"), replaced=10)])
    unreadable.warn_once()
    assert capsys.readouterr().err == ""
    unreadable.report(store.root)
    assert capsys.readouterr().err.startswith("10 of 1,000 views (1.0%)")


@pytest.mark.parametrize(("views", "is_last", "ends"), [(1000, False, True), (998, False, False), (998, True, True)])
def test_more_than_the_limit_ends_it(store, views, is_last, ends):
    """The part is judged when enough views were shown, or all; the line names frames and what to do."""
    unreadable = noted(store, [batch_of(views // 2, BadFrame(0, 0, "broken"), replaced=views // 10 + 1)])
    unreadable.check(0.2, is_last)
    if not ends:
        unreadable.check(0.1, is_last)
        return
    with pytest.raises(UserError, match=r"more than --max-unreadable 0\.1: frame 0 of v0: broken; mend") as caught:
        unreadable.check(0.1, is_last)
    one_line(caught)


def test_the_report_names_the_first_frames_and_the_file(store, tmp_path, capsys):
    """At the end stand ten names, as they are written, and where the others are; without any there is silence."""
    Unreadable(views=10).report(tmp_path)
    assert capsys.readouterr().err == ""
    bad = [BadFrame(video, frame, "[red]gone") for video in range(4) for frame in range(3)]
    noted(store, [batch_of(10, *bad, replaced=12)]).report(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "warning: 12 of 20 views (60.0%) show another frame than was drawn, for 12 frames cannot be read; all are "
        f"named in {tmp_path / UNREADABLE}"
    )
    assert lines[1] == "  frame 0 of v0: [red]gone"
    assert lines[11:] == ["  and 2 more"]


def note_in_two(rank, folder):
    """Do one process's part and write what it knows."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    store, unreadable = FrameStore.open(f"{folder}/data"), Unreadable()
    shares = [(BATCHES[0], BATCHES[0]), (BATCHES[0], BATCHES[1]), (BATCHES[3], BATCHES[0]), (BATCHES[1], BATCHES[3])]
    for step, share in enumerate(shares, start=1):
        unreadable.note(share[rank], store, step, World(rank, 2, dist.group.WORLD), None)
    os.mkdir(f"{folder}/{rank}")
    unreadable.write(folder / str(rank))
    dist.destroy_process_group()


def test_two_processes_know_the_same(store, tmp_path):
    """What either could not read is counted and named by both, with the step that met it first."""
    mp.spawn(note_in_two, args=(tmp_path,), nprocs=2)
    known = [(tmp_path / str(rank) / UNREADABLE).read_text() for rank in (0, 1)]
    assert known[0] == known[1]
    told = read_unreadable(tmp_path / "0")
    assert (told.views, told.replaced) == (160, 6)
    assert {frame: met.step for frame, met in told.frames.items()} == {("v0", 1): 2, ("v1", 2): 2, ("v1", 0): 3}


# --- in a training


BROKEN = {(0, 1), (2, 0), (2, 1), (2, 2), (6, 0)}


def test_a_training_names_what_it_could_not_read(tmp_path, capsys):
    """Interrupted and resumed, a run with broken frames has the metrics, counts and names of an uninterrupted one."""
    data, options = write_tree(tmp_path / "data", BROKEN), {"steps": 6, "checkpoint_every": 3, "max_unreadable": 1.0}
    whole = run(data, tmp_path / "whole", **options)
    assert whole.metrics["replaced_frames"] > 0
    told = capsys.readouterr().err
    assert f"all are named in {tmp_path / 'whole' / UNREADABLE}" in told.replace("\n", " ")
    assert "frame 1 of v0: the image does not decode" in told

    def vanishing(batches):
        for step, batch in enumerate(batches):
            if step == 4:
                raise UserError("the disk is gone")
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        from cyclecontrast.training import pretrain as module

        patch.setattr(module, "load_batches", lambda *args: vanishing(load_batches(*args)))
        with pytest.raises(UserError, match=r"the disk is gone; the last good checkpoint is .*--resume"):
            run(data, tmp_path / "part", **options, workers=1)
    assert cc.pretrain(resume=tmp_path / "part").metrics["replaced_frames"] == whole.metrics["replaced_frames"]
    assert lines_of(tmp_path / "part") == lines_of(tmp_path / "whole")
    known = [json.loads((tmp_path / name / UNREADABLE).read_text()) for name in ("whole", "part")]
    assert known[0] == known[1]
    assert known[0]["views"] == 6 * 8 * 2
    assert {(frame["video"], frame["frame"]) for frame in known[0]["frames"]} == {(f"v{v}", i) for v, i in BROKEN}


def test_a_training_of_which_too_much_is_unreadable_stops(tmp_path):
    """Over the limit a run stops with a line and a checkpoint, again when resumed; with a higher limit it continues."""
    data = write_tree(tmp_path / "data", BROKEN)
    told = r"show another frame than was drawn.*more than --max-unreadable 0\.1: frame .*--resume"
    with pytest.raises(UserError, match=told) as caught:
        run(data, tmp_path / "run", steps=4)
    one_line(caught)
    for _ in range(2):
        with pytest.raises(UserError, match=told):
            cc.pretrain(resume=tmp_path / "run")
    done = cc.pretrain(resume=tmp_path / "run", max_unreadable=0.9)
    assert [row["step"] for row in lines_of(done.folder)] == [1, 2, 3, 4]


def test_a_store_that_is_lost_costs_no_step(tmp_path, monkeypatch):
    """A shard that vanishes under a training ends it after the step before, from which it resumes to the same end."""
    monkeypatch.setattr("cyclecontrast.data.storage.PAUSES", (0.0,))
    data = write_store(tmp_path / "store")
    whole = run(data, tmp_path / "whole", steps=4)
    shard, kept = shard_path(data, 1), shard_path(data, 1).read_bytes()
    from cyclecontrast.training import pretrain as module

    original = module.train_step

    def losing(training, batch, step):
        if step == 1:
            os.truncate(shard, 10)
        return original(training, batch, step)

    monkeypatch.setattr(module, "train_step", losing)
    with pytest.raises(UserError, match=r"000001\.tar.*the last good checkpoint is .*step-00000002; --resume"):
        run(data, tmp_path / "run", steps=4)
    monkeypatch.setattr(module, "train_step", original)
    shard.write_bytes(kept)
    cc.pretrain(resume=tmp_path / "run")
    assert lines_of(tmp_path / "run") == lines_of(whole.folder)
