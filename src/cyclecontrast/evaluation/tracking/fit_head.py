"""Trains the head of the tracker on pairs of frames; the backbone stays frozen."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cyclecontrast.config import TrackingConfig
from cyclecontrast.data.tracking_sequences import Sequences
from cyclecontrast.errors import UserError, some
from cyclecontrast.evaluation.epochs import EpochReader, shuffled_batches, step_decay, train_epochs
from cyclecontrast.evaluation.predictions import Json
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.evaluation.tracking.siamfc import PRESETS, DenseFeatures, Head, Preset, make_head
from cyclecontrast.evaluation.tracking.training_pairs import TrainingPairs, first_sizes, unpack, usable_frames
from cyclecontrast.models.hardware import num_cores, pick_workers
from cyclecontrast.output import say

MOMENTUM = 0.9
QUARTERS = (0.25, 0.5, 0.75)
FOCUS = 2.0
OPTIONS = ("epochs", "batch_size", "learning_rate", "pairs_per_sequence")
MIN_STEPS = 50
"""Steps per epoch, where the number of pairs is not set."""
FEW_STEPS = 400
"""Below this total number of steps, a note warns that the head may be undertrained."""


class FittedHead(NamedTuple):
    """A trained head, and what its result reports: details, notes, and a line for each item left out."""

    head: Head
    details: Json = {}  # noqa: RUF012
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()


def preset_of(config: TrackingConfig) -> Preset:
    """Return the preset with the options that override it."""
    chosen = {name: getattr(config, name) for name in OPTIONS if getattr(config, name) is not None}
    return dataclasses.replace(PRESETS[config.preset], **chosen)


def fit_head(features: DenseFeatures, train: Sequences, config: TrackingConfig, cache: ResumeCache) -> FittedHead:
    """Train a head on the feature maps of the frozen backbone; raises UserError where there is too little data."""
    notes: list[str] = []
    preset = _fill_epochs(preset_of(config), len(train), config.pairs_per_sequence is not None, notes)
    pairs, problems = _open_pairs(train, preset, config.seed, cache, notes)
    head = make_head(features.backbone.dim, preset, config.seed).to(features.device)
    workers = pick_workers(config.workers, features.device)
    num_steps = len(pairs) // preset.batch_size * preset.epochs
    how = "" if config.train_data else " found near the data"
    cost = f"{num_steps:,} steps of {preset.batch_size} pairs; --epochs N shortens it, --no-train tracks without a head"
    line = f"first, a head is trained on {len(train):,} sequences of {train.root}{how}: {cost}"
    say(line)
    reader = EpochReader("head", f"{len(pairs):,} training pairs", preset.epochs, workers, cache)
    losses = train_epochs(
        "head",
        {"head": head},
        make_optimizer(head, preset),
        lambda epoch: _batches(features, dataclasses.replace(pairs, epoch=epoch), reader),
        lambda batch: (head_loss(head, *batch, preset),),
        decay(preset),
        preset.epochs,
        config.seed,
        cache,
    )
    details = {
        "losses": [round(loss, 6) for loss in losses],
        "head_dim": head.exemplar.out_channels,
        "head_scale": head.scale,
        "epochs": preset.epochs,
        "learning_rate": preset.learning_rate,
        "batch_size": preset.batch_size,
        "pairs_per_sequence": preset.pairs_per_sequence,
        "num_steps": num_steps,
    }
    if len(losses) > 1 and losses[-1] >= losses[0]:
        fell = f"from {losses[0]:.3g} to {losses[-1]:.3g}"
        notes.append(f"the loss of the head did not fall, {fell}; try another learning_rate")
    if num_steps < FEW_STEPS:
        advice = "raise pairs_per_sequence or epochs"
        notes.append(f"the head was trained for {num_steps} steps, in the release for 58,300; {advice}")
    problems += [line for _, line in reader.read_errors()]
    return FittedHead(head.eval(), details, notes, tuple(dict.fromkeys(problems)))


def make_optimizer(head: Head, preset: Preset) -> torch.optim.Optimizer:
    """Return the optimizer of the preset."""
    if preset.optimizer == "adam":
        return torch.optim.Adam(head.parameters(), preset.learning_rate, weight_decay=preset.weight_decay)
    return torch.optim.SGD(head.parameters(), preset.learning_rate, MOMENTUM, weight_decay=preset.weight_decay)


def decay(preset: Preset) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the epoch."""
    if preset.final_learning_rate is None:
        return step_decay(preset.epochs, QUARTERS)
    gamma = (preset.final_learning_rate / preset.learning_rate) ** (1 / preset.epochs)
    return lambda epoch: float(gamma**epoch)


