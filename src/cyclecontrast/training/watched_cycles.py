"""The cycles that health watches, and their vectors on disk, measurement by measurement, for the report to look at.

A cycle goes through the positives of half of the other videos and ends among those of the other half.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cyclecontrast.data.storage import read_regular
from cyclecontrast.errors import UserError
from cyclecontrast.files import remove, replacing
from cyclecontrast.loss.losses import positive_comes_first, soft_nearest_neighbor

LEAST_VIDEOS_OF_CYCLES = 4
"""Of fewer, some query has no other video to go through, and cannot close, or none to end in, and cannot fail to."""
MOST_BYTES = 2**28
MOST_KEPT = 24
"""Measurements that are kept, besides the one before the first step and the last."""


class Cycles(NamedTuple):
    """What the cycles of one measurement were made of: pairs of views of videos, as unit vectors.

    Shapes: query, positive (num_pairs, dim); video (num_pairs,); frames (num_pairs, 2), numbers of the frames of both.
    """

    query: Tensor
    positive: Tensor
    video: Tensor
    frames: Tensor


def supports(video: Tensor) -> Tensor:
    """Tell which views cycles go through (num_pairs,): those of every other video; they end among the rest."""
    place: Tensor = torch.unique(video, return_inverse=True)[1]
    return place % 2 == 0


def closed(cycles: Cycles, temperature: float) -> Tensor:
    """Tell which queries come back to their own video (num_pairs,)."""
    video = cycles.video.to(cycles.query.device)
    own, through = video[:, None] == video, supports(video)
    neighbor = soft_nearest_neighbor(cycles.query, cycles.positive[through], temperature, own[:, through])
    return positive_comes_first(neighbor, cycles.positive, cycles.positive[~through], own[:, ~through])


def is_kept(done: int, every: int, num_steps: int) -> bool:
    """Whether the cycles measured after so many steps are kept: not of each, where health is measured very often."""
    stride = -(-num_steps // (every * MOST_KEPT)) * every
    return done % stride == 0 or done == num_steps


def write_cycles(run: Path, step: int, cycles: Cycles) -> None:
    """Write cycles/step-XXXXXXXX.safetensors."""
    with replacing(_file(run, step)) as aside:
        aside.write_bytes(save({name: value.cpu().contiguous() for name, value in cycles._asdict().items()}))


def read_cycles(run: Path) -> dict[int, Cycles]:
    """Return what was kept, by step; raises UserError that names a file that is damaged."""
    return {int(path.stem[5:]): _read(path) for path in _files(run)}


def cut_cycles(run: Path, step: int) -> None:
    """Drop those of steps behind `step`, which a resumed run will come to again."""
    for later in (path for path in _files(run) if int(path.stem[5:]) > step):
        remove(later)


def _file(run: Path, step: int) -> Path:
    return run / "cycles" / f"step-{step:08d}.safetensors"


def _files(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("cycles/step-*.safetensors") if path.stem[5:].isdecimal())


def _read(path: Path) -> Cycles:
    try:
        found = load(read_regular(path, MOST_BYTES))
        cycles = Cycles(*(found[name] for name in Cycles._fields))
        _check(cycles)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: is damaged ({reason}); remove it, and the report leaves its step out") from error
    return cycles


def _check(cycles: Cycles) -> None:
    num_pairs = len(cycles.video)
    numbers = cycles.video.dtype == cycles.frames.dtype == torch.int64 and cycles.video.dim() == 1
    if not numbers or cycles.frames.shape != (num_pairs, 2):
        raise ValueError("its videos or frames are no lists of numbers")
    if len(torch.unique(cycles.video)) < LEAST_VIDEOS_OF_CYCLES:
        raise ValueError("it has too few videos for cycles")
    for vectors in (cycles.query, cycles.positive):
        if vectors.dtype != torch.float32 or vectors.dim() != 2 or vectors.shape != cycles.query.shape:
            raise ValueError("its vectors are no table of numbers")
        if len(vectors) != num_pairs or not torch.isfinite(vectors).all():
            raise ValueError("its vectors are not one finite row for each pair")
