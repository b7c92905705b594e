"""Health during a training: what a run writes of it, that it changes nothing, and which backbone remains."""

import math
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.methods.method import Losses, Method
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import load_backbone, save_backbone
from cyclecontrast.training import monitor, run_folder, trainer
from cyclecontrast.training.health import Health
from cyclecontrast.training.monitor import compute_verdict, steps_between
from cyclecontrast.training.verdict import UNCHANGED, WORSE, VerdictInputs, judge
from tests.make_runs import about_of, assert_same_tensors, copy_until, rows_of, run, state_path, weights_path
from tests.unit.training.test_health import ACROSS, NAMES, OF_QUEUE
from tests.unit.training.test_verdict import KNOWN, RISING, curve

HEALTH = {"steps": 8, "log_every": 4, "holdout": 1 / 3, "health_every": 3}


@pytest.fixture(scope="module")
def done(stripes, tmp_path_factory):
    """A run of eight steps that measures health at each third, and logs at each fourth."""
    return run(stripes, tmp_path_factory.mktemp("health") / "run", checkpoint_every=3, **HEALTH)


def test_health_is_measured_about_twenty_times():
    """By default there are about twenty measurements, at least 25 steps apart; 0 means none."""
    assert [steps_between(None, num) for num in (10, 300, 4000, 100_001)] == [25, 25, 200, 5001]
    assert (steps_between(7, 4000), steps_between(0, 4000)) == (7, 0)


def test_selecting_needs_measurements():
    """`select` health is refused where no health is measured."""
    with pytest.raises(UserError, match="select health needs health measurements"):
        checked(PretrainConfig, {"data": "d", "out": "o", "select": "health", "health_every": 0})


def test_what_a_run_writes_of_its_health(done):
    """Measurements are rows of metrics; run.json has the verdict, its reason and what it rests on."""
    rows = rows_of(done.folder)
    names = {f"health_{name}" for name in (*NAMES, *OF_QUEUE)}
    assert [row["step"] for row in rows] == [3, 4, 6, 8]
    assert [names <= row.keys() for row in rows] == [True, False, True, True]
    assert [sorted(ACROSS & row.keys()) for row in rows] == [[], [], [], sorted(ACROSS)]
    about = about_of(done.folder)
    assert (about["verdict"], about["reason"]) == done.verdict
    assert str(done).startswith(f"health: {about['verdict']}: {about['reason']}\n")
    assert about["num_held_out"] == 4
    health = about["health"]
    assert (health["held_out"], health["videos"], health["views"]) == (True, 4, 32)
    assert set(health["at_start"]) == names | ACROSS - {"health_mutual_kept"}
    assert re.fullmatch(r"\d+-\d+( \d+-\d+)*", health["mutual_pairs"])
    assert health["seconds"] > 0
    assert set(run_folder.read_cycles(done.folder)) == {0, 3, 6, 8}


def test_weights_do_not_depend_on_measuring(stripes, done, tmp_path):
    """Measured often, seldom or not at all, the last state is the same to the bit, and so is each row."""
    often, never = (run(stripes, tmp_path / str(every), **(HEALTH | {"health_every": every})) for every in (1, 0))
    for other in (often, never):
        assert_same_tensors(*(load_file(state_path(folder, 8)) for folder in (done.folder, other.folder)))
    rows = [{row["step"]: row for row in rows_of(each.folder)} for each in (often, done, never)]
    assert [list(each) for each in rows] == [list(range(1, 9)), [3, 4, 6, 8], [4, 8]]
    for each in rows[:2]:
        assert {name: value for name, value in each[8].items() if not name.startswith("health_")} == rows[2][8]
    assert never.verdict is None
    assert "health" not in str(never)


def test_cycles_are_kept_of_some_measurements(stripes, tmp_path, monkeypatch):
    """If health is measured very often the cycles of few measurements are kept, and always the first and the last."""
    monkeypatch.setattr(monitor, "MAX_CYCLES_KEPT", 3)
    run(stripes, tmp_path / "run", **(HEALTH | {"health_every": 1}))
    assert set(run_folder.read_cycles(tmp_path / "run")) == {0, 3, 6, 8}


