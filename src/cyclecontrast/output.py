"""Text for a terminal and for Markdown. What a text contains, such as the name of a file, is shown as it is."""

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that break a line, control a terminal or reverse the direction of text, and lone surrogates."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters, except line breaks and tabs."""
MARKUP = re.compile(r"[\\`*\[\]<|~$]|&(?=[#\w]+;)|(?<![^\W_])_|_(?![^\W_])")
"""Characters with a meaning within a line of Markdown; an underscore between letters has none."""


def printable(text: str) -> str:
    """Return a text as one line, with unprintable characters escaped."""
    return UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)


def quoted(value: object) -> str:
    """Return a value as a word of a command that can be pasted into a shell."""
    return shlex.quote(str(value))


def join_lines(lines: Iterable[str]) -> str:
    """Return lines as one text; a line that contains a line break remains one line."""
    return "\n".join(map(printable, lines))


def say(*lines: str) -> None:
    """Print lines to stderr."""
    if lines:
        print(join_lines(lines), file=sys.stderr, flush=True)


def html_environment(**options: Any) -> "jinja2.Environment":
    """Return a jinja2 environment for pages, which escapes markup and control characters in every text."""
    import jinja2

    def finalize(value: object) -> object:
        return CONTROL.sub(lambda match: repr(match[0])[1:-1], value) if type(value) is str else value

    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
        **options,
    )


def markdown(text: str) -> str:
    """Return a text as one line of Markdown that shows this text."""
    return MARKUP.sub(r"\\\g<0>", printable(text))


def markdown_table(rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Return a table in Markdown. The cells are Markdown already; `align` has l or r for each column, default l."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_right = [side == "r" for side in align.ljust(len(columns), "l")]

    def line(cells: Iterable[str]) -> str:
        texts = zip(cells, widths, is_right, strict=True)
        return f"| {' | '.join(text.rjust(width) if right else text.ljust(width) for text, width, right in texts)} |"

    rules = (f"{'-' * (width + 1)}{':' if right else '-'}" for width, right in zip(widths, is_right, strict=True))
    head, *body = map(line, rows)
    return "\n".join((head, f"|{'|'.join(rules)}|", *body))
