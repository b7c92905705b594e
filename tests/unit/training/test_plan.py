"""Plans: the time of a training from that of a few steps, and the number of steps for a given time."""

import pytest
import torch
from safetensors.torch import load_file

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.loader import load_batches
from cyclecontrast.distributed import ALONE
from cyclecontrast.errors import UserError, checked
from cyclecontrast.training import plan, progress
from cyclecontrast.training import pretrain as training
from cyclecontrast.training.auto_settings import Machine
from cyclecontrast.training.plan import Timing, steps_in_time
from cyclecontrast.training.progress import StepTimer, duration
from cyclecontrast.training.setup import open_training
from cyclecontrast.training.trainer import Trainer
from cyclecontrast.training.user_parts import NO_PARTS
from tests.make_runs import TINY, about_of, assert_same_tensors, rows_of, run, weights_path


@pytest.mark.parametrize("every", [None, 0, 50])
def test_as_many_steps_as_fit(every):
    """The steps for a time take at most this time, and one more would take longer, with the measurements of health."""
    timing = Timing(0.25, 2.0)
    steps = timing.steps_within(1000.0, every)
    taken = {None: steps * 0.25 + 21 * 2, 0: steps * 0.25, 50: steps * 0.25 + (steps / 50 + 1) * 2}[every]
    assert taken <= 1000 < taken + 0.3
    assert timing.seconds(steps, every) == pytest.approx(taken, rel=0.01)


@pytest.mark.parametrize(("seconds", "steps"), [(50.0, 145), (150.0, 448), (1000.0, 3832)])
def test_fewer_steps_are_measured_less_often(seconds, steps):
    """Health is measured every 25 steps or 20 times, which is less often for few steps."""
    timing = Timing(0.25, 2.0)
    assert timing.steps_within(seconds, None) == steps
    assert timing.seconds(steps, None) <= seconds


def test_too_little_time_is_an_error_that_names_enough():
    """What the message proposes is enough."""
    config, timing = PretrainConfig(data="d", out="o", minutes=0.28), Timing(1.0, 2.0)
    with pytest.raises(UserError, match=r"minutes: 0.28 is too short: .* take about 0.3; set --minutes 1 or more"):
        steps_in_time(timing, config, passed=5.0, world=ALONE)
    assert steps_in_time(timing, config.model_copy(update={"minutes": 1.0}), 5.0, ALONE) == 39


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.2, "4 s"), (99.9, "100 s"), (140, "2 min"), (5900, "98 min"), (12_000, "3 h 20 min")]
)
def test_durations_in_words(seconds, words):
    """Seconds, minutes or hours, as a person would say it."""
    assert duration(seconds) == words


def test_a_plan_writes_nothing(stripes, tmp_path, capsys):
    """`--plan` prints data, network, method, steps, time and what to expect, and makes no folder."""
    options = {**TINY, "steps": 30, "method": "intra-video"}
    plan = cc.pretrain(stripes, out=tmp_path / "run", plan=True, **options)
    assert (plan.num_steps, plan.seconds > 0) == (30, True)
    words = [line.split()[0] for line in str(plan).splitlines()]
    assert words == ["data", "network", "method", "training", "expect", "time"]
    assert "training  30 steps of 8 videos, on cpu (" in str(plan)
    assert "; each video about 20 times" in str(plan)
    assert "12 videos, 48 frames (tree of frames); no videos are held out: fewer than 50" in str(plan)
    assert not (tmp_path / "run").exists()
    arguments = ["--out", str(tmp_path / "run"), "--steps", "30", "--backbone", "resnet10-small-w8", "--plan"]
    assert main(["pretrain", str(stripes), *arguments, "--image-size", "16", "--device", "cpu"]) == 0
    assert "  30 steps of" in capsys.readouterr().out


