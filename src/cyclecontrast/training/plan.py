"""What a training will do and how long it takes on this machine, measured on a few steps before it begins."""

import contextlib
import copy
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import ViewDataset
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.distributed import World, all_reduce_max
from cyclecontrast.errors import UserError
from cyclecontrast.methods import learns_from
from cyclecontrast.methods.method import StepInfo
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.hardware import pick_workers
from cyclecontrast.output import join_lines
from cyclecontrast.training.health import health_views, measure_health, measure_neighbors, neighbor_frames
from cyclecontrast.training.monitor import NEIGHBORS_EVERY, NUM_MEASUREMENTS, steps_between
from cyclecontrast.training.run_folder import device_name
from cyclecontrast.training.setup import build_method, make_health_dataset
from cyclecontrast.training.trainer import Trainer
from cyclecontrast.training.user_parts import UserParts

UNTIMED, MOST_STEPS, MOST_SECONDS = 2, 20, 10.0
"""Steps before the timed ones; timing ends after so many steps, or after so many seconds if two steps were timed."""
RESERVE = 10.0
"""Seconds for what is not timed: starting Python, and the report at the end."""
FEW_VIDEOS = 1000
"""With fewer, a plan advises to start from a pretrained network. Measured with 257 videos only (docs/pretrained.md)."""


class Timing(NamedTuple):
    """Seconds of a training step, waiting for data included, and of a measurement of health."""

    step: float
    health: float

    def seconds(self, num_steps: int, health_every: int | None) -> float:
        """Return how long a training takes; `health_every` as in the options."""
        every = steps_between(health_every, num_steps)
        return num_steps * self.step + (num_steps / every + 1) * self.health if every else num_steps * self.step

    def steps_within(self, seconds: float, health_every: int | None) -> int:
        """Return the number of steps of a training that takes at most so long, 0 if there is none."""
        if health_every is None:
            return max(0, math.floor((seconds - (NUM_MEASUREMENTS + 1) * self.health) / self.step))
        each = self.step + (self.health / health_every if health_every else 0.0)
        return max(0, math.floor((seconds - bool(health_every) * self.health) / each))


@dataclass(frozen=True)
class Plan:
    """A training that was planned and not begun; `str` describes it in a few lines."""

    num_steps: int
    seconds: float
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return join_lines(self.lines)


def measure(
    config: PretrainConfig,
    dataset: ViewDataset,
    backbone: Backbone,
    device: torch.device,
    world: World,
    parts: UserParts,
) -> Timing:
    """Return how long a step and a measurement of health take, on a copy of the backbone.

    The steps are those of the end of the training, with all losses. Of several processes, the slowest counts.
    """
    method = build_method(config, copy.deepcopy(backbone), dataset.store.num_videos, parts, world)
    trainer = Trainer(method, config, MOST_STEPS, device, world)
    sampler = StepSampler(range(MOST_STEPS), config.batch_size, world.rank, world.size)
    began = now = time.monotonic()
    timed = 0
    with contextlib.closing(load_batches(dataset, sampler, pick_workers(config.workers, device))) as batches:
        for number, batch in enumerate(batches, start=1):
            trainer.train_step(batch, StepInfo(MOST_STEPS - 1, MOST_STEPS))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.monotonic()
            if number == UNTIMED:
                began = now
            timed = max(0, number - UNTIMED)
            if all_reduce_max([int(timed >= 2 and now - began > MOST_SECONDS)], world) == [1]:
                break
    trainer.check_finite()
    step, began, health = (now - began) / max(1, timed), time.monotonic(), 0.0
    if world.rank == 0 and config.health_every != 0:
        views = health_views(make_health_dataset(config, dataset))
        measure_health(trainer.method, views, config.temperature, config.mask_own_video)
        health, frames = time.monotonic() - began, neighbor_frames(dataset)
        began = time.monotonic()
        measure_neighbors(trainer.method, *frames)
        health += (time.monotonic() - began) / NEIGHBORS_EVERY
    slowest = all_reduce_max([round(1e6 * step), round(1e6 * health)], world)
    return Timing(max(1, slowest[0]) / 1e6, slowest[1] / 1e6)


def steps_in_time(timing: Timing, config: PretrainConfig, passed: float, world: World) -> int:
    """Return the number of steps for `minutes`, of which `passed` seconds are over.

    Raises UserError if there is no time for a step.
    """
    minutes, passed = config.minutes or 0.0, passed + RESERVE
    steps = -all_reduce_max([-timing.steps_within(60 * minutes - passed, config.health_every)], world)[0]
    if steps == 0:
        measurements = NUM_MEASUREMENTS + 1 if config.health_every is None else 1
        needed = (passed + timing.step + measurements * timing.health) / 60
        raise UserError(
            f"minutes: {minutes:g} is too short: without training, opening the data, {measurements} measurements of "
            f"health and the report take about {needed:.1f}; set --minutes {math.ceil(2 * needed)} or more"
        )
    return steps


def make_plan(
    config: PretrainConfig, dataset: ViewDataset, num_steps: int, device: torch.device, timing: Timing
) -> Plan:
    """Return what a training will do, and how long it takes."""
    store, seconds = dataset.store, timing.seconds(num_steps, config.health_every)
    held_out = store.num_videos - dataset.num_videos
    weights = f"from {config.init}" if config.init else "from random weights"
    passes = num_steps * config.batch_size / dataset.num_videos
    lines = [
        f"data      {store.num_videos:,} videos, {store.num_frames:,} frames; "
        + (f"{held_out:,} videos are held out to measure health" if held_out else "no videos are held out"),
        f"network   {config.backbone}, {weights}; images of {config.image_size} px",
        f"method    {config.method}: learns from {learns_from(config.method)}",
        f"training  {num_steps:,} steps of {config.batch_size} videos; each video is drawn about {passes:,.0f} times",
        f"time      about {duration(seconds)} on {device_name(device)}, {timing.step:.2g} s per step; to fit the "
        "training into N minutes: --minutes N",
    ]
    if config.init is None and dataset.num_videos < FEW_VIDEOS:
        lines.append(
            f"expect    {dataset.num_videos:,} videos are few to learn from alone; if you have a pretrained network, "
            "start from it: --init MODEL"
        )
    return Plan(num_steps, seconds, tuple(lines))


def duration(seconds: float) -> str:
    """Return a time in words: `40 s`, `12 min` or `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
