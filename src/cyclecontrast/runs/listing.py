"""The command `runs ls`: what each run's own files say, without its weights and data."""

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from cyclecontrast.config import ListConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.reporting.results import RANDOM
from cyclecontrast.reporting.runs import read_files, read_results
from cyclecontrast.runs.find import OF_A_RUN, find_runs
from cyclecontrast.runs.text_table import text_table

HEAD = ("run", "changed", "status", "verdict", "method", "backbone", "steps", "seed", "data", "best results", "note")


class Best(NamedTuple):
    """The highest value, as a fraction, of the first metric of a protocol's variant on a data set."""

    tag: str
    data: str
    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.tag} {self.metric} {100 * self.value:.1f} % on {self.data}"


class Listed(NamedTuple):
    """A run; `changed` is when its own files last were, `problem` says what of it cannot be read.

    Where that is one of its own files, nothing else is known.
    """

    path: Path
    changed: datetime
    problem: str = ""
    status: str = ""
    verdict: str = ""
    reason: str = ""
    method: str = ""
    backbone: str = ""
    steps_done: int | None = None
    num_steps: int | None = None
    seed: int | None = None
    data: str = ""
    results: tuple[Best, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """Return what stands in its line."""
        steps = "" if self.num_steps is None else f"{self.steps_done}/{self.num_steps}"
        return (
            str(self.path),
            f"{self.changed:%Y-%m-%d %H:%M}",
            "damaged" if self.problem else self.status.partition(":")[0],
            self.verdict,
            self.method,
            self.backbone,
            steps,
            "" if self.seed is None else str(self.seed),
            Path(self.data).name or self.data,
            ", ".join(map(str, self.results)),
            self.problem or self.status.partition(": ")[2],
        )

    def to_json(self) -> dict[str, Any]:
        """Return all that is known."""
        results = [best._asdict() for best in self.results]
        return self._asdict() | {"path": str(self.path), "changed": self.changed.isoformat(), "results": results}


class Listing(NamedTuple):
    """The runs that were found, the one that changed last at the end, and what could not be looked into."""

    runs: tuple[Listed, ...]
    problems: tuple[str, ...]
    config: ListConfig

    def __str__(self) -> str:
        if self.config.as_json:
            return json.dumps([run.to_json() for run in self.runs], indent=2)
        table = text_table(HEAD, [run.cells() for run in self.runs]) if self.runs else self._nothing()
        return "\n".join((table, *self.problems))

    def _nothing(self) -> str:
        places = ", ".join(map(str, self.config.folders))
        return f"no runs in {places} and {self.config.depth} levels below; --depth looks further"


def list_runs(config: ListConfig) -> Listing:
    """Find runs and read what they say of themselves; one that is damaged is listed with the reason.

    Raises UserError where a folder to look into is none.
    """
    missing = [folder for folder in config.folders if not folder.is_dir()]
    if missing:
        raise UserError(*(f"folders: {folder}: is no folder; name one that runs lie below" for folder in missing))
    problems: list[str] = []
    runs = [_listed(folder) for folder in find_runs(config.folders, config.depth, problems)]
    return Listing(tuple(sorted(runs, key=lambda run: run.changed)), tuple(problems), config)


def tell_apart(config: ListConfig, listing: Listing) -> None:
    """Say on stderr what could not be looked into, where what is printed is for a program."""
    for problem in listing.problems if config.as_json else ():
        print(problem, file=sys.stderr)


def _listed(folder: Path) -> Listed:
    listed = Listed(folder, _changed(folder))
    try:
        config, _, about, metrics = read_files(folder)
    except (UserError, OSError) as error:
        return listed._replace(problem=str(error).partition("\n")[0].removeprefix(f"{folder}: "))
    listed = listed._replace(
        status=about.get("status", ""),
        verdict=about.get("verdict", ""),
        reason=about.get("reason", ""),
        method=config.method,
        backbone=config.backbone,
        steps_done=int(metrics[-1]["step"]) if metrics else 0,
        num_steps=about["num_steps"],
        seed=config.seed,
        data=str(config.data),
    )
    try:
        return listed._replace(results=tuple(_best(read_results(folder))))
    except (UserError, OSError) as error:
        return listed._replace(problem=str(error))


def _best(results: tuple[Result, ...]) -> Iterator[Best]:
    """Yield the best of each variant and metric on each data set; results of random weights are not the run's."""
    found: dict[tuple[str, str, str], Best] = {}
    for result in results:
        about = result.about
        if about.model.source == RANDOM or not result.metrics:
            continue
        metric, value = next(iter(result.metrics.items()))
        best = Best(about.tag, Path(about.data.path).name, metric, value)
        key = about.tag, metric, about.data.fingerprint
        found[key] = max(best, found.get(key, best), key=lambda one: one.value)
    yield from found.values()


def _changed(folder: Path) -> datetime:
    times = [path.stat().st_mtime for name in OF_A_RUN if (path := folder / name).is_file()]
    return datetime.fromtimestamp(max(times, default=0)).astimezone()
