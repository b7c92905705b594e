"""Frames that a run could not read: counted by all processes, reported, and limited."""

import json
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import cyclecontrast as cc
from cyclecontrast.data.dataset import Batch, ReadError
from cyclecontrast.data.loader import load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import shard_path
from cyclecontrast.distributed import ALONE, World
from cyclecontrast.errors import UserError
from cyclecontrast.training import trainer
from cyclecontrast.training.read_errors import READ_ERRORS, ReadErrors
from cyclecontrast.training.trainer import Trainer
from tests.unit.data.test_storage import one_line, write_store, write_tree
from tests.unit.training.test_pretrain import lines_of, run


def batch_of(num_videos, *bad, replaced=0):
    """A batch without pixels."""
    views = torch.empty(0), torch.empty(0)
    return Batch(views, torch.arange(num_videos), torch.empty(0), replaced, read_errors=bad)


@pytest.fixture
def store(tmp_path):
    """A tree of frames."""
    return FrameStore.open(write_tree(tmp_path / "data"))


def counted(store, batches):
    """The errors after these batches."""
    errors = ReadErrors()
    for step, batch in enumerate(batches, start=1):
        errors.count(batch, store, step, ALONE)
    return errors


BATCHES = (
    batch_of(10),
    batch_of(10, ReadError(1, 2, "empty"), ReadError(0, 1, "broken"), replaced=1),
    batch_of(10, ReadError(1, 2, "empty"), replaced=2),
    batch_of(10, ReadError(1, 0, "[red]gone"), ReadError(0, 1, "broken"), replaced=2),
)


