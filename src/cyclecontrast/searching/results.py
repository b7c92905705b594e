"""The frames that a search found, as a table for people and as JSON for programs."""

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
from cyclecontrast.evaluation.metrics import Floats, Integers
from cyclecontrast.searching.index import FrameIndex

MAX_WIDTH = 4096
"""Columns of a table that goes to a file or a pipe: long ids are not broken there."""


class Hit(NamedTuple):
    """A frame that was found: its row in the index, its rank from 1, and its cosine similarity to the query.

    `time` is in seconds, None where the index does not know it.
    """

    row: int
    rank: int
    similarity: float
    video: str
    frame: int
    time: float | None

    @property
    def moment(self) -> str:
        """Its time in the video as h:mm:ss.s, or its frame number."""
        return moment(self.time, self.frame)


@dataclass(frozen=True)
class Results:
    """The frames most similar to a query, the most similar first; `str` of it is what the command prints."""

    query: str
    hits: tuple[Hit, ...]
    format: str = "table"
    page: Path | None = None

    def __str__(self) -> str:
        if self.format == "json":
            return json.dumps(self.plain(), ensure_ascii=True, indent=2)
        lines = [printable(f"most similar to {self.query}"), _table(self.hits) if self.hits else "no other frames"]
        return "\n".join([*lines, *([printable(f"page: {self.page}")] if self.page else [])])

    def plain(self) -> dict[str, Any]:
        """Return what was found as plain values, for JSON."""
        return {
            "query": self.query,
            "frames": [{name: value for name, value in hit._asdict().items() if name != "row"} for hit in self.hits],
        }


def make_hits(index: FrameIndex, rows: Integers, similarities: Floats) -> tuple[Hit, ...]:
    """Return the frames of rows, ranked in this order."""
    pairs = zip(rows.tolist(), similarities.tolist(), strict=True)
    return tuple(make_hit(index, row, rank, similarity) for rank, (row, similarity) in enumerate(pairs, start=1))


def make_hit(index: FrameIndex, row: int, rank: int = 0, similarity: float = 1.0) -> Hit:
    """Return the frame of a row; the query itself has rank 0 and similarity 1."""
    time = float(index.time[row])
    video = index.video_ids[index.video[row]]
    return Hit(row, rank, similarity, video, int(index.index[row]), None if math.isnan(time) else time)


def frame_name(index: FrameIndex, row: int) -> str:
    """Return such as `cats.mp4 at 0:01:02.5`."""
    hit = make_hit(index, row)
    return f"{hit.video} at {hit.moment}" if hit.time is not None else f"{hit.video}, {hit.moment}"


def moment(time: float | None, frame: int) -> str:
    """Return h:mm:ss.s, or the frame's index where its time is not known."""
    if time is None:
        return f"frame {frame}"
    tenths = round(10 * time)
    sign = "-" if tenths < 0 else ""
    minutes, tenths = divmod(abs(tenths), 600)
    return f"{sign}{minutes // 60}:{minutes % 60:02}:{tenths / 10:04.1f}"


def _table(hits: Sequence[Hit]) -> str:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("rank", "similarity", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("video", overflow="fold")
    for hit in hits:
        texts = (str(hit.rank), f"{hit.similarity:.3f}", hit.moment, printable(hit.video))
        table.add_row(*(Text(text) for text in texts))
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None where the caller closed it
    written = io.StringIO()
    Console(
        file=written, width=shutil.get_terminal_size().columns if is_terminal else MAX_WIDTH, color_system=None
    ).print(table)
    return "\n".join(line.rstrip() for line in written.getvalue().rstrip("\n").split("\n"))