def test_a_resumed_run_remembers_the_mutual_pairs(done, tmp_path, monkeypatch):
    """Resumed, a run counts the pairs kept since the measurement before the stop, and ends with the same lines.

    It expects measurements to take as long as those before.
    """
    part, planned = copy_until(done.folder, tmp_path / "run", 6), []
    before = about_of(part / "checkpoints" / "step-00000006")["health"]["seconds"]
    real = trainer.show_progress
    monkeypatch.setattr(trainer, "show_progress", lambda *words: (planned.append(words[3]), real(*words))[1])
    cc.pretrain(resume=part)
    assert planned == [pytest.approx(before / 3)], "two steps after six"
    assert rows_of(part) == rows_of(done.folder)
    assert about_of(part)["health"]["mutual_pairs"] == about_of(done.folder)["health"]["mutual_pairs"]


def test_few_videos_are_judged_without_cycles(stripes, tmp_path):
    """A run with two videos held out has a verdict, but no rate and no chance level of cycles."""
    few = run(stripes, tmp_path / "run", holdout=0.01, health_every=2, steps=2)
    assert few.verdict is not None
    assert not any("health_cycle_closed" in row for row in rows_of(few.folder))
    assert about_of(few.folder)["health"]["cycle_chance"] is None
    assert not run_folder.read_cycles(few.folder)


def test_a_run_without_errors_of_retrieval_is_judged(done, tmp_path):
    """A run of a version that wrote no standard errors has the same verdict, and a page."""
    older = tmp_path / "run"
    shutil.copytree(done.folder, older)
    rows = run_folder.read_metrics(older)
    (older / "metrics.jsonl").unlink()
    for row in rows:
        row.pop("health_same_video_error", None)
        run_folder.append_metrics(older, row)
    health = run_folder.read_about(older)["health"]
    del health["at_start"]["health_same_video_error"]
    run_folder.change_about(older, health=health)
    assert (
        compute_verdict(PretrainConfig(data="d", out=older, queue_size=32, temperature=0.2)).word == done.verdict.word
    )
    assert "Same-video retrieval" in cc.report(older, workers=0).path.read_text()


def test_a_verdict_names_its_step(done, tmp_path):
    """Resumed without measuring, a run ends with a verdict that names its step, on its page too."""
    part = copy_until(done.folder, tmp_path / "run", 6)
    about = about_of(part / "checkpoints" / "step-00000006")
    again = cc.pretrain(resume=part, health_every=0)
    assert again.metrics["step"] == 8
    assert str(again).startswith(f"health (at step 6 of 8): {about['verdict']}: {about['reason']}\n")
    assert re.search(r"\d% at step 6 \(chance", str(again))
    assert re.search(r"\d% at step 6 \(chance", cc.report(part, workers=0).path.read_text())


def test_the_verdict_knows_queue_and_given_weights(tmp_path):
    """A run is judged by the keys and the temperature of its queue, and by whether it started from given weights."""
    run_folder.write_about(tmp_path, {"health": {"views": 512, "chance": 1 / 511, "at_start": KNOWN.at_start}})
    for row in curve(RISING, queue_loss=10.8):
        run_folder.append_metrics(tmp_path, row)
    configs = [PretrainConfig(data="d", out=tmp_path, queue_size=size, temperature=0.5) for size in (65_536, 10**6)]
    assert [compute_verdict(config).word for config in configs] == ["undertrained", "healthy"]
    at_start = KNOWN.at_start | {"health_same_video": 0.9}
    run_folder.change_about(tmp_path, health={"views": 512, "chance": 1 / 511, "at_start": at_start})
    (tmp_path / "metrics.jsonl").unlink()
    run_folder.append_metrics(tmp_path, curve([0.9], queue_loss=1.0)[0])
    configs = [PretrainConfig(data="d", out=tmp_path, init=init) for init in ("runs/a", None)]
    assert [compute_verdict(config).word for config in configs] == [UNCHANGED, "undertrained"]


