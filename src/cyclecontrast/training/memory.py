"""What a training needs of memory at the very least: sizes beyond all reason are refused before anything is written.

What the layers keep for the backward pass is not counted, so what passes may still not fit.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import Backbone, make_backbone
from cyclecontrast.models.encoders import Encoder
from cyclecontrast.training.own import NOTHING_OWN, Own, objective_of

NUMBER = 4
"""Bytes of a weight, of an element of a vector, of a similarity."""
PIXEL = 3
"""Bytes of a view's pixel, as it is loaded."""


class Part(NamedTuple):
    """Bytes that something takes, and the options that its size depends on."""

    bytes: int
    name: str
    options: str


def check_memory(
    config: PretrainConfig, given: Backbone | None, processes: int, device: torch.device, own: Own = NOTHING_OWN
) -> None:
    """Raise UserError where a training with settled options cannot fit; `given` is the backbone if it is not ours."""
    parts = least_memory(config, given, processes, own)
    needed, free, largest = sum(part.bytes for part in parts), free_memory(device), max(parts)
    if needed > free:
        raise UserError(
            f"memory: {needed / 1e9:,.1f} GB are needed at least, {largest.bytes / 1e9:,.1f} of them for the "
            f"{largest.name}, and {free / 1e9:,.1f} are free; lower {largest.options}"
        )


def least_memory(config: PretrainConfig, given: Backbone | None, processes: int, own: Own = NOTHING_OWN) -> list[Part]:
    """Return what one of the processes cannot do without."""
    needs = objective_of(config, own).needs
    with torch.device("meta"):  # where weights have a size and take none
        encoder = Encoder(given or make_backbone(config.backbone), config.projector, config.projector_dim)
        head = needs.make_head(config.projector_dim)
    of_encoder, of_head = (sum(weight.numel() for weight in part.parameters()) for part in (encoder, head))
    copies = 4 if needs.keys else 3  # weights, gradients, the optimizer's momentum, the momentum encoder
    keys = config.queue_size * needs.has_intra + config.cycle_queue_size * needs.has_cycle
    share, views = config.batch_size // processes, len({*needs.queries, *needs.keys})
    queries, groups = share // config.accumulate * len(needs.queries), max(1, config.bn_groups // processes)
    normalised = max(queries, -(-share // groups) if needs.keys else 0)
    return [
        Part(NUMBER * (copies * of_encoder + 3 * of_head), "weights", "projector_dim or take a smaller backbone"),
        Part(NUMBER * 2 * keys * config.projector_dim, "queues", "queue_size, cycle_queue_size or projector_dim"),
        Part(PIXEL * (share * views + NUMBER * normalised) * config.image_size**2, "views", "batch_size or image_size"),
        Part(NUMBER * queries * keys, "similarities", "batch_size, queue_size or cycle_queue_size"),
    ]


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that a training on this device may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = Path("/proc/meminfo")
    lines = known.read_text().splitlines() if known.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
