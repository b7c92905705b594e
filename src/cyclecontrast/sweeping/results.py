"""The results of a sweep: values by row and seed, the paper's numbers, and significant differences.

They are written as Markdown, a self-contained HTML page and JSON, with a chart where settings are numbers.
"""

import base64
import importlib.resources
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit

from cyclecontrast.charts import COLORS, new_figure, save_figure
from cyclecontrast.files import atomic_write
from cyclecontrast.models.hardware import package_versions
from cyclecontrast.output import html_environment, markdown, markdown_table
from cyclecontrast.sweeping.tables import Metric, Published, Row, Table, published_in

LEVEL = 0.05
METHOD_NOTE = (
    "Mean ± standard deviation over seeds; differences are taken seed by seed and judged by a paired t test at 5 %, "
    "not corrected for their number. Bold: significantly better than every other row."
)
REFERENCE_NOTE = (
    "The paper's columns are for reference only and not comparable: other data, other networks, other lengths of "
    "training."
)
METRIC_COLORS = {"kNN top-1": COLORS[0], "linear top-1": COLORS[1], "top-1": COLORS[1]}
"""The metrics that are drawn; top-1 is the paper's, of a linear classifier."""


class Gain(NamedTuple):
    """Mean and standard deviation (None: one seed) of the differences over the seeds that two rows share."""

    mean: float
    deviation: float | None
    num_seeds: int

    @property
    def is_significant(self) -> bool:
        """Whether a paired t test at 5 % finds a difference.

        Differences that are all equal are not significant: the accuracy on a few items changes in steps.
        """
        if not self.deviation:
            return False
        limit = stdtrit(self.num_seeds - 1, 1 - LEVEL / 2)
        return bool(abs(self.mean) * math.sqrt(self.num_seeds) > limit * self.deviation)

    def __str__(self) -> str:
        mean = f"{self.mean:+.1f}" if round(self.mean, 1) else "0.0"
        if self.deviation is None:
            return f"{mean} (one seed is not enough to judge)"
        return f"{mean} ± {self.deviation:.1f} ({'significant' if self.is_significant else 'not significant'})"


def gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Gain | None:
    """Compare two rows' values by seed; None where they share no seed."""
    differences = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    if not differences:
        return None
    return Gain(statistics.mean(differences), deviation(differences), len(differences))


def deviation(values: list[float]) -> float | None:
    """Return the standard deviation of a sample; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


class RowValues(NamedTuple):
    """A row's values in percent by metric title, then by seed."""

    row: Row
    values: Mapping[str, Mapping[int, float]]

    @property
    def seeds(self) -> list[int]:
        """The seeds with any value."""
        return sorted({seed for values in self.values.values() for seed in values})

    def by_seed(self, metric: str) -> Mapping[int, float]:
        """The values of a metric by seed."""
        return self.values.get(metric, {})

    def mean(self, metric: str) -> float | None:
        """Mean over the seeds; None where nothing was measured."""
        values = list(self.by_seed(metric).values())
        return statistics.mean(values) if values else None

    def text(self, metric: str) -> str:
        """Such as `51.2 ± 0.8`."""
        values = list(self.by_seed(metric).values())
        if not values:
            return ""
        spread = deviation(values)
        return f"{statistics.mean(values):.1f}" + ("" if spread is None else f" ± {spread:.1f}")


