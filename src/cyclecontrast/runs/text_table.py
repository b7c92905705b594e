"""Columns of text: folded to the width of a terminal, and for anything else a line for each row, whole and plain."""

import io
import shutil
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cyclecontrast.errors import printable

ENDLESS = 10**6
"""Characters of a line that no table needs."""
NARROWEST, GAP = 5, 2
"""Characters of a column that can be read though its texts are folded, and between two columns."""


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, empty columns left out; what would break its lines or steer a terminal is written out.

    Where a terminal is too narrow for the columns, each row is a block with a line for each of its texts.
    """
    told = [number for number in range(len(head)) if any(row[number] for row in rows)]
    names = [printable(head[number]) for number in told]
    texts = [[printable(row[number]) for number in told] for row in rows]
    watched = sys.stdout is not None and sys.stdout.isatty()  # None where the caller closed it
    width = shutil.get_terminal_size().columns if watched else ENDLESS
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        for part in [_table(names, texts)] if width >= _narrowest(names, texts) else _blocks(names, texts):
            console.print(part, overflow="fold")
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _narrowest(names: Sequence[str], texts: Sequence[Sequence[str]]) -> int:
    columns = zip(names, *texts, strict=True)
    return sum(min(NARROWEST, max(map(len, column))) + GAP for column in columns)


def _table(names: Sequence[str], texts: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in texts:
        table.add_row(*map(Text, row))
    return table


def _blocks(names: Sequence[str], texts: Sequence[Sequence[str]]) -> Iterator[RenderableType]:
    for number, row in enumerate(texts):
        if number:
            yield ""
        yield from (Text(f"{name}: {text}" if name else text) for name, text in zip(names, row, strict=True) if text)
