"""A sweep whose setting is a number → two charts of top-1 as PNG: ours, and the paper's with axes of its own."""

import io
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cyclecontrast.sweeping.outcome import Sweep
from cyclecontrast.sweeping.paired import deviation
from cyclecontrast.sweeping.published import published_in

COLORS = {"kNN top-1": "C0", "linear top-1": "C1", "top-1": "C1"}


class _Series(NamedTuple):
    name: str
    x: list[float]
    y: list[float]
    error: list[float]
    asides: list[tuple[str, float]]
    """Rows without a number: name and height."""


def draw(sweep: Sweep) -> bytes | None:
    """Return the charts as PNG; None where the setting of the table is no number, or nothing was measured."""
    if not sweep.table.axis or not sweep.metrics:
        return None
    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    ours = [metric.title for metric in sweep.metrics if metric.title in COLORS]
    _chart(left, [_measured(sweep, title) for title in ours], sweep, "measured here")
    _chart(right, _of_paper(sweep), sweep, "the paper, for reference: ImageNet-100, linear")
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def _measured(sweep: Sweep, metric: str) -> _Series:
    series = _Series(metric, [], [], [], [])
    for one in sweep.rows:
        values = list(one.values.get(metric, {}).values())
        if values and one.row.value is None:
            series.asides.append((one.row.name, statistics.mean(values)))
        elif values:
            _add(series, one.row.value or 0.0, statistics.mean(values), deviation(values) or 0.0)
    return series


def _of_paper(sweep: Sweep) -> list[_Series]:
    """Return the paper's figures at the paper's own settings, whose keys are numbers."""
    found: dict[str, _Series] = {}
    for figure in (one for one in published_in(sweep.table.name) if one.metric in COLORS):
        series = found.setdefault(figure.metric, _Series(figure.metric, [], [], [], []))
        if figure.row.replace(".", "", 1).isdecimal():
            _add(series, float(figure.row), figure.percent, 0.0)
        else:
            series.asides.append((figure.row, figure.percent))
    return list(found.values())


def _add(series: _Series, x: float, y: float, error: float) -> None:
    series.x.append(x)
    series.y.append(y)
    series.error.append(error)


def _chart(axes: Any, all_series: Sequence[_Series], sweep: Sweep, title: str) -> None:
    for series in all_series:
        color = COLORS[series.name]
        axes.errorbar(
            series.x,
            series.y,
            series.error if any(series.error) else None,
            marker="o",
            color=color,
            capsize=3,
            label=series.name,
        )
        for name, height in series.asides:
            axes.axhline(height, color=color, linestyle=":", label=f"{series.name}, {name}")
    if sweep.table.log:
        axes.set_xscale("log", base=2)
    ticks = sorted({x for series in all_series for x in series.x})
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=sweep.table.axis, ylabel="%", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
