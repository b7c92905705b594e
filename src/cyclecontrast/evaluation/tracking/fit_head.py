"""Trains the head on pairs of frames; the backbone is frozen (protocols.md §a, "Training")."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cyclecontrast.config import TrackingConfig
from cyclecontrast.data.pairs import ORDER, random_stream
from cyclecontrast.data.tracking_sequences import Sequences
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.epochs import step_decay, train_epochs
from cyclecontrast.evaluation.image_batches import load_image_batches
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.evaluation.tracking.dense_features import DenseFeatures, stride_of
from cyclecontrast.evaluation.tracking.head import Head, make_head
from cyclecontrast.evaluation.tracking.pairs import TrainingPairs, as_packed, first_sizes, unpack, usable_frames
from cyclecontrast.evaluation.tracking.presets import PRESETS, Preset
from cyclecontrast.evaluation.tracking.response_loss import LOSSES, make_labels
from cyclecontrast.models.hardware import num_cores, pick_workers

MOMENTUM = 0.9
QUARTERS = (0.25, 0.5, 0.75)
FEWEST_STEPS = 50
"""Of an epoch, where the number of pairs is not asked for."""


class Plan(NamedTuple):
    """How the head is trained: as the preset says, where no option says otherwise."""

    preset: Preset
    epochs: int
    batch_size: int
    learning_rate: float
    pairs_per_sequence: int

    @staticmethod
    def of(config: TrackingConfig) -> "Plan":
        """Resolve what the options leave open."""
        preset = PRESETS[config.preset]
        names = Plan._fields[1:]
        return Plan(preset, *(getattr(config, name) or getattr(preset, name) for name in names))


class FittedHead(NamedTuple):
    """A trained head, the plan that was followed, the mean loss of each epoch, and what a result says of it."""

    head: Head
    plan: Plan
    losses: list[float]
    num_steps: int
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def fit_head(features: DenseFeatures, train: Sequences, config: TrackingConfig, unfinished: ResumeCache) -> FittedHead:
    """Train the head on the maps of the frozen backbone; raises UserError where there is too little to train on."""
    plan, notes = _fill_epochs(Plan.of(config), len(train), config.pairs_per_sequence is not None)
    workers = pick_workers(config.workers, features.device)
    pairs, more_notes, found = _open_pairs(train, plan, config.seed, unfinished)
    head = make_head(features.backbone.dim, plan.preset, config.seed).to(features.device)
    losses = train_epochs(
        "head",
        {"head": head},
        make_optimizer(head, plan),
        lambda epoch: _batches(features, dataclasses.replace(pairs, epoch=epoch), plan, workers, unfinished),
        lambda batch: (_loss(head, batch, plan.preset),),
        decay(plan),
        plan.epochs,
        config.seed,
        unfinished,
    )
    num_steps = len(pairs) // plan.batch_size * plan.epochs
    parts = [unfinished.arrays(_lost(epoch), dict)["problems"].tolist() for epoch in range(plan.epochs)]
    problems = dict.fromkeys(line for part in (found, *parts) for line in part)
    return FittedHead(head.eval(), plan, losses, num_steps, notes + more_notes, tuple(problems))


def _lost(epoch: int) -> str:
    """Name the part of an epoch that says which images could not be read in it."""
    return f"unread by the head in epoch {epoch}"


def make_optimizer(head: Head, plan: Plan) -> torch.optim.Optimizer:
    """Return the optimizer of the preset."""
    if plan.preset.optimizer == "adam":
        return torch.optim.Adam(head.parameters(), plan.learning_rate, weight_decay=plan.preset.weight_decay)
    return torch.optim.SGD(head.parameters(), plan.learning_rate, MOMENTUM, weight_decay=plan.preset.weight_decay)


def decay(plan: Plan) -> Callable[[int], float]:
    """Return the factor on the learning rate of each epoch."""
    if plan.preset.final_learning_rate is None:
        return step_decay(plan.epochs, QUARTERS)
    gamma = (plan.preset.final_learning_rate / plan.learning_rate) ** (1 / plan.epochs)
    return lambda epoch: float(gamma**epoch)


def _fill_epochs(plan: Plan, num_sequences: int, was_asked: bool) -> tuple[Plan, tuple[str, ...]]:
    """Take more pairs per sequence where an epoch of few sequences would be too short to learn from.

    The published schedules are made for the 9,335 sequences of GOT-10k: 1,166 steps an epoch.
    """
    steps = num_sequences * plan.pairs_per_sequence // plan.batch_size
    if was_asked and not steps:
        raise UserError(
            f"pairs_per_sequence: {plan.pairs_per_sequence} of {num_sequences} sequences fill no batch of "
            f"{plan.batch_size}; ask for {math.ceil(plan.batch_size / num_sequences)}, or a smaller batch_size"
        )
    if was_asked or steps >= FEWEST_STEPS:
        return plan, ()
    needed = math.ceil(FEWEST_STEPS * plan.batch_size / num_sequences)
    note = (
        f"pairs_per_sequence: {needed} instead of {plan.pairs_per_sequence}, for an epoch of {num_sequences} training "
        f"sequences would have {steps} steps"
    )
    return plan._replace(pairs_per_sequence=needed), (note,)


def _open_pairs(
    train: Sequences, plan: Plan, seed: int, unfinished: ResumeCache
) -> tuple[TrainingPairs, tuple[str, ...], list[str]]:
    """Find the frames to train on; returns what is to be noted, and a line for each image that cannot be read."""
    sizes = unfinished.arrays("sizes of training images", lambda: first_sizes(train.sequences, num_cores()))
    frames = tuple(
        usable_frames(sequence, height, width)
        for sequence, (height, width) in zip(train.sequences, sizes["sizes"].tolist(), strict=True)
    )
    left_out = sum(len(usable) < 2 for usable in frames)
    problems = sizes["problems"].tolist()
    if left_out == len(frames):
        raise UserError(
            f"{train.root}: none of the {len(frames)} sequences has two frames to train on, with a visible target of "
            "20 to 500 pixels, at most half as large as the image; name another train_data",
            *problems[:3],
        )
    note = f"{left_out} of {len(frames)} training sequences have fewer than two usable frames; others stand in for them"
    pairs = TrainingPairs(train.sequences, frames, plan.pairs_per_sequence, plan.preset, seed, epoch=0)
    return pairs, (note,) if left_out else (), problems


class _Batch(NamedTuple):
    """Maps (batch, dim, h, w) of exemplars and search crops, and the targets' places in these, in cells (batch, 2)."""

    exemplars: Tensor
    searches: Tensor
    stride: int
    shifts: Tensor


