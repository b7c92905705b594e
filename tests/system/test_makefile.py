"""The Makefile says what a machine lacks, in one line, before it does anything."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def try_make(folder, python, goal):
    """Run a goal of the Makefile in an empty folder with a given Python."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    return subprocess.run(["make", goal, f"PYTHON={python}"], cwd=folder, capture_output=True, text=True)


def fake_python(folder, **answers):
    """Write a program that behaves like a Python of some kind: old, or without venv."""
    program = folder / "python-fake"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f"  --version) echo Python {answers['version']};;\n"
        f"  *version_info*) exit {answers['too_old']};;\n"
        f"  *ensurepip*) exit {answers['no_venv']};;\n"
        "  *) echo unexpected: $*; exit 9;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("goal", ["demo", "test", "docs"])
@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (None, "is missing; install Python 3.11 or newer"),
        ({"version": "3.9.2", "too_old": 1, "no_venv": 0}, "Python 3.9.2 is too old, 3.11 is needed"),
        (
            {"version": "3.11.2", "too_old": 0, "no_venv": 1},
            "has no venv module; install it (Debian: apt install python3-venv)",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path, goal, answers, words):
    """No Python, an old one, or one without venv ends in a clear line, and no .venv is left behind."""
    python = tmp_path / "no-such-python" if answers is None else fake_python(tmp_path, **answers)
    done = try_make(tmp_path, python, goal)
    assert done.returncode != 0
    assert any(line.startswith("error: ") and words in line for line in done.stdout.splitlines())
    assert not (tmp_path / ".venv").exists()
