"""The benchmarks of speed: each runs at its smallest and prints its table, and what they share counts rightly."""

import importlib
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclecontrast.data.store import FrameStore
from cyclecontrast.loss.losses import info_nce
from cyclecontrast.models import hardware

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = "--image-size 16 --batch-size 4 --backbone resnet10-small-w8 --num-steps 1 --workers 0"
SCRIPTS = {
    "step": "--network resnet10-small-w8 16 4 --num-steps 1 --data STORE",
    "data": "--sizes 16 --num-frames 8 --data STORE",
    "loss_memory": "--batch 4 --dim 8 --queue-size 64 --cycle-queue-size 96 --support-size 32",
    "checkpointing": "--backbone resnet10-small-w8 --image-size 16 --batch-size 4 --num-steps 1",
    "embedding": "STORE --backbone resnet10-small-w8 --image-size 16 --batch-size 4 --workers 0",
    "retrieval": "--queries 4 --gallery 64 --dim 8 --k 3",
    "tracking": "--backbone resnet10-small-w8",
    "search": "--frames 500 --dim 8",
    "scale": "--num-videos 1000 --shards 2 --workers 1",
    "prepare": "VIDEOS --workers 1",
    "release": f"{TINY} --data STORE",
    "lightly_moco": f"{TINY} --data STORE",
    "startup": "",
    "weak_scaling": "--network resnet10-small-w8 16 4 --num-steps 1 --workers 0 --data STORE",
}
ALONE = ("prepare", "startup", "lightly_moco", "weak_scaling", "scale")
"""Scripts that measure whole processes, and so run as one."""
GOALS = {
    "step": [""] * 4,
    "data": ["≤ 1.00", *[""] * 5],
    "loss_memory": ["≤ 200", "", "≤ 1.00"],
    "checkpointing": ["≤ 2.00"],
    "embedding": ["≥ 0.90"],
    "retrieval": ["≤ 1.20"],
    "tracking": ["≥ 0.90"],
    "search": [*[""] * 5, "≤ 1.20", "≤ 1.00", "", "≤ 1.00"],
    "scale": ["≤ 5.00", "≤ 200", "", *["≤ 10.00"] * 5],
    "prepare": ["≤ 1.10", ""] * 2,
    "release": ["≥ 3.00", "", ""],
    "lightly_moco": ["≥ 1.00", "", "≥ 1.00"],
    "startup": ["", "", *["≤ 0.25"] * 6],
    "weak_scaling": ["≥ 0.90", ""],
}
"""What stands beside each row."""


@pytest.fixture(scope="module", autouse=True)
def path_to_benchmarks():
    """Let the benchmarks import one another here, as they do where they are run."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Small videos of moving patterns, and the store prepared from them."""
    root = tmp_path_factory.mktemp("benchmarks")
    ours = importlib.import_module("_ours")
    ours.SHARED, ours.MADE_SIZE = root / "nothing", (96, 64)
    return ours.make_store(root, num_clips=8, num_frames=2, size=48)


@pytest.fixture
def run(capsys):
    """Run a benchmark: in this process, which has PyTorch, or as `make bench` does, where that would disturb it."""

    def run_script(script, arguments):
        if script in ALONE:
            command = [sys.executable, FOLDER / f"{script}.py", *arguments.split()]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout
        num_threads = torch.get_num_threads()
        importlib.import_module(script).main(arguments.split())
        torch.set_num_threads(num_threads)
        return capsys.readouterr().out

    return run_script


@pytest.mark.parametrize("script", [pytest.param(name, marks=[pytest.mark.long] * (name in ALONE)) for name in SCRIPTS])
def test_each_prints_its_table(script, made, run, monkeypatch, tmp_path):
    """One repetition gives a Markdown table with the goal beside each value, and the same rows as lines of JSON."""
    monkeypatch.setattr(hardware, "BACKEND", "eager")  # the real one takes minutes
    words = SCRIPTS[script].replace("STORE", str(made)).replace("VIDEOS", str(made.parent / "videos"))
    kept = tmp_path / "rows"
    told = run(script, f"{words} --repetitions 1 --rows {kept}")
    if told.startswith("left out"):
        pytest.skip("lightly is not installed")
    table = next(part for part in told.split("\n\n") if "goal" in part)
    columns, rule, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    assert set("".join(rule)) <= set("-: |")
    goals = [row[columns.index("goal")] for row in rows]
    assert goals == GOALS[script]
    values = [json.loads(line)["values"] for line in kept.read_text().splitlines()]
    assert len(values) == len(rows)
    if script not in ("step", "scale", "search"):  # which have rows that may be nothing: waiting, added memory
        assert all(value > 0 for row in values for value in row)
    if script == "step":
        check_shares(told.split("\n\n")[-1])


