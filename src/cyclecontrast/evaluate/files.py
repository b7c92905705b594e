"""Output that is either the old file or the whole new one, and checks before anything is made."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cyclecontrast.errors import UserError

T = TypeVar("T")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Raise UserError where this folder neither is one that can be written to nor can be made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{existing}: is a file; name a folder to write to")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing}: may not be written to; name another folder")


def attempt(action: Callable[[], T], problems: list[str]) -> T | None:
    """Return what the action returns; where it fails, add its lines to `problems`, so that all are told at once."""
    try:
        return action()
    except UserError as error:
        problems.extend(error.problems)
        return None
