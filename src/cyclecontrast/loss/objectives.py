"""What is minimised in a step: features and queues in, losses out; no state changes here.

A new objective is a function from `Step` to `Losses` and a line in `OBJECTIVES`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cyclecontrast.loss.losses import cycle_consistency, info_nce, positive_comes_first, soft_nearest_neighbor
from cyclecontrast.model.encoders import Features


class LossSettings(NamedTuple):
    """The options of the losses."""

    temperature: float
    support_size: int
    top_k: int | None
    mask_own_video: bool
    split_by: str


class Candidates(NamedTuple):
    """Keys that a query is compared with: a queue's, oldest first, and behind them, where wanted, the batch's own.

    Shapes: keys (num_keys, dim), video (num_keys,); `place` (batch,) is where among them each query's positive is, if
    it is.
    """

    keys: Tensor
    video: Tensor
    place: Tensor | None = None


class Step(NamedTuple):
    """Everything that an objective may look at in one step; `seed` draws the support."""

    query: Features
    positive: Features
    video: Tensor
    intra: Candidates
    cycle: Candidates
    cycle_weight: float
    seed: int
    settings: LossSettings


class Losses(NamedTuple):
    """Scalars: what is minimised, and its terms before weighting; `cycle` is nan where it is not computed."""

    total: Tensor
    intra: Tensor
    cycle: Tensor


class Rates(NamedTuple):
    """Parts of the batch: queries that find their positive, and cycles that close; nan where there is no cycle."""

    intra_accuracy: float
    cycle_closed: float


class Split(NamedTuple):
    """The candidates parted into support and negatives, with what each query must ignore of them (batch, num_keys)."""

    support: Tensor
    negatives: Tensor
    ignore_support: Tensor
    ignore_negatives: Tensor


class Objective(NamedTuple):
    """How an objective is computed, and which views and queues it needs."""

    losses: Callable[[Step], Losses]
    same_frame: bool
    has_cycle: bool


def intra_image(step: Step) -> Losses:
    """Eq. 1: two views of one frame; every other key is a negative, as in MoCo."""
    ignore = _own_in(step.intra, step, positive_only=True)
    intra = info_nce(step.query.intra, step.positive.intra, step.intra.keys, step.settings.temperature, ignore)
    return Losses(intra, intra, intra.new_tensor(float("nan")))


def intra_video(step: Step) -> Losses:
    """Eq. 2: two frames of one video."""
    ignore = _own_in(step.intra, step)
    intra = info_nce(step.query.intra, step.positive.intra, step.intra.keys, step.settings.temperature, ignore)
    return Losses(intra, intra, intra.new_tensor(float("nan")))


def cycle(step: Step) -> Losses:
    """Eq. 6: intra-video loss + λ · cycle loss; with λ = 0 the cycle loss is measured without a gradient."""
    intra = intra_video(step).intra
    with torch.set_grad_enabled(torch.is_grad_enabled() and step.cycle_weight > 0):
        split = split_candidates(step)
        loss = cycle_consistency(
            step.query.cycle,
            step.positive.cycle,
            split.support,
            split.negatives,
            step.settings.temperature,
            split.ignore_support,
            split.ignore_negatives,
            step.settings.top_k,
        )
    return Losses(intra + step.cycle_weight * loss, intra, loss)


OBJECTIVES = {
    "intra-image": Objective(intra_image, same_frame=True, has_cycle=False),
    "intra-video": Objective(intra_video, same_frame=False, has_cycle=False),
    "cycle": Objective(cycle, same_frame=False, has_cycle=True),
}


@torch.no_grad()
def measure(step: Step, objective: Objective) -> Rates:
    """Measure how often the positive wins, against the intra keys and at the end of the cycle."""
    ignore = _own_in(step.intra, step, positive_only=objective.same_frame)
    first = positive_comes_first(step.query.intra, step.positive.intra, step.intra.keys, ignore)
    if not objective.has_cycle:
        return Rates(float(first.float().mean()), float("nan"))
    split, settings = split_candidates(step), step.settings
    neighbor = soft_nearest_neighbor(
        step.query.cycle, split.support, settings.temperature, split.ignore_support, settings.top_k
    )
    closed = positive_comes_first(neighbor, step.positive.cycle, split.negatives, split.ignore_negatives)
    return Rates(float(first.float().mean()), float(closed.float().mean()))


def split_candidates(step: Step) -> Split:
    """Draw the support from the cycle's candidates; the rest are negatives (Algorithm 1).

    Differs from the release with `split_by` video: the frames of a video are all on one side. Keys are ordered by a
    random number of their video, and negatives of the one video on the border are ignored.
    """
    (keys, video, _), settings = step.cycle, step.settings
    by_video = settings.split_by == "video"
    places = torch.arange(len(keys), device=keys.device)
    order = _scramble(video.where(video >= 0, -1 - places) if by_video else places, step.seed).argsort(stable=True)
    support, negatives = order[: settings.support_size], order[settings.support_size :]
    own = _own_in(step.cycle, step)
    ignore_negatives = own[:, negatives]
    if by_video:
        border = video[support[-1:]]
        ignore_negatives = ignore_negatives | ((video[negatives] == border) & (border >= 0))
    return Split(keys[support], keys[negatives], own[:, support], ignore_negatives)


def _own_in(candidates: Candidates, step: Step, positive_only: bool = False) -> Tensor:
    """Tell which candidates each query must ignore (batch, num_keys): its positive, and where masked its video's.

    Differs from the release, which masks nothing: the paper keeps a query's own video out (§3.2).
    """
    own = candidates.video == step.video[:, None]
    if positive_only or not step.settings.mask_own_video:
        own = torch.zeros_like(own)
    return own if candidates.place is None else own.scatter(1, candidates.place[:, None], True)


def _scramble(numbers: Tensor, seed: int) -> Tensor:
    """Hash integers to integers: the same draw on every device, without the state of a generator."""
    for shift, factor in ((30, 0x1CE4E5B9BF58476D), (27, 0x133111EB94D049BB)):
        numbers = (numbers + seed * 0x1E3779B97F4A7C15 % 2**63) ^ (numbers >> shift)
        numbers = numbers * factor
    return numbers ^ (numbers >> 31)
