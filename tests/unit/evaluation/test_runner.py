"""The one way into an evaluation: predictions, record, score, result; resumed after a stop, scored again from records.

Most tests evaluate by a protocol of their own, of two parts and a short training, which takes milliseconds.
"""

import dataclasses
import shutil
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch

import cyclecontrast as cc
from cyclecontrast.config import EvaluateConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.predictions import DataInfo, Record, Result, find_records, record_path
from cyclecontrast.evaluation.protocol import Predictions, Protocol, Score
from cyclecontrast.evaluation.runner import evaluate, evaluate_alone
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone, save_backbone
from faults.killing import killed_before
from tests.make_reports import BACKBONE, write_run

MODEL = "random:resnet10-small-w8"


class SignConfig(EvaluateConfig):
    """Options: what shifts predictions, what only scoring reads, and an image size that may be left open."""

    scoring: ClassVar[frozenset[str]] = frozenset({"threshold"})
    shift: float = 0.0
    image_size: int | None = None
    threshold: float = 0.0
    mode: str = "plain"


class Sign(Protocol):
    """Compares vectors of the backbone with a threshold; `log` lists what is computed, `stop` names what interrupts."""

    name = "sign"
    config_class = SignConfig
    log: ClassVar[list[str]] = []
    stop: ClassVar[str] = ""

    def open(self):
        """Read the folder's only file."""
        path = self.config.data / "numbers.txt"
        if not path.exists():
            raise UserError(f"{path}: no such file")
        return np.array([float(number) for number in path.read_text().split()])

    def describe(self, data):
        """Name the numbers."""
        return DataInfo(str(self.config.data), data.tobytes().hex()[:16], 0, len(data))

    def predict(self, backbone, data, cache):
        """Compute two halves, then train for two epochs, each stored in the cache."""
        torch.manual_seed(0)
        with torch.no_grad():
            vector = backbone.eval()(torch.ones(1, 3, 16, 16))
        weight = float(vector.mean())
        half = len(data) // 2
        parts = [
            cache.arrays(name, lambda name=name, x=x: self.compute(name, x * weight))
            for name, x in (("first", data[:half]), ("second", data[half:]))
        ]
        state = cache.load_state("training") or {"epochs": 0}
        for epoch in range(state["epochs"], 2):
            self.compute(f"epoch {epoch}", 0)
            cache.save_state("training", {"epochs": epoch + 1})
        values = np.concatenate([part["values"] for part in parts])
        table = pa.table({"id": [f"{number}" for number in range(len(values))], "value": values})
        return Predictions(table, "sign", ["predicted"], ["one is missing"], {"w": weight}, (0, len(values) - 1))

    def compute(self, name, values):
        """Return the shifted values, or be interrupted."""
        self.log.append(name)
        if name == self.stop:
            raise KeyboardInterrupt
        return {"values": values + self.config.shift}

    def score(self, record):
        """Return the fraction above the threshold."""
        self.compute("score", 0)
        above = record.table["value"].to_numpy() > self.config.threshold
        return Score(
            {"above": float(above.mean())}, {}, f"threshold={self.config.threshold}", ["scored"], {"txt": b"x"}
        )


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Five numbers in a folder; nothing logged, nothing that interrupts."""
    monkeypatch.setattr(Sign, "log", [])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "numbers.txt").write_text("-2 -1 1 2 3")
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path):
    """A backbone in a file."""
    return save_backbone(make_backbone("resnet10-small-w8", 3), tmp_path)


def run(data, out, model=MODEL, **settings):
    """Evaluate into a folder of the test."""
    return cc.evaluate(Sign, model, data, out=out, device="cpu", **settings)


def files(out):
    """Return the content of all files of a folder of results."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_an_evaluation_writes_record_result_and_files(data, tmp_path):
    """The record holds what predictions say, the result also what scoring says; tags name what is unusual."""
    result = run(data, tmp_path / "out", shift=0.5)
    assert result.metrics == {"above": pytest.approx(np.mean(record_of(tmp_path)["value"].to_numpy() > 0))}
    assert result.tag == "sign image_size=224 shift=0.5 threshold=0.0"
    assert result.about.notes == ("predicted", "scored")
    assert result.about.problems == ("one is missing",)
    assert result.about.data[2:] == (0, 4)
    assert (tmp_path / "out" / f"{result.about.key}.txt").read_bytes() == b"x"
    assert Result.load(tmp_path / "out" / f"{result.about.key}.json") == result
    record = Record.load(record_path(tmp_path / "out", result.about.record_key))
    assert record.about == dataclasses.replace(result.about, tag="sign image_size=224 shift=0.5", notes=("predicted",))
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["records"]


