"""Label-free health metrics, measured on fixed views. Measuring them does not affect training.

Networks are switched to evaluation mode and back, and no random generator of the training loop is used. The metrics
are pure functions of arrays (num_vectors, dim), computed in float64.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cyclecontrast.data.dataset import Batch, Sample, ViewDataset, collate
from cyclecontrast.errors import UserError
from cyclecontrast.loss import info_nce, is_nearest, soft_nearest_neighbor
from cyclecontrast.loss.neighbors import centered, mutual_neighbors, video_means
from cyclecontrast.methods.method import Method, MomentumMethod
from cyclecontrast.models.encoder import Encoder, Features, Projections

MAX_VIDEOS, MAX_PAIRS_OF_A_VIDEO, MIN_PAIRS = 256, 4, 128
MIN_VIDEOS_OF_CYCLES = 4
"""With fewer, cycles always fail or always succeed."""
MAX_FRAMES, MAX_FRAMES_OF_A_VIDEO = 512, 4
"""Maximum number of training frames among which neighbors are measured."""
CHUNK = 128
FAR_APART = 1 / 3
"""Two frames show moments far apart if at least this fraction of their video lies between them."""

Floats = npt.NDArray[np.floating]
Signals = dict[str, float]


def health_views(dataset: ViewDataset) -> Batch:
    """Return pairs of views of up to 256 videos, with several pairs per video if there are few videos.

    Pairs in which both frames are unreadable are skipped.
    """
    num_videos = min(MAX_VIDEOS, dataset.num_videos)
    times = min(MAX_PAIRS_OF_A_VIDEO, -(-MIN_PAIRS // num_videos))
    found = [
        dataset.sample(epoch * dataset.num_videos + place) for epoch in range(times) for place in range(num_videos)
    ]
    readable: list[Sample | UserError] = [sample for sample in found if sample.num_replaced < 2]
    batch = collate(readable or [*found])
    assert isinstance(batch, Batch)
    return batch


def chance_level(video: Tensor) -> float:
    """Return the chance level of same-video retrieval, given the video of each pair of views."""
    same = int((video[:, None] == video).sum())
    return float(4 * same - 2 * len(video)) / (2 * len(video) * (2 * len(video) - 1))


def cycle_chance_level(video: Tensor) -> float | None:
    """Return the chance level of closed cycles; None if there are too few videos."""
    if len(torch.unique(video)) < MIN_VIDEOS_OF_CYCLES:
        return None
    ends = ~is_support(video) & (video[:, None] != video)
    return float((1 / (1 + ends.sum(dim=1))).mean())


@dataclass(frozen=True)
class Cycles:
    """The features of the monitored views, from which cycles are computed: pairs of views as unit vectors.

    Shapes: query, positive (num_pairs, dim); video (num_pairs,); frames (num_pairs, 2), the frame number of each view.
    The positives of half of the videos are the support, those of the other half are the negatives.
    """

    query: Tensor
    positive: Tensor
    video: Tensor
    frames: Tensor

    def neighbors(self, temperature: float) -> Tensor:
        """Return each query's soft nearest neighbor among the support of other videos (num_pairs, dim)."""
        through = is_support(self.video)
        same_video = self.video[:, None] == self.video
        return soft_nearest_neighbor(self.query, self.positive[through], temperature, same_video[:, through])

    def closed(self, temperature: float) -> Tensor:
        """Return whether each query's cycle closes, as booleans (num_pairs,)."""
        ends = ~is_support(self.video)
        same_video = self.video[:, None] == self.video
        return is_nearest(self.neighbors(temperature), self.positive, self.positive[ends], same_video[:, ends])


def is_support(video: Tensor) -> Tensor:
    """Return which pairs belong to the support (num_pairs,): those of every second video; the others are negatives."""
    place: Tensor = torch.unique(video, return_inverse=True)[1]
    return place % 2 == 0


class Health(NamedTuple):
    """One measurement: metrics by their names in metrics.jsonl, cycles, and the retrieval rate of each video.

    `by_video` has the rates behind the metrics of the same names; None if a video has no views to find.
    """

    signals: Signals
    cycles: Cycles | None = None
    by_video: Mapping[str, list[float | None]] = MappingProxyType({})


