"""The methods beside ours: a step's features in, losses out (protocols.md §f), by the equations of baseline_losses.py.

Differs from their releases, all: each view is a batch of its own for BatchNorm; SGD, where SimCLR and BYOL use LARS;
views and projector are those of the options. SimSiam's residual branches do not begin at zero.
"""

import torch
from torch import Tensor

from cyclecontrast.data.further_views import other_half, three_pairs
from cyclecontrast.loss.baseline_losses import (
    multi_positive_nce,
    negative_cosine,
    nt_xent,
    order_loss,
    same_frame_first,
    self_batch_nce,
)
from cyclecontrast.loss.losses import info_nce
from cyclecontrast.loss.step import Losses, Needs, Objective, Step, Term, only_intra, own_and_fresh_in, own_in
from cyclecontrast.models.heads import OrderHead, make_bottleneck_predictor, make_wide_predictor


def vince(step: Step) -> Losses:
    """Contrast four frames of a video with all four keys of it, against the batch's other keys and the queue's.

    Differs from VINCE's release where own videos are masked: there the video's older keys are negatives.
    """
    query = torch.cat([features.intra for features in step.encoded.queries])
    times, (keys, *_) = len(step.encoded.queries), step.intra
    positives = own_and_fresh_in(step.intra, step).repeat(times, 1)
    ignore = ignored_of_many(step).repeat(times, 1)
    loss = multi_positive_nce(query, keys, positives, step.settings.temperature, ignore)
    if step.settings.self_temperature is None:
        return only_intra(loss)
    video = step.video.repeat(times)
    of_batch = self_batch_nce(query, video == video[:, None], step.settings.self_temperature)
    return only_intra(loss)._replace(total=loss + of_batch, more=(Term("self_batch", of_batch),))


def seco(step: Step) -> Losses:
    """Find the video among others, the frame within the video, and the order of its frames; the sum of the three.

    Differs from SeCo's release: a query's own video is masked, and there is one temperature for both contrasts, as
    its defaults are; videos of one frame take part in the first only.
    """
    query, keys, temperature = step.query, step.encoded.keys, step.settings.temperature
    ignore = ignored_of_many(step)
    inter = torch.stack([info_nce(query.intra, key.intra, step.intra.keys, temperature, ignore) for key in keys]).mean()
    own, others = step.frames[:, :1], step.frames[:, 2:]  # the frame of view 1 is the query's own
    intra = torch.stack(
        [
            same_frame_first(query.cycle, keys[0].cycle, key.cycle, temperature, differs)
            for key, differs in zip(keys[1:], (own != others).T, strict=True)
        ]
    ).mean()
    is_before, is_after = (own < others).all(dim=1), (own > others).all(dim=1)
    order = order_loss(step.answers[0], is_after, is_before | is_after)
    losses = only_intra(inter, Term("same_frame", intra), Term("order", order))
    return losses._replace(total=inter + intra + order)


def simclr(step: Step) -> Losses:
    """Find the other view of the frame among all views of the batch.

    Differs from SimCLR's release with many processes: the negatives are those of the own process.
    """
    first, second = (features.intra for features in step.encoded.queries)
    return only_intra(nt_xent(first, second, step.settings.temperature))


def simsiam(step: Step) -> Losses:
    """Predict the other view's projection, which is taken as given, both ways."""
    first, second = (features.intra for features in step.encoded.queries)
    return _predict(step, second, first)


def byol(step: Step) -> Losses:
    """Predict the momentum encoder's projection of the other view, both ways."""
    of_second, of_first = (features.intra for features in step.encoded.keys)
    return _predict(step, of_second, of_first)


def _predict(step: Step, target_of_first: Tensor, target_of_second: Tensor) -> Losses:
    from_first, from_second = step.answers
    both = negative_cosine(from_first, target_of_first) + negative_cosine(from_second, target_of_second)
    return only_intra(both / 2)


def ignored_positive(step: Step) -> Tensor:
    """Ignore a query's positive among the candidates, nothing else (batch, num_keys)."""
    return own_in(step.intra, step, positive_only=True)


def ignored_of_many(step: Step) -> Tensor:
    """Ignore all keys that the query's video has in this step, and where masked its older ones (batch, num_keys)."""
    return own_in(step.intra, step) | own_and_fresh_in(step.intra, step)


_TWO_VIEWS = Needs(same_frame=True, queries=(0, 1), keys=(), num_enqueued=0, has_intra=False, in_batch=True)

BASELINES = {
    "vince": Objective(
        vince,
        ignored_of_many,
        Needs(further=three_pairs, queries=(0, 2, 4, 6), keys=(1, 3, 5, 7), num_enqueued=4, in_batch=True),
        "four frames of the same video at once",
    ),
    "seco": Objective(
        seco,
        ignored_of_many,
        Needs(same_frame=True, further=other_half, keys=(1, 2, 3), num_enqueued=3, make_head=OrderHead),
        "frames of the same video, what tells them apart and their order",
    ),
    "simclr": Objective(
        simclr,
        ignored_positive,
        _TWO_VIEWS._replace(compares_queries=True),
        "two views, against all others of the batch",
    ),
    "simsiam": Objective(
        simsiam,
        ignored_positive,
        _TWO_VIEWS._replace(make_head=make_bottleneck_predictor, constant_head_rate=True),
        "two views that predict each other",
    ),
    "byol": Objective(
        byol,
        ignored_positive,
        _TWO_VIEWS._replace(keys=(1, 0), make_head=make_wide_predictor),
        "two views, each predicting its momentum encoder's of the other",
    ),
}
