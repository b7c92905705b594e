"""Frames that cannot be read: counted over all processes, saved, reported, and too many of them end the run."""

import json
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import cyclecontrast as cc
from cyclecontrast.data.dataset import Batch, ReadError
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import shard_path
from cyclecontrast.distributed import ALONE, World
from cyclecontrast.errors import UserError
from cyclecontrast.training import trainer
from cyclecontrast.training.read_errors import READ_ERRORS, ReadErrors
from tests.make_runs import assert_same_run, rows_of, run
from tests.unit.data.test_storage import one_line, write_store, write_tree


def batch_of(num_videos, *errors, replaced=0):
    """Return a batch of two views without pixels."""
    views = (torch.empty(0),) * 2
    return Batch(views, torch.arange(num_videos), torch.empty(0), num_replaced=replaced, read_errors=errors)


BATCHES = (
    batch_of(10),
    batch_of(10, ReadError(1, 2, "empty"), ReadError(0, 1, "broken"), replaced=1),
    batch_of(10, ReadError(1, 2, "empty"), replaced=2),
    batch_of(10, ReadError(1, 0, "[red]gone"), ReadError(0, 1, "broken"), replaced=2),
)


@pytest.fixture
def store(tmp_path):
    """Eight videos of three frames."""
    return FrameStore.open(write_tree(tmp_path / "data"))


def counted(store, batches):
    """Return the errors of these batches."""
    errors = ReadErrors()
    for step, batch in enumerate(batches, start=1):
        errors.count(batch, store, step, ALONE)
    return errors


@pytest.mark.parametrize("stopped", range(5))
def test_counts_survive_a_stop(store, tmp_path, stopped):
    """Written after any step and read again, the counts and names become those of an uninterrupted run."""
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


def test_more_than_a_hundredth_is_a_warning(store, capsys):
    """The warning comes once, when enough views were shown, and names some frames."""
    errors = ReadErrors()
    bad = [ReadError(video, frame, "broken") for video in range(2) for frame in range(3)]
    for step in range(1, 100):
        errors.count(batch_of(10, *bad, replaced=1), store, step, ALONE)
        errors.warn_once()
        text = capsys.readouterr().err
        assert bool(text) == (step == 50)
        if text:
            assert text == (
                "warning: 50 of 1,000 views (5.0%) show a replacement frame, because 6 frames cannot be read: "
                "frame 0 of v0: broken; frame 1 of v0: broken; frame 2 of v0: broken; and 3 more\n"
            )


def test_a_hundredth_is_not_a_warning(store, capsys):
    """A few damaged files among many are reported at the end only."""
    errors = counted(store, [batch_of(500, ReadError(0, 0, "broken"), replaced=10)])
    errors.warn_once()
    assert capsys.readouterr().err == ""
    errors.report(store.root)
    assert capsys.readouterr().err.startswith("10 of 1,000 views (1.0%)")


