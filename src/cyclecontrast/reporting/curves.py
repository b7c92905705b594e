"""Metrics of runs → charts: coordinates, axes and the numbers behind them, drawn by the template as SVG."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cyclecontrast.methods import METHODS
from cyclecontrast.reporting.quantities import QUANTITIES, Quantity
from cyclecontrast.reporting.runs import RunReport

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 12, 26
LINE = 13
"""Height of a line of text."""
MAX_POINTS = 100


class Point(NamedTuple):
    """A value of a metric, and the step of it."""

    step: float
    value: float


class Series(NamedTuple):
    """One run's values; `color` is the number of its method among the runs shown."""

    name: str
    color: int
    points: tuple[Point, ...]


class Tick(NamedTuple):
    """A mark on an axis: where, and what stands there."""

    at: float
    label: str


class Line(NamedTuple):
    """A series as an SVG path; of one point alone it is a dot."""

    color: int
    path: str
    is_dot: bool


class Chart(NamedTuple):
    """Everything that the template needs to draw one chart and to say it in words and numbers."""

    title: str
    meaning: str
    alt: str
    part: str
    lines: tuple[Line, ...]
    chances: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class _Axis(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def draw_charts(runs: Sequence[RunReport], colors: Sequence[int]) -> list[Chart]:
    """Draw every quantity that some run has measured."""
    drawn = (_draw(quantity, runs, colors) for quantity in (*QUANTITIES, *_own_terms(runs)))
    return [chart for chart in drawn if chart is not None]


def _own_terms(runs: Sequence[RunReport]) -> list[Quantity]:
    """Return the terms that objectives of the user's own have named, in the order in which they were measured."""
    rows = (row for run in runs if run.config.method not in METHODS for row in run.metrics)
    keys = dict.fromkeys(key for row in rows for key in row if key.endswith("_loss"))
    known = {quantity.key for quantity in QUANTITIES}
    title = {key: key.replace("_", " ").capitalize() for key in keys if key not in known}
    return [Quantity(key, name, "A term of the user's own objective.") for key, name in title.items()]


def _draw(quantity: Quantity, runs: Sequence[RunReport], colors: Sequence[int]) -> Chart | None:
    all_series = [
        Series(run.name, color, points)
        for run, color in zip(runs, colors, strict=True)
        if quantity.is_of(run) and (points := tuple(_thinned(_points(run, quantity.key))))
    ]
    if not all_series:
        return None
    shown = {series.name for series in all_series}
    guessed = {quantity.chance(run) for run in runs if run.name in shown} if quantity.chance else set()
    chances = sorted(value for value in guessed if value is not None)
    x, y = _axes(all_series, chances, quantity)
    lines = tuple(Line(series.color, _path(series.points, x, y), len(series.points) == 1) for series in all_series)
    return Chart(
        quantity.title,
        quantity.meaning,
        _in_words(quantity, all_series, chances),
        quantity.part,
        lines,
        tuple(Tick(y.at(value), label) for value, label in _apart(chances, y, quantity)),
        tuple(Tick(x.at(value), f"{value:,.0f}") for value in _ticks(x.low, x.high, 4) if value == round(value)),
        tuple(Tick(y.at(value), _axis_text(value, quantity)) for value in _ticks(y.low, y.high, 4)),
        ("step", *(series.name for series in all_series)),
        tuple(_rows(quantity, all_series)),
    )


def _apart(chances: list[float], y: _Axis, quantity: Quantity) -> Iterator[tuple[float, str]]:
    """Yield the values of guessing, each with its label; one too near to the last that has a label gets none."""
    last = math.inf
    for value in chances:
        is_free = abs(y.at(value) - last) >= LINE
        last = y.at(value) if is_free else last
        yield value, f"chance {_text(value, quantity)}" if is_free else ""


def _points(run: RunReport, key: str) -> list[Point]:
    """Return what was measured in the steps, and before it, where it is known, the value before the first."""
    points = [Point(row["step"], row[key]) for row in run.metrics if row.get(key) is not None]
    at_start = run.health.get("at_start", {}).get(key)
    return points if at_start is None or not points else [Point(0, at_start), *points]


def _thinned(points: list[Point]) -> Iterator[Point]:
    """Average neighboring points where there are more than can be told apart; the step is the last one's."""
    size = math.ceil(len(points) / MAX_POINTS)
    for start in range(0, len(points), max(1, size)):
        group = points[start : start + size]
        yield Point(group[-1].step, sum(point.value for point in group) / len(group))


def _axes(all_series: list[Series], chances: list[float], quantity: Quantity) -> tuple[_Axis, _Axis]:
    steps = [point.step for series in all_series for point in series.points]
    values = [point.value for series in all_series for point in series.points] + chances
    low, high = min(values), max(values)
    if low >= 0 and (quantity.chance is None or quantity.percent):
        low = 0.0
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low = low - margin if low != 0 else low
    return _Axis(0, max(steps), LEFT, WIDTH - RIGHT), _Axis(low, high + margin, HEIGHT - BOTTOM, TOP)


def _path(points: tuple[Point, ...], x: _Axis, y: _Axis) -> str:
    places = [f"{x.at(point.step)} {y.at(point.value)}" for point in points]
    return f"M{'L'.join(places if len(places) > 1 else places * 2)}"


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers between low and high, some `about` of them."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    width = next(width for factor in (1, 2, 2.5, 5, 10) if (width := factor * power) >= rough * 0.999)
    return [number * width for number in range(math.ceil(low / width - 1e-9), math.floor(high / width + 1e-9) + 1)]


def _text(value: float, quantity: Quantity) -> str:
    if quantity.percent:
        return f"{100 * value:.1f} %" if value >= 0.0005 or value == 0 else "< 0.1 %"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _axis_text(value: float, quantity: Quantity) -> str:
    return f"{100 * value:g} %" if quantity.percent else f"{round(value, 10):g}"


def _in_words(quantity: Quantity, all_series: list[Series], chances: list[float]) -> str:
    told = [
        f"{series.name}: {_text(series.points[0].value, quantity)} at step {series.points[0].step:,.0f}, "
        f"{_text(series.points[-1].value, quantity)} at step {series.points[-1].step:,.0f}"
        for series in all_series
    ]
    chance = [f"chance: {', '.join(_text(value, quantity) for value in chances)}"] if chances else []
    return f"{quantity.title}. {'; '.join([*told, *chance])}."


def _rows(quantity: Quantity, all_series: list[Series]) -> Iterator[tuple[str, ...]]:
    by_step = [{point.step: point.value for point in series.points} for series in all_series]
    for step in sorted({step for values in by_step for step in values}):
        cells = (_text(values[step], quantity) if step in values else "–" for values in by_step)
        yield (f"{step:,.0f}", *cells)
