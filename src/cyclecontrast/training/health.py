"""How a network is doing on videos that it does not train on, measured without labels and without a trace.

Nothing that training reads is changed: networks are put into evaluation mode and back, and random numbers come from
streams that belong to the measured videos alone.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cyclecontrast.data.pairs import FramePairs, collate
from cyclecontrast.loss.losses import info_nce, positive_comes_first
from cyclecontrast.loss.step import Needs
from cyclecontrast.models.encoders import Encoder, Features, Projections
from cyclecontrast.training.health_metrics import alignment, deviation, rank_me, same_video_recall, uniformity
from cyclecontrast.training.training import Training
from cyclecontrast.training.watched_cycles import LEAST_VIDEOS_OF_CYCLES, Cycles, closed, supports

MOST_VIDEOS = 256
ENOUGH_PAIRS, MOST_PAIRS_OF_A_VIDEO = 128, 4
NUM_MEASUREMENTS = 20
LEAST_STEPS = 25
AT_ONCE = 128

Signals = dict[str, float]


class Watched(NamedTuple):
    """Pairs of views of videos that health is measured on.

    Shapes: query, positive uint8 (num_pairs, 3, size, size); video (num_pairs,); frames (num_pairs, 2), their numbers.
    """

    query: Tensor
    positive: Tensor
    video: Tensor
    frames: Tensor

    @property
    def num_videos(self) -> int:
        """Number of videos that the views are of."""
        return len(torch.unique(self.video))

    @property
    def chance(self) -> float:
        """Part of the views whose nearest other view is of their video by chance."""
        own = self.video[:, None] == self.video
        return float(4 * own.sum() - 2 * len(own)) / (2 * len(own) * (2 * len(own) - 1))

    @property
    def cycle_chance(self) -> float | None:
        """Part of the cycles that close by chance; None where the videos are too few for cycles."""
        if self.num_videos < LEAST_VIDEOS_OF_CYCLES:
            return None
        ends = ~supports(self.video) & (self.video[:, None] != self.video)
        return float((1 / (1 + ends.sum(dim=1))).mean())


class Measured(NamedTuple):
    """The signals, and what the cycles among them were made of; None where the videos are too few for cycles."""

    signals: Signals
    cycles: Cycles | None


class Vectors(NamedTuple):
    """What the networks make of views: the backbone's representation, and the projectors' unit vectors."""

    representation: Tensor
    features: Features


def watch(pairs: FramePairs) -> Watched:
    """Make the views of up to 256 videos, of few videos up to 4 pairs each; what cannot be read is left out."""
    num_videos = min(MOST_VIDEOS, pairs.num_videos)
    times = min(MOST_PAIRS_OF_A_VIDEO, -(-ENOUGH_PAIRS // num_videos))
    found = [pairs[epoch * pairs.num_videos + place] for epoch in range(times) for place in range(num_videos)]
    readable = [pair for pair in found if pair.replaced < 2]  # both, where another video stands in
    batch = collate(readable or found)
    return Watched(batch.query, batch.positive, batch.video, batch.frames)


def steps_between(health_every: int | None, num_steps: int) -> int:
    """Return the steps between measurements: as asked (0 for none), or such that there are about twenty."""
    return max(LEAST_STEPS, math.ceil(num_steps / NUM_MEASUREMENTS)) if health_every is None else health_every


@torch.inference_mode()
def measure_health(training: Training, watched: Watched) -> Measured:
    """Return the signals, under their names in metrics.jsonl, and the cycles; what cannot be computed is absent.

    Retrieval looks at the backbone's representation, which is what remains; rank, deviation, alignment and uniformity
    at the projector's unit vectors, where a collapse begins; cycles go through the positives of half of the other
    videos and end among those of the other half, where there are four videos or more; the queue's accuracy and loss
    are those of queries with positives of the momentum encoder, their own videos' keys masked as the option says.
    """
    needs, encoder, momentum_encoder = training.objective.needs, training.encoder, training.momentum_encoder
    keys: Features | None = None
    with _evaluating(encoder), _evaluating(momentum_encoder or nn.Identity()):
        query, positive = (_encode(encoder, pixels, training) for pixels in watched[:2])
        if needs.has_intra and momentum_encoder is not None:
            keys = _encode(momentum_encoder, watched.positive, training).features
    measured, cycling = _projectors(needs)
    video, temperature = watched.video, training.config.temperature
    spread = _spread(query, positive, measured, video)
    signals = spread.copy()
    cycles: Cycles | None = None
    if watched.num_videos >= LEAST_VIDEOS_OF_CYCLES:
        cycles = Cycles(query.features[cycling], positive.features[cycling], video, watched.frames)
        signals["cycle_closed"] = float(closed(cycles, temperature).float().mean())
    if keys is not None:
        signals |= _queue(query.features.intra, keys.intra, video, training)
    finite = {f"health_{name}": value for name, value in signals.items() if math.isfinite(value)}
    return Measured(finite, cycles if spread else None)


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its modules back into the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _encode(encoder: Encoder, pixels: Tensor, training: Training) -> Vectors:
    """Encode in fp32: rounding to bf16 would give collapsed vectors a rank that they do not have."""
    parts = []
    for chunk in torch.split(pixels, AT_ONCE):
        representation = encoder.backbone(encoder.backbone.normalise(chunk.to(training.hardware.device)))
        parts.append((representation, encoder.intra_projector(representation), encoder.cycle_projector(representation)))
    representation, intra, cycle = (torch.cat(part).float() for part in zip(*parts, strict=True))
    return Vectors(representation, Projections(intra, cycle).features())


class _Projectors(NamedTuple):
    """Numbers of the trained projector that vectors are measured behind, and of the one for cycles."""

    measured: int
    cycling: int


def _projectors(needs: Needs) -> _Projectors:
    return _Projectors(1 if needs.has_cycle and not needs.has_intra else 0, 1 if needs.has_cycle else 0)


def _spread(query: Vectors, positive: Vectors, projector: int, video: Tensor) -> Signals:
    """Return how the vectors lie to each other; nothing where they are not finite."""
    first, second = (vectors.features[projector].cpu().numpy() for vectors in (query, positive))
    both = np.concatenate((first, second))
    representation = torch.cat((query.representation, positive.representation)).cpu().numpy()
    if not (np.isfinite(both).all() and np.isfinite(representation).all()):
        return {}
    found = same_video_recall(representation, video.tile(2).numpy())
    return {
        "same_video": found.rate,
        "same_video_error": found.error,
        "rank": rank_me(both),
        "deviation": deviation(both),
        "alignment": alignment(first, second),
        "uniformity": uniformity(both),
    }


def _queue(query: Tensor, positive: Tensor, video: Tensor, training: Training) -> Signals:
    queue, config = training.intra_queue, training.config
    own = (queue.video == video.to(queue.video)[:, None]) & config.mask_own_video
    return {
        "queue_accuracy": float(positive_comes_first(query, positive, queue.keys, own).float().mean()),
        "queue_loss": float(info_nce(query, positive, queue.keys, config.temperature, own)),
    }
