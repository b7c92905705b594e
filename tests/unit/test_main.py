"""The entry point: Ctrl-C ends quietly at any time, and a broken standard error stops no work."""

import os
import signal
import subprocess
import sys

import pytest

import cyclecontrast as cc


def run_python(*arguments, **options):
    """Run Python in another process."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options)


def test_the_package_is_a_program(tmp_path):
    """`python -m cyclecontrast` runs commands."""
    done = run_python("-m", "cyclecontrast", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cyclecontrast {cc.__version__}\n", "")


@pytest.mark.parametrize("during_import", [True, False])
def test_an_interrupt_ends_in_one_line(tmp_path, during_import):
    """Ctrl-C ends with exit code 130 and one line, also in the middle of an import, which an exception would break."""
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(10): pass\n"
    (tmp_path / "interrupted.py").write_text(kill)
    action = "import interrupted" if during_import else kill.replace("\n", ";").replace(";for", "\n    for")
    code = (
        "import sys, cyclecontrast.cli as cli\nfrom cyclecontrast.__main__ import run\n"
        f"def call():\n    {action}\n    print('not interrupted')\n"
        "cli.read = lambda arguments: call\nsys.exit(run())"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


ENDS = """
import os, signal, sys, time, cyclecontrast.cli as cli
from pathlib import Path
from cyclecontrast.__main__ import run
from cyclecontrast.files import atomic_write
def call():
    with atomic_write(Path("out")) as part:
        part.touch()
        try:
            os.kill(os.getpid(), NUMBER)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), NUMBER) if TWICE else None
            time.sleep(TWICE * 10)
cli.read = lambda arguments: call
sys.exit(run())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_leaves_nothing_half_written(tmp_path, number, twice):
    """A signal removes the file that is being written; another one meanwhile ends at once, without a traceback."""
    code = ENDS.replace("NUMBER", str(int(number))).replace("TWICE", str(twice))
    done = run_python("-c", code, cwd=tmp_path)
    said = "interrupted\n" if number == signal.SIGINT else "terminated\n"
    assert done.returncode == 128 + number
    assert done.stderr == ("" if twice and number == signal.SIGINT else said)
    assert len(list(tmp_path.iterdir())) == twice


def test_a_closed_standard_error_stops_nothing(tmp_path):
    """Messages to a closed pipe, or without any standard error, are dropped, and the exit code is as ever."""
    code = "import sys\nfrom cyclecontrast.__main__ import run\nsys.argv[1:] = ['nonsense']\nsys.exit(run())"
    reader, writer = os.pipe()
    os.close(reader)
    for redirection in ({"stderr": writer}, {"preexec_fn": lambda: os.close(2)}):
        done = subprocess.run([sys.executable, "-c", code], timeout=60, cwd=tmp_path, **redirection)
        assert done.returncode == 2
    os.close(writer)
