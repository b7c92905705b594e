"""Published figures, each with its source, and what must agree before one may stand beside a measured one."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from cyclecontrast.evaluate.result import Result

METHOD = "CycleContrast"
SIZE_OF_TEST = {"OTB-100": 100, "ImageNet": 50_000, "UCF101 split 1": 3_783}
SETTINGS: dict[str, dict[str, Any]] = {
    "tracking": {"preset": "release", "train": True, "toolkit": "got10k"},
    "linear": {"probe": "sgd", "level": "frame", "epochs": 100, "image_size": 224},
    "action finetune": {
        "split": 1,
        "image_size": 224,
        "num_frames": 32,
        "warmup_epochs": 5,
        "epochs": 16,
        "num_clips": 10,
    },
    "retrieval frame": {"split": 1, "per_video": 10, "image_size": 224},
    "retrieval clip": {"split": 1, "per_video": 10, "image_size": 224},
}
"""Settings with which the protocol is the one of the published figure."""


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
    """A published figure, and all in which a measured one differs from it; comparable where that is nothing."""

    reference: Reference
    differences: tuple[str, ...]


@cache
def load_references() -> tuple[Reference, ...]:
    """Return the figures of the paper's Tables 1, 3, 9 and 11, and those of its README and slides."""
    text = files("cyclecontrast.evaluate").joinpath("references.json").read_text(encoding="utf-8")
    return tuple(Reference(**row) for row in json.loads(text))


def compare(result: Result, metric: str) -> Compared | None:
    """Return the paper's own figure for a metric of a result, that of the same backbone if there is one."""
    label = _label(result)
    ours = [row for row in load_references() if (row.protocol, row.metric, row.method) == (label, metric, METHOD)]
    if not ours:
        return None
    backbone = result.about.model.name
    reference = next((row for row in ours if _plain(row.backbone) == backbone), ours[0])
    return Compared(reference, tuple(_differences(result, reference)))


def _label(result: Result) -> str:
    variant = {"action": "mode", "retrieval": "level"}.get(result.protocol)
    return f"{result.protocol} {result.about.config[variant]}" if variant else result.protocol


def _plain(backbone: str) -> str:
    return backbone.lower().replace("-", "")


def _differences(result: Result, reference: Reference) -> list[str]:
    about = result.about
    found = []
    if _plain(reference.backbone) != about.model.name:
        found.append(f"backbone {about.model.name}, not {reference.backbone}")
    if about.data.num_test != SIZE_OF_TEST[reference.data]:
        size = SIZE_OF_TEST[reference.data]
        found.append(f"other data than {reference.data}: {about.data.num_test:,} test items, not {size:,}")
    settings = {**about.config, **{name: about.details[name] for name in ("probe",) if name in about.details}}
    found += [
        f"{name} {settings.get(name)}, not {value}"
        for name, value in SETTINGS[reference.protocol].items()
        if settings.get(name) != value
    ]
    if about.problems:
        found.append(f"{len(about.problems)} items left out")
    return found
