"""Output that is either the old file or the whole new one."""

import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cyclecontrast.errors import UserError

LOCK_FILE = ".lock"
PAUSE = 0.1


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; on the disk, it takes the place of `path` when the block ends well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror}); name another folder to write to") from error
    # The name is the process's own: one that outlives its parent, or is on another machine, meets no other's file.
    aside = path.with_name(f"{path.name}.{socket.gethostname()[:32]}.{os.getpid()}.part")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
    except OSError as error:
        error.filename = error.filename or path  # a full disk does not name the file
        raise
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, name: str, file: str = LOCK_FILE, patience: float = 0) -> Iterator[None]:
    """Keep other processes from writing to a folder; the lock goes with the process, however that ends.

    Raises UserError that names the owner where another process has it for so many seconds; `name` is the option that
    named the folder. A part of the work has a lock, and a `file`, of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, until = folder / file, time.monotonic() + patience
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{name}: {path}: is no lock but a link or a device, which may not be written to; remove it")
    with path.open("a+") as lock:
        while not _try_to_lock(lock, folder, name):
            if time.monotonic() >= until:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise UserError(f"{name}: {folder} is in use by {owner}; wait for it, stop it, or name another")
            time.sleep(PAUSE)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def _try_to_lock(lock: IO[str], folder: Path, name: str) -> bool:
    try:
        # Unlike flock's, this lock is not shared with workers, who outlive a killed parent for some seconds.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        problem = f"{name}: {folder} cannot be locked ({error.strerror}); name a folder on another file system"
        raise UserError(problem) from error
    return True


def check_new_run(folder: Path) -> None:
    """Raise UserError where a run's folder already holds something besides the frames prepared for it."""
    if folder.is_dir() and any(not _is_left_over(path) for path in folder.iterdir()):
        raise UserError(f"out: {folder} is not empty; name another folder, or go on with --resume {folder}")
    check_folder(folder)


def _is_left_over(path: Path) -> bool:
    return path.name in ("frames", LOCK_FILE) or path.suffix == ".part"


def check_folder(folder: Path) -> None:
    """Raise UserError where this folder neither is one that can be written to nor can be made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{existing}: is a file; name a folder to write to")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing}: may not be written to; name another folder")


def is_model(name: str) -> bool:
    """Whether a MODEL is there: a file or folder, or a name that needs none."""
    return name.startswith(("random:", "timm:")) or Path(name).exists()
