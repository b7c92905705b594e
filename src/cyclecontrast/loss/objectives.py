"""What is minimised in a step: features and queues in, losses out; no state changes here.

A new objective is a function from `Step` to `Losses` and a line in `OBJECTIVES`, which says what it needs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cyclecontrast.config.types import USER_PREFIX
from cyclecontrast.data.further_views import query_again
from cyclecontrast.loss.baseline_objectives import BASELINES, ignored_positive
from cyclecontrast.loss.losses import cycle_consistency, info_nce, positive_comes_first, soft_nearest_neighbor
from cyclecontrast.loss.step import Candidates, Losses, LossSettings, Needs, Objective, Rates, Step, only_intra, own_in

__all__ = [
    "OBJECTIVES",
    "Candidates",
    "LossSettings",
    "Objective",
    "Step",
    "learns_from",
    "measure",
    "needs_of",
    "pick_objective",
    "split_candidates",
]


class Split(NamedTuple):
    """The candidates parted into support and negatives, with what each query must ignore of them (batch, num_keys)."""

    support: Tensor
    negatives: Tensor
    ignore_support: Tensor
    ignore_negatives: Tensor


def ignored_video(step: Step) -> Tensor:
    """Ignore a query's positive among the intra candidates, and where masked all keys of its video."""
    return own_in(step.intra, step)


def intra_image(step: Step) -> Losses:
    """Eq. 1: two views of one frame; every other key is a negative, as in MoCo."""
    return only_intra(_intra(step, ignored_positive(step)))


def intra_video(step: Step) -> Losses:
    """Eq. 2: two frames of one video."""
    return only_intra(_intra(step, ignored_video(step)))


def cycle(step: Step) -> Losses:
    """Eq. 6: intra-video loss + λ · cycle loss; with λ = 0 the cycle loss is measured without a gradient."""
    intra = intra_video(step).intra
    with torch.set_grad_enabled(torch.is_grad_enabled() and step.cycle_weight > 0):
        loss = _cycle(step)
    return Losses(intra + step.cycle_weight * loss, intra, loss)


def cycle_only(step: Step) -> Losses:
    """Eq. 5 alone, whatever λ is (Table 5)."""
    loss = _cycle(step)
    return Losses(loss, loss.new_tensor(float("nan")), loss)


OBJECTIVES = {
    "intra-image": Objective(intra_image, ignored_positive, Needs(same_frame=True), "two views of one frame"),
    "intra-video": Objective(intra_video, ignored_video, Needs(), "frames of the same video"),
    "cycle": Objective(
        cycle,
        ignored_video,
        Needs(has_cycle=True),
        "frames of the same video and cycles across videos",
    ),
    "cycle-only": Objective(cycle_only, ignored_video, Needs(has_intra=False, has_cycle=True), "cycles across videos"),
    **BASELINES,
}


def pick_objective(name: str, positives: str = "frame", query_frame_in_support: bool = False) -> Objective:
    """Return an objective, its needs as the options have them.

    With `positives` video, methods of two views of a frame get two frames; `query_frame_in_support` adds a third view.
    """
    objective = OBJECTIVES[name]
    if positives == "video":
        return objective._replace(needs=objective.needs._replace(same_frame=False))
    if query_frame_in_support:
        needs = objective.needs._replace(further=query_again, keys=(1, 2))
        return objective._replace(needs=needs)
    return objective


def needs_of(name: str) -> Needs | None:
    """Return what an objective needs by its name; None for one of the user's own, which no file describes."""
    return OBJECTIVES[name].needs if name in OBJECTIVES else None


def learns_from(name: str) -> str:
    """Return what an objective learns from, in words, by its name."""
    return (
        OBJECTIVES[name].learns_from
        if name in OBJECTIVES
        else f"an objective of its own, {name.removeprefix(USER_PREFIX)}"
    )


@torch.no_grad()
def measure(step: Step, objective: Objective) -> Rates:
    """Measure how often the positive wins, against the intra keys and at the end of the cycle.

    As in the loss, a query without any candidate in the support has no cycle.
    """
    found = closed = float("nan")
    if objective.needs.has_intra or not objective.needs.has_cycle:
        ignore = objective.ignored(step)
        first = positive_comes_first(step.query.intra, step.positive.intra, step.intra.keys, ignore)
        found = float(first.float().mean())
    if objective.needs.has_cycle:
        split, settings = split_candidates(step), step.settings
        neighbor = soft_nearest_neighbor(
            step.query.cycle, split.support, settings.temperature, split.ignore_support, settings.top_k
        )
        ends = positive_comes_first(neighbor, step.positive.cycle, split.negatives, split.ignore_negatives)
        closed = float(ends[~split.ignore_support.all(dim=1)].float().mean())
    return Rates(found, closed)


def _intra(step: Step, ignore: Tensor) -> Tensor:
    return info_nce(step.query.intra, step.positive.intra, step.intra.keys, step.settings.temperature, ignore)


def _cycle(step: Step) -> Tensor:
    split = split_candidates(step)
    return cycle_consistency(
        step.query.cycle,
        step.positive.cycle,
        split.support,
        split.negatives,
        step.settings.temperature,
        split.ignore_support,
        split.ignore_negatives,
        step.settings.top_k,
    )


def split_candidates(step: Step) -> Split:
    """Draw the support from the cycle's candidates; the rest are negatives (Algorithm 1).

    Differs from the release with `split_by` video: the frames of a video are all on one side. Keys are ordered by a
    random number of their video, and negatives of the one video on the border are ignored.
    """
    (keys, video, place, _), size = step.cycle, step.settings.support_size
    by_video = step.settings.split_by == "video"
    places = torch.arange(len(keys), device=keys.device)
    order = _scramble(video.where(video >= 0, -1 - places) if by_video else places, step.seed).argsort(stable=True)
    # Indexing with brackets takes five times as long.
    drawn = Candidates(keys.index_select(0, order), video[order], None if place is None else order.argsort()[place])
    own = own_in(drawn, step)
    if by_video:
        border = drawn.video[:size][-1:]
        own[:, size:].logical_or_((drawn.video[size:] == border) & (border >= 0))
    split = Split(drawn.keys[:size], drawn.keys[size:], own[:, :size], own[:, size:])
    return split if len(step.encoded.keys) < 2 else _with_own_key(split, step.encoded.keys[1].cycle)


def _with_own_key(split: Split, own_keys: Tensor) -> Split:
    """Put each query's other view k++ into its own support (Table 5).

    Differs from the release, which puts the query itself there.
    """
    of_others = ~torch.eye(len(own_keys), dtype=torch.bool, device=own_keys.device)
    support = torch.cat((split.support, own_keys))
    return split._replace(support=support, ignore_support=torch.cat((split.ignore_support, of_others), dim=1))


def _scramble(numbers: Tensor, seed: int) -> Tensor:
    """Hash integers to integers: the same draw on every device, without the state of a generator."""
    for shift, factor in ((30, 0x1CE4E5B9BF58476D), (27, 0x133111EB94D049BB)):
        numbers = (numbers + seed * 0x1E3779B97F4A7C15 % 2**63) ^ (numbers >> shift)
        numbers = numbers * factor
    return numbers ^ (numbers >> 31)