@pytest.mark.parametrize(("views", "is_last", "ends"), [(1000, False, True), (998, False, False), (998, True, True)])
def test_more_than_the_limit_is_an_error(store, views, is_last, ends):
    """The fraction is judged once enough views were shown, or all; the line names frames and what to do."""
    errors = counted(store, [batch_of(views // 2, ReadError(0, 0, "broken"), replaced=views // 10 + 1)])
    errors.check(0.2, is_last)
    if not ends:
        errors.check(0.1, is_last)
        return
    with pytest.raises(UserError, match=r"more than --max-unreadable 0\.1: frame 0 of v0: broken; fix") as caught:
        errors.check(0.1, is_last)
    one_line(caught)


def test_the_report_names_the_first_frames_and_the_file(store, tmp_path, capsys):
    """At the end ten frames are named, without markup, and where the others are; without any nothing is printed."""
    ReadErrors(views=10).report(tmp_path)
    assert capsys.readouterr().err == ""
    bad = [ReadError(video, frame, "[red]gone") for video in range(4) for frame in range(3)]
    counted(store, [batch_of(10, *bad, replaced=12)]).report(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "warning: 12 of 20 views (60.0%) show a replacement frame, because 12 frames cannot be read; all are "
        f"listed in {tmp_path / READ_ERRORS}"
    )
    assert lines[1] == "  frame 0 of v0: [red]gone"
    assert lines[11:] == ["  and 2 more"]


def count_in_two(rank, folder):
    """Count one process's share and write the counts."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    store, errors = FrameStore.open(folder / "data"), ReadErrors()
    world = World(rank, 2, cpu_group=dist.group.WORLD, patient_group=dist.group.WORLD)
    shares = [(BATCHES[0], BATCHES[0]), (BATCHES[0], BATCHES[1]), (BATCHES[3], BATCHES[0]), (BATCHES[1], BATCHES[3])]
    for step, share in enumerate(shares, start=1):
        errors.count(share[rank], store, step, world)
    errors.write(folder / str(rank))
    dist.destroy_process_group()


def test_two_processes_count_the_same(store, tmp_path):
    """What either could not read is counted and named by both, with the step that met it first."""
    mp.start_processes(count_in_two, args=(tmp_path,), nprocs=2, start_method="forkserver")
    assert (tmp_path / "0" / READ_ERRORS).read_text() == (tmp_path / "1" / READ_ERRORS).read_text()
    found = ReadErrors.read(tmp_path / "0")
    assert (found.views, found.replaced) == (160, 6)
    assert {frame: step for frame, (step, _) in found.frames.items()} == {("v0", 1): 2, ("v1", 2): 2, ("v1", 0): 3}


# --- in a training


BROKEN = {(0, 1), (2, 0), (2, 1), (2, 2), (6, 0)}


def test_a_training_names_what_it_could_not_read(tmp_path, monkeypatch, capsys):
    """Ended by its data and resumed, a run with broken frames has the metrics and names of an uninterrupted one."""
    data, options = write_tree(tmp_path / "data", BROKEN), {"checkpoint_every": 2, "max_unreadable": 1.0}
    whole = run(data, tmp_path / "whole", **options)
    assert whole.metrics["replaced_frames"] > 0
    text = capsys.readouterr().err
    assert f"all are listed in {tmp_path / 'whole' / READ_ERRORS}" in text.replace("\n", " ")
    assert "frame 1 of v0: the image does not decode" in text
    load_batches = trainer.load_batches

    def vanishing(*arguments):
        for step, batch in enumerate(load_batches(*arguments)):
            if step == 3:
                raise UserError("the disk is gone")
            yield batch

    monkeypatch.setattr(trainer, "load_batches", vanishing)
    words = r"the disk is gone; the last good checkpoint is .*step-00000003; --resume"
    with pytest.raises(UserError, match=words):
        run(data, tmp_path / "part", **options, workers=1)
    monkeypatch.undo()
    cc.pretrain(resume=tmp_path / "part")
    assert_same_run(tmp_path / "part", tmp_path / "whole", 4)
    known = [json.loads((tmp_path / name / READ_ERRORS).read_text()) for name in ("whole", "part")]
    assert known[0] == known[1]
    assert known[0]["views"] == 4 * 8 * 2
    assert {(frame["video"], frame["frame"]) for frame in known[0]["frames"]} == {(f"v{v}", i) for v, i in BROKEN}


def test_a_training_with_too_many_unreadable_frames_stops(tmp_path):
    """Over the limit a run stops with a line and a checkpoint, again when resumed; a higher limit lets it end."""
    data = write_tree(tmp_path / "data", BROKEN)
    words = r"show a replacement frame.*more than --max-unreadable 0\.1: frame .*--resume"
    with pytest.raises(UserError, match=words) as caught:
        run(data, tmp_path / "run", steps=3)
    one_line(caught)
    with pytest.raises(UserError, match=words):
        cc.pretrain(resume=tmp_path / "run")
    done = cc.pretrain(resume=tmp_path / "run", max_unreadable=0.9)
    assert [row["step"] for row in rows_of(done.folder)] == [1, 2, 3]


def test_a_store_that_is_lost_costs_no_step(tmp_path, monkeypatch):
    """A shard that vanishes ends a training after the step before, from which it resumes to the same end."""
    monkeypatch.setattr("cyclecontrast.data.storage.PAUSES", (0.0,))
    data = write_store(tmp_path / "store")
    run(data, tmp_path / "whole")
    shard, kept = shard_path(data, 1), shard_path(data, 1).read_bytes()
    train_step = trainer.Trainer.train_step

    def losing(self, batch, info):
        if info.step == 1:
            os.truncate(shard, 10)
        return train_step(self, batch, info)

    monkeypatch.setattr(trainer.Trainer, "train_step", losing)
    with pytest.raises(UserError, match=r"000001\.tar.*the last good checkpoint is .*step-00000002; --resume"):
        run(data, tmp_path / "run")
    monkeypatch.setattr(trainer.Trainer, "train_step", train_step)
    shard.write_bytes(kept)
    cc.pretrain(resume=tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole", 4)