@torch.inference_mode()
def measure_health(
    method: Method, watched: Batch, temperature: float, mask_own_video: bool, num_frames: Tensor | None = None
) -> Health:
    """Measure health on fixed views; non-finite metrics are left out.

    `num_frames` (num_pairs,), the length of each video, adds retrieval across moments that are far apart.
    Retrieval uses the backbone's features, because the backbone is the result of training. Rank, deviation, alignment
    and uniformity use the projector's unit vectors, where collapse starts. Cycles need at least four videos. Queue
    accuracy and loss use positives from the momentum encoder.
    """
    device = next(method.encoder.parameters()).device
    video = watched.video.to(device)
    keys: Features | None = None
    with _evaluating(method):
        (query_representation, query), (positive_representation, positive) = (
            _encode(method.encoder, view, device) for view in watched.views[:2]
        )
        if method.has_intra and isinstance(method, MomentumMethod):
            keys = _encode(method.momentum_encoder, watched.views[1], device)[1]
    projector = 1 if method.has_cycle and not method.has_intra else 0
    first, second = query[projector].cpu().numpy(), positive[projector].cpu().numpy()
    both = np.concatenate((first, second))
    representation = torch.cat((query_representation, positive_representation)).cpu().numpy()
    signals: Signals = {}
    by_video: dict[str, Floats] = {}
    if is_finite := bool(np.isfinite(both).all() and np.isfinite(representation).all()):
        numbers = watched.video.tile(2).numpy()
        hits, counts = _hits(representation, numbers)
        by_video = {"same_video": hits / counts}
        rate, error = float(hits.sum() / counts.sum()), mean_and_error(by_video["same_video"])[1]
        signals = {
            "same_video": rate,
            "same_video_error": error,
            "rank": rank_me(both),
            "deviation": deviation(both),
            "alignment": alignment(first, second),
            "uniformity": uniformity(both),
        }
        if num_frames is not None:
            moments = (watched.frames[:, :2] / num_frames[:, None]).T.flatten().numpy()
            by_video["far_video"] = recall_by_video(representation, numbers, moments)
            signals["far_video"], signals["far_video_error"] = mean_and_error(by_video["far_video"])
    cycles = None
    if len(torch.unique(video)) >= MIN_VIDEOS_OF_CYCLES:
        cycling = 1 if method.has_cycle else 0
        cycles = Cycles(query[cycling], positive[cycling], video, watched.frames)
        signals["cycle_closed"] = float(cycles.closed(temperature).float().mean())
    if keys is not None and isinstance(method, MomentumMethod):
        queue = method.intra_queue
        ignore = (queue.video == video[:, None]) & mask_own_video
        found = is_nearest(query.intra, keys.intra, queue.keys, ignore)
        signals["queue_accuracy"] = float(found.float().mean())
        signals["queue_loss"] = float(info_nce(query.intra, keys.intra, queue.keys, temperature, ignore))
    finite = {f"health_{name}": value for name, value in signals.items() if math.isfinite(value)}
    rates = {
        f"health_{name}": [None if math.isnan(rate) else float(rate) for rate in values]
        for name, values in by_video.items()
    }
    return Health(finite, cycles if is_finite else None, rates)