def record_of(tmp_path):
    """Return the table of the only record."""
    (record,) = find_records(tmp_path / "out", "sign")
    return record.table


def test_all_mistakes_are_reported_at_once_and_nothing_is_written(data, tmp_path):
    """A wrong model and wrong data in one error; then an output that is a file; no folder appears."""
    config = SignConfig(model="random:nothing", data=tmp_path, out=tmp_path / "out")
    with pytest.raises(UserError) as caught:
        evaluate(Sign, config)
    assert len(caught.value.problems) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run(data, tmp_path / "file" / "deep")
    with pytest.raises(UserError, match=r"shifts.*did you mean shift"):
        run(data, tmp_path / "out", shifts=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file"]


@pytest.mark.parametrize("stop", ["first", "second", "epoch 0", "epoch 1", "score"])
def test_a_stopped_evaluation_resumes(data, tmp_path, monkeypatch, stop):
    """Stopped anywhere and run again it writes the same files, computes nothing twice, and leaves no part of it."""
    run(data, tmp_path / "out")
    whole = files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    order = ["first", "second", "epoch 0", "epoch 1", "score"]
    assert Sign.log == order
    with monkeypatch.context() as patch:
        patch.setattr(Sign, "stop", stop)
        with pytest.raises(KeyboardInterrupt, match="the same command resumes where it stopped"):
            run(data, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))
    Sign.log.clear()
    run(data, tmp_path / "out")
    assert Sign.log == order[order.index(stop) :]
    assert files(tmp_path / "out") == whole


@pytest.mark.long
def test_killed_before_any_change_to_files_it_ends_the_same(data, tmp_path, monkeypatch):
    """Whichever file was about to be opened, renamed or removed, the same command ends with all files the same."""
    for slow in ("cyclecontrast.files.sync", "importlib.metadata.version"):
        monkeypatch.setattr(slow, lambda _: "1")
    out, backbone = tmp_path / "out", make_backbone("resnet10-small-w8")
    config = SignConfig(model="in memory", data=data, out=out, device="cpu")
    evaluate(Sign, config, backbone)
    whole, number = files(out), 0
    while True:
        shutil.rmtree(out)
        number += 1
        was_killed = killed_before(number, lambda: evaluate(Sign, config, backbone) and None)
        evaluate(Sign, config, backbone)
        assert files(out) == whole, f"killed before change {number}"
        if not was_killed:
            break
    assert number > 20


def test_another_model_does_not_resume_what_the_first_left(data, tmp_path, model, monkeypatch):
    """Parts of a stopped evaluation belong to the weights that made them, not to their file's name."""
    with monkeypatch.context() as patch:
        patch.setattr(Sign, "stop", "second")
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "out", model)
    save_backbone(make_backbone("resnet10-small-w8", 4), tmp_path)
    Sign.log.clear()
    run(data, tmp_path / "out", model)
    assert Sign.log[0] == "first"
    assert len(list((tmp_path / "out" / "unfinished").iterdir())) == 1


def test_a_stop_before_the_result_costs_no_computation(data, tmp_path, monkeypatch):
    """The result comes last: a stop right before it leaves record and files, but no result."""
    with monkeypatch.context() as patch:
        patch.setattr(Result, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "out")
    assert [path.suffix for path in (tmp_path / "out").glob("sign-*")] == [".txt"]
    Sign.log.clear()
    run(data, tmp_path / "out")
    assert Sign.log == ["score"]
    assert not (tmp_path / "out" / "unfinished").exists()


def interrupt(*_):
    """Be interrupted."""
    raise KeyboardInterrupt


def test_the_given_backbone_is_taken_as_it_is(data, tmp_path):
    """In place of a name; the result says where it came from."""
    backbone = make_backbone("resnet10-small-w8", 5)
    result = run(data, tmp_path / "out", backbone)
    assert result.about.model.source == backbone.source
    assert run(data, tmp_path / "out", backbone, score_only=True) == result


def test_records_are_scored_again_without_the_network(data, tmp_path, monkeypatch):
    """--score-only gives the same result from the record, also with other settings of scoring."""
    first = run(data, tmp_path / "out")
    Sign.log.clear()
    assert run(data, tmp_path / "out", score_only=True, workers=1) == first
    second = run(data, tmp_path / "out", threshold=0.5, score_only=True)
    assert Sign.log == ["score", "score"]
    assert second.about.config == {**first.about.config, "threshold": 0.5}
    assert second.tag == first.tag.replace("threshold=0.0", "threshold=0.5")
    assert len(list((tmp_path / "out").glob("*.json"))) == 2
    assert len(list((tmp_path / "out" / "records").iterdir())) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"shift": 1.0}, {"image_size": 24}, "data"])
