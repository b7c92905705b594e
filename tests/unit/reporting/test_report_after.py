"""Trainings and evaluations of runs leave a page; whatever becomes of it, what it is about is done."""

import json
import tomllib

import numpy as np
import pytest

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import KnnConfig, PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.reporting import after
from cyclecontrast.reporting.runs import read_run
from cyclecontrast.training.pretrain import Run
from tests.unit.reporting.test_report import Page, table_rows, write_frames

TINY = {
    "backbone": "resnet10-small-w1",
    "image_size": 16,
    "batch_size": 4,
    "steps": 2,
    "workers": 0,
    "device": "cpu",
}
KNN = {"k": (1,), "image_size": 16, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six videos."""
    return write_frames(tmp_path_factory.mktemp("data") / "videos", list("abcdef"), num_frames=3)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Images of two classes."""
    root = tmp_path_factory.mktemp("labeled")
    for seed, split in enumerate(("train", "val")):
        write_frames(root / split, ["dark", "bright"], num_frames=4, seed=seed)
    return root


@pytest.fixture
def run(data, tmp_path):
    """A trained run without a page."""
    cc.pretrain(data, out=tmp_path / "run", report=False, **TINY)
    assert not (tmp_path / "run" / "report.html").exists()
    return tmp_path / "run"


def flags(settings):
    """The same settings on the command line."""
    return [
        f"--{name.replace('_', '-')}={value[0] if isinstance(value, tuple) else value}"
        for name, value in settings.items()
    ]


@pytest.mark.parametrize("way", ["function", "command"])
def test_a_training_leaves_its_page(data, tmp_path, capsys, way):
    """The page lies in the run and stderr names it; the options of a machine hold for it, too."""
    out = tmp_path / "run"
    if way == "function":
        cc.pretrain(data, out=out, **TINY)
    else:
        assert main(["pretrain", str(data), "--out", str(out), *flags(TINY)]) == 0
    assert f"report: {out}/report.html\n" in capsys.readouterr().err
    assert "Nothing has been evaluated yet" in Page(out / "report.html").text


def test_an_evaluation_writes_it_anew(run, labeled, capsys):
    """After each evaluation the page has its results, in whatever way it was started."""
    cc.evaluate("knn", run, labeled, **KNN)
    ((_, value),) = table_rows(Page(run / "report.html"), "Accuracy and other metrics by model")
    settings = flags(KNN | {"k": (3,)})
    assert main(["evaluate", "knn", str(run), str(labeled), *settings]) == 0
    assert f"report: {run}/report.html\n" in capsys.readouterr().err
    ((_, *values),) = table_rows(Page(run / "report.html"), "Accuracy and other metrics by model")
    assert len(values) == 2
    assert value in values


def test_unless_it_is_asked_not_to(run, labeled, data):
    """Without the page the run, its method and the files of results are the same."""
    cc.evaluate("knn", run, labeled, report=False, **KNN)
    assert main(["evaluate", "all", str(run), "--data-root", str(labeled), "--only", "knn", "--no-report"]) == 0
    assert not (run / "report.html").exists()
    before = {path.name: path.read_text() for path in (run / "results").glob("*.json")}
    cc.evaluate("knn", run, labeled, **KNN)
    assert (run / "report.html").exists()
    assert {path.name for path in (run / "results").glob("*.json")} == set(before)
    assert all((run / "results" / name).read_text() == text for name, text in before.items())
    assert "report" not in json.dumps(list(before.values()))
    other = run.parent / "other"
    cc.pretrain(data, out=other, **TINY)
    assert read_run(run, "one").method == read_run(other, "other").method
    assert tomllib.loads((run / "config.toml").read_text())["report"] is False
    assert cc.pretrain(resume=run, report=True).metrics["step"] == 2


def test_what_is_no_run_has_no_page(run, labeled, tmp_path):
    """Weights, a folder without a run's files, and results that lie elsewhere leave no page."""
    (tmp_path / "model").mkdir()
    for file in run.glob("backbone.*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    for model in (tmp_path / "model", run / "backbone.safetensors", "random:resnet10-small-w1", run):
        cc.evaluate("knn", model, labeled, out=tmp_path / "elsewhere", **KNN)
    cc.evaluate("knn", tmp_path / "model", labeled, **KNN)
    assert list(tmp_path.rglob("report.html")) == []
    cc.evaluate("knn", run, labeled, out=run / ".." / "run" / "results", **KNN)
    assert list(tmp_path.rglob("report.html")) == [run / "report.html"]


PROBLEMS = {
    "interrupted": KeyboardInterrupt(),
    "the first line": UserError("the first line", "the second"),
    "OSError: [Errno 28] No space left on device": OSError(28, "No space left on device"),
    "ZeroDivisionError: of two lines": ZeroDivisionError("of two lines\nthe second"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_page_that_fails_costs_a_line(data, labeled, tmp_path, capsys, monkeypatch, problem):
    """Training and evaluation end as they would have; one line on stderr tells what happened and how to try again."""

    def fail(config):
        raise PROBLEMS[problem]

    monkeypatch.setattr(after, "write_report", fail)
    out = tmp_path / "run"
    assert main(["pretrain", str(data), "--out", str(out), *flags(TINY)]) == 0
    assert main(["evaluate", "knn", str(out), str(labeled), *flags(KNN)]) == 0
    said = capsys.readouterr()
    line = f"report: not written ({problem}); try `cyclecontrast report {out}`\n"
    assert said.err.count(line) == said.err.count("report: ") == 2
    assert "backbone: " in said.out
    assert len(list((out / "results").glob("knn-*.json"))) == 1


def test_of_several_processes_the_first_writes(run, monkeypatch):
    """The others neither train nor evaluate to an end of their own, and write no page."""
    written = []
    monkeypatch.setattr(after, "write_report", lambda config: written.append(config.runs[0]))
    config, backbone = PretrainConfig(data="data", out=run), load_backbone(run)
    after.after_training(config, Run(run, backbone, {}, tells=False))
    after.after_evaluation(KnnConfig(model=str(run), data="data"), None)
    assert written == []
    after.after_training(config, Run(run, backbone, {}))
    assert written == [run]


def test_all_of_which_a_part_fails_has_its_page(run, labeled, tmp_path, capsys):
    """What could be evaluated is on the page, and the exit code still says that not all could."""
    for split in ("train", "val"):
        (tmp_path / "root" / "bad" / split / "one").mkdir(parents=True)
        (tmp_path / "root" / "bad" / split / "one" / "0.png").write_bytes(b"damaged")
    (tmp_path / "root" / "good").symlink_to(labeled)
    arguments = ["--data-root", str(tmp_path / "root"), "--only", "knn", "--workers", "0"]
    assert main(["evaluate", "all", str(run), *arguments]) == 2
    said = capsys.readouterr()
    assert "not evaluated" in said.out
    assert f"report: {run}/report.html\n" in said.err
    assert len(table_rows(Page(run / "report.html"), "Accuracy and other metrics by model")) == 1


def test_the_same_backbone_with_and_without(data, tmp_path):
    """The page is no part of the training: weights are the same to the bit."""
    for name, asked in (("with", {}), ("without", {"report": False})):
        cc.pretrain(data, out=tmp_path / name, **TINY, **asked)
    one, other = (load_backbone(tmp_path / name).state_dict() for name in ("with", "without"))
    assert all(np.array_equal(one[key], other[key]) for key in one)
