"""What a run measures, and how it is shown: titles, words and what guessing would give. Drawn by curves.py."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from cyclecontrast.methods import METHODS
from cyclecontrast.reporting.runs import RunReport


class Quantity(NamedTuple):
    """A column of metrics.jsonl, and how it is shown; `chance` is what guessing gives in a run, None where unknown.

    `is_of` tells in which runs it means something, whatever is written there.
    """

    key: str
    title: str
    meaning: str
    percent: bool = False
    chance: Callable[[RunReport], float | None] | None = None
    part: Literal["training", "health", "schedule"] = "training"
    is_of: Callable[[RunReport], bool] = lambda _: True


def _queue_candidates(run: RunReport) -> int | None:
    method = METHODS.get(run.config.method)
    return run.config.queue_size + 1 if method is not None and method.has_intra else None


def _intra_candidates(run: RunReport) -> int | None:
    return of_queue + _of_the_step(run) if (of_queue := _queue_candidates(run)) else None


def _cycle_candidates(run: RunReport) -> int | None:
    method = METHODS.get(run.config.method)
    if method is None or not method.has_cycle:
        return None
    return max(1, run.config.cycle_queue_size + _of_the_step(run) - run.config.support_size) + 1


def _of_the_step(run: RunReport) -> int:
    """Return how many candidates a query has in the step itself: all that is enqueued but its own video's."""
    method = METHODS.get(run.config.method)
    if method is None or not (run.config.batch_keys or method.always_batch_keys):
        return 0
    return method.num_enqueued * (run.config.batch_size - 1)


def _of(
    number: Callable[[RunReport], int | None], chance: Callable[[int], float]
) -> Callable[[RunReport], float | None]:
    """Return what guessing among a run's candidates gives, by their number."""
    return lambda run: chance(candidates) if (candidates := number(run)) else None


def _has_weight(run: RunReport) -> bool:
    method = METHODS.get(run.config.method)
    return method is None or (method.has_intra and method.has_cycle)


def _found_by_chance(candidates: int) -> float:
    return 1 / candidates


QUANTITIES = (
    Quantity("loss", "Loss", "What is minimised."),
    Quantity(
        "intra_loss",
        "Intra loss",
        "How hard it is to find the other view of the same video among all candidates; "
        "for simsiam and byol, minus the cosine of the prediction and that view.",
        chance=_of(_intra_candidates, math.log),
    ),
    Quantity(
        "same_frame_loss",
        "Same-frame loss",
        "How hard it is to tell the other view of the query's frame from another frame of its video.",
    ),
    Quantity(
        "order_loss",
        "Order loss",
        "How hard it is to tell whether the query's frame comes before or after the others of its video.",
    ),
    Quantity(
        "self_batch_loss",
        "Self-batch loss",
        "How hard it is to find the other queries of the same video among all queries of the batch.",
    ),
    Quantity(
        "cycle_loss",
        "Cycle loss",
        "How hard it is to come back to the own video by way of a soft nearest neighbor in others.",
        chance=_of(_cycle_candidates, math.log),
    ),
    Quantity(
        "intra_accuracy",
        "Positives found",
        "Queries whose positive is more similar than all other candidates.",
        percent=True,
        chance=_of(_intra_candidates, _found_by_chance),
    ),
    Quantity(
        "cycle_closed",
        "Cycles closed",
        "Queries that come back to their own video.",
        percent=True,
        chance=_of(_cycle_candidates, _found_by_chance),
    ),
    Quantity("gradient_norm", "Gradient norm", "Length of the gradient before any clipping."),
    Quantity(
        "health_same_video",
        "Same video found",
        "Views whose nearest other view, by the backbone, is of the same video.",
        percent=True,
        chance=lambda run: run.health.get("chance"),
        part="health",
    ),
    Quantity(
        "health_cycle_closed",
        "Cycles closed",
        "Views that come back to their own video by way of half of the other videos.",
        percent=True,
        chance=lambda run: run.health.get("cycle_chance"),
        part="health",
    ),
    Quantity(
        "health_rank",
        "Rank (RankMe)",
        "Dimensions that the projector's vectors make use of: 1 is a collapse.",
        part="health",
    ),
    Quantity(
        "health_deviation",
        "Deviation",
        "Of a dimension of unit vectors, times √dim: 0 where all are the same, 1 where they are spread evenly.",
        part="health",
    ),
    Quantity(
        "health_alignment", "Alignment", "Squared distance of two views of a video; less is better.", part="health"
    ),
    Quantity(
        "health_uniformity", "Uniformity", "How evenly vectors cover the sphere; the lower, the more.", part="health"
    ),
    Quantity(
        "health_queue_accuracy",
        "Positives found in the queue",
        "Views whose positive is more similar than every key of the queue.",
        percent=True,
        chance=_of(_queue_candidates, _found_by_chance),
        part="health",
    ),
    Quantity(
        "health_queue_loss",
        "Loss against the queue",
        "It rises at first, while keys replace the queue's random vectors.",
        chance=_of(_queue_candidates, math.log),
        part="health",
    ),
    Quantity("learning_rate", "Learning rate", "Step size of the optimizer.", part="schedule"),
    Quantity(
        "cycle_weight",
        "Weight of the cycle loss (λ)",
        "0 while the cycle is only watched.",
        part="schedule",
        is_of=_has_weight,
    ),
)
