"""Results of evaluations → tables: a row per model, a column per protocol variant and data set, never mixed."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.reporting.runs import RunReport

RANDOM = "random weights"


class Column(NamedTuple):
    """What may be compared with one another: one variant of a protocol, on one data set, by one metric."""

    tag: str
    metric: str
    data: str
    fingerprint: str


class Cell(NamedTuple):
    """A metric's value as text, as a fraction for its bar, and whether it is the best of its column."""

    text: str
    fraction: float
    is_best: bool


class Row(NamedTuple):
    """One model, or the mean of a method over its seeds; `cells` holds None where nothing was measured."""

    name: str
    detail: str
    color: int | None
    is_mean: bool
    cells: tuple[Cell | None, ...]


class ResultTable(NamedTuple):
    """What a table shows; a data set is named by its folder, and also by its content where folders have one name."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


class _Model(NamedTuple):
    """A row before its cells are known; models of one `group` differ in their seed only."""

    name: str
    detail: str
    color: int | None
    group: str


class _Measured(NamedTuple):
    model: _Model
    result: Result


Values = dict[_Model, dict[Column, list[float]]]


def summarize(runs: Sequence[RunReport], colors: Sequence[int]) -> ResultTable | None:
    """Return the first metric of every variant and data set, side by side; None where nothing was evaluated."""
    measured = _measured(runs, colors)
    if not measured:
        return None
    values: Values = {}
    for model, result in measured:
        metric = next(iter(result.metrics))
        _add(values, model, _column(result, metric), result.metrics[metric])
    return _table("Accuracy and other metrics by model", values, ())


def list_all(runs: Sequence[RunReport], colors: Sequence[int]) -> list[ResultTable]:
    """Return one table with all metrics for each variant and data set."""
    groups: dict[tuple[str, str], list[_Measured]] = {}
    for one in _measured(runs, colors):
        groups.setdefault((one.result.tag, one.result.about.data.fingerprint), []).append(one)
    return [_full_table(group) for group in groups.values()]


def _full_table(group: list[_Measured]) -> ResultTable:
    data = group[0].result.about.data
    caption = f"{group[0].result.tag} on {data.path}, {data.num_train:,} train and {data.num_test:,} test"
    values: Values = {}
    for model, result in group:
        for metric, value in result.metrics.items():
            _add(values, model, _column(result, metric), value)
    notes = dict.fromkeys(f"{model.name}: {note}" for model, result in group for note in _notes(result))
    return _table(caption, values, tuple(notes))


def _notes(result: Result) -> tuple[str, ...]:
    about = result.about
    left_out = (f"{len(about.problems)} items left out, named in {about.key}.json",) if about.problems else ()
    return about.notes + left_out


def _measured(runs: Sequence[RunReport], colors: Sequence[int]) -> list[_Measured]:
    """Return each result once, with its model; baselines come first, then the runs in their order."""
    found: dict[tuple[str, str], _Measured] = {}
    for run in runs:
        for result in (result for result in run.results if result.metrics):
            key = (result.about.key, result.about.model.fingerprint)
            found.setdefault(key, _Measured(_model(result, runs, colors), result))
    order = {run.name: number for number, run in enumerate(runs)}
    return sorted(
        found.values(), key=lambda one: order.get(one.model.name, -1 if one.model.color is None else len(runs))
    )


def _model(result: Result, runs: Sequence[RunReport], colors: Sequence[int]) -> _Model:
    info, config = result.about.model, result.about.config
    for run, color in zip(runs, colors, strict=True):
        if run.trained.fingerprint == info.fingerprint:
            return _Model(run.name, f"{info.name}, seed {run.config.seed}", color, run.method)
    if info.source == RANDOM:
        return _Model(RANDOM, f"{info.name}, seed {config.get('seed')}", None, f"{RANDOM} {info.name}")
    return _Model(info.source, info.name, None, info.fingerprint)


def _column(result: Result, metric: str) -> Column:
    data = result.about.data
    return Column(result.tag, metric, Path(data.path).name, data.fingerprint)


def _add(values: Values, model: _Model, column: Column, value: float) -> None:
    values.setdefault(model, {}).setdefault(column, []).append(value)


def _table(caption: str, values: Values, notes: tuple[str, ...]) -> ResultTable:
    columns = tuple(dict.fromkeys(column for cells in values.values() for column in cells))
    best = {column: _best(values, column) for column in columns}
    rows: list[Row] = []
    for group in dict.fromkeys(model.group for model in values):
        members = {model: cells for model, cells in values.items() if model.group == group}
        rows += [_row(model, cells, columns, best) for model, cells in members.items()]
        rows += [_mean_row(members, columns)] if len(members) > 1 else []
    return ResultTable(caption, _told_apart(columns), tuple(rows), notes)


def _told_apart(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    contents: dict[str, set[str]] = {}
    for column in columns:
        contents.setdefault(column.data, set()).add(column.fingerprint)
    return tuple(
        column._replace(data=f"{column.data} ({column.fingerprint[:6]})") if len(contents[column.data]) > 1 else column
        for column in columns
    )


def _best(values: Values, column: Column) -> float | None:
    """Return the highest value of a column, None where there is nothing to compare it with."""
    measured = [max(cells[column]) for cells in values.values() if column in cells]
    return max(measured) if len(measured) > 1 else None


def _row(
    model: _Model, cells: dict[Column, list[float]], columns: Iterable[Column], best: dict[Column, float | None]
) -> Row:
    made = (_cell(cells[column], best[column]) if column in cells else None for column in columns)
    return Row(model.name, model.detail, model.color, False, tuple(made))


def _cell(values: list[float], best: float | None) -> Cell:
    """Show one value, or all of them where a model was measured again with other settings."""
    return Cell(" / ".join(_percent(value) for value in values), max(values), max(values) == best)


def _mean_row(members: dict[_Model, dict[Column, list[float]]], columns: Iterable[Column]) -> Row:
    cells: list[Cell | None] = []
    for column in columns:
        values = [value for measured in members.values() for value in measured.get(column, [])]
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(
            Cell(_percent(statistics.mean(values)) + spread, statistics.mean(values), False) if values else None
        )
    first = next(iter(members))
    return Row(f"mean of {len(members)} seeds", "± standard deviation", first.color, True, tuple(cells))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
