"""Lists in text files that people wrote: each line with its place, and all mistakes reported at once."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.data.storage import read_regular, reason
from cyclecontrast.errors import UserError, attempt

MAX_LISTED = 10
MAX_BYTES = 2**28
MAX_LENGTH = 1_000
MAX_DIGITS = 18


class Line(NamedTuple):
    """A line without surrounding white space, and its place as `<file>:<number>`."""

    where: str
    text: str


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text of a file; `errors` is how bytes that are not UTF-8 are decoded. Raises UserError."""
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {reason(error)}") from error


def read_lines(path: Path, problems: list[str]) -> list[Line]:
    """Return the lines that are not blank; a file that cannot be read adds to `problems`."""
    text = attempt(lambda: read_text(path), problems) or ""
    lines = (Line(f"{path}:{number}", line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return without_long_lines((line for line in lines if line.text), problems)


def without_long_lines(lines: Iterable[Line], problems: list[str]) -> list[Line]:
    """Return the lines of a plausible length; each longer one adds to `problems`."""
    found = []
    for line in lines:
        if len(line.text) <= MAX_LENGTH:
            found.append(line)
        else:
            problems.append(f"{line.where}: is {len(line.text):,} characters long, too long for a list; left out")
    return found


def leads_out(name: str) -> bool:
    """Whether a listed path would leave the folder it is relative to."""
    return name.startswith("/") or ".." in name.split("/")


def whole_number(text: str) -> int | None:
    """Return the number that a few ASCII digits are, None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def raise_problems(problems: Sequence[str]) -> None:
    """Raise UserError where there are problems: the first ten, and how many more there are."""
    if problems:
        more = len(problems) - MAX_LISTED
        raise UserError(*problems[:MAX_LISTED], *([f"... and {more} more"] if more > 0 else []))
