"""The notebook runs from its first cell to its last, and is kept without what it printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = json.loads((Path(__file__).parents[2] / "notebooks" / "tour.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
RUN = """
import json, sys
import matplotlib
matplotlib.use("agg")
session = {"__name__": "__main__"}
for number, cell in enumerate(json.load(sys.stdin)):
    exec(compile(cell, f"cell {number}", "exec"), session)
figures = session["plt"].get_fignums()
drawn = [session["plt"].figure(number) for number in figures]
print(len(drawn), all(axes.images for figure in drawn for axes in figure.axes))
"""
"""Runs the cells in one process, as a kernel would; tells how many figures they made, and whether all have pictures."""


def test_the_notebook_is_whole_and_empty():
    """It is of the format that tools read, each cell has an id of its own, and no output is kept."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the cells print, run in an empty folder, with every warning an error."""
    folder = tmp_path_factory.mktemp("tour")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        input=json.dumps(CODE),
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_cell_runs(printed):
    """From videos to a cycle: all cells run, the pictures have something in them, the verdict is what the text says."""
    assert "60 videos in" in printed
    assert "under-trained: " in printed
    assert "torch.Size([360, 128])" in printed
    assert printed.splitlines()[-1] == "3 True"


def test_the_cycle_is_told(printed):
    """The cycle by hand is that of the library, which the notebook asserts, and its end is told with its chance."""
    assert "similarity of the way home" in printed
    assert "of the cycles close; by chance 0.6%" in printed
