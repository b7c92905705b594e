"""Metrics of runs → charts: coordinates, axes and the numbers behind them, drawn by the template as SVG."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from cyclecontrast.loss.objectives import needs_of
from cyclecontrast.report.runs import RunReport

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 12, 26
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


class Quantity(NamedTuple):
    """A column of metrics.jsonl, and how it is shown; `chance` is what guessing gives in a run, None where unknown.

    `is_of` tells in which runs it means something, whatever is written there.
    """

    key: str
    title: str
    meaning: str
    percent: bool = False
    chance: Callable[[RunReport], float | None] | None = None
    part: Literal["training", "health", "schedule"] = "training"
    is_of: Callable[[RunReport], bool] = lambda _: True


class Tick(NamedTuple):
    """A mark on an axis: where, and what stands there."""

    at: float
    label: str


class Line(NamedTuple):
    """A series as an SVG path."""

    color: int
    path: str


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


def _queue_candidates(run: RunReport) -> int | None:
    needs = needs_of(run.config.objective)
    return run.config.queue_size + 1 if needs is not None and needs.has_intra else None


def _intra_candidates(run: RunReport) -> int | None:
    return of_queue + _of_the_step(run) if (of_queue := _queue_candidates(run)) else None


def _cycle_candidates(run: RunReport) -> int | None:
    needs = needs_of(run.config.objective)
    if needs is None or not needs.has_cycle:
        return None
    return max(1, run.config.cycle_queue_size + _of_the_step(run) - run.config.support_size) + 1


def _of_the_step(run: RunReport) -> int:
    """Return how many candidates a query has in the step itself: all that is enqueued but its own video's."""
    needs = needs_of(run.config.objective)
    if needs is None or not (run.config.batch_keys or needs.in_batch):
        return 0
    return needs.num_enqueued * (run.config.batch_size - 1)


def _of(
    number: Callable[[RunReport], int | None], chance: Callable[[int], float]
) -> Callable[[RunReport], float | None]:
    """Return what guessing among a run's candidates gives, by their number."""
    return lambda run: chance(candidates) if (candidates := number(run)) else None


def _has_weight(run: RunReport) -> bool:
    needs = needs_of(run.config.objective)
    return needs is None or needs.weighs_cycle


def _found_by_chance(candidates: int) -> float:
    return 1 / candidates


QUANTITIES = (
    Quantity("loss", "Loss", "What is minimised."),
    Quantity(
        "intra_loss",
        "Intra loss",
        "How hard it is to find the other view of the same video among all candidates; "
        "for simsiam and byol, minus the cosine of the prediction and that view.",
        chance=_of(_intra_candidates, math.log),
    ),
    Quantity(
        "same_frame_loss",
        "Same-frame loss",
        "How hard it is to tell the other view of the query's frame from another frame of its video.",
    ),
    Quantity(
        "order_loss",
        "Order loss",
        "How hard it is to tell whether the query's frame comes before or after the others of its video.",
    ),
    Quantity(
        "self_batch_loss",
        "Self-batch loss",
        "How hard it is to find the other queries of the same video among all queries of the batch.",
    ),
    Quantity(
        "cycle_loss",
        "Cycle loss",
        "How hard it is to come back to the own video by way of a soft nearest neighbor in others.",
        chance=_of(_cycle_candidates, math.log),
    ),
    Quantity(
        "intra_accuracy",
        "Positives found",
        "Queries whose positive is more similar than all other candidates.",
        percent=True,
        chance=_of(_intra_candidates, _found_by_chance),
    ),
    Quantity(
        "cycle_closed",
        "Cycles closed",
        "Queries that come back to their own video.",
        percent=True,
        chance=_of(_cycle_candidates, _found_by_chance),
    ),
    Quantity("gradient_norm", "Gradient norm", "Length of the gradient before any clipping."),
    Quantity(
        "health_same_video",
        "Same video found",
        "Views whose nearest other view, by the backbone, is of the same video.",
        percent=True,
        chance=lambda run: run.health.get("chance"),
        part="health",
    ),
    Quantity(
        "health_cycle_closed",
        "Cycles closed",
        "Views that come back to their own video by way of half of the other videos.",
        percent=True,
        chance=lambda run: run.health.get("cycle_chance"),
        part="health",
    ),
    Quantity(
        "health_rank",
        "Rank (RankMe)",
        "Dimensions that the projector's vectors make use of: 1 is a collapse.",
        part="health",
    ),
    Quantity(
        "health_deviation",
        "Deviation",
        "Of a dimension of unit vectors, times √dim: 0 where all are the same, 1 where they are spread evenly.",
        part="health",
    ),
    Quantity(
        "health_alignment", "Alignment", "Squared distance of two views of a video; less is better.", part="health"
    ),
    Quantity(
        "health_uniformity", "Uniformity", "How evenly vectors cover the sphere; the lower, the more.", part="health"
    ),
    Quantity(
        "health_queue_accuracy",
        "Positives found in the queue",
        "Views whose positive is more similar than every key of the queue.",
        percent=True,
        chance=_of(_queue_candidates, _found_by_chance),
        part="health",
    ),
    Quantity(
        "health_queue_loss",
        "Loss against the queue",
        "It rises at first, while keys replace the queue's random vectors.",
        chance=_of(_queue_candidates, math.log),
        part="health",
    ),
    Quantity("learning_rate", "Learning rate", "Step size of the optimizer.", part="schedule"),
    Quantity(
        "cycle_weight",
        "Weight of the cycle loss (λ)",
        "0 while the cycle is only watched.",
        part="schedule",
        is_of=_has_weight,
    ),
)


def draw_charts(runs: Sequence[RunReport], colors: Sequence[int]) -> list[Chart]:
    """Draw every quantity that some run has measured."""
    drawn = (_draw(quantity, runs, colors) for quantity in (*QUANTITIES, *_own_terms(runs)))
    return [chart for chart in drawn if chart is not None]


def _own_terms(runs: Sequence[RunReport]) -> list[Quantity]:
    """Return the terms that objectives of the user's own have named, in the order in which they were measured."""
    rows = (row for run in runs if needs_of(run.config.objective) is None for row in run.metrics)
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
    lines = tuple(Line(series.color, _path(series.points, x, y)) for series in all_series)
    return Chart(
        quantity.title,
        quantity.meaning,
        _in_words(quantity, all_series, chances),
        quantity.part,
        lines,
        tuple(Tick(y.at(value), f"chance {_text(value, quantity)}") for value in chances),
        tuple(Tick(x.at(value), f"{value:,.0f}") for value in _ticks(x.low, x.high, 4)),
        tuple(Tick(y.at(value), _axis_text(value, quantity)) for value in _ticks(y.low, y.high, 4)),
        ("step", *(series.name for series in all_series)),
        tuple(_rows(quantity, all_series)),
    )


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
