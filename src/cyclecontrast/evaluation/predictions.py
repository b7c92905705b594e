"""The files of an evaluation: a record of the predictions, written before they are scored, and a result.

    <results>/records/<record key>.parquet   one row per test item, with all that scoring needs
    <results>/<key>.json                     metrics, their breakdown, and where they come from

Keys name the protocol, the model's and the data's content, and the settings, so that no file is taken for another.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from cyclecontrast.config import AllConfig, EvaluateConfig
from cyclecontrast.errors import UserError
from cyclecontrast.files import atomic_write
from cyclecontrast.models.hardware import package_versions
from cyclecontrast.output import join_lines

NOT_IN_KEY = frozenset(
    {"model", "data", "classes", "train_data", "out", "save", "score_only", "report", "workers", "device", "baseline"}
)
"""Settings that are not part of a result's key: paths, whose content is identified by a fingerprint, and settings that
do not change the metrics."""
MAX_LISTED = 10
BASELINES = {"random": "random weights", "start": "its start"}
FORGOTTEN = 0.02
"""What a network at least loses if it has forgotten what its start knew about the data."""

Json = dict[str, Any]


class ModelInfo(NamedTuple):
    """Which backbone: `fingerprint` identifies its weights, `source` says where they came from."""

    name: str
    source: str
    fingerprint: str


class DataInfo(NamedTuple):
    """Which data: `fingerprint` identifies their content; numbers are those of the level, images or videos."""

    path: str
    fingerprint: str
    num_train: int
    num_test: int


@dataclass(frozen=True)
class About:
    """Metadata of predictions; `tag` identifies the variant of the protocol.

    Only results with equal tags are comparable. `problems` has a line for each item that could not be used; `scoring`
    names the settings of scoring alone.
    """

    protocol: str
    tag: str
    config: Json
    model: ModelInfo
    data: DataInfo
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    details: Json = field(default_factory=dict)
    scoring: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=package_versions)

    @property
    def key(self) -> str:
        """Name of the files of this result."""
        return self._key(NOT_IN_KEY)

    @property
    def record_key(self) -> str:
        """Name of the record, which the settings of scoring do not change."""
        return self._key(NOT_IN_KEY | set(self.scoring))

    def _key(self, left_out: Collection[str]) -> str:
        settings = {name: value for name, value in self.config.items() if name not in left_out}
        text = json.dumps([settings, self.data.fingerprint], sort_keys=True)
        return f"{self.protocol}-{self.model.fingerprint}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def to_json(self) -> Json:
        """Return the values of a JSON object, which `ABOUT` reads."""
        nested = {"model": self.model._asdict(), "data": self.data._asdict()}
        return {**{item.name: getattr(self, item.name) for item in dataclasses.fields(self)}, **nested}


ABOUT = TypeAdapter(About)
"""Reads an About from JSON; raises ValueError where a part is missing or of another type."""


@dataclass(frozen=True)
class Record:
    """Predictions: one row per test item, with all that its score needs."""

    about: About
    table: pa.Table

    def save(self, folder: Path) -> Path:
        """Write <folder>/records/<key>.parquet and return its path."""
        path = record_path(folder, self.about.record_key)
        with atomic_write(path) as aside:
            about = json.dumps(self.about.to_json())
            pq.write_table(self.table.replace_schema_metadata({"about": about}), aside)
        return path

    @staticmethod
    def load(path: Path) -> "Record":
        """Read what `save` wrote; raises UserError."""
        return Record._read(path, pq.read_table)

    @staticmethod
    def check(path: Path) -> None:
        """Raise UserError if the end of a record is damaged, which describes it and its columns."""
        Record._read(path, lambda file: pq.read_schema(file).empty_table())

    @staticmethod
    def _read(path: Path, read: Callable[[Path], pa.Table]) -> "Record":
        try:
            table = read(path)
            about = ABOUT.validate_python(json.loads((table.schema.metadata or {})[b"about"]))
            return Record(about, table.replace_schema_metadata())
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: the record cannot be read ({reason}); evaluate without --score-only") from error


def matrix_to_column(rows: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """Return a matrix as a column of a table, a list per row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def column_to_matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return the matrix that `matrix_to_column` stored."""
    matrix: npt.NDArray[Any] = column.combine_chunks().flatten().to_numpy().reshape(-1, column.type.list_size)
    return matrix


def find_records(folder: Path, protocol: str) -> list[Record]:
    """Read all records of a protocol below a folder of results."""
    return [Record.load(path) for path in sorted((folder / "records").glob(f"{protocol}-*.parquet"))]


def record_path(folder: Path, key: str) -> Path:
    """Return the path of the record with this key in a results folder."""
    return folder / "records" / f"{key}.parquet"


class Baseline(NamedTuple):
    """What a result is compared with: `name` is random or start, `metrics` are its fractions."""

    name: Literal["random", "start"]
    model: ModelInfo
    metrics: dict[str, float]


BASELINE = TypeAdapter(Baseline | None)


@dataclass(frozen=True)
class Result:
    """Metrics as fractions, and their breakdown per item (for classification: accuracy per class, confusion)."""

    about: About
    metrics: dict[str, float]
    per_item: Json
    baseline: Baseline | None = None

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return self.about.protocol

    @property
    def tag(self) -> str:
        """Variant of the protocol."""
        return self.about.tag

    def difference(self, metric: str) -> str:
        """Return how far it is from the baseline, such as `-12.3 points against its start (forgotten)`, or ""."""
        if self.baseline is None or metric not in self.baseline.metrics:
            return ""
        now, before = self.metrics[metric], self.baseline.metrics[metric]
        rate = (now + before) / 2
        # At least that of a mean over independent items, each between 0 and 1.
        error = math.sqrt(max(0.0, 2 * rate * (1 - rate)) / max(1, self.about.data.num_test))
        is_lost = self.baseline.name == "start" and before - now > max(FORGOTTEN, 2 * error)
        points = round(100 * (now - before), 1) + 0  # never -0.0
        return f"{points:+.1f} points against {BASELINES[self.baseline.name]}{' (forgotten)' * is_lost}"

    def save(self, folder: Path) -> Path:
        """Write <folder>/<key>.json, one line per part, and return its path."""
        path = result_path(folder, self.about.key)
        parts: Json = {"metrics": self.metrics, **self.about.to_json(), "per_item": self.per_item}
        if self.baseline is not None:
            parts |= {"baseline": self.baseline._asdict() | {"model": self.baseline.model._asdict()}}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(part, allow_nan=False)}" for name, part in parts.items())
        with atomic_write(path) as aside:
            aside.write_text(f"{{\n{lines}\n}}\n", "utf-8")
        return path

    @staticmethod
    def load(path: Path) -> "Result":
        """Read what `save` wrote; raises UserError."""
        try:
            parts = json.loads(path.read_bytes())
            metrics = {name: float(value) for name, value in parts.pop("metrics").items()}
            per_item, baseline = parts.pop("per_item"), BASELINE.validate_python(parts.pop("baseline", None))
            return Result(ABOUT.validate_python(parts), metrics, per_item, baseline)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: is not a result of `cyclecontrast evaluate` ({reason})") from error

    def __str__(self) -> str:
        """Return the result as text: percentages, notes, then what was left out."""
        about, problems = self.about, self.about.problems
        width = max(map(len, self.metrics), default=0)
        lines = [
            f"{about.tag} of {about.model.name} ({about.model.source}) on {about.data.path}, "
            f"{about.data.num_train:,} train and {about.data.num_test:,} test",
            *(f"  {name:{width}}  {100 * value:6.2f} %{self._beside(name)}" for name, value in self.metrics.items()),
            *(f"  {note}" for note in about.notes),
        ]
        if problems:
            lines += [f"  left out, {len(problems)}:", *(f"    {problem}" for problem in problems[:MAX_LISTED])]
        if len(problems) > MAX_LISTED:
            lines.append(f"    ... and {len(problems) - MAX_LISTED} more, in the result's file")
        return join_lines(lines)

    def _beside(self, metric: str) -> str:
        if self.baseline is None or metric not in self.baseline.metrics:
            return ""
        return f"  {self.baseline.name} {100 * self.baseline.metrics[metric]:6.2f} %  {self.difference(metric)}"


def result_path(folder: Path, key: str) -> Path:
    """Return the path of the result with this key in a results folder."""
    return folder / f"{key}.json"


def results_folder(config: EvaluateConfig | AllConfig) -> Path:
    """Return the folder of results: `out`, else that of the run that is evaluated, else ./results."""
    if config.out is not None:
        return config.out
    return Path(config.model) / "results" if Path(config.model).is_dir() else Path("results")
