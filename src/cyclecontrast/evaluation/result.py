"""What an evaluation found, and everything needed to know what it is the result of; it knows no protocol.

A result is a file of its own for each protocol, model, data and settings, so that none is taken for another's.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from cyclecontrast.data.storage import read_regular
from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing
from cyclecontrast.versions import package_versions

NO_PART_OF_KEY = frozenset(
    {"model", "data", "classes", "train_data", "out", "save", "score_only", "report", "workers", "device"}
)
"""Settings that name a file, which a fingerprint stands for, or do not change the numbers."""
MAX_LISTED = 10
MOST_BYTES = 2**30

Json = dict[str, Any]


class ModelInfo(NamedTuple):
    """Which backbone: `fingerprint` names its content, `source` says where it came from."""

    name: str
    source: str
    fingerprint: str


class DataInfo(NamedTuple):
    """Which images: `fingerprint` names their content; numbers are those of the level, images or videos."""

    path: str
    fingerprint: str
    num_train: int
    num_test: int


@dataclass(frozen=True)
class About:
    """The origin of predictions; `tag` names the variant of the protocol, and only equal tags may be compared.

    `problems` has a line for each item of the data that could not be used; `scoring` names the settings that
    predictions do not depend on.
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
        return self._key(NO_PART_OF_KEY)

    @property
    def record_key(self) -> str:
        """Name of the record, which the settings of the scoring step do not change."""
        return self._key(NO_PART_OF_KEY | set(self.scoring))

    def _key(self, left_out: Collection[str]) -> str:
        settings = {name: value for name, value in self.config.items() if name not in left_out}
        text = json.dumps([settings, self.data.fingerprint], sort_keys=True)
        return f"{self.protocol}-{self.model.fingerprint}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def to_json(self) -> Json:
        """Return what `from_json` takes."""
        nested = {"model": self.model._asdict(), "data": self.data._asdict()}
        return {**{item.name: getattr(self, item.name) for item in dataclasses.fields(self)}, **nested}

    @staticmethod
    def from_json(values: Json) -> "About":
        """Rebuild what `to_json` gave; raises ValueError where a part is missing or of another kind."""
        return TypeAdapter(About).validate_python(values)


@dataclass(frozen=True)
class Result:
    """Metrics as fractions, and their breakdown per item (for classification: accuracy per class, confusion)."""

    about: About
    metrics: dict[str, float]
    per_item: Json

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return self.about.protocol

    @property
    def tag(self) -> str:
        """Variant of the protocol."""
        return self.about.tag

    def save(self, folder: Path) -> Path:
        """Write <folder>/<key>.json, one line per part, and return its path."""
        path = folder / f"{self.about.key}.json"
        parts: Json = {"metrics": self.metrics, **self.about.to_json(), "per_item": self.per_item}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(part, allow_nan=False)}" for name, part in parts.items())
        with replacing(path) as aside:
            aside.write_text(f"{{\n{lines}\n}}\n")
        return path

    @staticmethod
    def load(path: Path) -> "Result":
        """Read what `save` wrote; raises UserError."""
        try:
            parts = json.loads(read_regular(path, MOST_BYTES))
            metrics = {str(name): float(value) for name, value in parts.pop("metrics").items()}
            if odd := [name for name, value in metrics.items() if not math.isfinite(value)]:
                raise ValueError(f"no number in {', '.join(odd)}")
            per_item = dict(parts.pop("per_item"))
            return Result(About.from_json(parts), metrics, per_item)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: is no result of `cyclecontrast evaluate` ({reason})") from error

    def __str__(self) -> str:
        """Return the result as text to print: percentages, then what was decided on the way."""
        about = self.about
        width = max(map(len, self.metrics), default=0)
        return "\n".join(
            [
                f"{about.tag} of {about.model.name} ({about.model.source}) on {about.data.path}, "
                f"{about.data.num_train:,} train and {about.data.num_test:,} test",
                *(f"  {name:{width}}  {100 * value:6.2f} %" for name, value in self.metrics.items()),
                *(f"  {note}" for note in about.notes),
                *self._left_out(),
            ]
        )

    def _left_out(self) -> Iterator[str]:
        problems = self.about.problems
        if problems:
            yield f"  left out, {len(problems)}:"
            yield from (f"    {problem}" for problem in problems[:MAX_LISTED])
            if len(problems) > MAX_LISTED:
                yield f"    ... and {len(problems) - MAX_LISTED} more, in the result's file"
