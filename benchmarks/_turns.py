"""What the benchmarks of speed share: work that takes turns on the same machine, and the rows of what that gave."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

Work = Callable[[], float]
"""Does something once and returns what it cost."""
Costs = Mapping[str, Sequence[float]]
"""By name, what each turn cost."""
COLUMNS = ("name", "measured", "goal", "met", "spread")


class Row(NamedTuple):
    """A measurement: its name, which says the unit of what is no ratio, and its value in each turn."""

    name: str
    values: Sequence[float]
    goal: float | None = None
    better: str = "lower"
    """Than the goal, or than before: `lower` or `higher`."""

    @property
    def median(self) -> float:
        """Return the value of the middle turn."""
        return statistics.median(self.values)

    @property
    def cells(self) -> list[str]:
        """Return the cells below `COLUMNS`."""
        sign = "≤" if self.better == "lower" else "≥"
        is_met = self.goal is not None and (
            self.median <= self.goal if self.better == "lower" else self.median >= self.goal
        )
        judged = ["", ""] if self.goal is None else [f"{sign} {number(self.goal)}", "yes" if is_met else "**no**"]
        spread = f"{number(min(self.values))} to {number(max(self.values))}" if len(self.values) > 1 else ""
        return [self.name, number(self.median), *judged, spread]


def number(value: float) -> str:
    """Write a number with two decimals, or with three digits where it is small or large."""
    return (
        f"{value:.2f}" if 0.1 <= abs(value) < 100 or not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    )


def parser_of(document: str | None, repetitions: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all have."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=repetitions, help="turns that count")
    parser.add_argument("--rows", type=Path, help="a file to which every row is added as a line of JSON")
    return parser


def present(rows: Iterable[Row], asked: argparse.Namespace) -> None:
    """Print each row once it is there, and keep it in the file that `--rows` names."""

    def kept(row: Row) -> list[str]:
        if asked.rows is not None:
            with open(asked.rows, "a", encoding="utf-8") as file:
                file.write(json.dumps(row._asdict()) + "\n")
        return row.cells

    print_table(COLUMNS, map(kept, rows))


def timed(work: Callable[[], object]) -> Work:
    """Return the call as work that costs seconds."""

    def seconds() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return seconds


def take_turns(works: Mapping[str, Work], repetitions: int) -> Costs:
    """Return the costs turn by turn; a first turn, which warms up, does not count."""
    costs: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions + 1):
        for name, work in works.items():
            costs[name].append(work())
    return {name: each[1:] for name, each in costs.items()}


def ratios(costs: Costs, above: str, below: str) -> list[float]:
    """Return the ratio within each turn, for what slows the machine slows both."""
    return [a / b for a, b in zip(costs[above], costs[below], strict=True)]


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table; all columns but the first are numbers. A row is printed once it is there."""
    for cells in (columns, ["---", *["---:"] * (len(columns) - 1)]):
        print(f"| {' | '.join(cells)} |")
    for cells in rows:
        print(f"| {' | '.join(cells)} |", flush=True)
