"""Results of evaluations as tables: a row per model, a column per protocol variant, metric and dataset."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.reporting.runs import RunReport, first_of_each, start_name

RANDOM = "random weights"


class Column(NamedTuple):
    """Values that may be compared: one variant of a protocol on one dataset by one metric."""

    tag: str
    metric: str
    data: str
    fingerprint: str


class Cell(NamedTuple):
    """A value as text and as a fraction for its bar; the best of its column is marked."""

    text: str
    fraction: float
    is_best: bool


class Row(NamedTuple):
    """One model, or the mean over the seeds of a method; a cell is None if nothing was measured."""

    name: str
    detail: str
    color: int | None
    is_mean: bool
    cells: tuple[Cell | None, ...]


class ResultTable(NamedTuple):
    """A table for the page or the terminal."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


class _Model(NamedTuple):
    """The head of a row; models of one `group` differ only in their seed."""

    name: str
    detail: str
    color: int | None
    group: str
    seed: int | None = None


def summarize(runs: Sequence[RunReport], colors: Sequence[int]) -> ResultTable | None:
    """Return the first metric of every protocol variant and dataset side by side; None without any result."""
    measured = _measured(runs, colors)
    if not measured:
        return None
    table = _table("Accuracy and other metrics by model", measured, num_metrics=1)
    firsts = ((model.name, result, next(iter(result.metrics))) for model, result in measured)
    differences = (
        f"{name}, {result.tag} {metric} on {Path(result.about.data.path).name}: {difference}"
        for name, result, metric in firsts
        if (difference := result.difference(metric))
    )
    return table._replace(notes=tuple(differences))


def list_all(runs: Sequence[RunReport], colors: Sequence[int]) -> list[ResultTable]:
    """Return one table with all metrics for each protocol variant and dataset."""
    groups: dict[tuple[str, str], list[tuple[_Model, Result]]] = {}
    for model, result in _measured(runs, colors):
        groups.setdefault((result.tag, result.about.data.fingerprint), []).append((model, result))
    tables = []
    for group in groups.values():
        about = group[0][1].about
        caption = f"{about.tag} on {about.data.path}, {about.data.num_train:,} train and {about.data.num_test:,} test"
        notes = []
        for model, about in ((model, result.about) for model, result in group):
            notes += [f"{model.name}: {note}" for note in about.notes]
            if about.problems:
                lost = f"{len(about.problems)} items could not be used; {about.key}.json lists them"
                notes.append(f"{model.name}: {lost}")
        tables.append(_table(caption, group)._replace(notes=tuple(dict.fromkeys(notes))))
    return tables


def _measured(runs: Sequence[RunReport], colors: Sequence[int]) -> list[tuple[_Model, Result]]:
    """Return each result once with its model: baselines first, then the runs in their order.

    A run whose backbone equals that of another run has the results in its own folder.
    """
    found: dict[tuple[str, _Model], tuple[_Model, Result]] = {}
    colored = list(zip(runs, colors, strict=True))
    for run, color in colored:
        for result in run.results:
            model = _model_of(result, [(run, color), *colored])
            if result.metrics:
                found.setdefault((result.about.key, model), (model, result))
    order = {RANDOM: -2} | {run.name: number for number, run in enumerate(runs)}
    return sorted(found.values(), key=lambda pair: order.get(pair[0].name, -1))


def _model_of(result: Result, runs: Sequence[tuple[RunReport, int]]) -> _Model:
    info, config = result.about.model, result.about.config
    for run, color in runs:
        if run.fingerprint == info.fingerprint:
            return _Model(run.name, f"{info.name}, seed {run.config.seed}", color, run.method, run.config.seed)
    if info.source == RANDOM:
        seed = config.get("seed")
        return _Model(RANDOM, f"{info.name}, seed {seed}", None, f"{RANDOM} {info.name}", seed)
    starts = (start_name(run) for run, _ in runs if run.start == info.fingerprint)
    return _Model(next(starts, info.source), info.name, None, info.fingerprint)


def _table(caption: str, measured: list[tuple[_Model, Result]], num_metrics: int | None = None) -> ResultTable:
    """Make a table of the first metrics of each result, or of all."""
    values: dict[_Model, dict[Column, list[float]]] = {}
    for model, result in measured:
        data = result.about.data
        for metric in list(result.metrics)[:num_metrics]:
            column = Column(result.tag, metric, Path(data.path).name, data.fingerprint)
            values.setdefault(model, {}).setdefault(column, []).append(result.metrics[metric])
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    rows: list[Row] = []
    for group in dict.fromkeys(model.group for model in values):
        models = [model for model in values if model.group == group]
        for model in models:
            cells = (_cell(column, values[model], list(values.values())) for column in columns)
            rows.append(Row(model.name, model.detail, model.color, False, tuple(cells)))
        models = first_of_each(models, lambda model: model.seed)
        if len(models) > 1:
            means = tuple(_mean([value for model in models for value in values[model].get(c, [])]) for c in columns)
            rows.append(Row(f"mean of {len(models)} seeds", "± standard deviation", models[0].color, True, means))
    return ResultTable(caption, tuple(_distinct(columns)), tuple(rows), ())


def _cell(column: Column, row: dict[Column, list[float]], rows: list[dict[Column, list[float]]]) -> Cell | None:
    """Return a model's value, or all its values if it was evaluated with several settings that have one tag."""
    if column not in row:
        return None
    measured = [max(other[column]) for other in rows if column in other]
    is_best = len(measured) > 1 and max(row[column]) == max(measured)
    return Cell(" / ".join(map(_percent, row[column])), max(row[column]), is_best)


def _mean(values: list[float]) -> Cell | None:
    if not values:
        return None
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return Cell(_percent(statistics.mean(values)) + spread, statistics.mean(values), False)


def _distinct(columns: list[Column]) -> list[Column]:
    """Add the fingerprint to the names of datasets that share their folder's name."""
    contents: dict[str, set[str]] = {}
    for column in columns:
        contents.setdefault(column.data, set()).add(column.fingerprint)
    return [
        column._replace(data=f"{column.data} ({column.fingerprint[:6]})") if len(contents[column.data]) > 1 else column
        for column in columns
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
