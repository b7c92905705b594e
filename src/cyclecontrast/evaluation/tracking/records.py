"""The record of tracking: a row for each frame, with all that scores need, and back to arrays by sequence."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.tracking_sequences import Sequence
from cyclecontrast.evaluation.metrics import Floats, Masks
from cyclecontrast.evaluation.resume_cache import Arrays

FROM_SIXTH = ".from6"
"""Follows the name of Tiger1 where it is tracked as the authors of OTB do, without its first five frames."""
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


class Tracked(NamedTuple):
    """A tracked sequence: boxes (num_frames, 4), the true ones with nan where unknown, and more per frame.

    `visible` tells where the target is; `image_sizes` is width and height (num_frames, 2).
    """

    predicted: Floats
    truth: Floats
    visible: Masks
    image_sizes: Floats
    seconds: Floats

    @property
    def has_truth(self) -> bool:
        """Whether the true box of every frame is known."""
        return not bool(np.isnan(self.truth).any())


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


def visible_frames(sequence: Sequence) -> npt.NDArray[np.bool_]:
    """Return where the target can be seen at all (num_frames,): by its cover, or else by the marks of absence."""
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