class Ranking(NamedTuple):
    """The ranking of the rows by a metric, over the seeds that all measured rows share.

    `best` are the rows with the highest mean (rounded as shown); `near` are other rows that are not significantly
    worse than the first; `measured` are the keys of the rows with values at these seeds.
    """

    best: tuple[Row, ...]
    near: tuple[Row, ...]
    measured: Set[str]
    num_seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether one row is clearly above every other."""
        return len(self.best) == 1 and not self.near


@dataclass(frozen=True)
class Sweep:
    """A table with its results; `about` says on what data, `problems` which trials failed; `str` of it is Markdown."""

    table: Table
    rows: tuple[RowValues, ...]
    num_seeds: int
    about: str
    problems: tuple[str, ...]
    folder: Path

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that some row has."""
        return tuple(one for one in self.table.metrics if any(row.by_seed(one.title) for row in self.rows))

    @cached_property
    def chosen(self) -> RowValues:
        """The row that the paper finds best."""
        return next(one for one in self.rows if one.row.key == self.table.chosen)

    @property
    def failure(self) -> str:
        """A line if trials failed, so that the command fails."""
        failed = dict.fromkeys(problem.partition(": ")[0] for problem in self.problems)
        if not failed:
            return ""
        return (
            f"{len(failed)} of {len(self.rows) * self.num_seeds} trials failed: {'; '.join(failed)}; run the "
            f"same command to resume them; to repeat a damaged trial, delete its folder in {self.folder / 'runs'}"
        )

    @property
    def title(self) -> str:
        """Such as `Table 4: losses, by image classification`."""
        return f"Table {self.table.number}: {self.table.title[0].lower()}{self.table.title[1:]}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Heads of the columns; the paper's come last."""
        papers = dict.fromkeys(one.column for one in published_in(self.table.name))
        return ("row", "seeds", *(f"{metric.title} %" for metric in self.metrics), *papers)

    def lines(self) -> Iterator[tuple[str, list[str], list[bool]]]:
        """Yield name, cells and whether a cell is clearly the best, for each row in the paper's order."""
        figures = published_in(self.table.name)
        papers = list(dict.fromkeys(one.column for one in figures))
        notes = _numbered_notes(figures)
        rankings = {metric.title: self.rank(metric.title) for metric in self.metrics}
        clear = {title: found.best[0] for title, found in rankings.items() if found is not None and found.is_clear}
        for one in self.rows:
            seeds = f"{len(one.seeds)}" if len(one.seeds) == self.num_seeds else f"{len(one.seeds)} of {self.num_seeds}"
            texts = [one.text(metric.title) for metric in self.metrics]
            bold = [clear.get(metric.title) == one.row for metric in self.metrics]
            published = {
                figure.column: figure.text + (f" [{notes[figure.note]}]" if figure.note else "")
                for figure in figures
                if figure.row == one.row.key
            }
            shown = [published.get(column, "") for column in papers]
            yield one.row.full_name, [seeds, *texts, *shown], [False, *bold, *(False for _ in shown)]

    def findings(self) -> Iterator[str]:
        """Yield what follows: which row leads by which metric, and whether that is more than noise."""
        for metric in self.metrics:
            yield self._leader(metric.title)
        if self.num_seeds == 1:
            yield (
                "with one seed, differences cannot be tested; run again with more --seeds (finished trials are reused)"
            )
            return
        for other in self.rows:
            if other is not self.chosen and (found := self.gains_over(other)):
                number = max(one.num_seeds for one in found.values())
                texts = ", ".join(f"{title} {one}" for title, one in found.items())
                seeds = f"{number} seed{'s' if number > 1 else ''}"
                yield f"{self.chosen.row.name} against {other.row.name}: {texts}, over {seeds}"

    def footnotes(self) -> Iterator[str]:
        """Yield what a reader must know about the figures."""
        yield METHOD_NOTE
        yield REFERENCE_NOTE
        for text, number in _numbered_notes(published_in(self.table.name)).items():
            yield f"[{number}] {text}"

    def gains_over(self, other: RowValues) -> dict[str, Gain]:
        """Compare the row that the paper finds best with another, by each metric for which they share seeds."""
        gains = {one.title: gain(self.chosen.by_seed(one.title), other.by_seed(one.title)) for one in self.metrics}
        return {title: one for title, one in gains.items() if one is not None}

    def rank(self, metric: str) -> Ranking | None:
        """Rank the rows by their means over the same seeds; None where no seed is in all measured rows."""
        seeds = frozenset.intersection(*(frozenset(one.by_seed(metric)) for one in self.rows if one.by_seed(metric)))
        values = {
            one.row.key: {seed: value for seed, value in one.by_seed(metric).items() if seed in seeds}
            for one in self.rows
        }
        means = {key: statistics.mean(by_seed.values()) for key, by_seed in values.items() if by_seed}
        if not means:
            return None
        first = max(means, key=lambda key: means[key])
        tied = [key for key in means if key != first and f"{means[key]:.1f}" == f"{means[first]:.1f}"]
        others = [key for key in values if key not in (first, *tied)]
        gains = {key: gain(values[first], values[key]) for key in others}
        near = [key for key, one in gains.items() if one is None or one.mean <= 0 or not one.is_significant]
        rows = {one.row.key: one.row for one in self.rows}
        best = tuple(rows[key] for key in (first, *tied))
        return Ranking(best, tuple(rows[key] for key in near), means.keys(), len(seeds))

    def __str__(self) -> str:
        rows = [self.columns]
        for name, cells, best in self.lines():
            marked = (f"**{text}**" if bold else text for text, bold in zip(cells, best, strict=True))
            rows.append((name, *marked))
        found = [f"- {finding}" for finding in self.findings()]
        failed = [f"- not finished: {markdown(problem)}" for problem in self.problems]
        table = markdown_table(rows, "l" + "r" * len(self.columns[1:]))
        about = markdown(self.about)
        return "\n".join([f"# {self.title}", "", about, "", table, "", *found, *failed, "", *self.footnotes()])

    def _leader(self, metric: str) -> str:
        found = self.rank(metric)
        if found is None:
            return f"not ranked by {metric}: the rows have no seed in common"
        near = [row.name for row in found.near if row.key in found.measured]
        names = "all others" if 0 < len(near) == len(self.rows) - len(found.best) else ", ".join(near)
        noise = f", within the noise of {names}" if names else ", clearly" if found.is_clear else ""
        some = f", over {found.num_seeds} of {self.num_seeds} seeds" if found.num_seeds < self.num_seeds else ""
        leaders = ", ".join(row.name for row in found.best)
        place = "first" if len(found.best) == 1 else "tied first"
        text = f"{place} by {metric}: {leaders}{noise if found.num_seeds > 1 else ''}{some}"
        if self.table.chosen not in found.measured or any(row.key == self.table.chosen for row in found.best):
            return text
        return f"{text}; not {self.chosen.row.name}, which the paper finds best"

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as plain values, unrounded."""
        return {
            "table": self.table.name,
            "title": self.title,
            "about": self.about,
            "num_seeds": self.num_seeds,
            "metrics": [metric.title for metric in self.metrics],
            "rows": [self._row_to_json(one) for one in self.rows],
            "findings": list(self.findings()),
            "problems": list(self.problems),
        }

    def _row_to_json(self, one: RowValues) -> dict[str, Any]:
        titles = [metric.title for metric in self.metrics]
        gains = self.gains_over(one) if one is not self.chosen else {}
        return {
            "row": one.row.name,
            "key": one.row.key,
            "settings": one.row.settings,
            "value": one.row.value,
            "percent_by_seed": {
                title: {str(seed): value for seed, value in values.items()} for title, values in one.values.items()
            },
            "mean": {title: one.mean(title) for title in titles},
            "deviation": {title: deviation(list(one.by_seed(title).values())) for title in titles},
            "papers_best_minus_this": {
                title: {**found._asdict(), "is_significant": found.is_significant} for title, found in gains.items()
            },
            "paper": [
                {"column": item.column, "percent": item.percent, "note": item.note}
                for item in published_in(self.table.name)
                if item.row == one.row.key
            ],
        }


def _numbered_notes(figures: Sequence[Published]) -> dict[str, int]:
    return {text: number for number, text in enumerate(dict.fromkeys(one.note for one in figures if one.note), 1)}


# --- the files


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
        with atomic_write(sweep.folder / f"{sweep.table.name}.{suffix}") as aside:
            aside.write_bytes(content)


def render(sweep: Sweep, chart: bytes | None) -> str:
    """Return the page as HTML with the chart inside; every text is escaped."""
    template = (importlib.resources.files("cyclecontrast.sweeping") / "template.html").read_text("utf-8")
    return (
        html_environment()
        .from_string(template)
        .render(
            sweep=sweep,
            num_ours=2 + len(sweep.metrics),
            chart=None if chart is None else base64.b64encode(chart).decode(),
        )
    )


def draw(sweep: Sweep) -> bytes | None:
    """Return charts of our results and of the paper's figures against the setting, as PNG; None without a number."""
    if not sweep.table.axis or not sweep.metrics:
        return None
    figure, (left, right) = new_figure(10, 4.2, panels=2)
    _draw_points(left, _measured_points(sweep), sweep, "measured here")
    _draw_points(right, _papers_points(sweep), sweep, "the paper, for reference: ImageNet-100, linear")
    return save_figure(figure)


Points = dict[str, list[tuple[float | None, str, float, float]]]
"""Points of a chart by metric: number of the setting (None: it has none), name, height, deviation."""


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
