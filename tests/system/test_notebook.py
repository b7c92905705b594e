"""The notebook runs from its first cell to its last, and is stored with the output of today's code."""

import base64
import io
import json
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from PIL import Image

matplotlib.use("agg")

PATH = Path(__file__).parents[2] / "notebooks" / "tour.ipynb"
NOTEBOOK = json.loads(PATH.read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
MEASURED = re.compile(r"\d+\.\d+|\d+(?=%)|(?<=about )\d+|fp32|bf16|(?<= on ).*?(?=;)|/\S*/tour-\w+")
"""What differs between processors and folders."""
PLAN = ("data ", "network ", "method ", "training ", "expect ")


def told(text):
    """Return the parts of a text that are the same on every machine; the reason of a verdict is none."""
    return [MEASURED.sub("#", line.partition(": ")[0]).replace("60 steps", "10 steps") for line in text.splitlines()]


def stored(name):
    """Return what all cells together wrote to stdout or stderr when the notebook was stored."""
    outputs = [output for cell in CODE for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join("".join(output["text"]) for output in outputs if output["name"] == name)


def test_the_notebook_is_stored_as_run_in_one_go():
    """The notebook has the current format, unique cell ids, no error, three pictures, and less than 300 kB."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert {cell["cell_type"] for cell in NOTEBOOK["cells"]} == {"markdown", "code"}
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data", "execute_result"}
    pictures = [output["data"]["image/jpeg"] for output in outputs if output["output_type"] == "display_data"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
    assert len(sizes) == 3
    assert all(min(size) > 100 for size in sizes)
    assert PATH.stat().st_size < 300_000


def test_every_cell_runs_and_prints_what_is_stored(tmp_path, monkeypatch, capsys):
    """The cells run without a warning; figures have pictures, and what is printed is stored, up to measurements."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = {"__name__": "__main__"}
    code = ["".join(cell["source"]) for cell in CODE]
    assert '"steps": 60' in "".join(code)
    for number, cell in enumerate(code):
        exec(compile(cell.replace('"steps": 60', '"steps": 10'), f"cell {number}", "exec"), session)
    drawn = [plt.figure(number) for number in plt.get_fignums()]
    assert len(drawn) == 3
    assert all(axes.images for figure in drawn for axes in figure.axes)
    plt.close("all")
    printed, plan = capsys.readouterr()
    again = "run the notebook again, see CONTRIBUTING.md"
    assert told(printed) == told(stored("stdout")), again
    assert "of the cycles close; chance level 0.6%" in printed
    lines, before = ([line for line in told(text) if line.startswith(PLAN)] for text in (plan, stored("stderr")))
    assert len(lines) == len(PLAN)
    assert lines == before, again
