"""Lists that people write into text files: each line with the place where it stands, and all mistakes at once."""

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.data.regular_files import read_regular
from cyclecontrast.errors import UserError, attempt

MAX_LISTED = 10
MAX_BYTES = 2**28
MAX_LENGTH = 1_000
MAX_DIGITS = 18


class Line(NamedTuple):
    """A line without the white space around it, and `<file>:<number>`."""

    where: str
    text: str


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text of a file; `errors` says what becomes of bytes that are none. Raises UserError."""
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def read_lines(path: Path, problems: list[str]) -> list[Line]:
    """Return the lines that are not blank; a file that is absent, or no UTF-8 text in lines, adds to `problems`."""
    text = attempt(lambda: read_text(path), problems) or ""
    lines = zip(count(1), map(str.strip, text.splitlines()), strict=False)
    return short_ones([Line(f"{path}:{number}", line) for number, line in lines if line], problems)


def short_ones(lines: Iterable[Line], problems: list[str]) -> list[Line]:
    """Return the lines without those that are longer than people write them; these add to `problems`."""
    found = []
    for line in lines:
        if len(line.text) <= MAX_LENGTH:
            found.append(line)
        else:
            problems.append(f"{line.where}: is {len(line.text):,} characters long, and no line of a list; left out")
    return found


def leads_out(name: str) -> bool:
    """Whether a list's path would leave the folder that it is below; what a list names is read from there alone."""
    return name.startswith("/") or ".." in name.split("/")


def whole_number(text: str) -> int | None:
    """Return the number that a few ASCII digits are, None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def raise_problems(problems: Sequence[str]) -> None:
    """Raise UserError where there are problems: the first few, and how many more there are."""
    if problems:
        more = len(problems) - MAX_LISTED
        raise UserError(*problems[:MAX_LISTED], *([f"... and {more} more"] if more > 0 else []))
