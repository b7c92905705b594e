"""The notebook runs from its first cell to its last, and is stored without output."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("agg")

NOTEBOOK = json.loads((Path(__file__).parents[2] / "notebooks" / "tour.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_no_output():
    """The notebook has the current format, unique cell ids, and no output."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    """All cells run without a warning: the figures have pictures, the verdict and the cycle are printed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = {"__name__": "__main__"}
    assert '"steps": 60' in "".join(CODE)
    for number, cell in enumerate(CODE):
        exec(compile(cell.replace('"steps": 60', '"steps": 10'), f"cell {number}", "exec"), session)
    drawn = [plt.figure(number) for number in plt.get_fignums()]
    assert len(drawn) == 3
    assert all(axes.images for figure in drawn for axes in figure.axes)
    plt.close("all")
    printed = capsys.readouterr().out
    for text in ("60 videos in", "undertrained: ", "torch.Size([360, 128])", "similarity to the positive"):
        assert text in printed
    assert "of the cycles close; chance level 0.6%" in printed
