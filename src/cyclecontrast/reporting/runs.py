"""A run folder → everything the page says of it; what is missing is named, and nothing is computed here."""

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from cyclecontrast.config import MACHINE_SETTINGS, RUNTIME_SETTINGS, PretrainConfig
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.remote import Remote
from cyclecontrast.data.store_files import VIDEO_SCHEMA
from cyclecontrast.data.table_files import read_table
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone, noted_fingerprint
from cyclecontrast.training.run_folder import read_about, read_metrics
from cyclecontrast.training.verdict import Verdict

NEEDED = ("versions", "num_videos", "num_frames", "num_single_frame_videos", "num_steps", "device", "precision")
"""What the page says of every run."""
NO_PART_OF_METHOD = (MACHINE_SETTINGS - {"data"}) | RUNTIME_SETTINGS | {"seed"}


class RunFiles(NamedTuple):
    """What a run's own files say, its weights, data and results aside."""

    config: PretrainConfig
    config_text: str
    about: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]


class SkippedVideo(NamedTuple):
    """A video that gave no frames, and why."""

    id: str
    reason: str


class Frames(NamedTuple):
    """The data of a run as it is now: `store` is None where it is gone, and `problem` says what is not as it was."""

    store: FrameStore | None
    problem: str
    skipped: tuple[SkippedVideo, ...]


class Trained(NamedTuple):
    """The newest backbone of a run and the name of its content; `problem` says why there is none.

    Of a network of the user's the name is known, although no file says how to make it.
    """

    backbone: Backbone | None
    fingerprint: str
    problem: str


@dataclass(frozen=True)
class RunReport:
    """One run, as the page shows it; `name` tells it from the others on the page."""

    name: str
    folder: Path
    config: PretrainConfig
    config_text: str
    about: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    results: tuple[Result, ...]
    frames: Frames
    trained: Trained

    @property
    def method(self) -> str:
        """Name of the settings without the seed: runs of one method are repetitions of each other."""
        return json.dumps(self.config.model_dump(mode="json", exclude=set(NO_PART_OF_METHOD)), sort_keys=True)

    @property
    def verdict(self) -> Verdict | None:
        """What the label-free signals say of the run, as it was noted; None where no health was measured."""
        return Verdict(self.about["verdict"], self.about["reason"]) if "verdict" in self.about else None

    @property
    def health(self) -> dict[str, Any]:
        """What the signals were measured on, and their values before the first step; empty where none were."""
        return self.about.get("health") or {}

    @property
    def steps_done(self) -> int:
        """Number of the last logged step."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0


class DataGroup(NamedTuple):
    """Runs on the same frames, at least one, and what these are called."""

    data: str
    runs: tuple[RunReport, ...]

    @property
    def frames(self) -> Frames:
        """The frames of all of them."""
        return self.runs[0].frames


def read_runs(folders: Sequence[Path], with_frames: bool = True) -> list[RunReport]:
    """Read run folders, on request without opening their data; raises UserError with every problem of every folder."""
    problems: list[str] = []
    names = _names(folders)
    read = (partial(read_run, folder, name, with_frames) for folder, name in zip(folders, names, strict=True))
    found = [attempt(action, problems) for action in read]
    if problems:
        raise UserError(*problems)
    return [run for run in found if run is not None]


def read_run(folder: Path, name: str, with_frames: bool = True) -> RunReport:
    """Read one run folder; raises UserError where it is none, or where a file of it is damaged."""
    config, text, about, metrics = read_files(folder)
    frames = _read_frames(folder, config, about.get("data_fingerprint")) if with_frames else Frames(None, "", ())
    return RunReport(name, folder, config, text, about, metrics, read_results(folder), frames, _load_trained(folder))


def read_files(folder: Path) -> RunFiles:
    """Read a run's config.toml, run.json and metrics.jsonl; raises UserError."""
    missing = _missing(folder)
    if missing:
        raise UserError(f"{folder}: holds no {' and no '.join(missing)}; name the folder of a run of `pretrain`")
    try:
        text = (folder / "config.toml").read_text()
        config = checked(PretrainConfig, tomllib.loads(text))
        about = read_about(folder)
        if absent := [name for name in NEEDED if name not in about]:
            raise ValueError(f"run.json lacks {', '.join(absent)}")
        return RunFiles(config, text, about, tuple(read_metrics(folder)))
    except (ValueError, UserError) as error:
        raise UserError(f"{folder}: a file of the run is damaged ({error})") from error


def is_run(folder: Path) -> bool:
    """Tell whether a folder is that of a run."""
    return not _missing(folder)


def _missing(folder: Path) -> list[str]:
    return [file for file in ("config.toml", "run.json") if not (folder / file).is_file()]


def one_per_method(runs: Iterable[RunReport]) -> list[RunReport]:
    """Return the first run of each method."""
    return list({run.method: run for run in reversed(list(runs))}.values())[::-1]


def by_data(runs: Iterable[RunReport]) -> list[DataGroup]:
    """Return the runs grouped by the content of their data, or by its place where it is gone."""
    groups: dict[str, list[RunReport]] = {}
    for run in runs:
        key = run.frames.store.fingerprint if run.frames.store else str(run.config.data)
        groups.setdefault(key, []).append(run)
    return [DataGroup(str(group[0].config.data), tuple(group)) for group in groups.values()]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last part of each path, or as many as it takes to tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for num in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-num:]) for part in parts]
        if max(Counter(names).values()) == 1:
            return names
    raise UserError("runs: the same folder is named twice")


def read_results(folder: Path) -> tuple[Result, ...]:
    """Return the results in a run's folder, those of random weights among them; raises UserError."""
    return tuple(Result.load(path) for path in sorted((folder / "results").glob("*.json")))


def _read_frames(folder: Path, config: PretrainConfig, expected: str | None) -> Frames:
    root = folder / "frames" if (folder / "frames" / "store.json").exists() else config.data
    try:
        store = FrameStore.open(root)
    except (UserError, OSError, ValueError) as error:
        return Frames(None, f"The frames of this run cannot be shown: {error}", ())
    changed = expected is not None and store.fingerprint != expected
    problem = f"{root} has changed since the run; what is shown is what lies there now." if changed else ""
    return Frames(store, problem, _skipped(root))


def _skipped(root: Path | str) -> tuple[SkippedVideo, ...]:
    name = "videos.parquet"
    if isinstance(root, Path):
        return _skipped_in(root / name) if (root / name).is_file() else ()
    try:
        with Remote(root).fetched(name) as folder:
            return _skipped_in(folder / name)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); give the same command again") from error


def _skipped_in(path: Path) -> tuple[SkippedVideo, ...]:
    try:
        table = read_table(path, VIDEO_SCHEMA, ("id", "status", "reason"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the same `cyclecontrast prepare` again") from error
    rows = table.filter(pc.field("status") == "skipped").to_pylist()
    return tuple(SkippedVideo(row["id"], row["reason"]) for row in rows)


def _load_trained(folder: Path) -> Trained:
    try:
        backbone = load_backbone(folder)
    except UserError as error:
        return Trained(None, noted_fingerprint(folder), str(error))
    return Trained(backbone, fingerprint(backbone), "")
