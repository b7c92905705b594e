"""What a person sees of a training while it runs: announcements, the bar, and where the time goes."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cyclecontrast.data.pairs import Batch

console = Console(stderr=True, highlight=False, soft_wrap=True)

Row = dict[str, Any]


@dataclass
class Clock:
    """Views and waiting time since the last line of metrics."""

    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, counting them and the time until each is there."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - began
            self.images += (2 + len(batch.more)) * len(batch.video)
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the throughput what is done within."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def lap(self) -> Row:
        """Return throughput and the part of the time spent waiting for data, and begin anew."""
        now = time.perf_counter()
        row = {
            "images_per_second": self.images / (now - self.since),
            "data_wait": self.waited / (now - self.since),
        }
        self.images, self.waited, self.since = 0, 0.0, now
        return row


@contextlib.contextmanager
def progress_bar(total: int, done: int, shown: bool) -> Iterator[Callable[[Row], None]]:
    """Yield a function that takes the last metrics and moves the bar by one step; nothing shows off a terminal."""
    columns = (
        TextColumn("pretrain"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task("pretrain", total=total, completed=done, told="")
        yield lambda row: progress.update(task, advance=1, told=_tell(row))


def _tell(row: Row) -> str:
    if "step" not in row:
        return ""
    told = f"loss {row['loss']:.2f} "
    if row["intra_loss"] is not None:
        told += f"intra {row['intra_loss']:.2f} "
    if row["cycle_loss"] is not None:
        told += f"cycle {row['cycle_loss']:.2f} closed {row['cycle_closed']:.0%} "
    if row.get("health_same_video") is not None:
        told += f"same video {row['health_same_video']:.0%} rank {row['health_rank']:.0f} "
    return told + f"{row['images_per_second']:.0f} images/s data_wait {row['data_wait']:.0%}"