def check_shares(table):
    """The parts of a step that are named, and what is left, are not below nothing and make 100 %."""
    shares = [float(share) for share in re.findall(r"\| (-?[0-9.]+)% \|$", table, re.MULTILINE)]
    assert len(shares) == 8
    assert sum(shares) == pytest.approx(100, abs=1)
    assert min(shares) >= 0


@pytest.mark.long
def test_the_script_for_gpus_runs_on_a_cpu(made, run, monkeypatch):
    """The checks meet their goals, and every network of the tiny table has its rates."""
    monkeypatch.setattr(hardware, "BACKEND", "eager")
    words = f"--device cpu --small --num-steps 1 --workers 0 --data {made} --repetitions 1"
    _, checks, _, rates = run("gpu", words).split("\n\n")
    checks = [[cell.strip() for cell in line[1:-1].split("|")] for line in checks.splitlines()[2:] if line[0] == "|"]
    assert [row[3] for row in checks] == ["yes"] * 3
    rates = [[cell.strip() for cell in line[1:-1].split("|")] for line in rates.splitlines()[2:]]
    assert [row[0] for row in rates] == [
        f"resnet10-small-w8, batch 8{options}" for options in ("", ", augment-on device", ", compile True")
    ]
    assert all(float(cell.replace(",", "")) > 0 for row in rates for cell in row[1:5])


