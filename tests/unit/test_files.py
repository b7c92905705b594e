"""Written files are whole or absent, and a folder has one writer."""

import contextlib
import errno
import os
import signal
import subprocess
import sys

import pytest

from cyclecontrast.config.types import absolute_model, is_model
from cyclecontrast.errors import UserError
from cyclecontrast.files import (
    LOCK_FILE,
    atomic_folder,
    atomic_write,
    check_folder,
    check_new_folder,
    check_new_run,
    locked,
    remove,
)

HOLD = """
import os, sys, time
from pathlib import Path
from cyclecontrast.files import locked
with locked(Path(sys.argv[1]), "out"):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that has a forked worker and holds the lock on tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(worker, signal.SIGKILL)


def test_a_folder_has_one_writer(holder, tmp_path):
    """A folder in use is refused with the number of the process; killed by kill -9, it leaves no lock.

    A worker that it forked still lives then.
    """
    with pytest.raises(UserError, match=rf"out: .* in use by process {holder.pid} on"), locked(tmp_path, "out"):
        pytest.fail("two writers")
    holder.kill()
    holder.wait()
    with locked(tmp_path, "out"):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert (tmp_path / LOCK_FILE).read_text() == ""


def test_replacing_leaves_the_old_file_or_the_new_one(tmp_path):
    """A block that fails leaves the old file and nothing else, one that succeeds the new file."""
    kept = tmp_path / "folder" / "kept"
    with atomic_write(kept) as temporary:
        temporary.write_text("old")
    with contextlib.suppress(ZeroDivisionError), atomic_write(kept) as temporary:
        temporary.write_text(f"new{1 / 0}")
    assert [path.read_text() for path in kept.parent.iterdir()] == ["old"]
    with atomic_write(kept) as temporary:
        temporary.write_text("new")
    assert [path.read_text() for path in kept.parent.iterdir()] == ["new"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    """The next writer in a folder removes what killed processes of its machine left, not what others still write."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom cyclecontrast.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as part:\n    part.touch()\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other [1]")], check=False)
    (killed,) = (path.name for path in tmp_path.iterdir())
    host, number = killed.removeprefix("other [1].").removesuffix(".part").rsplit(".", 1)
    (tmp_path / f"live.{host}.{os.getppid()}.part").touch()
    (tmp_path / f"elsewhere.other-{host}.{number}.part").touch()
    with atomic_write(tmp_path / "file") as part:
        part.touch()
    assert sorted(path.name.partition(".")[0] for path in tmp_path.iterdir()) == ["elsewhere", "file", "live"]


def test_a_full_disk_names_the_file(tmp_path):
    """An error of the system that names no file gets the name of the file."""
    with pytest.raises(OSError, match="No space left") as error, atomic_write(tmp_path / "kept"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == tmp_path / "kept"


def test_remove_spares_the_target_of_a_link(tmp_path):
    """Files, folders and links are removed, but not what a link leads to."""
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("folder", "link", "absent"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_folders_to_write_to_are_checked(tmp_path):
    """A file in the way and a folder that holds other files are refused; prepared frames may be in a new run."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file"):
        check_folder(tmp_path / "file" / "below")
    (tmp_path / "run" / "frames").mkdir(parents=True)
    (tmp_path / "run" / "config.toml.part").touch()
    check_new_run(tmp_path / "run")
    check_new_run(tmp_path / "new")
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"run is not empty; name another folder, or .*--resume"):
        check_new_run(tmp_path / "run")


def test_a_model_is_valid_in_any_folder(tmp_path, monkeypatch):
    """The path in a MODEL is made absolute, a name stays."""
    monkeypatch.chdir(tmp_path)
    for name in ("random:resnet18", "timm:resnet18"):
        assert absolute_model(name) == name
    assert absolute_model("a.pth") == f"{tmp_path}/a.pth"
    assert absolute_model("timm:vit_tiny@a.pth#teacher") == f"timm:vit_tiny@{tmp_path}/a.pth#teacher"


def test_models_are_files_or_known_names(tmp_path):
    """A MODEL is a path that exists, or a name that needs no file."""
    assert is_model(str(tmp_path))
    assert is_model("random:anything")
    assert is_model("timm:anything")
    assert not is_model("resnet18")


def test_a_folder_of_results_is_whole_or_absent(tmp_path):
    """An empty folder is filled; one that holds anything, or has no name of its own, is refused before work begins."""
    with contextlib.suppress(RuntimeError), atomic_folder(tmp_path / "new" / "out") as folder:
        (folder / "table.csv").touch()
        raise RuntimeError("no power")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    check_new_folder(tmp_path / "out")
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "table.csv").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table.csv"]
    for wrong in (tmp_path / "out", tmp_path / "out" / "table.csv", tmp_path / ".."):
        with pytest.raises(UserError, match="already exists; name another folder with --out"):
            check_new_folder(wrong)
    check_new_folder(tmp_path / "deep" / "er")
    assert not (tmp_path / "deep").exists()
    for target in ("empty", "absent"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / f"to-{target}").symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=f"to-{target} is a symbolic link; name the folder"):
            check_new_folder(tmp_path / f"to-{target}")
    with pytest.raises(UserError, match=r"^out: .* cannot be created .*; name another folder"):
        check_new_folder(tmp_path / ("x" * 300))
