"""Boxes on disk → success and precision, as the GOT-10k toolkit or the authors of OTB compute them.

A record has a row for each frame. Results of other trackers are files as the GOT-10k toolkit writes them, a line
x,y,w,h for each frame: <tracker>/<sequence>.txt for OTB, <tracker>/<sequence>/<sequence>_001.txt for GOT-10k.
"""

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cyclecontrast.charts import COLORS, new_figure, save_figure
from cyclecontrast.data.tracking_sequences import Sequence, read_rows
from cyclecontrast.errors import UserError
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
GOT10K_BINS = 101
"""Thresholds of the GOT-10k toolkit's success curve on its own data."""
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
ONE_OF_TWO = "human4.2"
"""Human4, in lists that count its empty file of boxes as a first target."""
REPETITION = "_001"
MAX_NAMED = 3
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

    def split(*columns: str) -> list[Floats]:
        values = np.stack([table[column].cast(pa.float64()).to_numpy() for column in columns], axis=1)
        return np.split(values, starts[1:])

    parts = zip(
        split(*BOX),
        split(*(f"true_{name}" for name in BOX)),
        np.split(table["visible"].to_numpy(), starts[1:]),
        split("width", "height"),
        np.split(table["seconds"].to_numpy(), starts[1:]),
        strict=True,
    )
    return {names[start]: Tracked(*part) for start, part in zip(starts, parts, strict=True)}


def score_tracker(predicted: Mapping[str, Floats], truth: Mapping[str, Tracked], toolkit: str, layout: str) -> Json:
    """Score the predicted sequences together, and each on its own.

    `toolkit` (got10k, official) says whose formulas, `layout` (got10k, otb) which data set. Curves are means over
    sequences. Only the GOT-10k toolkit on its own data averages over frames instead. Returns `mean`, `success_curve`,
    `precision_curve`, and `sequences` with the same numbers for each.
    """
    precisions = {name: _precision(boxes, truth[name], toolkit, layout) for name, boxes in predicted.items()}
    precision = np.mean([*precisions.values()], axis=0)
    if toolkit == layout == "got10k":
        overlap = {name: _later_overlaps(boxes, truth[name]) for name, boxes in predicted.items()}
        successes = {name: success_curve(values, GOT10K_BINS) for name, values in overlap.items() if len(values)}
        together = np.concatenate([*overlap.values()])
        success = success_curve(together, GOT10K_BINS) if len(together) else None
        own = _average_overlap(together)
    else:
        successes = {name: _success(boxes, truth[name], toolkit, layout) for name, boxes in predicted.items()}
        success, own = np.mean([*successes.values()], axis=0), {}
    return {
        "mean": own | _read_curves(success, precision),
        "success_curve": [] if success is None else success.tolist(),
        "precision_curve": precision.tolist(),
        "sequences": {
            name: {**_read_curves(successes.get(name), precisions[name]), "frames": len(boxes)}
            for name, boxes in predicted.items()
        },
    }


def _counted(predicted: Floats, item: Tracked, layout: str) -> tuple[Floats, Floats]:
    """Return the predicted and the true boxes of the frames that count, the first of which is given.

    Frames without a target do not count: GOT-10k labels them, datasets in OTB's layout have no box there.
    """
    counted = item.visible | ((layout == "otb") & ~np.isnan(item.truth).any(axis=1))
    counted[0] = True
    return np.concatenate([item.truth[:1], predicted[1:]])[counted], item.truth[counted]


def _success(predicted: Floats, item: Tracked, toolkit: str, layout: str) -> Floats:
    overlap = official_overlaps if toolkit == "official" else overlaps
    return success_curve(overlap(*_counted(predicted, item, layout)))


def _precision(predicted: Floats, item: Tracked, toolkit: str, layout: str) -> Floats:
    errors = official_center_errors if toolkit == "official" else center_errors
    return precision_curve(errors(*_counted(predicted, item, layout)))


