"""The folder of a store: whether it may be one, the lock on it during a prepare, and its removal."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from cyclecontrast.data.store_files import STORE_VERSION, read_settings, write_settings
from cyclecontrast.errors import UserError
from cyclecontrast.files import LOCK_FILE, check_folder, locked

LONGEST_WAIT = 600.0
"""Seconds that one machine may take to plan or to join the work of all."""


def check_place(videos: Path, out: Path) -> None:
    """Raises UserError where the store would lie inside the folder of videos, or the other way round."""
    source, target = videos.resolve(), out.resolve()
    if source in (target, *target.parents):
        raise UserError(f"out: {out} lies inside the folder of videos {videos}; choose a place outside of it")
    if target in source.parents:
        raise UserError(f"out: {out} holds the folder of videos {videos}; choose a place of its own")


def check_store(out: Path, settings: Mapping[str, object]) -> None:
    """Raises UserError where the folder neither is a store of these settings nor can become one."""
    check_folder(out)
    if (out / "store.json").exists():
        _check_settings(out, settings)
    elif out.exists() and any(
        not entry.name.startswith(LOCK_FILE) and entry.suffix != ".part" for entry in out.iterdir()
    ):
        raise UserError(f"out: {out} has something else in it and is no frame store; name a new folder")


def _check_settings(out: Path, settings: Mapping[str, object]) -> None:
    stored = read_settings(out)
    if stored is None:
        raise UserError(
            f"out: {out}/store.json is not that of a frame store of version {STORE_VERSION}; name a new folder"
        )
    differences = [
        f"{name}: {_shown(stored.get(name))} in the store, {_shown(asked)} asked; {out} keeps its own"
        for name, asked in settings.items()
        if stored.get(name) != asked
    ]
    if differences:
        raise UserError(*differences)


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


@contextmanager
def locked_store(out: Path, settings: Mapping[str, object]) -> Iterator[list[Path]]:
    """Makes and locks the store, all parts of it; gives the folders made for it, innermost first."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    with ExitStack() as locks:
        locks.enter_context(locked(out, "out"))
        for lock in sorted(out.glob(f"{LOCK_FILE}-*")):
            locks.enter_context(locked(out, "out", lock.name))
        _make_store(out, settings)
        clear(out)
        yield made


@contextmanager
def locked_part(out: Path, settings: Mapping[str, object], part: str) -> Iterator[None]:
    """Makes the store and locks a part of it; the store itself is locked as `joined_parts` are."""
    with locked(out, "part", f"{LOCK_FILE}-{part.replace('/', '-of-')}"):
        with joined_parts(out):
            _make_store(out, settings)
        yield


def joined_parts(out: Path) -> AbstractContextManager[None]:
    """Locks what all parts of a store share, for a moment: others are waited for."""
    return locked(out, "out", patience=LONGEST_WAIT)


def _make_store(out: Path, settings: Mapping[str, object]) -> None:
    # A process that has ended in the meantime may have made the store with other settings.
    check_store(out, settings)
    if not (out / "store.json").exists():
        write_settings(out, settings)
    (out / "shards").mkdir(exist_ok=True)


def clear(out: Path) -> None:
    """Removes what killed processes left half-written, and the locks of parts; nobody else may be writing."""
    for leftover in (*out.glob("*.part"), *out.glob("shards/*.part"), *out.glob(f"{LOCK_FILE}-*")):
        leftover.unlink(missing_ok=True)


def take_back(out: Path, made: Sequence[Path]) -> None:
    """Removes a store and the folders made for it."""
    clear(out)
    for name in ("store.json", "videos.parquet", "frames.parquet", LOCK_FILE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "shards")
    for folder in made:
        folder.rmdir()
