"""One input: valid data damaged as its number says, read as a user would, and what came of it."""

import os
import random
import shutil
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.errors import UserError
from fuzz.mutate import damage

LONGEST_LINE = 6_000
OUT_OF_MEMORY = ("Insufficient memory", "bad_alloc", "can't allocate memory", "realloc of size")
"""What OpenCV, C++, PyTorch and Arrow say."""
CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of characters that a line of text does not hold."""
FINE = ("accepted", "refused")


class Target(NamedTuple):
    """What is fuzzed: `make` writes valid data, a folder for each variant, and `read` reads one of them.

    `read` raises UserError for what it refuses, and AssertionError where it takes something that makes no sense.
    Hidden folders lie beside the variants; these and files named in `keep` stay whole.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    keep: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What came of an input: a kind of FINE, or the kind of a finding, where it happened, and all that is known."""

    kind: str
    place: str = ""
    text: str = ""

    @property
    def is_finding(self) -> bool:
        """Whether this may not happen."""
        return self.kind not in FINE


def variants(base: Path) -> list[Path]:
    """Return the folders that hold valid data."""
    return sorted(path for path in base.iterdir() if not path.name.startswith("."))


def try_input(target: Target, base: Path, case: Path, seed: int, number: int) -> Outcome:
    """Damage a variant of the data in the folder `case`, which is emptied before, and read it."""
    rng = random.Random(f"{seed} {target.name} {number}")
    variant = rng.choice(variants(base))
    shutil.rmtree(case, ignore_errors=True)
    folder = case / variant.name
    shutil.copytree(variant, folder)
    names = damage(folder, rng, target.keep)
    return read(target, folder, names)


def read(target: Target, folder: Path, names: list[str]) -> Outcome:
    """Read a folder of which these files are damaged."""
    try:
        target.read(folder)
    except UserError as error:
        return _refusal(error, folder, names)
    except AssertionError as error:
        return Outcome("nonsense", _where(error), traceback.format_exc())
    except MemoryError as error:
        return Outcome("memory", _where(error), traceback.format_exc())
    except Exception as error:
        return Outcome("exception", f"{type(error).__name__} {_where(error)}", traceback.format_exc())
    return Outcome("accepted")


def _refusal(error: UserError, folder: Path, names: list[str]) -> Outcome:
    """Judge a refusal: it is made of lines that can be read, one of which names a file or its folder."""
    told = "\n".join(map(repr, error.problems))
    there = {*(Path(name).name for name in names), *(path.name for path in folder.rglob("*.*"))}
    known = {str(folder), *(os.fsencode(name).decode(errors="backslashreplace") for name in there)}
    if not error.problems or not all(line.strip() for line in error.problems):
        flaw = "says nothing"
    elif any(unicodedata.category(sign) in CONTROL for line in error.problems for sign in line):
        flaw = "breaks the line, or commands the terminal"
    elif max(map(len, error.problems)) > LONGEST_LINE:
        flaw = "is too long"
    elif not any(name in line for line in error.problems for name in known):
        flaw = "names no file"
    elif any(words in told for words in OUT_OF_MEMORY):
        return Outcome("memory", _where(error), told)
    else:
        return Outcome("refused", text=told)
    return Outcome("unclear", f"{flaw}, {_where(error)}", told)


def _where(error: BaseException) -> str:
    """Return the innermost place in the package that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/cyclecontrast/" in frame.filename or "/fuzz/" in frame.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
