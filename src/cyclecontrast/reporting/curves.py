"""Titles and descriptions of the metrics, and their charts as inline SVG with tables of the values."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from matplotlib.ticker import MaxNLocator

from cyclecontrast.charts import COLORS, LINE, MUTED, TEXT, new_figure, save_figure
from cyclecontrast.methods import METHODS, MomentumMethod
from cyclecontrast.reporting.runs import RunReport

INCHES = 5.0, 2.9
PLACE = (0.13, 0.12, 0.82, 0.83)
"""Left, bottom, width and height of the axes: the same in all charts, so that they line up."""
FONT_SIZE, LINE_WIDTH, DOT_WIDTH = 11, 2, 6
LABEL_HEIGHT = 0.07
"""Height of the label of a chance level, as a fraction of the height of the chart."""
MAX_POINTS = 100
ROUND = (1, 2, 2.5, 5, 10)
"""Distances between the marks of an axis, up to a power of ten."""
Series: TypeAlias = tuple[str, int, list[tuple[int, float]]]
"""The name and the color of a run, and the steps and values of a metric."""
THEME = {TEXT: "text", MUTED: "muted", LINE: "line"} | {color: f"c{number}" for number, color in enumerate(COLORS)}
"""Colors of the charts, and the variables of the page's style sheet that replace them: they follow the dark mode."""


class MetricInfo(NamedTuple):
    """A column of metrics.jsonl, with its title and meaning for the page; `percent` is how its values are shown."""

    key: str
    title: str
    meaning: str
    percent: bool = False

    @property
    def part(self) -> str:
        """The part of the page that shows the metric."""
        if self.key in ("learning_rate", "cycle_weight"):
            return "schedule"
        if self.key in ("health_mutual_videos", "health_closed_frames", "health_mutual_margin", "health_mutual_kept"):
            return "neighbors"
        return "health" if self.key.startswith("health_") else "training"


METRICS = (
    MetricInfo("loss", "Loss", "The minimized loss."),
    MetricInfo(
        "intra_loss",
        "Intra loss",
        "InfoNCE: cross-entropy of classifying the positive among all candidates. "
        "For simsiam and byol: negative cosine similarity of the prediction and the other view.",
    ),
    MetricInfo(
        "same_frame_loss",
        "Same-frame loss",
        "Cross-entropy of telling the other view of the query's frame from another frame of its video.",
    ),
    MetricInfo(
        "order_loss",
        "Order loss",
        "Cross-entropy of predicting whether the query's frame comes before or after the other frames of its video.",
    ),
    MetricInfo(
        "self_batch_loss",
        "Self-batch loss",
        "Cross-entropy of finding the other queries of the same video among all queries of the batch.",
    ),
    MetricInfo(
        "cycle_loss",
        "Cycle loss",
        "Cross-entropy of classifying the query's positive from the query's soft nearest neighbor in other videos.",
    ),
    MetricInfo(
        "intra_accuracy",
        "Positives found",
        "Share of queries that are more similar to their positive than to any other candidate. For diet: share of "
        "views that are assigned to their video. For distill: the positive is the teacher's vector of the view.",
        percent=True,
    ),
    MetricInfo("cycle_closed", "Cycles closed", "Share of queries whose cycle ends in their own video.", percent=True),
    MetricInfo("gradient_norm", "Gradient norm", "Norm of the gradient before clipping."),
    MetricInfo(
        "health_same_video",
        "Same-video retrieval",
        "Share of views whose nearest other view, by the backbone's features, is of the same video.",
        percent=True,
    ),
    MetricInfo(
        "health_far_video",
        "Same-video retrieval across time",
        "The same among views at least a third of the video apart.",
        percent=True,
    ),
    MetricInfo(
        "health_cycle_closed",
        "Cycles closed",
        "Share of views whose cycle through half of the other videos ends in their own video.",
        percent=True,
    ),
    MetricInfo(
        "health_rank", "Rank (RankMe)", "Effective number of dimensions of the projector's vectors; 1 means collapse."
    ),
    MetricInfo(
        "health_deviation",
        "Deviation",
        "Standard deviation per dimension of the unit vectors, times √dim: 0 if all are equal, 1 if evenly spread.",
    ),
    MetricInfo("health_alignment", "Alignment", "Mean squared distance between two views of a video; lower is better."),
    MetricInfo("health_uniformity", "Uniformity", "How evenly the vectors cover the unit sphere; lower is more even."),
    MetricInfo(
        "health_queue_accuracy",
        "Positives found in the queue",
        "Share of views that are more similar to their positive than to any key in the queue.",
        percent=True,
    ),
    MetricInfo(
        "health_queue_loss",
        "Loss against the queue",
        "Rises at first, while keys replace the random vectors in the queue.",
    ),
    MetricInfo(
        "health_mutual_videos",
        "Videos with a mutual neighbor",
        "Share of videos that are the nearest neighbor of their own nearest neighbor, by the mean of their frames.",
        percent=True,
    ),
    MetricInfo(
        "health_closed_frames",
        "Frames whose way back ends at home",
        "Share of frames whose nearest frame in another video has its own nearest frame in the video of the first.",
        percent=True,
    ),
    MetricInfo(
        "health_mutual_margin",
        "Margin of mutual neighbors",
        "Median lead of a mutual neighbor over the next video, in cosine similarity.",
    ),
    MetricInfo(
        "health_mutual_kept",
        "Mutual neighbors kept",
        "Share of the mutual pairs of the measurement before that are still mutual.",
        percent=True,
    ),
    MetricInfo("learning_rate", "Learning rate", "Step size of the optimizer."),
    MetricInfo("cycle_weight", "Weight of the cycle loss (λ)", "0 while the cycle loss is only measured."),
)


