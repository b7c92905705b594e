"""What the project takes from others, what it tells them, and the wheel that it gives them."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import make_videos as make

ROOT = Path(__file__).parents[2]
WATCH = """
import os, sys
NAMES = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
ADDRESSES = {"socket.connect", "socket.sendto", "socket.sendmsg"}
def watch(event, arguments):
    if event in NAMES or event in ADDRESSES and isinstance(arguments[1], tuple):
        with open(os.environ["CALLS"], "a") as file:
            print(event, *arguments, file=file)
        raise OSError("no network here")
sys.addaudithook(watch)
"""
"""Every Python runs it at its start. The address of a network is a tuple; a path stays on the machine."""
COMMANDS = (
    "pretrain videos --out run --steps 2 --backbone timm:resnet10t --image-size 32 --batch-size 4 --queue-size 16 "
    "--cycle-queue-size 16 --support-size 4 --workers 0",
    "evaluate knn run labeled --k 1 --workers 0",
    "export run --out backbone.safetensors",
)
"""Commands with a network of timm, which could ask for weights; test_docs.py watches the others."""
RUN_ALL = "import sys; from cyclecontrast.cli import main; sys.exit(any(main(c.split()) for c in sys.argv[1:]))"


def versions(lines, operator):
    """Return {(name, version)} of the requirements that have the operator."""
    requirements = [Requirement(line) for line in lines]
    return {
        (canonicalize_name(requirement.name), Version(specifier.version))
        for requirement in requirements
        for specifier in requirement.specifier
        if specifier.operator == operator
    }


def test_the_minimal_leg_pins_every_lower_bound():
    """constraints-minimal.txt has the lower bound of every dependency, and nothing else."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    asked = [*settings["build-system"]["requires"], *project["dependencies"]]
    asked += [line for extra in project["optional-dependencies"].values() for line in extra]
    asked = [line for line in asked if Requirement(line).name != project["name"]]
    pinned = [line for line in (ROOT / "constraints-minimal.txt").read_text().splitlines() if line[0] != "#"]
    assert versions(pinned, "==") == versions(asked, ">=")
    assert len(pinned) == len({Requirement(line).name for line in asked})


@pytest.fixture
def watched(tmp_path):
    """Return a function that runs Python code with the network watched, and returns the calls that it tried."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    calls = tmp_path / "calls.txt"

    def run(code, *arguments):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TIMM_"))}
        environment |= {"PYTHONPATH": str(tmp_path / "watch"), "CALLS": str(calls)}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_no_command_calls_home(watched, tmp_path):
    """With a network of timm, no command from videos to the report asks for a name or an address on a network."""
    (tmp_path / "videos").mkdir()
    for number in range(3):
        make.write_numbered(tmp_path / "videos" / f"{number}.mp4", num_frames=12)
    for split in ("train", "val"):
        for label in (0, 200):
            folder = tmp_path / "labeled" / split / str(label)
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / "0.png"), np.full((40, 40, 3), label, np.uint8))
    done, calls = watched(RUN_ALL, *COMMANDS)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
    assert calls == []


@pytest.mark.parametrize(
    "code",
    [
        "import urllib.request; urllib.request.urlopen('http://localhost:9')",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
        "import socket; socket.gethostbyname('localhost')",
    ],
)
def test_the_watch_sees_a_call(watched, code):
    """What the test above rests on: each way to a network is seen, in a child of the watched process too."""
    done, calls = watched(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)")
    assert done.returncode != 0
    assert calls


def test_a_wheel_can_be_rebuilt_bit_by_bit(tmp_path):
    """Two builds give the same bytes, in other folders, from files of other times and rights."""
    wheels = []
    for number in range(2):
        folder = tmp_path / ("a" if number == 0 else "another/place")
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        for path in folder.rglob("*.py"):
            path.chmod((0o644, 0o600)[number])
            os.utime(path, (1e9 + 1e6 * number,) * 2)
        arguments = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "."]
        subprocess.run(arguments, cwd=folder, check=True, capture_output=True)
        wheels.append(next(folder.glob("*.whl")))
    assert wheels[0].name == wheels[1].name
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
