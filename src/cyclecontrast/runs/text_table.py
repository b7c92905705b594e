"""Columns of text: folded to the width of a terminal, and for anything else a line for each row, whole and plain."""

import io
import shutil
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cyclecontrast.errors import UNPRINTABLE

ENDLESS = 10**6
"""Characters of a line that no table needs."""


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, empty columns left out; what would break its lines or steer a terminal is written out."""
    told = [number for number in range(len(head)) if any(row[number] for row in rows)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number in told:
        table.add_column(_plain(head[number]), overflow="fold")
    for row in rows:
        table.add_row(*(_plain(row[number]) for number in told))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else ENDLESS
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _plain(text: str) -> Text:
    return Text(UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text))
