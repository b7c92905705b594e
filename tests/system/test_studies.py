"""What `make prove` runs: no test runs one to its end, but each must start."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDIES = [*sorted((ROOT / "studies").glob("*.py")), ROOT / "benchmarks" / "accuracy_per_minute.py"]


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_a_study_starts(study, monkeypatch, capsys):
    """Each script compiles, finds all that it imports, and prints its help."""
    monkeypatch.syspath_prepend(study.parent)
    monkeypatch.setattr("sys.argv", [str(study), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(study), run_name="__main__")
    assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out