def _batches(
    features: DenseFeatures, pairs: TrainingPairs, plan: Plan, workers: int, unfinished: ResumeCache
) -> Iterator[_Batch]:
    """Yield the whole batches of an epoch, and keep a line on each image that cannot be read."""
    problems: list[str] = []
    order = random_stream(pairs.seed, pairs.epoch, 0, ORDER).permutation(len(pairs)).tolist()
    size = plan.batch_size
    batches = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    title = f"head, epoch {pairs.epoch + 1} of {plan.epochs}"
    for batch in load_image_batches(pairs, as_packed, batches, workers, title):
        problems += batch.problems
        if not len(batch.positions):
            continue
        # Tensors of inference mode cannot take part in a backward pass; their clones can.
        exemplars, searches = (features(crops).clone() for crops in unpack(batch.pixels, plan.preset))
        stride = stride_of(plan.preset.train_size, searches.shape[-1])
        shifts = torch.from_numpy(pairs.shifts(batch.positions.tolist())).to(features.device)
        yield _Batch(exemplars, searches, stride, shifts / stride)
    unfinished.arrays(_lost(pairs.epoch), lambda: {"problems": np.array(problems, str)})


def _loss(head: Head, batch: _Batch, preset: Preset) -> Tensor:
    responses = head(batch.exemplars, batch.searches)
    labels = make_labels(responses.shape[-1], preset.positive_distance / batch.stride, batch.shifts)
    return LOSSES[preset.loss](responses, labels)