def draw_charts(runs: Sequence[RunReport], colors: Sequence[int]) -> list[dict[str, Any]]:
    """Draw every metric that at least one run has measured; `colors` are indices into the style's colors.

    A chart has a title, a meaning, a part of the page, a text alternative, the content of its <svg> element, and its
    numbers as a table.
    """
    charts = (_chart(info, runs, colors) for info in (*METRICS, *_other_losses(runs)))
    return [chart for chart in charts if chart is not None]


def chance_levels(run: RunReport) -> dict[str, float]:
    """Return the chance level of each metric: 1 / number of candidates for accuracies, its log for losses."""
    levels = {"health_same_video": run.health.get("chance"), "health_cycle_closed": run.health.get("cycle_chance")}
    known = {key: value for key, value in levels.items() if value is not None}
    method, config = METHODS.get(run.config.method), run.config
    if method is None:
        return known
    in_step = method.num_enqueued * (config.batch_size - 1) if config.batch_keys or method.always_batch_keys else 0
    if method.has_intra and issubclass(method, MomentumMethod):
        in_queue = config.queue_size + 1
        known |= {"health_queue_accuracy": 1 / in_queue, "health_queue_loss": math.log(in_queue)}
        known |= {"intra_accuracy": 1 / (in_queue + in_step), "intra_loss": math.log(in_queue + in_step)}
    if method.has_cycle:
        ends = max(1, config.cycle_queue_size + in_step - config.support_size) + 1
        known |= {"cycle_closed": 1 / ends, "cycle_loss": math.log(ends)}
    return known


def _other_losses(runs: Sequence[RunReport]) -> list[MetricInfo]:
    """Return the loss terms of the user's own methods, in the order in which they were logged."""
    rows = (row for run in runs if run.config.method not in METHODS for row in run.metrics)
    keys = dict.fromkeys(key for row in rows for key in row if key.endswith("_loss"))
    known = {info.key for info in METRICS}
    titles = {key: key.replace("_", " ").capitalize() for key in keys if key not in known}
    return [MetricInfo(key, title, "A loss term of the user's method.") for key, title in titles.items()]