def test_without_a_gpu_nothing_is_measured(run):
    """gpu.py says in one line that it found no GPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run("gpu", "").startswith("no GPU was found")


def test_works_take_turns():
    """Works alternate, and what the first turn cost does not count."""
    turns, order = importlib.import_module("_turns"), []

    def work_of(name, costs):
        return lambda: order.append(name) or next(costs)

    costs = turns.take_turns({"a": work_of("a", iter([9.0, 1.0, 2.0])), "b": work_of("b", iter([9.0, 3.0, 4.0]))}, 2)
    assert costs == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert all(one != other for one, other in pairwise(order))


def test_a_ratio_is_of_one_turn():
    """A machine that is ten times slower in one turn does not change the ratio, for both were slow then."""
    turns = importlib.import_module("_turns")
    assert turns.ratios({"a": [2.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}, "a", "b") == [2.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "goal", "better", "cells"),
    [
        ([2.0, 20.0, 3.0], 3.0, "lower", ["3.00", "≤ 3.00", "yes", "2.00 to 20.00"]),
        ([2.0, 20.0, 3.0], 2.9, "lower", ["3.00", "≤ 2.90", "**no**", "2.00 to 20.00"]),
        ([0.89], 0.9, "higher", ["0.89", "≥ 0.90", "**no**", ""]),
        ([1234.5], None, "higher", ["1,234", "", "", ""]),
    ],
)
def test_a_row_is_judged_by_its_median(values, goal, better, cells):
    """The goal is met or not by the turn in the middle, in the direction that is better."""
    row = importlib.import_module("_turns").Row("name", values, goal, better)
    assert row.cells == ["name", *cells]


@pytest.mark.parametrize(
    ("before", "now", "better", "change"),
    [
        ([1.0, 1.1, 1.2], [1.2, 1.3, 1.4], "lower", "same"),  # .2 is no more than the range of the turns
        ([1.0, 1.1, 1.2], [1.4, 1.5, 1.5], "lower", "worse"),
        ([1.0, 1.1, 1.2], [1.0, 1.5, 1.6], "lower", "same"),  # the turns of now differ more than the medians
        ([1.4, 1.5, 1.5], [1.0, 1.1, 1.2], "lower", "better"),
        ([1.4, 1.5, 1.5], [1.0, 1.1, 1.2], "higher", "worse"),
        ([100.0], [104.0], "lower", "same"),  # one turn has no range
        ([100.0], [106.0], "lower", "worse"),
        (None, [1.0], "lower", "new"),
    ],
)
def test_a_slowdown_is_more_than_both_spreads(before, now, better, change):
    """A row has changed only if it differs by more than the turns differ among themselves, then and now."""
    runner, row = importlib.import_module("run"), importlib.import_module("_turns").Row
    assert runner.change(row("x", now, 1.0, better), before and row("x", before, 1.0, better)) == change


def test_an_earlier_run_stands_beside(tmp_path):
    """Read from its file, it gives the values of before; a slower row is told even without a goal, a lost one too."""
    runner, row = importlib.import_module("run"), importlib.import_module("_turns").Row
    before = {"a": row("a", [1.0, 1.1], 2.0), "b": row("b", [1.0]), "c": row("c", [3.0]), "d": row("d", [4.0])}
    runner.write(tmp_path / "new" / "file.json", before, {"gpu": "no GPU"})
    assert json.loads((tmp_path / "new" / "file.json").read_text())["left_out"] == {"gpu": "no GPU"}
    found = runner.read(tmp_path / "new" / "file.json")
    assert found == before
    now = {"a": row("a", [1.0, 1.2], 2.0), "b": row("b", [2.0]), "c": row("c", [3.0])}
    columns, lines, is_worse = runner.summary(now, found)
    assert columns[-2:] == ["before", "change"]
    assert [[line[0], *line[-2:]] for line in lines] == [
        ["a", "1.05", "same"],
        ["b", "1.00", "worse"],
        ["d", "4.00", ""],
    ]
    assert is_worse
    assert runner.summary(now, None)[1:] == ([["a", "1.10", "≤ 2.00", "yes", "1.00 to 1.20"]], False)


def test_all_limits_together_are_twenty_minutes():
    """And every benchmark of speed has one, but that of GPUs and that which trains for hours."""
    limits = importlib.import_module("run").LIMITS
    assert sum(seconds for seconds, _ in limits.values()) <= 20 * 60
    names = {path.stem for path in FOLDER.glob("[a-z]*.py")}
    assert set(limits) == set(SCRIPTS) == names - {"run", "gpu", "accuracy_per_minute"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("time.sleep(60)", "stopped after 2 s"),
        ("raise SystemExit('broken')", "it failed: broken"),
        ("", ""),
    ],
)
def test_what_a_benchmark_measured_before_its_end_counts(body, reason, tmp_path, monkeypatch):
    """One that takes too long is stopped with its own processes, one that fails is named; their rows are kept."""
    runner = importlib.import_module("run")
    script = tmp_path / "some.py"
    script.write_text(
        "import json, subprocess, sys, time\n"
        "open(sys.argv[-1], 'w').write(json.dumps({'name': 'x', 'values': [1.0], 'goal': None, 'better': 'lower'}))\n"
        f"{body}\n"
    )
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    rows, found = runner.measure("some", 2, "--repetitions 1")
    assert ([row.name for row in rows], found) == (["x"], reason)


def test_the_restated_loss_is_the_papers():
    """The contrast that the restatement of the release is trained with is Eq. 1, as our own tested loss has it."""
    release, generator = importlib.import_module("release"), torch.Generator().manual_seed(0)
    query, positive, negatives = (
        torch.nn.functional.normalize(torch.randn(num, 8, generator=generator), dim=1) for num in (4, 4, 32)
    )
    ours = info_nce(query, positive, negatives, release.TEMPERATURE)
    torch.testing.assert_close(release.contrast(query, positive, negatives.T), ours)


def test_the_rivals_files_are_the_stores_frames(made, tmp_path):
    """A rival reads the very bytes that ours reads, in a folder for each video."""
    store = FrameStore.open(made)
    files = importlib.import_module("release").write_files(store, tmp_path / "files")
    assert [len(list(folder.iterdir())) for folder in sorted(files.iterdir())] == np.diff(store.starts).tolist()
    assert (files / "00003" / "00001.jpg").read_bytes() == store.read(3, 1)
