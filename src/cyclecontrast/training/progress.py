"""Console output during training: throughput, and how far it is, as a bar or as lines."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from cyclecontrast.data.dataset import Batch
from cyclecontrast.output import say
from cyclecontrast.progress import SECONDS, ProgressLines

console = Console(stderr=True, highlight=False, soft_wrap=True)

Row = dict[str, Any]
UNTIMED, MOST_STEPS, MOST_SECONDS = 2, 20, 10.0
"""Steps before the timed ones; timing ends after so many steps, or after so many seconds if two steps were timed."""


@dataclass
class Clock:
    """Measures throughput: number of views, and time spent waiting for data, since the last row of metrics."""

    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches; count their views and the time spent waiting for them."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - began
            self.images += len(batch.views) * len(batch.video)
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the block from the measured time."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def lap(self) -> Row:
        """Return views per second and the fraction of time spent waiting for data, and reset the counters."""
        now = time.perf_counter()
        row = {
            "images_per_second": self.images / (now - self.since),
            "data_wait": self.waited / (now - self.since),
        }
        self.images, self.waited, self.since = 0, 0.0, now
        return row


class _Bar(Progress):
    """A progress bar with a line of details below it."""

    details = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bar and its details."""
        yield from super().get_renderables()
        if self.details:
            yield Text(f"  {self.details}", style="dim", overflow="fold")


class StepTimer:
    """Times the first steps of a training, waiting for data included; the very first ones do not count."""

    def __init__(self) -> None:
        self._steps, self._began, self._now = 0, 0.0, 0.0

    def is_enough(self) -> bool:
        """Count a step; return whether enough steps were timed, which they stay."""
        self._steps, self._now = self._steps + 1, time.monotonic()
        if self._steps == UNTIMED:
            self._began = self._now
        timed = self._steps - UNTIMED
        return timed >= 2 and (self._steps >= MOST_STEPS or self._now - self._began > MOST_SECONDS)

    @property
    def seconds(self) -> float:
        """The seconds per step."""
        return (self._now - self._began) / max(1, self._steps - UNTIMED)


@contextlib.contextmanager
def show_progress(
    total: int, done: int, shown: bool, measuring: float = 0.0, is_free: bool = True
) -> Iterator[Callable[[Row], None]]:
    """Yield a function that counts a step as done and shows the given metrics.

    `measuring` is the time in seconds that the measurements of health will take; `is_free`: nobody
    has set how long it trains.

    In a terminal, a bar of at most 80 columns shows step, time left and one metric, with the others below. Elsewhere, a
    line at least once a minute shows all. Other lines say after some steps how long the training will take, and explain
    the rise of the loss where the cycle loss sets in.
    """
    columns = (
        TextColumn("pretrain"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metric]}"),
    )
    lines, before = ProgressLines("pretrain", total, done), 1.0
    remaining = total - done
    timer: StepTimer | None = StepTimer()
    with _Bar(*columns, console=console, disable=not (shown and sys.stderr.isatty())) as bar:
        task = bar.add_task("pretrain", total=total, completed=done, metric="")

        def advance(row: Row) -> None:
            nonlocal before, remaining, timer
            remaining -= 1
            if timer is not None and timer.is_enough():
                seconds = remaining * timer.seconds + measuring
                if shown and seconds > SECONDS:
                    say(f"time      {time_in_words(seconds, timer.seconds, is_free)}")
                timer = None
            first, *details = _in_words(row)
            weight = row.get("cycle_weight", before) or 0.0
            if before == 0 < weight and shown:
                say(f"step {row['step']:,}: the cycle loss is added from here on (λ = {weight:g}), so the loss rises")
            before = weight
            if not bar.disable:
                bar.details = "  ".join(details)
                bar.update(task, advance=1, metric=first)
            elif shown:
                lines.advance(", ".join([first, *details]))

        yield advance


def _in_words(row: Row) -> list[str]:
    """Return the metrics in words: first same-video retrieval, or the loss before it is measured."""
    shown = (
        ("health_same_video", "same video", ".0%"),
        ("loss", "loss", ".2f"),
        ("intra_loss", "intra", ".2f"),
        ("cycle_loss", "cycle", ".2f"),
        ("cycle_closed", "cycles closed", ".0%"),
        ("health_rank", "rank", ".0f"),
        ("images_per_second", "images/s", ".0f"),
        ("data_wait", "data wait", ".0%"),
    )
    words = [f"{word} {row[key]:{form}}" for key, word, form in shown if row.get(key) is not None]
    return words if "step" in row and words else [""]


def time_in_words(seconds: float, step: float, is_free: bool) -> str:
    """Return how long a training takes, and how to set that where nobody has."""
    return f"about {duration(seconds)} ({step:.2g} s per step)" + "; for N minutes: --minutes N" * is_free


def duration(seconds: float) -> str:
    """Return a time in words: `40 s`, `12 min` or `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
