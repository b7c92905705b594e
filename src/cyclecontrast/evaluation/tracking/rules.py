"""Success and precision of one tracker, as the GOT-10k toolkit or the authors of OTB compute them (protocols.md §a)."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from cyclecontrast.evaluation.metrics import (
    Floats,
    Masks,
    center_errors,
    official_center_errors,
    official_overlaps,
    overlaps,
    precision_curve,
    success_curve,
)
from cyclecontrast.evaluation.predictions import Json
from cyclecontrast.evaluation.tracking.records import Tracked

PRECISION_AT = 20
"""Pixels."""


class Rules(NamedTuple):
    """Whose formulas, on the data set of which layout."""

    toolkit: Literal["got10k", "official"]
    layout: Literal["otb", "got10k"]

    @property
    def as_got10k(self) -> bool:
        """Whether this is the toolkit on its own data: 101 bins, boxes held inside of images, AO and SR."""
        return self == ("got10k", "got10k")

    @property
    def num_bins(self) -> int:
        """Number of thresholds of the success curve."""
        return 101 if self.as_got10k else 21


class TrackerScore(NamedTuple):
    """Metrics of a tracker, the curves they are read from, and the same by sequence."""

    metrics: dict[str, float]
    success: Floats
    precision: Floats
    sequences: dict[str, dict[str, float]]

    def to_json(self) -> Json:
        """Return all of it as plain lists and numbers."""
        curves = {"success_curve": self.success.tolist(), "precision_curve": self.precision.tolist()}
        return {"mean": self.metrics, **curves, "sequences": self.sequences}


def score_tracker(predicted: Mapping[str, Floats], truth: Mapping[str, Tracked], rules: Rules) -> TrackerScore:
    """Average the curves of the sequences that were predicted, each counting the same.

    The first box is the true one, and counts.
    """
    curves = {name: _curves(boxes, truth[name], rules) for name, boxes in predicted.items()}
    success, precision = (np.mean(curve, axis=0) for curve in zip(*curves.values(), strict=True))
    metrics = _numbers(success, precision)
    if rules.as_got10k:
        metrics = {
            **_average_overlap([_visible_overlaps(predicted[name], truth[name]) for name in predicted]),
            **metrics,
        }
    by_sequence = {name: {**_numbers(*pair), "frames": len(predicted[name])} for name, pair in curves.items()}
    return TrackerScore(metrics, success, precision, by_sequence)


def _curves(predicted: Floats, item: Tracked, rules: Rules) -> tuple[Floats, Floats]:
    counted = _counted(item, rules)
    boxes, truth = np.concatenate([item.truth[:1], predicted[1:]])[counted], item.truth[counted]
    if rules.toolkit == "official":
        overlap, errors = official_overlaps(boxes, truth), official_center_errors(boxes, truth)
    else:
        sizes = item.image_sizes[counted] if rules.as_got10k else None
        overlap, errors = overlaps(boxes, truth, sizes), center_errors(boxes, truth)
    return success_curve(overlap, rules.num_bins), precision_curve(errors)


def _counted(item: Tracked, rules: Rules) -> Masks:
    """GOT-10k has no box worth the name where the target is out of sight; OTB does not say where that is."""
    counted = item.visible | (rules.layout == "otb")
    counted[0] = True
    return counted


def _numbers(success: Floats, precision: Floats) -> dict[str, float]:
    return {
        "success": float(success.mean()),
        "precision": float(precision[PRECISION_AT]),
        "success_rate": float(success[len(success) // 2]),
    }


def _visible_overlaps(predicted: Floats, item: Tracked) -> Floats:
    return overlaps(predicted[1:], item.truth[1:], item.image_sizes[1:])[item.visible[1:]]


def _average_overlap(by_sequence: list[Floats]) -> dict[str, float]:
    """Return GOT-10k's own metrics, over frames: each counts the same, in whichever sequence."""
    overlap = np.concatenate(by_sequence)
    if not len(overlap):
        return {}
    return {
        "ao": float(overlap.mean()),
        "sr_50": float((overlap > 0.5).mean()),
        "sr_75": float((overlap > 0.75).mean()),
    }
