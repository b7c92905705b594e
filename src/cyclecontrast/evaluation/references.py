"""Published results with their sources, and the conditions under which they are comparable with a measured result."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from cyclecontrast.evaluation.predictions import Result

METHOD = "CycleContrast"
UCF101 = {"split": 1, "fps": 16, "image_size": 224, "flip": True, "bn": "eval", "num_clips": 10}
SCHEDULE = {"warmup_epochs": 5, "epochs": 16, "learning_rate": 1e-4}
RETRIEVAL = {"split": 1, "per_video": 10, "image_size": 224, "center": False, "ann": "exact"}
SETTINGS: dict[str, dict[str, Any]] = {
    "tracking": {
        **{"tracker": "siamfc", "preset": "release", "train": True, "toolkit": "got10k", "exact_geometry": False},
        **{"fix_scale_penalty": False, "epochs": 50, "batch_size": 8, "pairs_per_sequence": 1, "learning_rate": 1e-3},
    },
    "linear": {
        "probe": "sgd",
        "level": "frame",
        "image_size": 224,
        "epochs": 100,
        "batch_size": 256,
        "learning_rate": 30,
    },
    "action finetune": {**UCF101, **SCHEDULE, "num_frames": 32, "batch_size": 32, "clips_per_video": 5, "dropout": 0.9},
    "action linear": {**UCF101, **SCHEDULE, "num_frames": 8, "batch_size": 64, "clips_per_video": 10, "dropout": 0.5},
    "retrieval frame": RETRIEVAL,
    "retrieval clip": {**RETRIEVAL, "clip_length": 16},
}
"""Settings under which a protocol matches the published result."""
ITEMS = {
    "tracking": (9_335, 100),
    "linear": (1_281_167, 50_000),
    "action": (9_537, 3_783),
    "retrieval": (95_370, 37_830),
}
"""Items of train and test of the data that each published figure is of."""


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

    @property
    def backbone_name(self) -> str:
        """Name of the backbone as MODEL names it."""
        return self.backbone.lower().replace("-", "")


class Compared(NamedTuple):
    """Published results (percent by metric), and the differences from the measured result.

    Comparable if there are none.
    """

    one: Reference
    percents: dict[str, float]
    differences: tuple[str, ...]


@cache
def load_references() -> tuple[Reference, ...]:
    """Return the figures of the paper's Tables 1 to 4 and 9 to 11, and those of its README and slides."""
    text = files("cyclecontrast.evaluation").joinpath("references.json").read_text(encoding="utf-8")
    return tuple(Reference(**row) for row in json.loads(text))


def compare(result: Result) -> Compared | None:
    """Return the paper's own figures for the metrics of a result, of the same backbone if there are any."""
    label = _label(result)
    rows = [row for row in load_references() if (row.protocol, row.method) == (label, METHOD)]
    ours = [row for row in rows if row.metric in result.metrics]
    same = [row for row in ours if row.backbone_name == result.about.model.name] or ours
    rows = [row for row in same if (row.source, row.backbone) == (same[0].source, same[0].backbone)]
    if not rows:
        return None
    return Compared(rows[0], {row.metric: row.percent for row in rows}, tuple(_differences(result, label, rows[0])))


def _label(result: Result) -> str:
    variant = {"action": "mode", "retrieval": "level"}.get(result.protocol)
    return f"{result.protocol} {result.about.config[variant]}" if variant else result.protocol


def _differences(result: Result, label: str, reference: Reference) -> Iterator[str]:
    about = result.about
    if reference.backbone_name != about.model.name:
        yield f"backbone {about.model.name}, not {reference.backbone}"
    numbers = {"train": about.data.num_train, "test": about.data.num_test}
    for (split, number), size in zip(numbers.items(), ITEMS[result.protocol], strict=True):
        if number != size:
            yield f"data: {number:,} {split} items, not the {size:,} of {reference.data}"
    settings = about.config | about.details
    for name, value in SETTINGS[label].items():
        if settings.get(name, value) not in (value, None):
            yield f"{name} {settings.get(name)}, not {value}"
    if about.problems:
        yield f"{len(about.problems)} items left out"
