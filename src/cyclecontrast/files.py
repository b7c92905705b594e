"""Atomic file writes, folder locks, and checks of paths."""

import contextlib
import fcntl
import functools
import glob
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cyclecontrast.errors import UserError
from cyclecontrast.output import quoted

LOCK_FILE = ".lock"
SECONDS_BETWEEN_TRIES = 0.1


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that atomically replaces `path` if the block succeeds."""
    with temporary_beside(path) as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder for a file or a folder, which is removed at the end.

    If the block fails, the folders that were created for it are removed too.
    """
    created = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be created ({error.strerror}); choose another folder") from error
    _remove_leftovers(path.parent.absolute())
    # The name contains host and process id, so that concurrent writers do not share it.
    temporary = path.with_name(f"{path.name}.{_host()}.{os.getpid()}.part")
    try:
        yield temporary
    except OSError as error:
        error.filename = error.filename or path  # missing if the disk is full
        raise
    finally:
        remove(temporary)
        for folder in created:
            with contextlib.suppress(OSError):  # not empty, as it is if the block succeeded
                folder.rmdir()


@functools.cache
def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes of this host that were killed, once per folder."""
    for leftover in folder.glob(f"*.{glob.escape(_host())}.*.part"):
        number = leftover.name.split(".")[-2]
        if number.isdecimal() and not _is_running(int(number)):
            remove(leftover)


@functools.cache
def _host() -> str:
    """Return a name for this machine, and for the container on it, where a process id means this process."""
    namespace = Path("/proc/self/ns/pid")
    return socket.gethostname()[:32] + (f"-{namespace.stat().st_ino}" if namespace.exists() else "")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file, a folder with its contents, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, name: str, file: str = LOCK_FILE, patience: float = 0) -> Iterator[None]:
    """Lock a folder against other processes. The operating system releases the lock when the process ends.

    `name` is the option to mention in errors, `patience` the time in seconds to wait for the lock. Raises UserError
    with the id of the process that holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, deadline = folder / file, time.monotonic() + patience
    # in a downloaded folder this could be a link to another file
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{name}: {path}: is a link or a device, not a lock file; remove it")
    with path.open("a+") as lock:
        while not _try_to_lock(lock, folder, name):
            if time.monotonic() >= deadline:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise UserError(f"{name}: {folder} is in use by {owner}; wait for it, stop it, or name another folder")
            time.sleep(SECONDS_BETWEEN_TRIES)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def _try_to_lock(lock: IO[str], folder: Path, name: str) -> bool:
    try:
        # Unlike flock, lockf is not inherited by worker processes, which survive a killed parent for seconds.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise UserError(
            f"{name}: {folder} cannot be locked ({error.strerror}); name a folder on another file system"
        ) from error
    return True


def check_new_run(folder: Path) -> None:
    """Raise UserError if a folder contains more than the prepared frames of a new run, or is not writable."""
    found = folder.iterdir() if folder.is_dir() else ()
    if any(path.name not in ("frames", LOCK_FILE) and path.suffix != ".part" for path in found):
        raise UserError(
            f"out: {folder} is not empty; name another folder, or continue its run with --resume {quoted(folder)}"
        )
    check_folder(folder)


def check_new_folder(folder: Path) -> None:
    """Raise UserError if the folder of a command's results exists and holds anything, or cannot be created."""
    try:
        if folder.is_symlink():  # which a folder cannot replace
            raise UserError(f"out: {folder} is a symbolic link; name the folder that it leads to, or another one")
        if folder.name in ("", "..") or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
            raise UserError(f"out: {folder} already exists; name another folder with --out, or remove it")
        check_folder(folder.absolute().parent)
        with temporary_beside(folder) as trial:  # /proc, for one, says that it is writable
            trial.mkdir()
    except OSError as error:
        raise UserError(f"out: {folder} cannot be created ({error.strerror}); name another folder") from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, which may be an empty folder, if the block succeeds."""
    with temporary_beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in (*temporary.iterdir(), temporary):  # not the thousands of images that some hold
            sync(file)
        temporary.replace(path)
    sync(path.parent)


def check_folder(folder: Path) -> None:
    """Raise UserError if a folder cannot be written to or created."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{existing}: is a file; name a folder to write to")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing}: is not writable; name another folder")
