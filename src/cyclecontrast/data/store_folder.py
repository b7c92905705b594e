"""The folder of a store: whether it may be one, the lock on it during a prepare, and its removal."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cyclecontrast.data.store_files import STORE_VERSION, read_settings, write_settings
from cyclecontrast.errors import UserError
from cyclecontrast.files import LOCK_FILE, check_folder, locked


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
    elif out.exists() and any(entry.name != LOCK_FILE and entry.suffix != ".part" for entry in out.iterdir()):
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
    """Makes and locks the store; gives the folders made for it, innermost first."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    with locked(out, "out"):
        # A process that has ended in the meantime may have made the store with other settings.
        check_store(out, settings)
        clear(out)
        if not (out / "store.json").exists():
            write_settings(out, settings)
        (out / "shards").mkdir(exist_ok=True)
        yield made


def clear(out: Path) -> None:
    """Removes what killed processes left half-written."""
    for leftover in (*out.glob("*.part"), *out.glob("shards/*.part")):
        leftover.unlink(missing_ok=True)


def take_back(out: Path, made: Sequence[Path]) -> None:
    """Removes a store and the folders made for it."""
    for name in ("store.json", "videos.parquet", "frames.parquet", LOCK_FILE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "shards")
    for folder in made:
        folder.rmdir()