def neighbor_frames(dataset: ViewDataset) -> tuple[Tensor, Tensor]:
    """Return up to 512 frames without augmentation (num_frames, 3, size, size), and their video numbers.

    They are spread evenly over the videos of the dataset and over the time of each. Videos without a readable frame
    are left out.
    """
    known = np.arange(dataset.store.num_videos) if dataset.videos is None else dataset.videos
    places = np.linspace(0, len(known) - 1, min(MAX_FRAMES, len(known))).astype(int)
    most = min(MAX_FRAMES_OF_A_VIDEO, MAX_FRAMES // len(places))
    views, numbers = [], []
    for video in map(int, known[places]):
        length = dataset.store.frames_in(video)
        each = min(most, length)
        for frame in ((2 * number + 1) * length // (2 * each) for number in range(each)):
            if (view := dataset.plain_view(video, frame)) is not None:
                views.append(torch.from_numpy(view).permute(2, 0, 1))
                numbers.append(video)
    return torch.stack(views) if views else torch.empty(0, 3, 1, 1), torch.tensor(numbers)


@torch.inference_mode()
def measure_neighbors(
    method: Method, frames: Tensor, video: Tensor, before: set[str] | None = None
) -> tuple[Signals, set[str]]:
    """Measure the nearest neighbors across videos of `neighbor_frames`, by the backbone's features without their mean.

    Returns the metrics, and the pairs of videos that are mutual nearest neighbors, by the means of their frames, as
    "3-17". `before` are the pairs of the measurement before.
    """
    if len(torch.unique(video)) < MIN_VIDEOS_OF_CYCLES:
        return {}, set()
    backbone = method.encoder.backbone
    device = next(backbone.parameters()).device
    with _evaluating(backbone):
        parts = [backbone(backbone.normalize(chunk.to(device))).float() for chunk in torch.split(frames, CHUNK)]
    vectors, video = centered(torch.cat(parts)), video.to(device)
    if not vectors.isfinite().all():
        return {}, set()
    means, numbers = video_means(vectors, video)
    of_videos = mutual_neighbors(means, numbers)
    places, margin = of_videos.pairs()
    pairs = {f"{first}-{second}" for first, second in numbers[places].tolist()}
    signals = {
        "mutual_videos": float(of_videos.mutual.cpu().numpy().mean()),
        "mutual_margin": float(np.median(margin.cpu().numpy().astype(np.float64))) if len(margin) else math.nan,
        "mutual_kept": len(before & pairs) / len(before) if before else math.nan,
        "closed_frames": float(mutual_neighbors(vectors, video).closed.cpu().numpy().mean()),
    }
    return {f"health_{name}": value for name, value in signals.items() if math.isfinite(value)}, pairs


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Switch a network to evaluation mode; restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _encode(encoder: Encoder, pixels: Tensor, device: torch.device) -> tuple[Tensor, Features]:
    """Return backbone features and projector unit vectors in fp32.

    Bf16 rounding would raise the rank of collapsed vectors.
    """
    parts = []
    for chunk in torch.split(pixels, CHUNK):
        representation = encoder.backbone(encoder.backbone.normalize(chunk.to(device)))
        parts.append((representation, encoder.intra_projector(representation), encoder.cycle_projector(representation)))
    representation, intra, cycle = (torch.cat(part).float() for part in zip(*parts, strict=True))
    return representation, Projections(intra, cycle).features()


def unit(vectors: Floats) -> npt.NDArray[np.float64]:
    """Return the vectors scaled to length 1; zero vectors stay zero."""
    exact = vectors.astype(np.float64)
    lengths: npt.NDArray[np.float64] = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.maximum(lengths, 1e-12)


def same_video_recall(vectors: Floats, video: npt.NDArray[np.integer]) -> tuple[float, float]:
    """Return the fraction of vectors whose nearest neighbor (cosine) is from the same video, and its standard error.

    A tie with another video counts as a miss, so equal vectors give 0. Views of one video are not independent, so the
    standard error is that of the mean over videos; nan for a single video.
    """
    hits, counts = _hits(vectors, video)
    return float(hits.sum() / counts.sum()), mean_and_error(hits / counts)[1]


def recall_by_video(
    vectors: Floats, video: npt.NDArray[np.integer], moments: Floats | None = None
) -> npt.NDArray[np.float64]:
    """Return the fraction of each video's vectors whose nearest neighbor (cosine) is from the same video.

    Videos are in the order of their numbers. With `moments` (num_vectors,), positions in the video from 0 to 1, only
    vectors far apart in time count as neighbors from the same video. Vectors without any are left out, and the
    fraction is nan if none are left.
    """
    hits, counts = _hits(vectors, video, moments)
    with np.errstate(invalid="ignore"):
        rates: npt.NDArray[np.float64] = hits / counts
    return rates


def _hits(
    vectors: Floats, video: npt.NDArray[np.integer], moments: Floats | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the number of hits of `recall_by_video` and of vectors that are not left out, of each video."""
    similarity = unit(vectors) @ unit(vectors).T
    same = video[:, None] == video
    others = np.where(same, -np.inf, similarity).max(axis=1)
    np.fill_diagonal(same, False)
    if moments is not None:
        same &= np.abs(moments[:, None] - moments) >= FAR_APART
    found = np.where(same, similarity, -np.inf).max(axis=1) > others + 1e-9
    counts = same.any(axis=1) if moments is not None else np.ones(len(video), dtype=bool)
    index = np.unique(video, return_inverse=True)[1]
    return np.bincount(index, found & counts).astype(np.float64), np.bincount(index, counts).astype(np.float64)


def mean_and_error(rates: Floats) -> tuple[float, float]:
    """Return the mean of the rates that are not nan, and its standard error (nan for fewer than two)."""
    known = rates[~np.isnan(rates)]
    mean = float(known.mean()) if len(known) else math.nan
    return mean, float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else math.nan


def rank_me(vectors: Floats) -> float:
    """Return the effective number of dimensions: exp of the entropy of the singular values (Garrido et al. 2023).

    It lies between 1, if all vectors are on a line, and the smaller of num_vectors and dim.
    """
    values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    parts = values / max(values.sum(), 1e-300)
    parts = parts[parts > 0]
    return float(np.exp(-(parts * np.log(parts)).sum()))


def deviation(vectors: Floats) -> float:
    """Return the mean standard deviation of a dimension times √dim, of unit vectors.

    1 if they are spread evenly over the sphere, 0 if they are all the same (SimSiam, §4.1).
    """
    return float(unit(vectors).std(axis=0).mean() * np.sqrt(vectors.shape[1]))


def alignment(first: Floats, second: Floats) -> float:
    """Return the mean squared distance between the unit vectors of positive pairs (Wang & Isola 2020, α = 2)."""
    return float(((unit(first) - unit(second)) ** 2).sum(axis=1).mean())


def uniformity(vectors: Floats) -> float:
    """Return log of the mean of exp(-2 · squared distance) over all pairs of unit vectors (Wang & Isola 2020, t = 2).

    0 if all are the same; lower means a more even spread.
    """
    similarity = unit(vectors) @ unit(vectors).T
    above = similarity[np.triu_indices(len(similarity), k=1)]
    return float(np.log(np.exp(-2 * (2 - 2 * above)).mean()))


def gains(by_video: Mapping[str, list[float | None]], at_start: Mapping[str, list[float | None]]) -> Signals:
    """Return how much retrieval has changed since the start, paired by video, with standard error and videos."""
    signals: Signals = {}
    for name in by_video.keys() & at_start.keys():
        now, before = (np.array(rates[name], dtype=float) for rates in (by_video, at_start))
        mean, error = mean_and_error(now - before)
        num_videos = int((~np.isnan(now - before)).sum())
        signals |= {f"{name}_gain": mean, f"{name}_gain_error": error, f"{name}_gain_videos": num_videos}
    return {name: value for name, value in sorted(signals.items()) if math.isfinite(value)}
