"""What was found, as a person reads it in a terminal, and as a program does."""

import io
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cyclecontrast.errors import printable
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.nearest import Nearest

WIDEST = 4096
"""Columns of what nobody looks at in a window: long ids are not broken there."""


class Hit(NamedTuple):
    """A frame that was found: its row in the index, its place among those found, and its cosine similarity.

    `time` is in seconds, None where the index does not tell.
    """

    row: int
    rank: int
    similarity: float
    video: str
    frame: int
    time: float | None

    @property
    def moment(self) -> str:
        """When in its video the frame is, as a person says it."""
        return moment(self.time, self.frame)


@dataclass(frozen=True)
class Results:
    """The frames most like a query, the most similar first; its text is what to print."""

    query: str
    hits: tuple[Hit, ...]
    format: str = "table"
    page: Path | None = None

    def __str__(self) -> str:
        if self.format == "json":
            return json.dumps(self.plain(), ensure_ascii=True, indent=2)
        lines = [printable(f"most like {self.query}"), _table(self.hits) if self.hits else "there are no other frames"]
        return "\n".join([*lines, *([printable(f"pictures: {self.page}")] if self.page else [])])

    def plain(self) -> dict[str, Any]:
        """Return what was found as JSON holds it."""
        return {
            "query": self.query,
            "frames": [{name: value for name, value in hit._asdict().items() if name != "row"} for hit in self.hits],
        }


def hits_of(index: FrameIndex, nearest: Nearest) -> tuple[Hit, ...]:
    """Name the frames of rows."""
    pairs = zip(nearest.rows.tolist(), nearest.similarities.tolist(), strict=True)
    return tuple(hit_of(index, row, rank, similarity) for rank, (row, similarity) in enumerate(pairs, start=1))


def hit_of(index: FrameIndex, row: int, rank: int = 0, similarity: float = 1.0) -> Hit:
    """Name the frame of a row."""
    time = float(index.time[row])
    video = index.video_ids[index.video[row]]
    return Hit(row, rank, similarity, video, int(index.index[row]), None if math.isnan(time) else time)


def name_of(index: FrameIndex, row: int) -> str:
    """Say which frame a row is."""
    hit = hit_of(index, row)
    return f"{hit.video} at {hit.moment}" if hit.time is not None else f"{hit.video}, {hit.moment}"


def moment(time: float | None, frame: int) -> str:
    """Return h:mm:ss.s, or the frame's index where its time is not known."""
    if time is None:
        return f"frame {frame}"
    tenths = round(10 * time)
    minutes, tenths = divmod(abs(tenths), 600)
    return f"{'-' if time < 0 and round(10 * time) else ''}{minutes // 60}:{minutes % 60:02}:{tenths / 10:04.1f}"


def _table(hits: Sequence[Hit]) -> str:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("rank", "similarity", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("video", overflow="fold")
    for hit in hits:
        texts = (str(hit.rank), f"{hit.similarity:.3f}", hit.moment, printable(hit.video))
        table.add_row(*(Text(text) for text in texts))
    watched = sys.stdout is not None and sys.stdout.isatty()  # None where the caller closed it
    width = shutil.get_terminal_size().columns if watched else WIDEST
    written = Console(file=io.StringIO(), width=width, color_system=None)
    written.print(table)
    text: str = written.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip("\n").split("\n"))