def test_no_record_of_another_model_data_or_setting_is_scored(data, tmp_path, change):
    """Each has its own key, so that --score-only cannot find the record of another."""
    first = run(data, tmp_path / "out")
    if change == "data":
        (data / "numbers.txt").write_text("1 2")
        change = {}
    with pytest.raises(UserError, match="run the command once without --score-only"):
        run(data, tmp_path / "out", score_only=True, **change)
    assert run(data, tmp_path / "out", **change).about.key != first.about.key


def test_a_record_outlives_its_model(data, tmp_path, model):
    """--score-only finds it by the model's name, also where settings are left open that were decided then."""
    result = run(data, tmp_path / "out", model)
    model.unlink()
    assert run(data, tmp_path / "out", model, score_only=True) == result
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


@pytest.mark.parametrize("gone", [("data",), ("data", "model")])
def test_a_record_outlives_its_data(data, tmp_path, model, gone):
    """--score-only finds it by the data's place, and the model by its weights, or by its name if it is gone, too."""
    result = run(data, tmp_path / "out", model, threshold=0.5)
    shutil.rmtree(data)
    if "model" in gone:
        model.unlink()
    assert run(data, tmp_path / "out", model, threshold=0.5, score_only=True) == result
    with pytest.raises(UserError, match=r"numbers.txt: no such file\n.*no record matches"):
        run(tmp_path, tmp_path / "out", model, score_only=True)
    if "model" not in gone:
        save_backbone(make_backbone("resnet10-small-w8", 4), tmp_path)
        with pytest.raises(UserError, match="no record matches"):
            run(data, tmp_path / "out", model, score_only=True)


@pytest.mark.parametrize("change", [{"shift": 1.0}, {"image_size": 24}, {"model": "other"}, "data"])
def test_no_record_stands_in_for_another_whose_model_is_gone(data, tmp_path, model, change):
    """Other settings, a different model and other data are not scored from what is there."""
    run(data, tmp_path / "out", model)
    model.unlink()
    if change == "data":
        (data / "numbers.txt").write_text("1 2")
        change = {}
    settings = {"model": model, **change}
    with pytest.raises(UserError, match="for sign with this model, data and settings no record matches"):
        run(data, tmp_path / "out", **settings, score_only=True)


def test_two_models_of_one_name_are_not_mixed_up(data, tmp_path, model):
    """A file that is overwritten by other weights has its own results, and neither is taken for the other's."""
    first = run(data, tmp_path / "out", model)
    save_backbone(make_backbone("resnet10-small-w8", 4), tmp_path)
    with pytest.raises(UserError, match="run the command once without --score-only"):
        run(data, tmp_path / "out", model, score_only=True)
    second = run(data, tmp_path / "out", model)
    assert first.about.model.fingerprint != second.about.model.fingerprint
    assert run(data, tmp_path / "out", model, score_only=True) == second
    model.unlink()
    with pytest.raises(UserError, match="2 records match"):
        run(data, tmp_path / "out", model, score_only=True)


def continued(folder, start, content):
    """Write a run that started from a file with these weights."""
    about = {"start": {"model": str(start), "fingerprint": content}}
    return write_run(folder / "run", folder, init=str(start), about=about)


def test_a_run_is_compared_with_its_start(data, tmp_path):
    """The start is evaluated with the same settings; its metrics and the difference are in the text and the file."""
    path = save_backbone(make_backbone(BACKBONE, 5), tmp_path)
    folder = continued(tmp_path, path, fingerprint(load_backbone(path)))
    with torch.no_grad():
        weights = [load_backbone(model)(torch.ones(1, 3, 16, 16)).mean().item() for model in (path, folder)]
    settings = {"threshold": sum(weights) / 2}  # 1 times a weight is above for one of the networks
    result = run(data, None, folder, baseline="start", **settings)
    expected = run(data, tmp_path / "alone", path, image_size=16, **settings)  # that of the run
    assert result.baseline == ("start", expected.about.model, expected.metrics)
    points = 100 * (result.metrics["above"] - expected.metrics["above"])
    assert abs(points) > 10
    percent = f"start {100 * expected.metrics['above']:6.2f} %"
    assert f" %  {percent}  {points:+.1f} points against its start" in str(result)
    results = folder / "results"
    assert Result.load(results / f"{result.about.key}.json") == result
    assert Result.load(results / f"{expected.about.key}.json").metrics == expected.metrics
    assert run(data, None, folder, **settings) == result, "a later evaluation without a baseline keeps it"
    assert run(data, None, folder, **settings, baseline="start", score_only=True) == result


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("random weights", r"run: started from random weights \(no --init\), so it has no start to compare with"),
        ("gone", "backbone.safetensors: no such file or folder, but .*run started from it; restore it"),
        ("changed", "backbone.safetensors: has changed since .*run started from it; restore the weights of that time"),
        ("no run", "random:resnet10-small-w8: is not a run, so it has no start to compare with"),
    ],
)
def test_a_start_that_cannot_be_had_is_named(data, tmp_path, change, problem):
    """One that does not exist, is gone, or has other weights than at the start; nothing is evaluated then."""
    path = save_backbone(make_backbone(BACKBONE, 5), tmp_path)
    folder = continued(tmp_path, path, "0" * 16)
    if change == "gone":
        path.unlink()
    if change == "random weights":
        folder = write_run(tmp_path / "other" / "run", tmp_path)
    with pytest.raises(UserError, match=problem):
        run(data, tmp_path / "out", MODEL if change == "no run" else folder, baseline="start")
    assert Sign.log == []
    assert not (tmp_path / "out").exists()


