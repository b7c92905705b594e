"""Trainings and evaluations of runs write the page; if that fails, the training or evaluation is still done."""

import tomllib

import pytest

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import KnnConfig, PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.reporting import page
from cyclecontrast.reporting.runs import read_run
from cyclecontrast.training.pretrain import Run
from tests.make_reports import Page, write_frames

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


@pytest.fixture
def written(monkeypatch):
    """The runs whose page would be written; no page is."""
    runs = []
    monkeypatch.setattr(page, "write_report", lambda config: runs.append(config.runs[0]) or runs[-1] / "report.html")
    return runs


def flags(settings):
    """The same settings on the command line."""
    return [
        f"--{name.replace('_', '-')}={value[0] if isinstance(value, tuple) else value}"
        for name, value in settings.items()
    ]


def test_a_training_writes_its_page(trained, data, tmp_path, written, capsys):
    """The page is in the run folder and stderr names it, for the function and for the command."""
    assert "Measured without labels" in Page(trained / "report.html").text
    out = tmp_path / "run"
    assert main(["pretrain", str(data), "--out", str(out), *flags(TINY)]) == 0
    assert f"report: {out}/report.html\n" in capsys.readouterr().err
    assert written == [out]


def test_an_evaluation_updates_the_page(run, labeled, capsys):
    """After each evaluation the page has its results, for the function and for the command."""
    cc.evaluate("knn", run, labeled, **KNN)
    ((_, value),) = Page(run / "report.html").rows("Accuracy and other metrics by model")
    assert main(["evaluate", "knn", str(run), str(labeled), *flags(KNN | {"k": (3,)})]) == 0
    assert f"report: {run}/report.html\n" in capsys.readouterr().err
    ((_, *values),) = Page(run / "report.html").rows("Accuracy and other metrics by model")
    assert len(values) == 2
    assert value in values


def test_no_report(run, labeled, data, written):
    """With report=False nothing is written; the run, its method and the results are the same."""
    cc.evaluate("knn", run, labeled, report=False, **KNN)
    assert main(["evaluate", "all", str(run), "--data-root", str(labeled), "--only", "knn", "--no-report"]) == 0
    assert written == []
    before = {path.name: path.read_text() for path in (run / "results").glob("*.json")}
    cc.evaluate("knn", run, labeled, **KNN)
    assert written == [run]
    assert {path.name: path.read_text() for path in (run / "results").glob("*.json")} == before
    assert not any('"report"' in text for text in before.values())
    cc.pretrain(data, out=run.parent / "other", **TINY)
    assert read_run(run, "one").method == read_run(run.parent / "other", "other").method
    assert tomllib.loads((run / "config.toml").read_text())["report"] is False
    assert cc.pretrain(resume=run, report=True).metrics["step"] == 2


def test_only_runs_have_a_page(run, labeled, tmp_path, written):
    """Weights, a folder without a run's files, and results that are written elsewhere have no page."""
    (tmp_path / "model").mkdir()
    for file in run.glob("backbone.*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    for model in (tmp_path / "model", run / "backbone.safetensors", "random:resnet10-small-w1", run):
        cc.evaluate("knn", model, labeled, out=tmp_path / "elsewhere", **KNN)
    cc.evaluate("knn", tmp_path / "model", labeled, **KNN)
    assert written == []
    cc.evaluate("knn", run, labeled, out=run / ".." / "run" / "results", **KNN)
    assert written == [run]


PROBLEMS = {
    "interrupted": KeyboardInterrupt(),
    "the first line": UserError("the first line", "the second"),
    "OSError: [Errno 28] No space left on device": OSError(28, "No space left on device"),
    "ZeroDivisionError: of two lines": ZeroDivisionError("of two lines\nthe second"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_page_that_fails_costs_one_line(run, labeled, capsys, monkeypatch, problem):
    """The evaluation ends as without a page; one line on stderr says what happened and how to try again."""

    def fail(config):
        raise PROBLEMS[problem]

    monkeypatch.setattr(page, "write_report", fail)
    capsys.readouterr()
    assert main(["evaluate", "knn", str(run), str(labeled), *flags(KNN)]) == 0
    page.after_training(PretrainConfig(data="data", out=run), Run(run, load_backbone(run), {}))
    output = capsys.readouterr()
    line = f"report: not written ({problem}); try `cyclecontrast report {run}`\n"
    assert output.err.count(line) == output.err.count("report: ") == 2
    assert "top1" in output.out
    assert len(list((run / "results").glob("knn-*.json"))) == 1


def test_the_first_process_writes_the_page(run, written):
    """Of several processes, only the first writes a page."""
    config, backbone = PretrainConfig(data="data", out=run), load_backbone(run)
    page.after_training(config, Run(run, backbone, {}, is_first=False))
    page.after_evaluation(KnnConfig(model=str(run), data="data"), None)
    assert written == []
    page.after_training(config, Run(run, backbone, {}))
    assert written == [run]


def test_evaluations_that_partly_fail_have_a_page(run, labeled, tmp_path, capsys, written):
    """The page is written with the results that there are, and the exit code says that some evaluations failed."""
    for split in ("train", "val"):
        (tmp_path / "root" / "bad" / split / "one").mkdir(parents=True)
        (tmp_path / "root" / "bad" / split / "one" / "0.png").write_bytes(b"damaged")
    (tmp_path / "root" / "good").symlink_to(labeled)
    arguments = ["--data-root", str(tmp_path / "root"), "--only", "knn", "--workers", "0"]
    assert main(["evaluate", "all", str(run), *arguments]) == 2
    assert "not evaluated" in capsys.readouterr().out
    assert written == [run]
    assert len(list((run / "results").glob("knn-*.json"))) == 1