def _chart(info: MetricInfo, runs: Sequence[RunReport], colors: Sequence[int]) -> dict[str, Any] | None:
    series: list[Series] = []
    chances = set()
    for run, color in zip(runs, colors, strict=True):
        if points := _averaged(_points(run, info.key)):
            series.append((run.name, color, points))
            chances.add(chance_levels(run).get(info.key))
    if not series:
        return None
    levels = sorted(level for level in chances if level is not None)
    texts = []
    for name, _, points in series:
        (first, start), (last, end) = points[0], points[-1]
        texts.append(f"{name}: {_text(start, info)} at step {first:,}, {_text(end, info)} at step {last:,}")
    if levels:
        texts.append(f"chance level: {', '.join(_text(level, info) for level in levels)}")
    values = [dict(points) for _, _, points in series]
    steps = sorted({step for by_step in values for step in by_step})
    return {
        "title": info.title,
        "meaning": info.meaning,
        "part": info.part,
        "alt": f"{info.title}. {'; '.join(texts)}.",
        "svg": _draw(info, series, levels),
        "columns": ["step", *(name for name, _, _ in series)],
        "rows": [
            [f"{step:,}", *(_text(by_step[step], info) if step in by_step else "–" for by_step in values)]
            for step in steps
        ],
    }


def _points(run: RunReport, key: str) -> list[tuple[int, float]]:
    """Return step and value of each measurement, also of the one before the first step."""
    method = METHODS.get(run.config.method)
    if key == "cycle_weight" and method is not None and not (method.has_intra and method.has_cycle):
        return []
    points = [(row["step"], row[key]) for row in run.metrics if row.get(key) is not None]
    at_start = run.health.get("at_start", {}).get(key)
    return points if at_start is None or not points else [(0, at_start), *points]


def _averaged(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Average neighboring points down to MAX_POINTS; the step is the last one of each group."""
    size = max(1, math.ceil(len(points) / MAX_POINTS))
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _draw(info: MetricInfo, series: list[Series], levels: list[float]) -> str:
    figure, (axes,) = new_figure(*INCHES)
    figure.set_layout_engine(None)
    axes.set_position(PLACE)
    for _, color, points in series:
        width = LINE_WIDTH if len(points) > 1 else DOT_WIDTH  # a line from a point to itself is a dot
        line = points if len(points) > 1 else points * 2
        axes.plot(*zip(*line, strict=True), color=COLORS[color], linewidth=width, solid_capstyle="round", clip_on=False)
    low, high = _limits(info, [value for _, _, points in series for _, value in points] + levels, bool(levels))
    axes.set(xlim=(0, max(points[-1][0] for _, _, points in series)), ylim=(low, high))
    last = math.inf
    for level in levels:
        axes.axhline(level, color=MUTED, linestyle="--", linewidth=1, clip_on=False)
        height = (level - low) / (high - low)
        if abs(height - last) >= LABEL_HEIGHT:  # labels of near levels would overlap
            last = height
            style = {"transform": axes.transAxes, "ha": "right", "size": FONT_SIZE, "color": MUTED, "gid": "chance"}
            axes.text(1, height + 0.015, f"chance {_text(level, info)}", **style)
    axes.grid(visible=False, axis="x")
    axes.grid(clip_on=False, axis="y")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(labelsize=FONT_SIZE, bottom=False, left=False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=ROUND, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{round(100 * value, 10):g} %" if info.percent else f"{round(value, 10):g}"
    )
    return _themed(save_figure(figure, "svg").decode())


def _limits(info: MetricInfo, values: list[float], has_chance: bool) -> tuple[float, float]:
    """Return the range of the vertical axis: from 0, except for losses that are compared with a chance level."""
    low, high = min(values), max(values)
    if low >= 0 and (info.percent or not has_chance):
        low = 0.0
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin if low != 0 else low, high + margin


def _themed(svg: str) -> str:
    """Return the content of an <svg> element in the colors and the font of the page, without what it does not need."""
    content = svg[svg.index("<g ") : svg.rindex("</svg>")]
    for color, variable in THEME.items():
        content = content.replace(color, f"var(--{variable})")
    content = content.replace('id="chance"', 'class="chance"')
    content = re.sub(r' id="[^"]*"| transform="rotate[^"]*"|font-family: [^;]*; ', "", content)
    content = re.sub(  # shorter paths, accurate to a tenth of a point
        r"(?<= d=\")[^\"]*",
        lambda path: re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", path[0]),
        content,
    )
    return re.sub(r"\s*\n\s*", " ", content)


def _text(value: float, info: MetricInfo) -> str:
    if info.percent:
        return f"{100 * value:.1f} %" if value >= 0.0005 or value == 0 else "< 0.1 %"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
