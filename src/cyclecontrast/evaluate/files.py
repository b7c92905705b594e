"""Files that are either the old one or the whole new one, however the program ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cyclecontrast.errors import UserError


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
