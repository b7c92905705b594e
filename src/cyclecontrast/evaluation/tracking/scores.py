"""Boxes on disk → success and precision, as the GOT-10k toolkit or the authors of OTB compute them.

A record has a row for each frame. The scores need only the record, and results of other trackers beside it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cyclecontrast.charts import COLORS, new_figure, save_figure
from cyclecontrast.data.tracking_sequences import Sequence
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
from cyclecontrast.evaluation.resume_cache import Arrays

PRECISION_AT = 20
"""Pixels."""
BOX = ("x", "y", "w", "h")
SCHEMA = pa.schema(
    [
        ("sequence", pa.string()),
        ("frame", pa.int32()),
        *((name, pa.float64()) for name in BOX),
        *((f"true_{name}", pa.float64()) for name in BOX),
        ("visible", pa.bool_()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seconds", pa.float64()),
    ]
)
LINE_STYLES = ("-", "--", "-.", ":")
MAX_INSIDE = 12
"""Number of lines up to which a legend is inside its plot."""


class Tracked(NamedTuple):
    """A tracked sequence: predicted and true boxes (num_frames, 4), nan where unknown, and more per frame.

    `visible` says whether the target can be seen; `image_sizes` are width and height (num_frames, 2).
    """

    predicted: Floats
    truth: Floats
    visible: Masks
    image_sizes: Floats
    seconds: Floats


def to_table(name: str, made: Arrays, sequence: Sequence | None = None) -> pa.Table:
    """Return the rows of a tracked sequence; boxes are rounded as the GOT-10k toolkit writes them."""
    num = len(made["boxes"])
    truth = np.full((num, 4), np.nan)
    if sequence is not None:
        truth[: len(sequence.boxes)] = sequence.boxes
    columns = {
        "sequence": [name] * num,
        "frame": np.arange(num),
        **dict(zip(BOX, made["boxes"].round(3).T, strict=True)),
        **{f"true_{name}": pa.array(column, from_pandas=True) for name, column in zip(BOX, truth.T, strict=True)},
        "visible": np.ones(num, bool) if sequence is None else visible_frames(sequence),
        "width": made["image_sizes"][:, 0],
        "height": made["image_sizes"][:, 1],
        "seconds": made["seconds"],
    }
    return pa.Table.from_pydict(columns, schema=SCHEMA)


def visible_frames(sequence: Sequence) -> Masks:
    """Return whether the target can be seen in each frame (num_frames,): by its cover, or else by marks of absence."""
    if sequence.cover is not None:
        return sequence.cover > 0
    return np.ones(len(sequence), bool) if sequence.absent is None else ~sequence.absent


def from_table(table: pa.Table) -> dict[str, Tracked]:
    """Return the tracked sequences by name, in the order of the record."""
    names = table["sequence"].to_numpy()
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    ends = np.r_[starts[1:], len(names)]
    return {names[start]: _tracked(table.slice(start, end - start)) for start, end in zip(starts, ends, strict=True)}


def _tracked(rows: pa.Table) -> Tracked:
    def columns(*names: str) -> Floats:
        return np.stack([rows[name].cast(pa.float64()).to_numpy() for name in names], axis=1)

    return Tracked(
        columns(*BOX),
        columns(*(f"true_{name}" for name in BOX)),
        rows["visible"].to_numpy(),
        columns("width", "height"),
        columns("seconds")[:, 0],
    )


def score_tracker(predicted: Mapping[str, Floats], truth: Mapping[str, Tracked], toolkit: str, layout: str) -> Json:
    """Average the curves of the predicted sequences, each counting the same; the first frame counts.

    `toolkit` (got10k, official) says whose formulas, `layout` (got10k, otb) which data set. Returns `mean`,
    `success_curve`, `precision_curve`, and `sequences` with the same numbers for each.
    """
    curves = {name: _curves(boxes, truth[name], toolkit, layout) for name, boxes in predicted.items()}
    success, precision = (np.mean(curve, axis=0) for curve in zip(*curves.values(), strict=True))
    metrics = _read_curves(success, precision)
    if toolkit == layout == "got10k":
        visible = [_visible_overlaps(boxes, truth[name]) for name, boxes in predicted.items()]
        metrics = _average_overlap(visible) | metrics
    return {
        "mean": metrics,
        "success_curve": success.tolist(),
        "precision_curve": precision.tolist(),
        "sequences": {name: {**_read_curves(*pair), "frames": len(predicted[name])} for name, pair in curves.items()},
    }


def _curves(predicted: Floats, item: Tracked, toolkit: str, layout: str) -> tuple[Floats, Floats]:
    """Return the success and the precision curve of a sequence.

    GOT-10k has no valid box where the target cannot be seen; OTB does not say where that is. The GOT-10k toolkit has
    101 thresholds on its own data, and clips boxes to the image.
    """
    counted = item.visible | (layout == "otb")
    counted[0] = True
    boxes, truth = np.concatenate([item.truth[:1], predicted[1:]])[counted], item.truth[counted]
    if toolkit == "official":
        return success_curve(official_overlaps(boxes, truth)), precision_curve(official_center_errors(boxes, truth))
    errors = precision_curve(center_errors(boxes, truth))
    if layout == "otb":
        return success_curve(overlaps(boxes, truth)), errors
    return success_curve(overlaps(boxes, truth, item.image_sizes[counted]), 101), errors


def _read_curves(success: Floats, precision: Floats) -> dict[str, float]:
    return {
        "success": float(success.mean()),
        "precision": float(precision[PRECISION_AT]),
        "success_rate": float(success[len(success) // 2]),
    }


def _visible_overlaps(predicted: Floats, item: Tracked) -> Floats:
    return overlaps(predicted[1:], item.truth[1:], item.image_sizes[1:])[item.visible[1:]]


def _average_overlap(by_sequence: list[Floats]) -> dict[str, float]:
    """Return GOT-10k's own metrics, means over the frames of all sequences together."""
    overlap = np.concatenate(by_sequence)
    if not len(overlap):
        return {}
    return {
        "ao": float(overlap.mean()),
        "sr_50": float((overlap > 0.5).mean()),
        "sr_75": float((overlap > 0.75).mean()),
    }


def plot_scores(scores: Mapping[str, Json]) -> dict[str, bytes]:
    """Draw the success and the precision plot as PNG files, one line for each tracker, the best first."""
    return {
        "success.png": _plot(scores, "success", 1.0, "overlap threshold", "success rate"),
        "precision.png": _plot(scores, "precision", 50.0, "center error threshold, pixels", "precision"),
    }


def _plot(scores: Mapping[str, Json], metric: str, end: float, x_label: str, y_label: str) -> bytes:
    figure, (axes,) = new_figure()
    for place, (name, score) in enumerate(sorted(scores.items(), key=lambda item: -item[1]["mean"][metric])):
        curve = score[f"{metric}_curve"]
        style = LINE_STYLES[place // len(COLORS) % len(LINE_STYLES)]
        axes.plot(np.linspace(0, end, len(curve)), curve, style, label=f"{name} [{score['mean'][metric]:.3f}]")
    axes.set(xlabel=x_label, ylabel=y_label, title=metric.capitalize(), xlim=(0, end), ylim=(0, 1.01))
    if len(scores) > MAX_INSIDE:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.legend()
    return save_figure(figure)
