"""The commands `runs ls` and `runs compare`: a row for each run below some folders, and a column for each run."""

import io
import json
import os
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cyclecontrast.config import CompareConfig, ListConfig
from cyclecontrast.data.folders import natural_order
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.output import join_lines, printable, say
from cyclecontrast.reporting.results import RANDOM, ResultTable, summarize
from cyclecontrast.reporting.runs import RunReport, first_of_each, read_files, read_results, read_runs
from cyclecontrast.training.verdict import is_start_kept

RUN_FILES = ("config.toml", "run.json", "metrics.jsonl")
COLUMNS = ("run", "changed", "status", "verdict", "method", "backbone", "steps", "seed", "data", "best results", "note")
NONE = "–"
UNLIMITED = 10**6
"""Characters of a line if the output is not a terminal."""
MIN_COLUMN, GAP = 5, 2
"""Smallest width of a column whose texts are folded, and the space between two columns, in characters."""


class Best(NamedTuple):
    """The best result of a run for a protocol variant (tag) and dataset: its first metric, as a fraction."""

    tag: str
    data: str
    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.tag} {self.metric} {100 * self.value:.1f} % on {self.data}"


class Listed(NamedTuple):
    """A run as `ls` shows it; `changed` is the last change of its files, `problem` says what cannot be read."""

    path: Path
    changed: datetime
    problem: str = ""
    status: str = ""
    verdict: str = ""
    reason: str = ""
    held_out: bool = True
    start_kept: bool = False
    method: str = ""
    backbone: str = ""
    steps_done: int | None = None
    num_steps: int | None = None
    seed: int | None = None
    data: str = ""
    results: tuple[Best, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the row, one for each of COLUMNS."""
        status, _, note = self.status.partition(": ")
        remarks = ", ".join(["on training videos"] * (not self.held_out) + ["start kept"] * self.start_kept)
        return (
            str(self.path),
            f"{self.changed:%Y-%m-%d %H:%M}",
            "damaged" if self.problem else status,
            f"{self.verdict} ({remarks})" if self.verdict and remarks else self.verdict,
            self.method,
            self.backbone,
            "" if self.num_steps is None else f"{self.steps_done}/{self.num_steps}",
            "" if self.seed is None else str(self.seed),
            Path(self.data).name or self.data,
            ", ".join(map(str, self.results)),
            self.problem or note,
        )


class Listing(NamedTuple):
    """The runs found, the last changed one at the end, and folders that could not be listed."""

    runs: tuple[Listed, ...]
    problems: tuple[str, ...]
    config: ListConfig

    def __str__(self) -> str:
        if self.config.as_json:
            rows = [
                run._asdict()
                | {"changed": run.changed.isoformat(), "results": [best._asdict() for best in run.results]}
                for run in self.runs
            ]
            return json.dumps(rows, indent=2, default=str)
        if self.runs:
            return join_lines([*text_table(COLUMNS, [run.cells() for run in self.runs]).split("\n"), *self.problems])
        places = ", ".join(map(str, self.config.folders))
        nothing = f"no runs found in {places} within {self.config.depth} levels; --depth searches deeper"
        return join_lines([nothing, *self.problems])


class Comparison(NamedTuple):
    """Runs side by side, those of one method next to each other.

    `settings` are those that differ, with a text for each run; `values` are the last ones measured, with a text for
    each of `columns`: the runs, and the mean of each method with several seeds.
    """

    runs: tuple[RunReport, ...]
    columns: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]
    values: dict[str, tuple[str, ...]]
    results: ResultTable | None

    def __str__(self) -> str:
        names = [run.name for run in self.runs]
        parts = [_table_of("setting", names, self.settings) if self.settings else "all settings are equal"]
        parts.append(_table_of("last value", self.columns, self.values))
        if self.results is not None:
            rows = {
                f"{column.tag} {column.metric}, {column.data}": tuple(
                    cell.text if (cell := row.cells[number]) else NONE for row in self.results.rows
                )
                for number, column in enumerate(self.results.columns)
            }
            parts.append(_table_of("result", [row.name for row in self.results.rows], rows))
        return "\n\n".join(parts)


def list_runs(config: ListConfig) -> Listing:
    """Find runs and read their files; one that is damaged is listed with the reason.

    Raises UserError if a folder does not exist.
    """
    if missing := [folder for folder in config.folders if not folder.is_dir()]:
        raise UserError(*(f"folders: {folder}: not a folder; name one that contains runs" for folder in missing))
    problems: list[str] = []
    runs = sorted((_listed(folder) for folder in find_runs(config, problems)), key=lambda run: run.changed)
    for problem in problems if config.as_json else ():
        say(problem)
    return Listing(tuple(runs), tuple(problems), config)


def find_runs(config: ListConfig, problems: list[str]) -> Iterator[Path]:
    """Yield each run once; folders that cannot be listed are added to `problems`.

    A folder with at least two of the three files of a run counts as a run, so that a damaged run is still listed.
    """

    def report(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be listed ({error.strerror})")

    seen: set[str] = set()
    for root in config.folders:
        for path, folders, files in os.walk(root, onerror=report):
            level = len(Path(path).parts) - len(root.parts)
            is_run = len(set(RUN_FILES).intersection(files)) >= 2
            if is_run and os.path.realpath(path) not in seen:
                seen.add(os.path.realpath(path))
                yield Path(path)
            if is_run or "store.json" in files or level >= config.depth:
                folders.clear()
            folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_order)


def _listed(folder: Path) -> Listed:
    times = [path.stat().st_mtime for name in RUN_FILES if (path := folder / name).is_file()]
    listed = Listed(folder, datetime.fromtimestamp(max(times, default=0)).astimezone())
    try:
        config, _, about, metrics = read_files(folder)
        listed = listed._replace(
            status=about.get("status", ""),
            verdict=about.get("verdict", ""),
            reason=about.get("reason", ""),
            held_out=(about.get("health") or {}).get("held_out", True),
            start_kept=is_start_kept(about),
            method=config.method,
            backbone=config.backbone,
            steps_done=int(metrics[-1]["step"]) if metrics else 0,
            num_steps=about["num_steps"],
            seed=config.seed,
            data=str(config.data),
        )
        # A run that kept its start (--select health) is its start.
        start = None if is_start_kept(about) else (about.get("start") or {}).get("fingerprint")
        return listed._replace(results=tuple(_best(read_results(folder), start)))
    except (UserError, OSError) as error:
        return listed._replace(problem=str(error).partition("\n")[0].removeprefix(f"{folder}: "))


def _best(results: list[Result], start: str | None) -> Iterator[Best]:
    """Yield the best result for each protocol variant and dataset, except those of random weights and of the start."""
    found: dict[tuple[str, str, str], Best] = {}
    for result in results:
        about = result.about
        if about.model.source != RANDOM and about.model.fingerprint != start and result.metrics:
            metric, value = next(iter(result.metrics.items()))
            best = Best(about.tag, Path(about.data.path).name, metric, value)
            key = about.tag, metric, about.data.fingerprint
            found[key] = max(best, found.get(key, best), key=lambda one: one.value)
    yield from found.values()


def compare_runs(config: CompareConfig) -> Comparison:
    """Read runs and put them side by side; raises UserError if one cannot be read."""
    groups: dict[str, list[RunReport]] = {}
    for run in read_runs(config.runs, with_data=False):
        groups.setdefault(run.method, []).append(run)
    runs = [run for group in groups.values() for run in group]
    columns: list[str] = []
    for group in groups.values():
        columns += [run.name for run in group] + [f"mean of {len(seeds)} seeds" for seeds in _several_seeds(group)]
    results = summarize(runs, range(len(runs)))
    return Comparison(tuple(runs), tuple(columns), _differences(runs), _values(list(groups.values())), results)


def _several_seeds(group: list[RunReport]) -> Iterator[list[RunReport]]:
    """Yield one run for each seed of a method, if there are several."""
    seeds = first_of_each(group, lambda run: run.config.seed)
    if len(seeds) > 1:
        yield seeds


def _differences(runs: list[RunReport]) -> dict[str, tuple[str, ...]]:
    """Return what differs between the runs: settings, content of the data, device and versions."""
    facts = []
    for run in runs:
        about = {"content of data": run.about.get("data_fingerprint"), "ran on": run.about["device"]}
        versions = {f"version of {name}": version for name, version in run.about["versions"].items()}
        facts.append(run.config.model_dump(mode="json", exclude={"out", "resume"}) | about | versions)
    names = dict.fromkeys(name for one in facts for name in one)

    def text(value: Any) -> str:
        if isinstance(value, list):
            value = " ".join(map(str, value)) or None
        if isinstance(value, bool):
            value = "on" if value else "off"
        return NONE if value is None else str(value)

    rows = {name: tuple(text(one.get(name)) for one in facts) for name in names}
    return {name: texts for name, texts in rows.items() if len(set(texts)) > 1}


def _values(groups: list[list[RunReport]]) -> dict[str, tuple[str, ...]]:
    """Return status, steps and verdict, then the last value of each loss and health metric."""

    def row(text: Callable[[RunReport], str], mean: Callable[[list[RunReport]], str]) -> tuple[str, ...]:
        cells = [[*map(text, group), *map(mean, _several_seeds(group))] for group in groups]
        return tuple(cell for group in cells for cell in group)

    def counted(text: Callable[[RunReport], str]) -> tuple[str, ...]:
        return row(text, lambda runs: ", ".join(f"{num} {word}" for word, num in Counter(map(text, runs)).items()))

    def measured(name: str) -> tuple[str, ...]:
        return row(lambda run: _mean_text(_last([run], name)), lambda runs: _mean_text(_last(runs, name)))

    keys = dict.fromkeys(key for group in groups for run in group for line in run.metrics for key in line)
    shown = [
        key
        for key in keys
        if key.endswith("loss") or key.startswith("health_") or key in ("intra_accuracy", "cycle_closed")
    ]
    return {
        "status": counted(lambda run: str(run.about.get("status", NONE)).partition(":")[0]),
        "steps": row(lambda run: f"{run.steps_done}/{run.about['num_steps']}", lambda runs: ""),
        "verdict": counted(lambda run: run.verdict.word if run.verdict else NONE),
        **{key: measured(key) for key in shown},
    }


def _last(runs: list[RunReport], key: str) -> list[float]:
    """Return the last value of each run that has one."""
    values = (next((row[key] for row in reversed(run.metrics) if row.get(key) is not None), None) for run in runs)
    return [value for value in values if value is not None]


def _mean_text(values: list[float]) -> str:
    if not values:
        return NONE
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{spread}"


def _table_of(head: str, columns: Sequence[str], rows: dict[str, tuple[str, ...]]) -> str:
    return text_table((head, *columns), [(name, *texts) for name, texts in rows.items()])


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table without its empty columns, whose texts are printable and each on one line.

    On a terminal, columns are wrapped to its width; if it is too narrow, each row becomes a block of lines. Otherwise
    (pipe, file), each row is a single line.
    """
    shown = [number for number in range(len(head)) if any(row[number] for row in rows)]
    names = [printable(head[number]) for number in shown]
    texts = [[printable(row[number]) for number in shown] for row in rows]
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None if the caller closed it
    width = shutil.get_terminal_size().columns if is_terminal else UNLIMITED
    needed = sum(min(MIN_COLUMN, max(map(len, column))) + GAP for column in zip(names, *texts, strict=True))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=width >= needed)
    if width >= needed:
        for name in names:
            table.add_column(Text(name), overflow="fold")
        for row in texts:
            table.add_row(*map(Text, row))
    else:
        table.add_column(overflow="fold")
        blocks = (
            [f"{name}: {text}" if name else text for name, text in zip(names, row, strict=True) if text]
            for row in texts
        )
        table.add_row(Text("\n\n".join("\n".join(block) for block in blocks)))
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