def test_a_start_without_a_fingerprint_is_found_by_the_config(data, tmp_path):
    """Runs of earlier versions have none in run.json: the weights are taken as they are now."""
    path = save_backbone(make_backbone(BACKBONE, 5), tmp_path)
    folder = write_run(tmp_path / "run", tmp_path, init=str(path))
    result = run(data, tmp_path / "out", folder, baseline="start")
    assert result.baseline.model.fingerprint == fingerprint(make_backbone(BACKBONE, 5))


@pytest.mark.parametrize("baseline", ["start", "random"])
def test_a_custom_network_has_no_baseline(data, tmp_path, baseline):
    """Neither its start nor its random weights can be made without its code."""
    backbone = make_backbone(BACKBONE, 5)
    backbone.name = "own:Network"
    with pytest.raises(UserError, match="baseline: own:Network is a custom network"):
        run(data, tmp_path / "out", backbone, baseline=baseline)


def test_a_stop_within_a_baseline_resumes(data, tmp_path, monkeypatch):
    """Random weights come first; run again, both evaluations go on where they stopped."""
    monkeypatch.setattr(Sign, "stop", "epoch 0")
    backbone = make_backbone(BACKBONE, 5)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "out", backbone, baseline=True)
    Sign.log.clear()
    monkeypatch.setattr(Sign, "stop", "")
    result = run(data, tmp_path / "out", backbone, baseline="random")
    assert Sign.log == ["epoch 0", "epoch 1", "score", "first", "second", "epoch 0", "epoch 1", "score"]
    assert result.baseline.model.source == "random weights"


def test_an_earlier_result_is_reused(data, tmp_path, capsys):
    """With `reuse` a result of the same model, data and settings is returned as it is on disk; a damaged one is not."""
    config = SignConfig(model=MODEL, data=data, out=tmp_path / "out", device="cpu")
    first = evaluate(Sign, config)
    Sign.log.clear()
    assert evaluate_alone(Sign, config, reuse=True) == first
    assert Sign.log == []
    path = tmp_path / "out" / f"{first.about.key}.json"
    assert f"reusing the result of an earlier evaluation: {path}" in capsys.readouterr().err
    path.write_text("{")
    assert evaluate_alone(Sign, config, reuse=True) == first
    assert f"{path}: is not a result" in capsys.readouterr().err
    other = dataclasses.replace(first.about, versions={**first.about.versions, "torch": "0.1"})
    Result(other, first.metrics, {}).save(tmp_path / "out")
    Sign.log.clear()
    assert evaluate_alone(Sign, config, reuse=True) == first
    assert Sign.log[0] == "first"


def test_reuse_leaves_nothing_behind_and_notices_a_cut_record(data, tmp_path, capsys):
    """What a process left that was killed after its result is removed, and a record that was cut is written again."""
    config = SignConfig(model=MODEL, data=data, out=tmp_path / "out", device="cpu")
    first = evaluate(Sign, config)
    folder = tmp_path / "out" / "unfinished" / f"{first.about.record_key}-{first.about.versions['cyclecontrast']}"
    folder.mkdir(parents=True)
    (folder / "rest.npz").write_bytes(b"")
    assert evaluate_alone(Sign, config, reuse=True) == first
    assert not (tmp_path / "out" / "unfinished").exists()
    (record,) = (tmp_path / "out" / "records").iterdir()
    whole = record.read_bytes()
    record.write_bytes(whole[:-9])
    assert evaluate_alone(Sign, config, reuse=True) == first
    assert f"{record}: the record cannot be read" in capsys.readouterr().err
    assert record.read_bytes() == whole
