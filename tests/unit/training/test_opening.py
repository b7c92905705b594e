"""What is told before a training begins: all that the options, the data and the machine have against each other."""

import shutil

import pytest
import torch

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.distributed import World
from cyclecontrast.errors import UserError, checked
from cyclecontrast.training import memory
from cyclecontrast.training.auto_settings import Machine
from cyclecontrast.training.setup import least_memory, open_training
from tests import make_videos as make

SMALL = {"backbone": "resnet10-small-w1", "image_size": 16, "batch_size": 4, "steps": 1, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


def few(tree, folder, number):
    """Return a copy of so many of the videos."""
    for video in range(number):
        shutil.copytree(tree / f"group_{video % 3}" / f"video_{video}", folder / str(video))
    return folder


def begin(data, out, **asked):
    """Open a training that is not begun."""
    config = checked(PretrainConfig, {"data": data, "out": out, **SMALL, **asked})
    return open_training(config, Machine(cpu=True), World(0, 1))


def refusal(data, out, **asked):
    """Return what is said against a training."""
    with pytest.raises(UserError) as error:
        begin(data, out, **asked)
    assert not out.exists()
    return list(error.value.problems)


def test_a_batch_larger_than_the_data_is_refused(tree, tmp_path):
    """A batch takes at most as many as there are frames to train on, of those not held out."""
    assert begin(tree, tmp_path / "run", batch_size=48).config.batch_size == 48
    (problem,) = refusal(tree, tmp_path / "run", batch_size=49)
    assert problem.startswith("batch_size: 49 is more than the 48 frames of the 12 videos that are trained on; set")
    (problem,) = refusal(tree, tmp_path / "run", batch_size=48, holdout=0.5)
    assert "the 24 frames of the 6 videos" in problem


def test_a_batch_that_repeats_videos_is_told(tree, tmp_path, capsys):
    """Where a batch is larger than the number of videos, it is said how often it shows each."""
    begin(tree, tmp_path / "run", batch_size=12)
    assert capsys.readouterr().err == ""
    begin(tree, tmp_path / "run", batch_size=30)
    assert capsys.readouterr().err == "a batch of 30 holds each of 12 videos up to 3 times\n"


def test_two_videos_at_least_are_held_out(tree, tmp_path):
    """Of three videos one remains, which is said with what to do; of four, two are trained on."""
    (problem,) = refusal(few(tree, tmp_path / "three", 3), tmp_path / "run", holdout=0.1)
    assert problem == (
        "holdout: holding out 2 of 3 videos, two at least, leaves 1 to train on, and contrasting needs two at least; "
        "set --holdout 0, or add videos"
    )
    assert begin(few(tree, tmp_path / "four", 4), tmp_path / "run", holdout=0.1).pairs.num_videos == 2


def test_videos_too_few_to_hold_out_are_not_prepared(tmp_path):
    """Of video files their number is known, and told before a frame is written."""
    for number in range(3):
        make.write_numbered(tmp_path / f"{number}.mp4", num_frames=4)
    (problem,) = refusal(tmp_path, tmp_path / "run", holdout=0.5)
    assert "leaves 1 to train on" in problem


def test_other_data_are_told_before_what_follows_from_them(tree, tmp_path):
    """A run taken up again on other data says so, not what these lack."""
    run = tmp_path / "run"
    cc.pretrain(tree, out=run, **SMALL, holdout=0.2)
    with pytest.raises(UserError) as error:
        cc.pretrain(few(tree, tmp_path / "three", 3), resume=run)
    (problem,) = error.value.problems
    assert "is not the data that" in problem


def test_what_cannot_fit_into_memory_is_refused(tree, tmp_path, monkeypatch):
    """Sizes beyond all reason are refused in one line that names the largest part, and no weight is allocated."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**10)
    monkeypatch.setattr("cyclecontrast.training.opening._make_backbone", None)
    for asked, words in (
        ({"queue_size": 10**9}, "GB are needed at least, .* for the queues, and 10.0 are free; lower queue_size"),
        (
            {"method": "byol", "projector_dim": 10**6},
            "for the weights, .* lower projector_dim or take a smaller backbone",
        ),
        ({"backbone": "resnet50-w999"}, "for the weights"),
        ({"image_size": 8192, "batch_size": 40}, "for the views, .* lower batch_size or image_size"),
        (
            {"init": "random:resnet18", "backbone": "auto", "method": "byol", "projector_dim": 10**5},
            "for the weights",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            begin(tree, tmp_path / "run", **asked)
        assert len(error.value.problems) == 1


def test_problems_of_all_kinds_come_together(tree, tmp_path, monkeypatch):
    """Data, output, weights to begin with, options and memory are looked at although one of them is wrong."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**4)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(tree.rglob("*.png")):
        shutil.copy(path, flat / f"{number}.png")
    with pytest.raises(UserError) as error:
        begin(flat, flat, init="random:resnet18")
    assert [problem.split(":")[0] for problem in error.value.problems] == ["out", "init", "memory", str(flat)]


def test_the_least_memory_is_that_of_its_parts(tmp_path):
    """What is counted equals the weights, queues and views that the training then has, byte by byte."""
    asked = {"method": "cycle", "queue_size": 100, "cycle_queue_size": 60, "support_size": 8, "projector_dim": 5}
    config = checked(PretrainConfig, {"data": "d", "out": "o", "preset": "paper", **SMALL, **asked})
    backbone, dim = 4 * sum(weight.numel() for weight in cc.load_backbone("random:resnet10-small-w1").parameters()), 8
    weights, queues, views, similarities = least_memory(config, None, processes=2)
    assert weights.bytes == 4 * (backbone + 4 * 2 * (dim * 5 + 5))
    assert queues.bytes == 2 * 160 * 5 * 4
    assert views.bytes == 3 * 16 * 16 * (2 * 2 + 4 * 2)  # two views as bytes, one of them at a time as numbers
    assert similarities.bytes == 2 * 160 * 4


def test_free_memory_is_that_of_the_machine():
    """What is free on a CPU lies between 10 MB and what is built in."""
    import os

    built_in = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 10**7 < memory.free_memory(torch.device("cpu")) <= built_in


@pytest.mark.parametrize("name", ["data", "out", "init", "resume"])
def test_an_empty_name_is_no_folder(tree, tmp_path, monkeypatch, name):
    """A name that is empty, as of a variable that is not set, is not taken for the current folder."""
    monkeypatch.chdir(tree)
    with pytest.raises(UserError, match=name):
        cc.pretrain(**({"data": tree, "out": tmp_path / "run", **SMALL} | {name: ""}))
    assert not (tmp_path / "run").exists()