def test_a_training_begins_with_its_plan(stripes, tmp_path, capsys, monkeypatch):
    """Five lines say what it does and what to expect, and a sixth, after the first steps, how long it takes.

    The sixth names --minutes where nobody has set the length.
    """
    clock = iter(range(0, 10_000, 11))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    run(stripes, tmp_path / "run", method="intra-video", steps=30, health_every=0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["data", "network", "method", "training", "expect"]
    assert lines[4].startswith("expect    12 videos are few; --init MODEL knows more")
    assert any(line.startswith("time      about ") and line.endswith("s per step)") for line in lines[5:])
    assert all(len(line) <= 80 for line in lines[:5] if "data" not in line)
    assert not any("epochs=" in line for line in lines), "thousands of epochs of a few videos tell nothing"
    cc.pretrain(resume=tmp_path / "run", steps=60)
    (time,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("time "))
    assert time.endswith("s per step)"), "the time of a resumed run cannot be set"
    run(stripes, tmp_path / "free", method="intra-video", steps=None, epochs=20, health_every=0)
    assert "s per step); for N minutes: --minutes N" in capsys.readouterr().err


def test_none_is_not_shown_as_a_setting(stripes, tmp_path, capsys, monkeypatch):
    """A setting that is passed as None, as the demo passes the number of workers, is not in the table."""
    monkeypatch.setattr("cyclecontrast.training.trainer.pick_workers", lambda *_: 0)
    run(stripes, tmp_path / "run", method="intra-video", steps=1, health_every=0, workers=None)
    table = capsys.readouterr().err.partition("settings (")[2]
    assert "steps=1*" in table
    assert "workers" not in table


def test_the_first_steps_are_not_timed(monkeypatch):
    """The rate is that of the steps after the first two, once 20 or 10 seconds have passed."""
    times = iter([100.0, 200.0, *(200 + 0.5 * number for number in range(1, 30))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    timer = StepTimer()
    assert [timer.is_enough() for _ in range(20)] == [False] * 19 + [True]
    assert timer.seconds == 0.5


def test_the_steps_of_a_plan_are_timed_to_their_end_on_a_gpu(stripes, tmp_path, monkeypatch):
    """A GPU runs behind its host: each step waits for it before the clock is read, and its batches are pinned."""
    waited, pinned = [], []

    class OnGpu(Trainer):
        def __init__(self, method, config, num_steps, device, world):
            super().__init__(method, config, num_steps, torch.device("cpu"), world)

    def load(dataset, sampler, workers, pin_memory=False):
        pinned.append(pin_memory)
        return load_batches(dataset, sampler, workers)

    monkeypatch.setattr(plan, "Trainer", OnGpu)
    monkeypatch.setattr(plan, "load_batches", load)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    asked = PretrainConfig(data=stripes, out=tmp_path / "run", **TINY, health_every=0)
    gpu = torch.device("cuda:0")
    config, dataset, backbone = open_training(asked, Machine(False, 1), ALONE)
    config = config.model_copy(update={"precision": "fp32"})
    assert plan.measure(config, dataset, backbone, gpu, ALONE, NO_PARTS).step > 0
    assert len(waited) > 1
    assert set(waited) == {gpu}
    assert pinned == [True]


def test_minutes_choose_the_steps_and_change_nothing_else(stripes, tmp_path, monkeypatch):
    """The training of the time is the one of as many steps; the time is not among its settings."""
    real = training.measure
    monkeypatch.setattr(training, "measure", lambda *arguments: real(*arguments)._replace(step=10.0, health=0.0))
    timed = run(stripes, tmp_path / "timed", steps=None, minutes=1.0)
    assert about_of(timed.folder)["num_steps"] == 4
    text = (timed.folder / "config.toml").read_text()
    assert "steps = 4" in text
    assert not any(line.startswith(("minutes", "plan")) for line in text.splitlines())
    same = run(stripes, tmp_path / "same", steps=4)
    assert rows_of(timed.folder) == rows_of(same.folder)
    assert_same_tensors(*(load_file(weights_path(folder)) for folder in (timed.folder, same.folder)))


def test_what_excludes_a_time_is_refused():
    """Steps and epochs, if they are set, and a plan of a run that has begun."""
    for option in ({"steps": 3}, {"epochs": 3}):
        with pytest.raises(UserError, match="minutes excludes steps and epochs"):
            checked(PretrainConfig, {"data": "d", "out": "o", "minutes": 1.0} | option)
    assert checked(PretrainConfig, {"data": "d", "out": "o", "minutes": 1.0, "preset": "paper"}).minutes == 1
    with pytest.raises(UserError, match=r"^minutes sizes a new training; with --resume set --steps$"):
        checked(PretrainConfig, {"resume": "run", "minutes": 1.0})
    with pytest.raises(UserError, match=r"^plan is for a new training; remove --resume$"):
        checked(PretrainConfig, {"resume": "run", "plan": True})
