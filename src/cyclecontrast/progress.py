"""Progress of long work on stderr: a bar in a terminal, elsewhere a line at least once a minute.

Lines are for logs and pipes, in which bars are unreadable and silence looks like a hang.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from cyclecontrast.output import printable, say

SECONDS = 60
"""Longest time between two lines, if items take less."""

T = TypeVar("T")


@dataclass
class _Times:
    """When the last line was printed, and when anything was last done, by any loop of this process."""

    line: float = -math.inf
    work: float = -math.inf


_times = _Times()


class ProgressLines:
    """Prints a line if a minute has passed since the last one, also since that of other loops: many may be short.

    `total` and `done` include the items of earlier loops of the same work.
    """

    def __init__(self, title: str, total: int | None = None, done: int = 0) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._began = time.monotonic()
        if self._began - _times.work > SECONDS:  # a minute of its own for new work
            _times.line = self._began
        _times.work = self._began

    def advance(self, details: str = "", items: int = 1) -> None:
        """Count items as done; the details end the line, if one is printed."""
        self._done += items
        now = _times.work = time.monotonic()
        if now - _times.line >= SECONDS and os.environ.get("RANK", "0") == "0":
            _times.line = now
            with contextlib.suppress(OSError):  # a full disk or a closed pipe must not end the work
                say("; ".join(filter(None, (f"{self._title}: {self._text(now - self._began)}", details))))

    def _text(self, passed: float) -> str:
        if self._total is None:
            return f"{self._done:,} done"
        left = passed * (self._total - self._done) / (self._done - self._first)
        return f"{self._done:,} of {self._total:,} done, about {timedelta(seconds=round(left))} left"


def with_progress(items: Iterable[T], title: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Yield the items, and show how far they are; `total` and `done` include the items of earlier loops."""
    console = Console(stderr=True)
    if console.is_terminal:
        title = escape(printable(title))
        yield from track(items, title, total, done, console=console, transient=True)
        return
    lines = ProgressLines(title, total, done)
    for item in items:
        yield item
        lines.advance()
