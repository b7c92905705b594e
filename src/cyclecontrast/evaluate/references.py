"""Published figures, each with its source, and what must agree before one may stand beside a measured one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from cyclecontrast.evaluate.result import Result

METHOD = "CycleContrast"
SIZE_OF_TEST = {"tracking": 100, "linear": 50_000, "action finetune": 3_783, "retrieval": 37_830}
SETTINGS: dict[str, dict[str, Any]] = {
    "tracking": {
        **{"tracker": "siamfc", "preset": "release", "train": True, "toolkit": "got10k"},
        **{"epochs": 50, "batch_size": 8, "pairs_per_sequence": 1, "exact_geometry": False, "fix_scale_penalty": False},
    },
    "linear": {"probe": "sgd", "level": "frame", "epochs": 100, "image_size": 224},
    "action finetune": {
        "split": 1,
        "image_size": 224,
        "num_frames": 32,
        "warmup_epochs": 5,
        "epochs": 16,
        "num_clips": 10,
    },
    "retrieval frame": {"split": 1, "per_video": 10, "image_size": 224, "center": False},
    "retrieval clip": {"split": 1, "per_video": 10, "image_size": 224, "center": False, "clip_length": 16},
}
"""Settings, as resolved, with which the protocol is the one of the published figure."""


@dataclass(frozen=True)
class Reference:
    """One published figure in percent: of which method, with what backbone, pretrained and tested on what."""

    source: str
    protocol: str
    metric: str
    percent: float
    method: str
    backbone: str
    pretrained_on: str
    data: str
    note: str


class Compared(NamedTuple):
    """Published figures by metric, and all in which the measured ones differ; comparable where that is nothing."""

    references: dict[str, Reference]
    differences: tuple[str, ...]

    @property
    def one(self) -> Reference:
        """What the figures have in common: source, method, backbone, data."""
        return next(iter(self.references.values()))


@cache
def load_references() -> tuple[Reference, ...]:
    """Return the figures of the paper's Tables 1, 3, 9 and 11, and those of its README and slides."""
    text = files("cyclecontrast.evaluate").joinpath("references.json").read_text(encoding="utf-8")
    return tuple(Reference(**row) for row in json.loads(text))


def compare(result: Result) -> Compared | None:
    """Return the paper's own figures for the metrics of a result, of the same backbone if there are any."""
    label = _label(result)
    ours = [
        row
        for row in load_references()
        if (row.protocol, row.method) == (label, METHOD) and row.metric in result.metrics
    ]
    same = [row for row in ours if _plain(row.backbone) == result.about.model.name] or ours
    rows = [row for row in same if (row.source, row.backbone) == (same[0].source, same[0].backbone)]
    if not rows:
        return None
    return Compared({row.metric: row for row in rows}, tuple(_differences(result, label, rows[0])))


def _label(result: Result) -> str:
    variant = {"action": "mode", "retrieval": "level"}.get(result.protocol)
    return f"{result.protocol} {result.about.config[variant]}" if variant else result.protocol


def _plain(backbone: str) -> str:
    return backbone.lower().replace("-", "")


def _differences(result: Result, label: str, reference: Reference) -> Iterator[str]:
    about = result.about
    if _plain(reference.backbone) != about.model.name:
        yield f"backbone {about.model.name}, not {reference.backbone}"
    size = SIZE_OF_TEST.get(label) or SIZE_OF_TEST[result.protocol]
    if about.data.num_test != size:
        yield f"data: {about.data.num_test:,} test items, not the {size:,} of {reference.data}"
    settings = about.config | about.details
    for name, value in SETTINGS[label].items():
        if settings.get(name) != value:
            yield f"{name} {settings.get(name)}, not {value}"
    if about.problems:
        yield f"{len(about.problems)} items left out"
