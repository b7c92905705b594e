"""Output is whole or absent, and a folder has one writer."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from cyclecontrast.errors import UserError
from cyclecontrast.files import locked, replacing

HOLD = """
import os, sys, time
from pathlib import Path
from cyclecontrast.files import locked, replacing
with locked(Path(sys.argv[1]), "out"):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process with a forked worker that holds the lock on tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(worker, signal.SIGKILL)


def test_a_second_writer_is_refused_and_told_who_the_first_is(holder, tmp_path):
    """A folder that another process writes to is refused with that process's number."""
    with pytest.raises(UserError, match=rf"out: .* in use by process {holder.pid} on"), locked(tmp_path, "out"):
        pytest.fail("two writers")


def test_a_killed_owner_leaves_no_lock(holder, tmp_path):
    """The lock of a process killed by kill -9 is gone at once, though a worker forked by it still lives."""
    holder.kill()
    holder.wait()
    with locked(tmp_path, "out"):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_full_disk_names_the_file(tmp_path):
    """What the system says of a write without naming the file names it, and the old file stays."""
    (tmp_path / "kept").write_text("old")
    with pytest.raises(OSError, match="No space left") as error, replacing(tmp_path / "kept"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == tmp_path / "kept"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
