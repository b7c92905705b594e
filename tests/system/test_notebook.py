"""The notebook runs from its first cell to its last, and is stored without output."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
"""Runs the cells in one process, as a kernel would; prints the number of figures, and whether all have pictures."""


def test_the_notebook_has_no_output():
    """The notebook has the current format, unique cell ids, and no output."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_every_cell_runs(tmp_path):
    """All cells run without a warning: the figures have pictures, the verdict and the cycle are printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        input=json.dumps(CODE),
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for text in ("60 videos in", "under-trained: ", "torch.Size([360, 128])", "similarity to the positive"):
        assert text in done.stdout
    assert "of the cycles close; chance level 0.6%" in done.stdout
    assert done.stdout.splitlines()[-1] == "3 True"
