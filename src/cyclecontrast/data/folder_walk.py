"""The folders below a root, in an order that does not depend on the file system; what the files are is not asked."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class Folder(NamedTuple):
    """A folder and what lies in it besides folders; what is hidden by a dot is left out."""

    path: Path
    entries: list[os.DirEntry[str]]


def walk(root: Path, on_error: Callable[[Path, OSError], object]) -> Iterator[Folder]:
    """Yield each folder before its subfolders, these in natural order; links are followed, but no folder comes twice.

    So folders that link to one another cost no more than folders do. `on_error` is told of those that cannot be listed.
    """
    seen: set[str] = set()
    waiting = [(root, os.path.realpath(root))]
    while waiting:
        path, real = waiting.pop()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
        except OSError as error:
            on_error(path, error)
            continue
        folders = [entry for entry in entries if _is_folder(entry)]
        names = {entry.name for entry in folders}
        yield Folder(path, [entry for entry in entries if entry.name not in names])
        folders.sort(key=lambda entry: natural_order(entry.name), reverse=True)
        for folder in folders:
            # Only a link can lead to another place: to ask of every folder costs most of the time in deep trees.
            inside = os.path.realpath(folder.path) if folder.is_symlink() else os.path.join(real, folder.name)
            waiting.append((path / folder.name, inside))


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which frame_2 comes before frame_10; no two names are equal."""
    parts = re.split(r"([0-9]+)", name)
    key = ((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part)
    return (*key, (-1, 0, name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
