"""`evaluate all`: what is found is evaluated, failures are reported, and published figures are marked."""

import json
import os

import cv2
import numpy as np
import pytest

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import AllConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.predictions import About, DataInfo, ModelInfo, Result
from cyclecontrast.evaluation.suite import SuiteResult, evaluate_all
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import fingerprint, save_backbone
from tests.make_reports import BACKBONE, write_run

MODEL = "random:resnet10-small-w8"


@pytest.fixture
def root(tmp_path):
    """A folder with two sets of colored images, the second with a class that has no images in val."""
    rng = np.random.default_rng(0)
    for name in ("good", "bad"):
        for split in ("train", "val"):
            for label, color in enumerate(((200, 40, 40), (40, 40, 200))):
                folder = tmp_path / "sets" / name / split / str(label)
                folder.mkdir(parents=True)
                for number in range(0 if (name, split, label) == ("bad", "val", 1) else 3):
                    image = np.clip(color + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
                    cv2.imwrite(str(folder / f"{number}.png"), image)
    return tmp_path / "sets"


def run(root, tmp_path, **settings):
    """Evaluate by kNN and linear into a folder of the test."""
    named = {"out": tmp_path / "out", "image_size": 16, "workers": 0, "device": "cpu", "only": ("knn", "linear")}
    return evaluate_all(AllConfig(model=MODEL, data_root=root, **named | settings))


def test_every_protocol_runs_on_every_set_and_failures_do_not_stop_it(root, tmp_path):
    """Two results of the good set, a line for each protocol on the bad one, and the table is also a file."""
    done = run(root, tmp_path)
    assert [result.protocol for result, _ in done.rows] == ["knn", "linear"]
    assert all("bad" in problem and "holds no images" in problem for problem in done.problems)
    assert [problem.split()[0] for problem in done.problems] == ["knn", "linear"]
    assert (tmp_path / "out" / "all.md").read_text() == f"{done}\n"
    assert str(done).count("not evaluated: ") == 2


def test_a_folder_that_cannot_be_listed_is_reported(root, tmp_path, monkeypatch, capsys):
    """Such as one of another user: the rest is evaluated."""
    (root / "locked").mkdir()
    listdir = os.listdir

    def guarded(path="."):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", guarded)
    assert len(run(root, tmp_path, only=("knn",)).rows) == 1
    assert "left out: 1 folder that cannot be listed (permission denied), such as locked\n" in capsys.readouterr().err


def test_the_results_are_those_of_the_single_commands(root, tmp_path):
    """The same model, data and settings give the same metrics and the same file."""
    ours = run(root, tmp_path).rows[0][0]
    single = cc.evaluate("knn", MODEL, root / "good", image_size=16, workers=0, device="cpu", out=tmp_path / "single")
    assert ours.metrics == single.metrics
    assert ours.about.key == single.about.key


def test_the_baseline_stands_beside_the_model(root, tmp_path):
    """Random weights of the same backbone fill their own column: here they are the model, and equal to it."""
    done = run(root, tmp_path, baseline=True)
    (result, baseline), *_ = done.rows
    assert baseline.metrics == result.metrics
    head, _, first, *_ = cells_of(done)
    assert head[3:6] == ["%", "random %", "difference"]
    assert first[3] == first[4] == f"{100 * result.metrics['top1_k6']:.1f}"
    assert first[5] == "+0.0 points against random weights"


def cells_of(done):
    """Return the cells of the table, row by row."""
    lines = [line for line in str(done).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_start_of_a_run_stands_beside_it(root, tmp_path, capsys):
    """What a run started from has the column of the baseline, and its result is found again."""
    start = make_backbone(BACKBONE, 5)
    path = save_backbone(start, tmp_path)
    about = {"start": {"model": str(path), "fingerprint": fingerprint(start)}}
    folder = write_run(tmp_path / "run", root, init=str(path), about=about)
    config = AllConfig(model=str(folder), data_root=root / "good", only=("knn",), baseline="start", workers=0)
    done = evaluate_all(config)
    ((result, baseline),) = done.rows
    expected = cc.evaluate("knn", path, root / "good", image_size=16, workers=0, out=tmp_path / "single")
    assert baseline.metrics == expected.metrics == result.baseline.metrics
    head, _, first = cells_of(done)
    assert head[4] == "start %"
    assert first[5] == result.difference("top1_k6") != ""
    capsys.readouterr()
    again = cc.evaluate("knn", folder, root / "good", workers=0, baseline="start")
    assert again.baseline == result.baseline
    assert capsys.readouterr().err.count("reusing the result of an earlier evaluation") == 1


def test_results_are_reused_without_again(root, tmp_path, capsys):
    """A second run finds the results of the first by model, data and settings; --again overrides."""
    run(root, tmp_path)
    path = next((tmp_path / "out").glob("knn-*.json"))
    parts = json.loads(path.read_text())
    path.write_text(json.dumps({**parts, "metrics": {"top1_k6": 0.125}}))
    assert run(root, tmp_path).rows[0][0].metrics == {"top1_k6": 0.125}
    assert "reusing the result of an earlier evaluation" in capsys.readouterr().err
    assert run(root, tmp_path, again=True).rows[0][0].metrics != {"top1_k6": 0.125}


def test_nothing_to_evaluate_is_an_error(tmp_path, root):
    """A folder without data sets, and one without data for the requested protocols, are reported in a line."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data for knn, linear"):
        run(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match="holds no data for tracking"):
        run(root, tmp_path, only=("tracking",))
    with pytest.raises(UserError, match="holds no images"):
        run(root / "bad", tmp_path)
    assert not (tmp_path / "out").exists()


def test_all_is_a_command(root, tmp_path, capsys):
    """The command prints the table; its errors end with exit code 2."""
    arguments = [MODEL, "--data-root", str(root / "good"), "--out", str(tmp_path / "out"), "--image-size", "16"]
    assert main(["evaluate", "all", *arguments, "--only", "knn", "--workers", "0"]) == 0
    assert "| knn level=frame image_size=16 | good | top1_k6 |" in capsys.readouterr().out
    assert main(["evaluate", "all", MODEL, "--data-root", str(root / "nothing")]) == 2
    assert "nothing: no such folder" in capsys.readouterr().err


def test_what_failed_ends_the_command_with_exit_code_2(root, tmp_path, capsys):
    """The table of the rest is printed and on disk, and a line says so that scripts notice."""
    arguments = [MODEL, "--data-root", str(root), "--out", str(tmp_path / "out"), "--image-size", "16"]
    assert main(["evaluate", "all", *arguments, "--only", "knn", "--workers", "0"]) == 2
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "out" / "all.md").read_text()
    assert "| good | top1_k6 |" in printed.out
    assert "not evaluated: knn on" in printed.out
    (line,) = (line for line in printed.err.splitlines() if line.startswith("error: "))
    assert "some evaluations failed" in line


@pytest.mark.parametrize(
    ("num_test", "cell", "footnote"),
    [
        (37_830, "39.7 [1]", "[1] CycleContrast, ResNet-18 pretrained on R2V2, UCF101 split 1"),
        (
            790,
            "| [1]  ",
            "[1] not comparable, for reference: hit@1 39.7 by CycleContrast, ResNet-18 pretrained on R2V2",
        ),
    ],
)
def test_published_figures_stand_beside_ours_only_where_all_agrees(num_test, cell, footnote):
    """Otherwise the column holds the number of a footnote, which gives the figure and what differs."""
    about = About(
        "retrieval",
        "retrieval level=clip",
        {
            "level": "clip",
            "split": 1,
            "per_video": 10,
            "image_size": 224,
            "center": False,
            "ann": "exact",
            "clip_length": 16,
        },
        ModelInfo("resnet18", "run", "f" * 16),
        DataInfo("ucf", "d" * 16, 95_370, num_test),
    )
    text = str(SuiteResult(((Result(about, {"hit@1": 0.5}, {}), None),), ()))
    assert "| 50.0 |" in text
    assert cell in text
    assert text.splitlines()[-1].startswith(footnote)
    assert ("data: 790 test items, not the 37,830" in text) == (num_test == 790)
