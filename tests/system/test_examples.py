"""The examples run as a reader would run them, are as short as promised, and show what they say."""

import ast
import json
import runpy
from pathlib import Path

import pyarrow.parquet as pq
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("own_augmentation", "own_backbone", "own_method", "own_protocol")
MAX_LINES = 40


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Return a function that runs an example as a script and returns its output."""

    def run_example(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [f"{name}.py", str(tmp_path / "made here")])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def lines_of_code(path):
    """Count the lines that are neither blank nor a comment nor part of a docstring."""
    tree, text = ast.parse(path.read_text()), path.read_text().splitlines()
    told = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            told |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = (line.strip() for number, line in enumerate(text, start=1) if number not in told)
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_these_are_all_examples():
    """Every example has a test."""
    assert tuple(sorted(path.stem for path in EXAMPLES.glob("*.py"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_what_it_shows(name):
    """Each has less than forty lines of code, a docstring and a main of its own."""
    path = EXAMPLES / f"{name}.py"
    assert lines_of_code(path) < MAX_LINES
    assert f"python examples/{name}.py FOLDER" in ast.get_docstring(ast.parse(path.read_text()))
    assert 'if __name__ == "__main__":' in path.read_text()


def test_a_network_of_ones_own_is_trained_and_measured(run, tmp_path):
    """The run names the network, and the printed accuracy is that of the result on disk."""
    printed = run("own_backbone")
    folder = tmp_path / "made here"
    assert 'backbone = "own:SmallNet"' in (folder / "run" / "config.toml").read_text()
    (result,) = (json.loads(path.read_text()) for path in (folder / "results").glob("*.json"))
    assert result["model"]["name"] == "own:SmallNet"
    assert f"{100 * result['metrics']['top1_k5']:6.2f} %" in printed


def test_an_augmentation_of_ones_own_is_trained_with(run, tmp_path):
    """The run names the function and is finished."""
    assert "backbone.safetensors" in run("own_augmentation")
    folder = tmp_path / "made here" / "run"
    assert 'augmentation = "own:crop_and_cover"' in (folder / "config.toml").read_text()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_a_method_of_ones_own_is_trained(run, tmp_path):
    """The run names the class, its term is measured, and the report is written."""
    assert "report.html" in run("own_method")
    folder = tmp_path / "made here" / "run"
    assert 'method = "own:HardestKey"' in (folder / "config.toml").read_text()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["positive_loss"] <= 2 for row in rows)
    assert "Positive loss" in (folder / "report.html").read_text()


def test_a_protocol_of_ones_own_gives_a_result(run, tmp_path):
    """The result is of the protocol's name, with a record, and the accuracy that its record gives when counted."""
    printed = run("own_protocol")
    results = tmp_path / "made here" / "results"
    (path,) = results.glob("nearest-mean-*.json")
    (record,) = (results / "records").glob("nearest-mean-*.parquet")
    rows = pq.read_table(record).to_pylist()
    accuracy = sum(row["ranked"][0] == row["label"] for row in rows) / len(rows)
    assert json.loads(path.read_text())["metrics"]["top1"] == pytest.approx(accuracy)
    assert f"top-1: {accuracy:.3f}" in printed
