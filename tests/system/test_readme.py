"""The README is true: its commands run as written, its tree is the source's, its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import make_videos as make

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, re.DOTALL)
QUICK = "--steps 2 --batch-size 4 --queue-size 16 --cycle-queue-size 16 --support-size 4 --image-size 32 --workers 0"


def test_the_readme_has_commands_and_code():
    """There is something to run: shell blocks for the commands and Python for the functions."""
    assert [language for language, _ in BLOCKS].count("sh") >= 3
    assert any(language == "python" for language, _ in BLOCKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the README speaks of: videos and labeled images, and the command on the path.

    Trainings are cut to two small steps by a wrapper, `make` is not called again from within its own tests.
    """
    root, rng = tmp_path_factory.mktemp("readme"), np.random.default_rng(0)
    for number in range(4):
        make.write_numbered(_made(root / "videos") / f"clip{number}.mp4", num_frames=8)
    for split in ("train", "val"):
        for label, low in (("dark", 0), ("bright", 150)):
            for index in range(6):
                image = rng.integers(low, low + 100, (40, 40, 3), np.uint8)
                cv2.imwrite(str(_made(root / "labeled" / split / label) / f"{index}.png"), image)
    programs = _made(root / "bin")
    command = f'"{sys.executable}" -m cyclecontrast "$@"'
    _program(programs / "cyclecontrast", f'if [ "$1" = pretrain ]; then {command} {QUICK}; else {command}; fi')
    _program(programs / "make", f'grep -q "^$1:" "{ROOT / "Makefile"}"')
    return root


def _made(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def _program(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_every_block_runs(folder):
    """The README's blocks run one after the other, from the first to the last, as a reader would run them."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    for language, code in BLOCKS:
        if "../shared" in code:
            continue
        command = ["sh", "-euc", code] if language == "sh" else [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_measured_commands_are_valid(folder, shared):
    """The commands of the measured results, here and in docs/, name options that exist and data that is there."""
    blocks = BLOCKS + re.findall(r"```(sh)\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)
    commands = [line for _, code in blocks if "../shared" in code for line in code.splitlines() if line.strip()]
    assert commands
    for line in commands:
        words = line.split("#")[0].split()
        assert words[0] == "cyclecontrast"
        done = subprocess.run(
            [sys.executable, "-m", "cyclecontrast", *words[1:], "--print-config"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        for word in words:
            if word.startswith("../shared"):
                assert (ROOT / word).exists(), word


def test_the_tree_is_the_sources():
    """Every source file has its line in the README's tree, and no line is about a file that is gone."""
    source = ROOT / "src" / "cyclecontrast"
    if not source.is_dir():
        pytest.skip("the source is not beside the tests")
    named = set(re.findall(r"^ *([a-z0-9_/]+\.(?:py|html))  ", README, re.MULTILINE))
    there = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.suffix in (".py", ".html") and (path.name != "__init__.py" or path.parent == source)
    }
    assert named == there


def test_links_lead_somewhere():
    """Every relative link of the README is a file of the project."""
    for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
