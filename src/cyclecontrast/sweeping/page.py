"""Write the results of a sweep: Markdown, a self-contained HTML page, JSON, and a chart where settings are numbers."""

import base64
import importlib.resources
import json
import statistics
from typing import Any

import jinja2

from cyclecontrast.charts import COLORS, new_figure, save_figure
from cyclecontrast.files import replacing
from cyclecontrast.models.hardware import package_versions
from cyclecontrast.sweeping.results import Sweep, deviation
from cyclecontrast.sweeping.tables import published_in

METRIC_COLORS = {"kNN top-1": COLORS[0], "linear top-1": COLORS[1], "top-1": COLORS[1]}
"""The metrics that are drawn; top-1 is the paper's, of a linear classifier."""

Points = dict[str, list[tuple[float | None, str, float, float]]]
"""Points of a chart by metric: number of the setting (None: it has none), name, height, deviation."""


def write_files(sweep: Sweep) -> None:
    """Write <folder>/<table>.md, .html, .json, and .png where the setting is a number."""
    chart = draw(sweep)
    numbers = {**sweep.to_json(), "versions": package_versions()}
    contents = {
        "md": f"{sweep}\n".encode(),
        "html": render(sweep, chart).encode("utf-8", "replace"),
        "json": json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False).encode(),
        **({} if chart is None else {"png": chart}),
    }
    for suffix, content in contents.items():
        with replacing(sweep.folder / f"{sweep.table.name}.{suffix}") as aside:
            aside.write_bytes(content)


def render(sweep: Sweep, chart: bytes | None) -> str:
    """Return the page as HTML with the chart inside; every text is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = (importlib.resources.files("cyclecontrast.sweeping") / "template.html").read_text("utf-8")
    return environment.from_string(template).render(
        sweep=sweep,
        num_ours=2 + len(sweep.metrics),
        chart=None if chart is None else base64.b64encode(chart).decode(),
    )


def draw(sweep: Sweep) -> bytes | None:
    """Return charts of our results and of the paper's figures against the setting, as PNG; None without a number."""
    if not sweep.table.axis or not sweep.metrics:
        return None
    figure, (left, right) = new_figure(10, 4.2, panels=2)
    _draw_points(left, _measured_points(sweep), sweep, "measured here")
    _draw_points(right, _papers_points(sweep), sweep, "the paper, for reference: ImageNet-100, linear")
    return save_figure(figure)


def _measured_points(sweep: Sweep) -> Points:
    points: Points = {}
    for metric in (metric.title for metric in sweep.metrics if metric.title in METRIC_COLORS):
        for one in sweep.rows:
            values = list(one.by_seed(metric).values())
            if values:
                point = (one.row.value, one.row.name, statistics.mean(values), deviation(values) or 0.0)
                points.setdefault(metric, []).append(point)
    return points


def _papers_points(sweep: Sweep) -> Points:
    """Return the paper's figures at the paper's settings, whose keys are numbers."""
    points: Points = {}
    for figure in (figure for figure in published_in(sweep.table.name) if figure.metric in METRIC_COLORS):
        value = float(figure.row) if figure.row.replace(".", "", 1).isdecimal() else None
        points.setdefault(figure.metric, []).append((value, figure.row, figure.percent, 0.0))
    return points


def _draw_points(axes: Any, points: Points, sweep: Sweep, title: str) -> None:
    """Draw a line per metric; rows without a number are dotted horizontal lines."""
    ticks: set[float] = set()
    for metric, color in METRIC_COLORS.items():
        line = [(value, height, error) for value, _, height, error in points.get(metric, []) if value is not None]
        if line:
            values, heights, errors = zip(*line, strict=True)
            ticks.update(values)
            bars = errors if any(errors) else None
            axes.errorbar(values, heights, bars, marker="o", color=color, capsize=3, label=metric)
        for value, name, height, _ in points.get(metric, []):
            if value is None:
                axes.axhline(height, color=color, linestyle=":", label=f"{metric}, {name}")
    if sweep.table.log:
        axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [f"{tick:,g}" for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set(xlabel=sweep.table.axis, ylabel="%", title=title)
    axes.legend(fontsize="small")
