"""A run folder as the report shows it: settings, metrics, results, data and backbone."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.compute as pc

from cyclecontrast.config import MACHINE_SETTINGS, RUNTIME_SETTINGS, PretrainConfig
from cyclecontrast.config.types import is_url, read_toml
from cyclecontrast.data.remote import RemoteFiles
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import VIDEO_SCHEMA
from cyclecontrast.data.tables import read_table
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone, stored_fingerprint
from cyclecontrast.output import quoted
from cyclecontrast.reporting.sprites import shortened
from cyclecontrast.training.run_folder import read_about, read_metrics
from cyclecontrast.training.verdict import Verdict

REQUIRED = ("versions", "num_videos", "num_frames", "num_single_frame_videos", "num_steps", "device", "precision")
"""Entries of run.json that every page shows."""
T = TypeVar("T")

NOT_IN_SETTINGS_KEY = (MACHINE_SETTINGS - {"data"}) | RUNTIME_SETTINGS | {"seed"}


@dataclass(frozen=True)
class RunReport:
    """One run as the page shows it; `name` is unique on the page.

    `store` is its current data, None if it no longer exists; `skipped` are the videos that could not be prepared, with
    reasons. `backbone` is the latest one, None if there is none yet or if it is a custom network; its `fingerprint` is
    known in that case, too. `store_problem` and `backbone_problem` are sentences for the page.
    """

    name: str
    folder: Path
    config: PretrainConfig
    config_text: str
    about: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: list[Result]
    store: FrameStore | None
    store_problem: str
    skipped: list[tuple[str, str]]
    backbone: Backbone | None
    fingerprint: str
    backbone_problem: str

    @property
    def method(self) -> str:
        """The settings except seed and hardware, as JSON; runs with equal values differ only in their seed."""
        return json.dumps(self.config.model_dump(mode="json", exclude=set(NOT_IN_SETTINGS_KEY)), sort_keys=True)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict in run.json; None if health was not measured."""
        return Verdict(self.about["verdict"], self.about["reason"]) if "verdict" in self.about else None

    @property
    def health(self) -> dict[str, Any]:
        """What health was measured on, and its values before the first step; empty if it was not measured."""
        return self.about.get("health") or {}

    @property
    def start(self) -> str:
        """The fingerprint of the weights that the run started from; "" for random weights, and for older runs."""
        return str((self.about.get("start") or {}).get("fingerprint", ""))

    @property
    def steps_done(self) -> int:
        """The last logged step."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0


def read_runs(folders: Sequence[Path], with_data: bool = True, download: bool = False) -> list[RunReport]:
    """Read run folders, with or without opening their data; raises UserError with the problems of all of them."""
    problems: list[str] = []
    pairs = zip(folders, _unique_names(folders), strict=True)
    runs = [attempt(partial(read_run, folder, name, with_data, download), problems) for folder, name in pairs]
    if problems:
        raise UserError(*problems)
    return [run for run in runs if run is not None]


def read_run(folder: Path, name: str, with_data: bool = True, download: bool = False) -> RunReport:
    """Read one run folder; raises UserError if it is not a run or a file of it cannot be read."""
    config, text, about, metrics = read_files(folder)
    data = _open_data(folder, config, about.get("data_fingerprint"), download) if with_data else (None, "", [])
    loaded: tuple[Backbone | None, str, str]
    try:
        backbone = load_backbone(folder)
        loaded = backbone, fingerprint(backbone), ""
    except UserError as error:
        loaded = None, stored_fingerprint(folder), str(error)
    results = read_results(folder)
    return RunReport(name, folder, config, text, about, metrics, results, *data, *loaded)


def read_files(folder: Path) -> tuple[PretrainConfig, str, dict[str, Any], list[dict[str, Any]]]:
    """Read config.toml (also as text), run.json and metrics.jsonl of a run; raises UserError."""
    if missing := _missing(folder):
        raise UserError(f"{folder}: has no {' and no '.join(missing)}; name a run folder that `pretrain` wrote")
    try:
        config, about = checked(PretrainConfig, read_toml(folder / "config.toml")), read_about(folder)
        text = (folder / "config.toml").read_text("utf-8-sig")
        if absent := [name for name in REQUIRED if name not in about]:
            raise ValueError(f"run.json has no {', '.join(absent)}")
        return config, text, about, read_metrics(folder)
    except (ValueError, UserError) as error:
        raise UserError(f"{folder}: a file of the run is damaged ({error})") from error


def read_results(folder: Path) -> list[Result]:
    """Read the results in a run folder, also those of random weights; raises UserError."""
    return [Result.load(path) for path in sorted((folder / "results").glob("*.json"))]


def start_name(run: RunReport) -> str:
    """Return the name of the weights that a run started from."""
    return f"start ({shortened(str(run.config.init))})"


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run."""
    return not _missing(folder)


def one_per_settings(runs: Iterable[RunReport]) -> list[RunReport]:
    """Return the first run of each method."""
    return first_of_each(runs, lambda run: run.method)


def first_of_each(items: Iterable[T], key: Callable[[T], object]) -> list[T]:
    """Return the first item of each key. By seed: neither a copy nor a second run of a seed counts as another seed."""
    first: dict[object, T] = {}
    for item in items:
        first.setdefault(key(item), item)
    return list(first.values())


def by_data(runs: Iterable[RunReport]) -> list[list[RunReport]]:
    """Group runs by the content of their data, or by its path if it is gone."""
    groups: dict[str, list[RunReport]] = {}
    for run in runs:
        groups.setdefault(run.store.fingerprint if run.store else str(run.config.data), []).append(run)
    return list(groups.values())


def _missing(folder: Path) -> list[str]:
    return [file for file in ("config.toml", "run.json") if not (folder / file).is_file()]


def _unique_names(folders: Sequence[Path]) -> list[str]:
    """Return the last part of each path, or as many parts as make the names unique."""
    parts = [folder.absolute().parts for folder in folders]
    for num in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-num:]) for part in parts]
        if max(Counter(names).values()) == 1:
            return names
    raise UserError("runs: the same folder is named twice")


def _open_data(
    folder: Path, config: PretrainConfig, expected: str | None, download: bool
) -> tuple[FrameStore | None, str, list[tuple[str, str]]]:
    """Return the store of a run, a problem, and the videos skipped when it was prepared."""
    root = folder / "frames" if (folder / "frames" / "store.json").exists() else config.data
    if is_url(root) and not download:
        allow = f"to allow the download: cyclecontrast report {quoted(folder)} --download"
        return None, f"The frames of this run are not shown: they are at {root}; {allow}", []
    try:
        store = FrameStore.open(root)
    except (UserError, OSError, ValueError) as error:
        return None, f"The frames of this run cannot be shown: {error}", []
    changed = expected is not None and store.fingerprint != expected
    problem = f"{root} has changed since the run. The page shows the current data." if changed else ""
    return store, problem, _skipped(root)


def _skipped(root: Path | str) -> list[tuple[str, str]]:
    file = "videos.parquet"
    try:
        if isinstance(root, Path):
            table = read_table(root / file, VIDEO_SCHEMA, ("id", "status", "reason"))
        else:
            with RemoteFiles(root).fetched(file) as folder:
                table = read_table(folder / file, VIDEO_SCHEMA, ("id", "status", "reason"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{root}/{file}: cannot be read ({error}); run `cyclecontrast prepare` again") from error
    return [(row["id"], row["reason"]) for row in table.filter(pc.field("status") == "skipped").to_pylist()]