@pytest.mark.parametrize("stopped", range(5))
def test_what_is_known_survives_a_stop(store, tmp_path, stopped):
    """Written after any step and read again, the counts and names go on to those of an uninterrupted run."""
    counted(store, BATCHES[:stopped]).write(tmp_path)
    resumed = ReadErrors.read(tmp_path)
    for step, batch in enumerate(BATCHES[stopped:], start=stopped + 1):
        resumed.count(batch, store, step, ALONE)
    resumed.write(tmp_path)
    assert resumed == counted(store, BATCHES)
    assert json.loads((tmp_path / READ_ERRORS).read_text()) == {
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
    bad = [ReadError(video, frame, "broken") for video in range(2) for frame in range(3)]
    errors = ReadErrors()
    for step in range(1, 100):
        errors.count(batch_of(10, *bad, replaced=1), store, step, ALONE)
        errors.warn_once()
        printed = capsys.readouterr().err
        assert bool(printed) == (step == 50)
        if printed:
            assert printed == (
                "warning: 50 of 1,000 views (5.0%) show another frame than was drawn, because 6 frames cannot be read: "
                "frame 0 of v0: broken; frame 1 of v0: broken; frame 2 of v0: broken; and 3 more\n"
            )


def test_a_hundredth_is_not_warned_of(store, capsys):
    """A few damaged files among many cause no warning."""
    errors = counted(store, [batch_of(500, ReadError(0, 0, "broken"), replaced=10)])
    errors.warn_once()
    assert capsys.readouterr().err == ""
    errors.report(store.root)
    assert capsys.readouterr().err.startswith("10 of 1,000 views (1.0%)")


@pytest.mark.parametrize(("views", "is_last", "ends"), [(1000, False, True), (998, False, False), (998, True, True)])
def test_more_than_the_limit_ends_it(store, views, is_last, ends):
    """The part is judged when enough views were shown, or all; the line names frames and what to do."""
    errors = counted(store, [batch_of(views // 2, ReadError(0, 0, "broken"), replaced=views // 10 + 1)])
    errors.check(0.2, is_last)
    if not ends:
        errors.check(0.1, is_last)
        return
    with pytest.raises(UserError, match=r"more than --max-unreadable 0\.1: frame 0 of v0: broken; fix") as caught:
        errors.check(0.1, is_last)
    one_line(caught)


def test_the_report_names_the_first_frames_and_the_file(store, tmp_path, capsys):
    """At the end stand ten names, as they are written, and where the others are; without any there is silence."""
    ReadErrors(views=10).report(tmp_path)
    assert capsys.readouterr().err == ""
    bad = [ReadError(video, frame, "[red]gone") for video in range(4) for frame in range(3)]
    counted(store, [batch_of(10, *bad, replaced=12)]).report(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "warning: 12 of 20 views (60.0%) show another frame than was drawn, because 12 frames cannot be read; all are "
        f"listed in {tmp_path / READ_ERRORS}"
    )
    assert lines[1] == "  frame 0 of v0: [red]gone"
    assert lines[11:] == ["  and 2 more"]


def note_in_two(rank, folder):
    """Do one process's part and write what it knows."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    store, errors = FrameStore.open(f"{folder}/data"), ReadErrors()
    shares = [(BATCHES[0], BATCHES[0]), (BATCHES[0], BATCHES[1]), (BATCHES[3], BATCHES[0]), (BATCHES[1], BATCHES[3])]
    for step, share in enumerate(shares, start=1):
        errors.count(share[rank], store, step, World(rank, 2, dist.group.WORLD))
    os.mkdir(f"{folder}/{rank}")
    errors.write(folder / str(rank))
    dist.destroy_process_group()


def test_two_processes_know_the_same(store, tmp_path):
    """What either could not read is counted and named by both, with the step that met it first."""
    mp.spawn(note_in_two, args=(tmp_path,), nprocs=2)
    known = [(tmp_path / str(rank) / READ_ERRORS).read_text() for rank in (0, 1)]
    assert known[0] == known[1]
    known = ReadErrors.read(tmp_path / "0")
    assert (known.views, known.replaced) == (160, 6)
    assert {frame: step for frame, (step, _) in known.frames.items()} == {("v0", 1): 2, ("v1", 2): 2, ("v1", 0): 3}


BROKEN = {(0, 1), (2, 0), (2, 1), (2, 2), (6, 0)}


def test_a_training_names_what_it_could_not_read(tmp_path, capsys):
    """Interrupted and resumed, a run with broken frames has the metrics, counts and names of an uninterrupted one."""
    data, options = write_tree(tmp_path / "data", BROKEN), {"steps": 6, "checkpoint_every": 3, "max_unreadable": 1.0}
    whole = run(data, tmp_path / "whole", **options)
    assert whole.metrics["replaced_frames"] > 0
    printed = capsys.readouterr().err
    assert f"all are listed in {tmp_path / 'whole' / READ_ERRORS}" in printed.replace("\n", " ")
    assert "frame 1 of v0: the image does not decode" in printed

    def vanishing(batches):
        for step, batch in enumerate(batches):
            if step == 4:
                raise UserError("the disk is gone")
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "load_batches", lambda *args: vanishing(load_batches(*args)))
        with pytest.raises(UserError, match=r"the disk is gone; the last good checkpoint is .*--resume"):
            run(data, tmp_path / "part", **options, workers=1)
    assert cc.pretrain(resume=tmp_path / "part").metrics["replaced_frames"] == whole.metrics["replaced_frames"]
    assert lines_of(tmp_path / "part") == lines_of(tmp_path / "whole")
    known = [json.loads((tmp_path / name / READ_ERRORS).read_text()) for name in ("whole", "part")]
    assert known[0] == known[1]
    assert known[0]["views"] == 6 * 8 * 2
    assert {(frame["video"], frame["frame"]) for frame in known[0]["frames"]} == {(f"v{v}", i) for v, i in BROKEN}


def test_a_training_of_which_too_much_is_unreadable_stops(tmp_path):
    """Over the limit a run stops with a line and a checkpoint, again when resumed; with a higher limit it continues."""
    data = write_tree(tmp_path / "data", BROKEN)
    printed = r"show another frame than was drawn.*more than --max-unreadable 0\.1: frame .*--resume"
    with pytest.raises(UserError, match=printed) as caught:
        run(data, tmp_path / "run", steps=4)
    one_line(caught)
    for _ in range(2):
        with pytest.raises(UserError, match=printed):
            cc.pretrain(resume=tmp_path / "run")
    done = cc.pretrain(resume=tmp_path / "run", max_unreadable=0.9)
    assert [row["step"] for row in lines_of(done.folder)] == [1, 2, 3, 4]


def test_a_store_that_is_lost_costs_no_step(tmp_path, monkeypatch):
    """A shard that vanishes under a training ends it after the step before, from which it resumes to the same end."""
    monkeypatch.setattr("cyclecontrast.data.store.PAUSES", (0.0,))
    data = write_store(tmp_path / "store")
    whole = run(data, tmp_path / "whole", steps=4)
    shard, kept = shard_path(data, 1), shard_path(data, 1).read_bytes()
    original = Trainer.train_step

    def losing(trainer, batch, info):
        if info.step == 1:
            os.truncate(shard, 10)
        return original(trainer, batch, info)

    monkeypatch.setattr(Trainer, "train_step", losing)
    with pytest.raises(UserError, match=r"000001\.tar.*the last good checkpoint is .*step-00000002; --resume"):
        run(data, tmp_path / "run", steps=4)
    monkeypatch.setattr(Trainer, "train_step", original)
    shard.write_bytes(kept)
    cc.pretrain(resume=tmp_path / "run")
    assert lines_of(tmp_path / "run") == lines_of(whole.folder)
