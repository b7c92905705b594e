"""What the benchmarks of speed share: work that takes turns on the same machine, and tables of its ratios."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

Work = Callable[[], float]
"""Does something once and returns what it cost."""
Costs = Mapping[str, Sequence[float]]
"""By name, what each turn cost."""


def parser_of(document: str | None, repetitions: int) -> argparse.ArgumentParser:
    """Return a parser with the option that all have."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=repetitions, help="turns that count")
    return parser


def timed(work: Callable[[], object]) -> Work:
    """Return the call as work that costs seconds."""

    def seconds() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return seconds


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time one call, to its end on the device."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def take_turns(works: Mapping[str, Work], repetitions: int) -> Costs:
    """Return the costs turn by turn; a first turn, which warms up, does not count."""
    costs: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions + 1):
        for name, work in works.items():
            costs[name].append(work())
    return {name: each[1:] for name, each in costs.items()}


def ratio(costs: Costs, above: str, below: str) -> str:
    """Return the median ratio within a turn, for what slows the machine slows both, and behind it its range."""
    each = [a / b for a, b in zip(costs[above], costs[below], strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table; all columns but the first are numbers. A row is printed once it is there."""
    for cells in (columns, ["---", *["---:"] * (len(columns) - 1)]):
        print(f"| {' | '.join(cells)} |")
    for cells in rows:
        print(f"| {' | '.join(cells)} |", flush=True)
