"""What a sweep found: rows with their values by seed, beside the paper's figures, and what may be said of them."""

import statistics
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cyclecontrast.sweeping.paired import Gain, deviation, gain
from cyclecontrast.sweeping.published import Published, published_in
from cyclecontrast.sweeping.tables import Metric, Row, Table

JUDGED = (
    "Mean ± standard deviation over seeds; differences are taken seed by seed and judged by a paired t test at 5 %, "
    "not corrected for their number. Bold: significantly better than every other row."
)
REFERENCE = (
    "The paper's columns are for reference alone and not comparable: other data, other networks, other lengths of "
    "training."
)


class Measured(NamedTuple):
    """A row's values in percent by metric title, then by seed."""

    row: Row
    values: Mapping[str, Mapping[int, float]]

    @property
    def seeds(self) -> list[int]:
        """The seeds of which there is any value."""
        return sorted({seed for values in self.values.values() for seed in values})

    def over(self, seeds: Set[int], metric: str) -> "Measured":
        """Return what is left with one metric and these seeds alone."""
        values = self.values.get(metric, {})
        return self._replace(values={metric: {seed: values[seed] for seed in values if seed in seeds}})

    def mean(self, metric: str) -> float | None:
        """Mean over the seeds; None where nothing was measured."""
        values = list(self.values.get(metric, {}).values())
        return statistics.mean(values) if values else None

    def text(self, metric: str) -> str:
        """Such as `51.2 ± 0.8`."""
        values = list(self.values.get(metric, {}).values())
        if not values:
            return ""
        spread = deviation(values)
        return f"{statistics.mean(values):.1f}" + ("" if spread is None else f" ± {spread:.1f}")


class Ranking(NamedTuple):
    """The rows by a metric, over the seeds that all measured rows have.

    `best` have the highest mean as it is shown, the highest first; `near` are the other rows that are not clearly below
    the first, or not there at all.
    """

    best: tuple[Measured, ...]
    near: tuple[Measured, ...]
    seeds: Set[int]

    @property
    def is_clear(self) -> bool:
        """Whether one row is clearly above every other."""
        return len(self.best) == 1 and not self.near


class Line(NamedTuple):
    """A row of the table as it is shown: its cells after the name, and which of them are clearly the best."""

    name: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


@dataclass(frozen=True)
class Sweep:
    """A table with all that was measured; `about` says on what, `problems` which cells failed; its text is Markdown."""

    table: Table
    rows: tuple[Measured, ...]
    num_seeds: int
    about: str
    problems: tuple[str, ...]
    folder: Path

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that some row has."""
        return tuple(one for one in self.table.metrics if any(row.values.get(one.title) for row in self.rows))

    @property
    def title(self) -> str:
        """Such as `Table 4: losses, by image classification`."""
        return f"Table {self.table.number}: {self.table.title[0].lower()}{self.table.title[1:]}"

    @property
    def failure(self) -> str:
        """A line if cells failed, so that the command fails."""
        failed = dict.fromkeys(problem.partition(": ")[0] for problem in self.problems)
        if not failed:
            return ""
        return (
            f"{len(failed)} of {len(self.rows) * self.num_seeds} cells are not finished: {'; '.join(failed)}; repeat "
            f"the command to continue; delete the folder of a damaged cell in {self.folder / 'runs'} to train it again"
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Heads of the columns; the paper's come last."""
        papers = dict.fromkeys(one.column for one in published_in(self.table.name))
        return ("row", "seeds", *(f"{metric.title} %" for metric in self.metrics), *papers)

    def lines(self) -> Iterator[Line]:
        """Yield the rows as they are shown, in the paper's order."""
        figures = published_in(self.table.name)
        papers = list(dict.fromkeys(one.column for one in figures))
        notes = self._notes(figures)
        rankings = {metric.title: self._rank(metric.title) for metric in self.metrics}
        clear = {title: found.best[0].row for title, found in rankings.items() if found is not None and found.is_clear}
        for one in self.rows:
            texts = [one.text(metric.title) for metric in self.metrics]
            bold = [clear.get(metric.title) == one.row for metric in self.metrics]
            own = {item.column: item for item in figures if item.row == one.row.key}
            shown = [_figure(own.get(column), notes) for column in papers]
            seeds = f"{len(one.seeds)}" if len(one.seeds) == self.num_seeds else f"{len(one.seeds)} of {self.num_seeds}"
            yield Line(one.row.full_name, (seeds, *texts, *shown), (False, *bold, *(False for _ in shown)))

    def findings(self) -> Iterator[str]:
        """Yield what may be said: who leads, by which metric, and whether more than the luck of seeds."""
        chosen = next(one for one in self.rows if one.row.key == self.table.chosen)
        for metric in self.metrics:
            yield self._leader(metric.title, chosen)
        if self.num_seeds == 1:
            yield "one seed proves nothing; more --seeds tell what is luck, those trained already are not trained again"
            return
        for other in self.rows:
            gains = [(metric.title, self._gain(chosen, other, metric.title)) for metric in self.metrics]
            told = [f"{title} {one}" for title, one in gains if one is not None]
            if other is not chosen and told:
                yield f"{chosen.row.name} against {other.row.name}: {', '.join(told)}, over {_seeds(gains)}"

    def footnotes(self) -> Iterator[str]:
        """Yield what a reader must know of the figures."""
        yield JUDGED
        yield REFERENCE
        for text, number in self._notes(published_in(self.table.name)).items():
            yield f"[{number}] {text}"

    def gain_over(self, other: Measured, metric: str) -> Gain | None:
        """Compare the row that the paper finds best with another."""
        return self._gain(next(one for one in self.rows if one.row.key == self.table.chosen), other, metric)

    def __str__(self) -> str:
        rows = [self.columns]
        for line in self.lines():
            cells = (f"**{text}**" if bold else text for text, bold in zip(line.cells, line.best, strict=True))
            rows.append((line.name, *cells))
        found = [f"- {finding}" for finding in self.findings()]
        failed = [f"- not finished: {problem}" for problem in self.problems]
        return "\n".join(
            [f"# {self.title}", "", self.about, "", *_markdown(rows), "", *found, *failed, "", *self.footnotes()]
        )

    def _gain(self, ours: Measured, theirs: Measured, metric: str) -> Gain | None:
        return gain(ours.values.get(metric, {}), theirs.values.get(metric, {}))

    def _rank(self, metric: str) -> Ranking | None:
        """Rank the rows by their means over the same seeds; None where no seed is in all measured rows."""
        seeds = frozenset.intersection(*(frozenset(own) for one in self.rows if (own := one.values.get(metric))))
        rows = [one.over(seeds, metric) for one in self.rows]
        means = [(mean, one) for one in rows if (mean := one.mean(metric)) is not None]
        if not means:
            return None
        top, first = max(means, key=lambda item: item[0])
        tied = [one for mean, one in means if one is not first and f"{mean:.1f}" == f"{top:.1f}"]
        best = (first, *tied)
        near = (one for one in rows if one not in best and not _is_clear(self._gain(first, one, metric)))
        return Ranking(best, tuple(near), seeds)

    def _leader(self, metric: str, chosen: Measured) -> str:
        found = self._rank(metric)
        if found is None:
            return f"not ranked by {metric}: the rows have no seed in common"
        best, near, seeds = found
        measured = [one.row.name for one in near if one.mean(metric) is not None]
        names = "all others" if 0 < len(measured) == len(self.rows) - len(best) else ", ".join(measured)
        noise = f", within the noise of {names}" if names else ", clearly" if found.is_clear else ""
        some = f", over {len(seeds)} of {self.num_seeds} seeds" if len(seeds) < self.num_seeds else ""
        leaders = ", ".join(one.row.name for one in best)
        place = "first" if len(best) == 1 else "tied first"
        text = f"{place} by {metric}: {leaders}{noise if len(seeds) > 1 else ''}{some}"
        if chosen.over(seeds, metric).mean(metric) is None or any(one.row == chosen.row for one in best):
            return text
        return f"{text}; not {chosen.row.name}, which the paper finds best"

    @staticmethod
    def _notes(figures: Sequence[Published]) -> dict[str, int]:
        return {text: number for number, text in enumerate(dict.fromkeys(one.note for one in figures if one.note), 1)}


