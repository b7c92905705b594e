"""What a training will do and how long it takes on this machine, measured on a few steps before it begins."""

import contextlib
import copy
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
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
from cyclecontrast.training.auto_settings import MIN_VIDEOS_FOR_HOLDOUT, ON_CPU
from cyclecontrast.training.health import health_views, measure_health, measure_neighbors, neighbor_frames
from cyclecontrast.training.monitor import MIN_STEPS, NEIGHBORS_EVERY, NUM_MEASUREMENTS, steps_between
from cyclecontrast.training.progress import MOST_STEPS, StepTimer, time_in_words
from cyclecontrast.training.run_folder import device_name
from cyclecontrast.training.setup import build_method, make_health_dataset
from cyclecontrast.training.trainer import Trainer
from cyclecontrast.training.user_parts import UserParts

RESERVE = 10.0
"""Seconds for what is not timed: starting Python, and the report at the end."""
FEW_VIDEOS = 1000
"""With fewer, a plan points to pretrained networks, which know more of other things (docs/pretrained.md)."""


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
            steps = math.floor((seconds - (NUM_MEASUREMENTS + 1) * self.health) / self.step)
            few = NUM_MEASUREMENTS * MIN_STEPS  # health is measured less often in fewer steps
            return steps if steps >= few else min(few, self.steps_within(seconds, MIN_STEPS))
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
    timer = StepTimer()
    workers, pin_memory = pick_workers(config.workers, device), device.type == "cuda"
    with contextlib.closing(load_batches(dataset, sampler, workers, pin_memory)) as batches:
        for batch in batches:
            trainer.train_step(batch, StepInfo(MOST_STEPS - 1, MOST_STEPS))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if all_reduce_max([int(timer.is_enough())], world) == [1]:
                break
    trainer.check_finite()
    began, health = time.monotonic(), 0.0
    if world.rank == 0 and config.health_every != 0:
        views = health_views(make_health_dataset(config, dataset))
        measure_health(trainer.method, views, config.temperature, config.mask_own_video)
        health, frames = time.monotonic() - began, neighbor_frames(dataset)
        began = time.monotonic()
        measure_neighbors(trainer.method, *frames)
        health += (time.monotonic() - began) / NEIGHBORS_EVERY
    slowest = all_reduce_max([round(1e6 * timer.seconds), round(1e6 * health)], world)
    return Timing(max(1, slowest[0]) / 1e6, slowest[1] / 1e6)


def steps_in_time(timing: Timing, config: PretrainConfig, passed: float, world: World) -> int:
    """Return the number of steps for `minutes`, of which `passed` seconds are over.

    Raises UserError if there is no time for a step.
    """
    minutes, passed = config.minutes or 0.0, passed + RESERVE
    steps = -all_reduce_max([-timing.steps_within(60 * minutes - passed, config.health_every)], world)[0]
    if steps == 0:
        needed = (passed + timing.step + timing.health) / 60
        raise UserError(
            f"minutes: {minutes:g} is too short: without training, opening the data, measuring health and the report "
            f"take about {needed:.1f}; set --minutes {math.ceil(2 * needed)} or more"
        )
    return steps


def make_plan(
    config: PretrainConfig, dataset: ViewDataset, num_steps: int, device: torch.device, timing: Timing
) -> Plan:
    """Return what a training will do, and how long it takes."""
    seconds = timing.seconds(num_steps, config.health_every)
    lines = plan_lines(config, dataset, num_steps, device)
    is_free = config.steps is None and config.minutes is None
    return Plan(num_steps, seconds, (*lines, f"time      {time_in_words(seconds, timing.step, is_free)}"))


def plan_lines(config: PretrainConfig, dataset: ViewDataset, num_steps: int, device: torch.device) -> list[str]:
    """Return what a training does and what to expect of it, in five lines; `config` is resolved."""
    store, times = dataset.store, num_steps * config.batch_size / dataset.num_videos
    singles, held_out = int((np.diff(store.starts) == 1).sum()), store.num_videos - dataset.num_videos
    alone = f", {singles:,} of them with a single frame (query and positive show the same frame)" if singles else ""
    judged = f"{held_out:,} videos are held out to measure health" if held_out else "no videos are held out"
    if not held_out and store.num_videos < MIN_VIDEOS_FOR_HOLDOUT:
        judged += f": fewer than {MIN_VIDEOS_FOR_HOLDOUT}"
    start = config.init or "random weights"
    views = learns_from(config.method)
    if config.positives == "video":
        views = f"{config.views} frames of the same video at once"
    if (config.preset, config.init, device.type) == ("auto", None, "cpu"):
        is_automatic = all(getattr(config, name) == value for name, value in ON_CPU.items())
        views += ": most per minute on a CPU" * is_automatic
    steps = f"{num_steps:,} step{'s' * (num_steps != 1)} of {config.batch_size:,} videos, on {device_name(device)}"
    often = f"each video about {times:,.0f} time{'s' * (round(times) != 1)}"
    return [
        f"data      {store.num_videos:,} videos{alone}, {store.num_frames:,} frames ({store.layout}); {judged}",
        f"network   {config.backbone}, from {start}; images of {config.image_size} px, in {config.precision}",
        f"method    {config.method}: learns from {views}",
        f"training  {steps}; {often if times >= 0.5 else 'not every video is used'}",
        f"expect    {_expected(config, dataset.num_videos)}",
    ]


def _expected(config: PretrainConfig, num_videos: int) -> str:
    """Return what a training is likely to be worth, after the measurements in docs/pretrained.md."""
    if config.init is not None:
        return "frames of one thing find each other more often; of one kind, not always"
    if num_videos < FEW_VIDEOS:
        return f"{num_videos:,} videos are few; --init MODEL knows more (docs/pretrained.md)"
    return "more than random weights give, if it is long enough (docs/pretrained.md)"
