"""Console output during training: messages on stderr, the progress bar, throughput."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cyclecontrast.data.dataset import Batch

console = Console(stderr=True, highlight=False, soft_wrap=True)

Row = dict[str, Any]


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


@contextlib.contextmanager
def progress_bar(total: int, done: int, shown: bool) -> Iterator[Callable[[Row], None]]:
    """Yield a function that advances the bar by a step and shows the given metrics.

    Hidden if stderr is not a terminal.
    """
    columns = (
        TextColumn("pretrain"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task("pretrain", total=total, completed=done, metrics="")
        yield lambda row: progress.update(task, advance=1, metrics=_in_words(row))


def _in_words(row: Row) -> str:
    if "step" not in row:
        return ""
    shown = (
        ("loss", "loss", ".2f"),
        ("intra_loss", "intra", ".2f"),
        ("cycle_loss", "cycle", ".2f"),
        ("cycle_closed", "closed", ".0%"),
        ("health_same_video", "same video", ".0%"),
        ("health_rank", "rank", ".0f"),
        ("images_per_second", "images/s", ".0f"),
        ("data_wait", "data wait", ".0%"),
    )
    return "  ".join(f"{word} {row[key]:{form}}" for key, word, form in shown if row.get(key) is not None)