def _is_clear(one: Gain | None) -> bool:
    return one is not None and one.mean > 0 and one.is_significant


def _figure(figure: Published | None, notes: Mapping[str, int]) -> str:
    if figure is None:
        return ""
    return f"{figure.text} [{notes[figure.note]}]" if figure.note else figure.text


def _seeds(gains: Sequence[tuple[str, Gain | None]]) -> str:
    number = max(one.num_seeds for _, one in gains if one is not None)
    return f"{number} seed{'s' if number > 1 else ''}"


def _markdown(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        first, *others = zip(row, widths, strict=True)
        cells = (first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others))
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            yield (
                "|"
                + "|".join(f"{'-' * (width + 1)}{':' if place else '-'}" for place, width in enumerate(widths))
                + "|"
            )


def to_json(sweep: Sweep) -> dict[str, Any]:
    """Return all numbers of a sweep, none of them rounded."""
    return {
        "table": sweep.table.name,
        "title": sweep.title,
        "about": sweep.about,
        "num_seeds": sweep.num_seeds,
        "metrics": [metric.title for metric in sweep.metrics],
        "rows": [_row_to_json(sweep, one) for one in sweep.rows],
        "findings": list(sweep.findings()),
        "problems": list(sweep.problems),
    }


def _row_to_json(sweep: Sweep, one: Measured) -> dict[str, Any]:
    gains = {metric.title: sweep.gain_over(one, metric.title) for metric in sweep.metrics}
    return {
        "row": one.row.name,
        "key": one.row.key,
        "settings": one.row.settings,
        "value": one.row.value,
        "percent_by_seed": {
            title: {str(seed): value for seed, value in one.values[title].items()} for title in one.values
        },
        "mean": {metric.title: one.mean(metric.title) for metric in sweep.metrics},
        "deviation": {
            metric.title: deviation(list(one.values.get(metric.title, {}).values())) for metric in sweep.metrics
        },
        "papers_best_minus_this": {
            title: {**found._asdict(), "is_significant": found.is_significant}
            for title, found in gains.items()
            if found is not None and one.row.key != sweep.table.chosen
        },
        "paper": [
            {"column": item.column, "percent": item.percent, "note": item.note}
            for item in published_in(sweep.table.name)
            if item.row == one.row.key
        ],
    }