def head_loss(head: Head, exemplars: Tensor, searches: Tensor, shifts: Tensor, stride: int, preset: Preset) -> Tensor:
    """Return the loss of a batch of feature maps (batch, dim, h, w), with the targets' shifts in cells (batch, 2)."""
    responses = head(exemplars, searches)
    labels = make_labels(responses.shape[-1], preset.positive_distance / stride, shifts)
    return LOSSES[preset.loss](responses, labels)


def make_labels(num_cells: int, positive_distance: float, shifts: Tensor) -> Tensor:
    """Return labels of 0 and 1 (batch, num_cells, num_cells): 1 where |dy| + |dx| from the target is small enough.

    Distances are in cells; `shifts` (batch, 2) are the targets' y, x from the middle of the map.
    """
    places = torch.arange(num_cells, device=shifts.device) - (num_cells - 1) / 2
    dy, dx = ((places - shift[:, None]).abs() for shift in shifts.T)
    near: Tensor = dy[:, :, None] + dx[:, None, :] <= positive_distance
    return near.float()


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the focal loss: mean focal cross-entropy divided by the mean focal weight.

    Gradients flow through the weights, too. The loss is 0 if all cells are predicted perfectly in fp32.
    """
    probability = logits.sigmoid()
    positive, negative = labels * (1 - probability) ** FOCUS, (1 - labels) * probability**FOCUS
    losses = -positive * nn.functional.logsigmoid(logits) - negative * nn.functional.logsigmoid(-logits)
    weight = (positive + negative).mean().clamp_min(torch.finfo(logits.dtype).tiny)
    return (losses / weight).mean()


def balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy in which positives and negatives of the batch have half of the weight each."""
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    positive, negative = labels / labels.sum(), (1 - labels) / (1 - labels).sum()
    return ((positive + negative) / 2 * losses).sum()


LOSSES = {"focal": focal_loss, "balanced": balanced_loss}


def _fill_epochs(preset: Preset, num_sequences: int, is_set: bool, notes: list[str]) -> Preset:
    """Take more pairs per sequence where few sequences would give an epoch of too few steps.

    The published schedules are made for the 9,335 sequences of GOT-10k: 1,166 steps an epoch.
    """
    steps = num_sequences * preset.pairs_per_sequence // preset.batch_size
    if is_set and not steps:
        raise UserError(
            f"pairs_per_sequence: {preset.pairs_per_sequence} of {num_sequences} sequences fill no batch of "
            f"{preset.batch_size}; set {math.ceil(preset.batch_size / num_sequences)}, or a smaller batch_size"
        )
    if is_set or steps >= MIN_STEPS:
        return preset
    needed = math.ceil(MIN_STEPS * preset.batch_size / num_sequences)
    notes.append(
        f"pairs_per_sequence: {needed} instead of {preset.pairs_per_sequence}, because an epoch of {num_sequences} "
        f"training sequences would have {steps} steps"
    )
    return dataclasses.replace(preset, pairs_per_sequence=needed)


def _open_pairs(
    train: Sequences, preset: Preset, seed: int, cache: ResumeCache, notes: list[str]
) -> tuple[TrainingPairs, list[str]]:
    """Find the frames to train on; returns a line for each image that cannot be read, too."""
    sizes = cache.arrays("sizes of training images", lambda: first_sizes(train.sequences, num_cores()))
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
            *some(problems),
        )
    if left_out:
        few = f"{left_out} of {len(frames)} training sequences have fewer than two usable frames"
        notes.append(f"{few}; others replace them")
    return TrainingPairs(train.sequences, frames, preset, seed, epoch=0), problems


def _batches(
    features: DenseFeatures, pairs: TrainingPairs, reader: EpochReader
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Yield the full batches of an epoch as feature maps, shifts in cells and stride."""
    preset = pairs.preset
    full = len(pairs) // preset.batch_size
    batches = shuffled_batches(pairs.seed, pairs.epoch, len(pairs), preset.batch_size)[:full]
    for batch in reader.read(pairs.epoch, pairs, None, batches):
        # Inference tensors cannot take part in a backward pass, but their clones can.
        exemplars, searches = (features(crops).clone() for crops in unpack(batch.pixels, preset))
        stride = round(preset.train_size / searches.shape[-1])
        shifts = torch.from_numpy(pairs.shifts(batch.positions.tolist())).to(features.device)
        yield exemplars, searches, shifts / stride, stride
