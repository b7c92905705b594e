"""Lists that people write into text files: each line with the place where it stands, and all mistakes at once."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.errors import UserError

MAX_LISTED = 10


class Line(NamedTuple):
    """A line without the white space around it, and `<file>:<number>`."""

    where: str
    text: str


def read_lines(path: Path, problems: list[str]) -> list[Line]:
    """Return the lines that are not blank; a file that is absent or no UTF-8 text adds to `problems`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"cannot be read as UTF-8 text ({error})"
        problems.append(f"{path}: {reason}")
        return []
    lines = zip(count(1), text.splitlines(), strict=False)
    return [Line(f"{path}:{number}", line.strip()) for number, line in lines if line.strip()]


def raise_problems(problems: Sequence[str]) -> None:
    """Raise UserError where there are problems: the first few, and how many more there are."""
    if problems:
        more = len(problems) - MAX_LISTED
        raise UserError(*problems[:MAX_LISTED], *([f"... and {more} more"] if more > 0 else []))
