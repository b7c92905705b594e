"""What an objective sees of a step, what it gives back, and what it asks the training for."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cyclecontrast.data.further_views import FurtherFrames, no_further
from cyclecontrast.data.pairs import NO_FRAMES
from cyclecontrast.models.encoders import Features
from cyclecontrast.models.heads import Encoded, Head, NoHead

NOTHING = Encoded((), (), ())


class LossSettings(NamedTuple):
    """The options of the losses; without `self_temperature` queries are not contrasted with each other."""

    temperature: float
    support_size: int
    top_k: int | None
    mask_own_video: bool
    split_by: str
    self_temperature: float | None = None


class Candidates(NamedTuple):
    """Keys that a query is compared with: a queue's, oldest first, and behind them, where wanted, the step's own.

    Shapes: keys (num_keys, dim), video (num_keys,); `place` (batch,) is where among them each query's positive is, if
    it is; the last `num_fresh` are of this step.
    """

    keys: Tensor
    video: Tensor
    place: Tensor | None = None
    num_fresh: int = 0


class Step(NamedTuple):
    """Everything that an objective may look at in one step; `seed` draws the support.

    `query` and `positive` are the first pair; `encoded` has all views that the objective asked for, `answers` what its
    head made of them, `frames` (batch, num_views) the number of each view's frame in its video.
    """

    query: Features
    positive: Features
    video: Tensor
    intra: Candidates
    cycle: Candidates
    cycle_weight: float
    seed: int
    settings: LossSettings
    encoded: Encoded = NOTHING
    answers: tuple[Tensor, ...] = ()
    frames: Tensor = NO_FRAMES


class Term(NamedTuple):
    """A part of a loss that has a name of its own in the metrics."""

    name: str
    value: Tensor


class Losses(NamedTuple):
    """Scalars: what is minimised, and its terms before weighting; nan where one is not computed."""

    total: Tensor
    intra: Tensor
    cycle: Tensor
    more: tuple[Term, ...] = ()


class Rates(NamedTuple):
    """Parts of the batch: queries that find their positive, and cycles that close; nan where there is none."""

    intra_accuracy: float
    cycle_closed: float


def no_head(_: int) -> Head:
    """Build what an objective without a head has in its place."""
    return NoHead()


class Needs(NamedTuple):
    """What an objective asks of data, networks and queues.

    Views are numbered: 0 the query's, 1 the positive's (`same_frame`: of one frame), then those of `further`. The
    encoder sees `queries`, with a gradient; the momentum encoder sees `keys`, keys[i] being the positive of queries[i];
    without keys there is no momentum encoder. The first `num_enqueued` keys are enqueued, in a queue of the intra loss,
    of the cycle loss or both; `in_batch`: the step's keys are candidates whatever the option batch_keys says;
    `compares_queries`: the loss of a query depends on the other queries of the batch.
    """

    same_frame: bool = False
    further: FurtherFrames = no_further
    queries: tuple[int, ...] = (0,)
    keys: tuple[int, ...] = (1,)
    num_enqueued: int = 1
    has_intra: bool = True
    has_cycle: bool = False
    in_batch: bool = False
    compares_queries: bool = False
    make_head: Callable[[int], Head] = no_head
    constant_head_rate: bool = False

    @property
    def weighs_cycle(self) -> bool:
        """Whether λ plays a part: a cycle loss stands beside an intra loss."""
        return self.has_intra and self.has_cycle

    @property
    def is_of_one_frame(self) -> bool:
        """Whether unrelated images can be learned from."""
        return self.same_frame and self.further is no_further


class Objective(NamedTuple):
    """How an objective is computed, which candidates each query ignores, what it needs, and what it learns from."""

    losses: Callable[[Step], Losses]
    ignored: Callable[[Step], Tensor]
    needs: Needs
    learns_from: str


def only_intra(loss: Tensor, *more: Term) -> Losses:
    """Return the losses of an objective without a cycle."""
    return Losses(loss, loss, loss.new_tensor(float("nan")), more)


def own_in(candidates: Candidates, step: Step, positive_only: bool = False) -> Tensor:
    """Tell which candidates each query must ignore (batch, num_keys): its positive, and where masked its video's.

    Differs from the release, which masks nothing: the paper keeps a query's own video out (§3.2).
    """
    if positive_only or not step.settings.mask_own_video:
        own = torch.zeros(len(step.video), len(candidates.video), dtype=torch.bool, device=step.video.device)
    else:
        own = candidates.video == step.video[:, None]
    return own if candidates.place is None else own.scatter_(1, candidates.place[:, None], True)


def own_and_fresh_in(candidates: Candidates, step: Step) -> Tensor:
    """Tell which candidates are of the query's video and of this step (batch, num_keys): all of them positives."""
    fresh = torch.arange(len(candidates.keys), device=step.video.device) >= len(candidates.keys) - candidates.num_fresh
    return (candidates.video == step.video[:, None]) & fresh