@pytest.fixture(scope="module")
def selected(stripes, tmp_path_factory):
    """A run whose third step, so it seems, retrieves best, which is chosen by health."""
    values = iter([0.1, 0.3, 0.5, 0.5, 0.4, 0.2, 0.2, 0.5, 0.1])
    ranks = iter([1, 1, 3, 4, 5, 5, 5, 2, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            monitor,
            "measure_health",
            lambda *_: Health({"health_same_video": next(values), "health_rank": next(ranks)}),
        )
        folder = tmp_path_factory.mktemp("selected") / "run"
        return run(stripes, folder, **(HEALTH | {"select": "health", "health_every": 1, "checkpoint_every": 1}))


def test_the_best_backbone_remains(selected):
    """With `select` health the backbone is that of the best measurement, though later checkpoints exist."""
    assert "step 3 of 8" in selected.backbone.source
    assert [path.name for path in (selected.folder / "best").iterdir()] == ["step-00000003"]
    assert about_of(selected.folder)["selected_step"] == 3
    best = load_file(selected.folder / "best" / "step-00000003" / "backbone.safetensors")
    last = load_file(weights_path(selected.folder / "checkpoints" / "step-00000008"))
    assert_same_tensors(load_file(weights_path(selected.folder)), best)
    assert any(not torch.equal(value, last[name]) for name, value in best.items())
    assert selected.backbone.source in load_backbone(selected.folder).source


def test_if_the_best_backbone_is_damaged_the_last_remains(selected, tmp_path, capsys):
    """If the chosen backbone cannot be read, a line says so, the last remains, and run.json names its step."""
    shutil.copytree(selected.folder, tmp_path / "run")
    best = tmp_path / "run" / "best" / "step-00000003" / "backbone.safetensors"
    best.write_bytes(best.read_bytes()[:-1] + bytes([best.read_bytes()[-1] ^ 1]))
    cc.pretrain(resume=tmp_path / "run")
    assert "--select health chose step 3, whose backbone is lost" in capsys.readouterr().err
    assert about_of(tmp_path / "run")["selected_step"] == 8
    last = tmp_path / "run" / "checkpoints" / "step-00000008"
    assert_same_tensors(load_file(weights_path(tmp_path / "run")), load_file(weights_path(last)))


# --- runs that continue from given weights


class Repel(Method):
    """A method that makes things worse: it pushes two views of a video apart."""

    def forward(self, batch, info):
        """Return the mean similarity of the two views."""
        first, second = (self.encode(view).intra for view in batch.views)
        return Losses((first * second).sum(dim=1).mean())


def noisy(image, rng, size):
    """Return a view with noise, so that retrieval by random weights is neither at chance level nor perfect."""
    large = cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST)
    return np.clip(large + rng.normal(0, 40, large.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    """Sixty-four videos of four equal frames, each a random pattern of colors."""
    folder, rng = tmp_path_factory.mktemp("patterns"), np.random.default_rng(0)
    for video in range(64):
        (folder / f"{video:02}").mkdir()
        cells = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        for frame in range(4):
            cv2.imwrite(str(folder / f"{video:02}" / f"{frame}.png"), cells)
    return folder


CONTINUED = {
    **{"augmentation": noisy, "image_size": 16, "precision": "fp32"},
    **{"holdout": 0.5, "batch_size": 16, "workers": 0, "report": False, "warmup": 0.0, "schedule": "step"},
    **{"steps": 12, "health_every": 6, "log_every": 12, "select": "health", "checkpoint_every": 6},
}


def test_a_run_that_is_worse_than_its_start_is_called_so(patterns, tmp_path, capsys):
    """Made worse by training, a run says so, keeps its start with `select` health, also if it was resumed."""
    begin = save_backbone(make_backbone("resnet10-small-w4"), tmp_path)
    done = cc.pretrain(patterns, out=tmp_path / "run", method=Repel, learning_rate=0.03, init=begin, **CONTINUED)
    assert done.verdict.word == WORSE, done.verdict
    assert "final backbone: the start was kept, because training made it worse" in capsys.readouterr().err
    assert "--baseline start" not in str(done)
    start = load_backbone("random:resnet10-small-w4").state_dict()
    assert_same_tensors(load_backbone(done.folder).state_dict(), start)
    rows = rows_of(done.folder)
    gain = rows[-1]["health_same_video"] - about_of(done.folder)["health"]["at_start"]["health_same_video"]
    assert rows[-1]["health_same_video_gain"] == pytest.approx(gain, abs=1e-6)
    assert rows[-1]["health_same_video_gain_videos"] == 32
    part = copy_until(done.folder, tmp_path / "part", 6)
    again = cc.pretrain(resume=part, method=Repel, augmentation=noisy)
    assert (again.verdict, rows_of(part)) == (done.verdict, rows)
    assert_same_tensors(load_backbone(part).state_dict(), start)


def test_a_run_that_does_not_change_is_called_so(patterns, done, tmp_path, capsys):
    """Trained with almost no learning rate, a run says that nothing has clearly changed, and what its start saw."""
    same = {"method": "intra-video", "learning_rate": 1e-9, "steps": 2, "init": done.folder, "image_size": 32}
    verdict = cc.pretrain(patterns, out=tmp_path / "run", **CONTINUED | same).verdict
    assert verdict.word == UNCHANGED, verdict
    seen = "the start (--init) was trained on some of the held-out videos"
    assert seen not in capsys.readouterr().err
    run_folder.change_about(tmp_path / "run", num_held_out=0)
    again = same | {"init": tmp_path / "run", "steps": 1}
    cc.pretrain(patterns, out=tmp_path / "again", **CONTINUED | again)
    assert seen in capsys.readouterr().err


# --- verdicts of trainings


TRAINING = {
    "method": "intra-video",
    "projector": "linear",
    "augmentation": "moco-v1",
    "min_crop": 0.5,
    "batch_size": 12,
    "queue_size": 64,
    "temperature": 0.2,
    "momentum": 0.9,
    "steps": 50,
    "health_every": 10,
    "log_every": 10,
    "precision": "fp32",
}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"learning_rate": 1e-9, "steps": 10}, "undertrained"),
        ({"learning_rate": 0.3, "temperature": 1e4, "weight_decay": 0.1, "momentum": 0.0}, "collapsed"),
    ],
    ids=["almost no steps", "no negatives: a flat softmax"],
)
def test_verdicts_of_trainings(stripes, tmp_path, capsys, changes, word):
    """A run that is made to collapse is called that while it trains, one that cannot learn is undertrained."""
    found = run(stripes, tmp_path / "run", **(TRAINING | changes))
    assert found.verdict.word == word, found.verdict
    assert (f": {word}: " in capsys.readouterr().err) == (word == "collapsed")


def test_a_rising_loss_is_not_an_alarm(stripes, tmp_path):
    """While keys replace the random vectors of the queue the loss rises, and no measurement gives an alarm."""
    changes = {"learning_rate": 0.03, "queue_size": 400, "steps": 36, "log_every": 6, "health_every": 6}
    found = run(stripes, tmp_path / "run", **(TRAINING | changes))
    rows = rows_of(found.folder)
    assert rows[-1]["loss"] > rows[0]["loss"] + 0.5
    health = about_of(found.folder)["health"]
    known = VerdictInputs(health["views"], health["chance"], health["at_start"], num_keys=400, temperature=0.2)
    words = {judge(rows[:number], known).word for number in range(1, len(rows) + 1)}
    assert words <= {"healthy", "undertrained"}
    assert math.isfinite(found.metrics["loss"])
