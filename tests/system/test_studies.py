"""The studies: no test runs one to its end, so that at least none rots unseen."""

import subprocess
import sys
from pathlib import Path

import pytest

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.py"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_a_study_starts(study):
    """Each script compiles, finds all that it imports, and says what it does."""
    done = subprocess.run([sys.executable, study, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout
