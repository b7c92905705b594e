"""The command `runs compare`: in what runs differ, and what came of it; repetitions of a method have their mean."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cyclecontrast.config import CompareConfig
from cyclecontrast.reporting.results import ResultTable, summarize
from cyclecontrast.reporting.runs import RunReport, read_runs
from cyclecontrast.runs.text_table import text_table

OF_A_FOLDER = frozenset({"out", "resume"})
"""Settings that differ in all runs."""
NOTHING = "–"


class Line(NamedTuple):
    """A row of a table, with a cell for each of its columns."""

    name: str
    cells: tuple[str, ...]


class Comparison(NamedTuple):
    """Runs side by side, those of one method beside each other.

    `settings` has a cell for each run, `values` also for the mean of each method that has several. `results` are as
    the report has them: a variant of a protocol on one data set each, never mixed.
    """

    runs: tuple[RunReport, ...]
    columns: tuple[str, ...]
    settings: tuple[Line, ...]
    values: tuple[Line, ...]
    results: ResultTable | None

    def __str__(self) -> str:
        names = [run.name for run in self.runs]
        parts = [_table("setting", names, self.settings)] if self.settings else ["the settings are the same"]
        parts.append(_table("last value", self.columns, self.values))
        if self.results is not None:
            columns = [row.name for row in self.results.rows]
            parts.append(_table("result", columns, tuple(_result_lines(self.results))))
        return "\n\n".join(parts)


class _Group(NamedTuple):
    """The runs of one method, which differ in their seed only."""

    runs: tuple[RunReport, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        mean = (f"mean of {len(self.runs)} seeds",) if len(self.runs) > 1 else ()
        return (*(run.name for run in self.runs), *mean)

    def cells(self, text_of: Callable[[RunReport], str], mean_of: Callable[[Sequence[RunReport]], str]) -> list[str]:
        mean = [mean_of(self.runs)] if len(self.runs) > 1 else []
        return [*map(text_of, self.runs), *mean]


def compare_runs(config: CompareConfig) -> Comparison:
    """Read runs and set them side by side; raises UserError where one is none, or where a file of it is damaged."""
    read = read_runs(config.runs, with_frames=False)
    groups = [
        _Group(tuple(run for run in read if run.method == method))
        for method in dict.fromkeys(run.method for run in read)
    ]
    runs = tuple(run for group in groups for run in group.runs)
    columns = tuple(column for group in groups for column in group.columns)
    settings = tuple(_differences([_facts(run) for run in runs]))
    return Comparison(runs, columns, settings, tuple(_values(groups)), summarize(runs, range(len(runs))))


def _facts(run: RunReport) -> dict[str, str]:
    """Return what a run was made with: settings, then content of the data, hardware and versions."""
    settings = run.config.model_dump(mode="json", exclude=set(OF_A_FOLDER))
    about = {"content of data": run.about.get("data_fingerprint"), "ran on": run.about["device"]}
    versions = {f"version of {name}": version for name, version in run.about["versions"].items()}
    return {name: _shown(value) for name, value in (settings | about | versions).items()}


def _differences(facts: Sequence[Mapping[str, str]]) -> Iterator[Line]:
    for name in dict.fromkeys(name for one in facts for name in one):
        cells = tuple(one.get(name, NOTHING) for one in facts)
        if len(set(cells)) > 1:
            yield Line(name, cells)


def _values(groups: Sequence[_Group]) -> Iterator[Line]:
    """Yield verdict and progress, then each loss and signal of health with the last value that was measured."""

    def line(name: str, text_of: Callable[[RunReport], str], mean_of: Callable[[Sequence[RunReport]], str]) -> Line:
        return Line(name, tuple(cell for group in groups for cell in group.cells(text_of, mean_of)))

    yield line("status", _status, lambda runs: _counted(map(_status, runs)))
    yield line("steps", lambda run: f"{run.steps_done}/{run.about['num_steps']}", lambda runs: "")
    yield line("verdict", _verdict, lambda runs: _counted(map(_verdict, runs)))
    rows = [row for group in groups for run in group.runs for row in run.metrics]
    for name in dict.fromkeys(name for row in rows for name in row if _is_shown(name)):
        yield line(name, lambda run, name=name: _number(_last(run, name)), lambda runs, name=name: _mean(runs, name))  # type: ignore[misc]


def _is_shown(name: str) -> bool:
    return name.endswith("loss") or name.startswith("health_") or name in ("intra_accuracy", "cycle_closed")


def _status(run: RunReport) -> str:
    return str(run.about.get("status", NOTHING)).partition(":")[0]


def _verdict(run: RunReport) -> str:
    return NOTHING if run.verdict is None else run.verdict.word


def _counted(words: Iterator[str]) -> str:
    return ", ".join(f"{number} {word}" for word, number in Counter(words).items())


def _last(run: RunReport, name: str) -> float | None:
    return next((row[name] for row in reversed(run.metrics) if row.get(name) is not None), None)


def _mean(runs: Sequence[RunReport], name: str) -> str:
    values = [value for run in runs if (value := _last(run, name)) is not None]
    if not values:
        return NOTHING
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{_number(statistics.mean(values))}{spread}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def _shown(value: Any) -> str:
    if value is None:
        return NOTHING
    return " ".join(map(str, value)) or NOTHING if isinstance(value, list) else str(value)


def _result_lines(table: ResultTable) -> Iterator[Line]:
    for number, column in enumerate(table.columns):
        cells = (row.cells[number] for row in table.rows)
        name = f"{column.tag} {column.metric}, {column.data}"
        yield Line(name, tuple(NOTHING if cell is None else cell.text for cell in cells))


def _table(head: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    return text_table((head, *columns), [(line.name, *line.cells) for line in lines])