def _later_overlaps(predicted: Floats, item: Tracked) -> Floats:
    """Return the overlaps of the frames that the GOT-10k toolkit counts on its data: visible ones, but not the first.

    It clips boxes to the image.
    """
    return overlaps(predicted[1:], item.truth[1:], item.image_sizes[1:])[item.visible[1:]]


def _read_curves(success: Floats | None, precision: Floats) -> dict[str, float]:
    """Return the metrics of the curves; there is no success where no frame counts."""
    if success is None:
        return {"precision": float(precision[PRECISION_AT])}
    return {
        "success": float(success.mean()),
        "precision": float(precision[PRECISION_AT]),
        "success_rate": float(success[len(success) // 2]),
    }


def _average_overlap(overlap: Floats) -> dict[str, float]:
    """Return GOT-10k's own metrics from the overlaps of all frames."""
    if not len(overlap):
        return {}
    return {
        "ao": float(overlap.mean()),
        "sr_50": float((overlap > 0.5).mean()),
        "sr_75": float((overlap > 0.75).mean()),
    }


def trackers_in(folder: Path) -> list[Path]:
    """Return the folders of trackers; raises UserError where there are none."""
    found = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    if not found:
        raise UserError(f"others: {folder}: holds no folders of trackers; name one that holds <tracker>/<sequence>.txt")
    return found


def read_results(
    folder: Path, lengths: Mapping[str, int], skipped: Mapping[str, int]
) -> tuple[dict[str, Floats], list[str]]:
    """Read a tracker's boxes (num_frames, 4) for the sequences of these lengths; returns a line for each problem too.

    A file may begin `skipped` frames before the sequence: its first rows are then ignored.
    """
    files = [*sorted(folder.glob(f"*/*{REPETITION}.txt")), *sorted(folder.glob("*.txt"))]
    paths = {same_name(path.stem.removesuffix(REPETITION)): path for path in files}
    boxes: dict[str, Floats] = {}
    problems: list[str] = []
    missing = []
    for name, length in lengths.items():
        path = paths.get(same_name(name))
        if path is None:
            missing.append(name)
            continue
        try:
            boxes[name] = _read_boxes(path, length, skipped.get(name, 0))
        except UserError as error:
            problems += error.problems
    if missing:
        named = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        problems.append(f"{folder}: has no file for {len(missing)} of {len(lengths)} sequences ({named})")
    return boxes, problems


def same_name(name: str) -> str:
    """Return one name for all spellings of a sequence: Jogging.1, Jogging-1, jogging_1; Human4, Human4-2."""
    name = re.sub(r"[-_](\d)$", r".\1", name.lower())
    return name.partition(".")[0] if name == ONE_OF_TWO else name


def zip_results(tracked: Mapping[str, Tracked], layout: str) -> bytes:
    """Return a zip archive of all boxes in the toolkit's layout; that of GOT-10k is what its server takes."""
    texts: dict[str, str] = {}
    for name, item in tracked.items():
        boxes = "".join(f"{','.join(f'{number:.3f}' for number in box)}\n" for box in item.predicted.tolist())
        if layout == "otb":
            texts[f"{name}.txt"] = boxes
        else:
            texts[f"{name}/{name}{REPETITION}.txt"] = boxes
            texts[f"{name}/{name}_time.txt"] = "".join(f"{seconds:.8f}\n" for seconds in item.seconds.tolist())
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path, text in texts.items():
            archive.writestr(zipfile.ZipInfo(path), text, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _read_boxes(path: Path, length: int, skipped: int) -> Floats:
    boxes = read_rows(path, 4)
    if len(boxes) == length + skipped:
        return boxes[skipped:]
    if len(boxes) != length:
        raise UserError(f"{path}: {len(boxes)} boxes, expected {length}, one for each frame")
    return boxes


def plot_scores(scores: Mapping[str, Json]) -> dict[str, bytes]:
    """Draw the success and the precision plot as PNG files, one line for each tracker, the best first.

    A tracker without success is left out.
    """
    scores = {name: score for name, score in scores.items() if "success" in score["mean"]}
    if not scores:
        return {}
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
