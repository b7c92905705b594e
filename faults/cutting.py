"""What a power cut or a bad disk leaves: one of the newest files ends at any byte.

A power cut spares what was forced to the disk before it got its name; a bad disk does not.
"""

import os
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NEWEST = 5


class Cut(NamedTuple):
    """A file that was cut, and what it held before."""

    path: Path
    content: bytes

    def put_back(self) -> None:
        """Do what a user does with a copy of the file."""
        if self.path.parent.is_dir():
            self.path.write_bytes(self.content)


def cut_one(folder: Path, pattern: str, rng: random.Random) -> Cut | None:
    """Cut one of the newest files whose names match; return which, None where there is none."""
    paths = [path for path in folder.rglob(pattern) if path.is_file() and path.name != ".lock" and path.stat().st_size]
    newest = sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path))[-NEWEST:]
    if not newest:
        return None
    path = rng.choice(newest)
    content = path.read_bytes()
    os.truncate(path, rng.randrange(len(content)))
    return Cut(path, content)


def mend(said: str, cuts: Sequence[Cut]) -> list[Path]:
    """Put back the files that a message names, as it says where it says how; return them."""
    named = [cut for cut in cuts if str(cut.path) in said]
    for cut in named:
        copy = re.search(r"copy (\S+) over it", said)
        if copy and copy[1].endswith(cut.path.name):
            shutil.copyfile(copy[1], cut.path)
        else:
            cut.put_back()
    return [cut.path for cut in named]
