"""The benchmarks of speed: each runs at its smallest and prints its table, and what they share counts rightly."""

import importlib
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
    "prepare": "VIDEOS --workers 1",
    "release": f"{TINY} --data STORE",
    "lightly_moco": f"{TINY} --data STORE",
    "startup": "",
    "weak_scaling": "--network resnet10-small-w8 16 4 --num-steps 1 --workers 0 --data STORE",
    "gpu": "--device cpu --small --num-steps 1 --workers 0 --data STORE",
}
ALONE = ("prepare", "startup", "lightly_moco", "weak_scaling")
"""Scripts that measure whole processes, and so run as one."""
GOALS = {
    "step": [""],
    "data": ["≤ 1.00"],
    "prepare": ["≤ 1.10 with JPEG"] * 2,
    "release": ["≥ 3.0", "", ""],
    "lightly_moco": ["≥ 1.00", "", "≥ 1.00"],
    "startup": ["", "", *["< 1.00"] * 5],
    "weak_scaling": ["≥ 0.90"],
    "gpu": ["≥ 0.95", "", ""],
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
def test_each_prints_its_table(script, made, run, monkeypatch):
    """One repetition gives a Markdown table with the goal beside each ratio, which is a positive number."""
    monkeypatch.setattr(hardware, "BACKEND", "eager")  # the real one takes minutes
    words = SCRIPTS[script].replace("STORE", str(made)).replace("VIDEOS", str(made.parent / "videos"))
    told = run(script, f"{words} --repetitions 1")
    if told.startswith("left out"):
        pytest.skip("lightly is not installed")
    table = next(part for part in told.split("\n\n") if "goal" in part)
    columns, rule, *rows = [line[2:-2].split(" | ") for line in table.splitlines()]
    assert set("".join(rule)) <= set("-: |")
    goals = [row[columns.index("goal")].strip() for row in rows]
    assert goals == GOALS[script]
    ratios = [cell for row in rows for cell in row if re.fullmatch(r"\d+\.\d\d( \(.*\))?", cell)]
    assert len(ratios) >= len(rows)
    assert all(float(cell.split()[0]) > 0 for cell in ratios)
    if script == "step":
        check_shares(told.split("\n\n")[-1])


def check_shares(table):
    """The parts of a step that are named, and what is left, are not below nothing and make 100 %."""
    shares = [float(share) for share in re.findall(r"\| (-?[0-9.]+)% \|$", table, re.MULTILINE)]
    assert len(shares) == 8
    assert sum(shares) == pytest.approx(100, abs=1)
    assert min(shares) >= 0


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
    assert turns.ratio({"a": [2.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}, "a", "b") == "2.00 (2.00 to 3.00)"


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
