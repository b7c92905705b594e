"""Random frames and their nearest frames in other videos, by the trained backbones and by random weights."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cyclecontrast.config import ReportConfig
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError
from cyclecontrast.evaluate.embeddings import Loading, embed_batches
from cyclecontrast.evaluate.image_batches import CenterCrop
from cyclecontrast.evaluate.metrics import Integers, unit_vectors
from cyclecontrast.model.backbone import Backbone
from cyclecontrast.model.checkpoint import load_backbone
from cyclecontrast.model.hardware import pick_device, pick_workers
from cyclecontrast.report.pictures import Picture, data_address
from cyclecontrast.report.runs import RunReport, one_per_method

NUM_QUERIES = 8
NUM_NEIGHBORS = 8
MAX_FRAMES = 4000
MIN_FRAMES = 500
FRAMES_PER_VIDEO = 5
CHEAP_SIZE = 64
"""Up to this image size a CPU embeds MAX_FRAMES in a minute or so."""
THUMBNAIL = 96
BATCH_SIZE = 128


class Neighbor(NamedTuple):
    """A frame near the query, and their cosine similarity."""

    picture: Picture
    similarity: float


class Found(NamedTuple):
    """What one model finds nearest to the query, nearest first."""

    model: str
    neighbors: tuple[Neighbor, ...]


class Query(NamedTuple):
    """A frame, and what each model finds for it."""

    picture: Picture
    found: tuple[Found, ...]


class NeighborSheet(NamedTuple):
    """The queries of one data set; `problem` says why there are none."""

    data: str
    meaning: str
    queries: tuple[Query, ...]
    problem: str


@dataclass(frozen=True)
class _Sample:
    """Some frames of a store, as images by position."""

    store: FrameStore
    videos: Integers
    indices: Integers

    def __len__(self) -> int:
        return len(self.videos)

    def image(self, position: int) -> Pixels:
        return self.store.image(int(self.videos[position]), int(self.indices[position]))

    def picture(self, position: int) -> Picture:
        video, index = self.store.video_id(int(self.videos[position])), int(self.indices[position])
        return Picture(data_address(CenterCrop(THUMBNAIL)(self.image(position), position)), f"{video}, frame {index}")


class _Model(NamedTuple):
    name: str
    backbone: Backbone
    image_size: int


class _Embedded(NamedTuple):
    model: str
    vectors: npt.NDArray[np.floating]


def find_neighbors(runs: Sequence[RunReport], options: ReportConfig) -> list[NeighborSheet]:
    """Make one sheet per data set, with the first run of each method on it."""
    by_data: dict[str, list[RunReport]] = {}
    for run in runs:
        key = run.frames.store.fingerprint if run.frames.store else str(run.config.data)
        by_data.setdefault(key, []).append(run)
    return [_sheet(group, options) for group in by_data.values()]


def _sheet(runs: list[RunReport], options: ReportConfig) -> NeighborSheet:
    shown = one_per_method(run for run in runs if run.trained.backbone is not None)
    frames, data = runs[0].frames, str(runs[0].config.data)
    if frames.store is None or not shown:
        return NeighborSheet(data, "", (), frames.problem or _why_none(runs[0]))
    if frames.store.num_videos < 2:
        return NeighborSheet(data, "", (), "There is one video only, so no frame has a neighbor in another.")
    models = [*_trained(shown), *_random(shown, options.seed)]
    sample = _draw_sample(frames.store, _affordable(models, pick_device(options.device)), options.seed)
    try:
        queries = _find(sample, models, options)
    except UserError as error:
        return NeighborSheet(data, "", (), f"The neighbors cannot be shown: {error}")
    meaning = (
        f"{len(queries)} random frames, and for each the most similar frame of the {NUM_NEIGHBORS} nearest other "
        f"videos, by the cosine of the backbone's features (the number below). Searched: {len(sample):,} frames of "
        f"{len(np.unique(sample.videos)):,} videos."
    )
    missing = [f"{run.name}: {_why_none(run)}" for run in runs if run.trained.backbone is None]
    return NeighborSheet(data, meaning, queries, " ".join(missing))


def _why_none(run: RunReport) -> str:
    what = "Its neighbors cannot be shown" if run.trained.fingerprint else "There is no backbone yet"
    return f"{what}: {run.trained.problem}"


def _trained(runs: Iterable[RunReport]) -> Iterator[_Model]:
    for run in runs:
        if run.trained.backbone is not None:
            yield _Model(run.name, run.trained.backbone, run.trained.backbone.image_size)


def _random(runs: Iterable[RunReport], seed: int) -> list[_Model]:
    """Return the baseline of every architecture and image size among the runs."""
    kinds = dict.fromkeys((model.backbone.name, model.image_size) for model in _trained(runs))
    several = len(kinds) > 1
    return [
        _Model(
            f"random weights ({name}, {size} px)" * several or "random weights",
            load_backbone(f"random:{name}", seed),
            size,
        )
        for name, size in kinds
    ]


def _affordable(models: Iterable[_Model], device: torch.device) -> int:
    """Return how many frames to embed: all that are wanted on a GPU, fewer of large images on a CPU."""
    largest = max(model.image_size for model in models)
    if device.type != "cpu" or largest <= CHEAP_SIZE:
        return MAX_FRAMES
    return max(MIN_FRAMES, int(MAX_FRAMES * (CHEAP_SIZE / largest) ** 2))


def _draw_sample(store: FrameStore, limit: int, seed: int) -> _Sample:
    """Draw some frames of each video, or one frame of some videos where there are more than `limit`."""
    rng = np.random.default_rng(seed)
    videos = np.sort(rng.permutation(store.num_videos)[:limit])
    each = max(1, min(FRAMES_PER_VIDEO, limit // len(videos)))
    drawn = [np.sort(rng.permutation(store.frames_in(int(video)))[:each]) for video in videos]
    return _Sample(store, np.repeat(videos, [len(indices) for indices in drawn]), np.concatenate(drawn))


def _find(sample: _Sample, models: Sequence[_Model], options: ReportConfig) -> tuple[Query, ...]:
    readable, embedded = _embed(sample, models, options)
    videos = sample.videos[readable]
    rng = np.random.default_rng(options.seed)
    chosen = _some_of_different_videos(videos, rng)
    return tuple(
        Query(
            sample.picture(int(readable[query])),
            tuple(_found(sample, readable, one, int(query)) for one in embedded),
        )
        for query in chosen
    )


def _some_of_different_videos(videos: Integers, rng: np.random.Generator) -> Integers:
    order = rng.permutation(len(videos))
    firsts = np.unique(videos[order], return_index=True)[1]
    return order[np.sort(firsts)[:NUM_QUERIES]]


def _embed(sample: _Sample, models: Sequence[_Model], options: ReportConfig) -> tuple[Integers, list[_Embedded]]:
    """Embed the sample by every model; frames that cannot be read are left out of all."""
    device = pick_device(options.device)
    workers = pick_workers(options.workers, device)
    embedded, readable = [], np.arange(len(sample))
    for model in models:
        loading = Loading(model.image_size, BATCH_SIZE, workers, device)
        batches = list(embed_batches(model.backbone, sample, loading, f"report: {model.name}"))
        readable = np.concatenate([batch.positions for batch in batches])
        embedded.append(_Embedded(model.name, unit_vectors(np.concatenate([batch.vectors for batch in batches]))))
    if len(readable) == 0:
        raise UserError("none of their frames can be read")
    return readable, embedded


def _found(sample: _Sample, readable: Integers, embedded: _Embedded, query: int) -> Found:
    similarities = embedded.vectors @ embedded.vectors[query]
    best = nearest_of_other_videos(similarities, sample.videos[readable], query, NUM_NEIGHBORS)
    neighbors = (Neighbor(sample.picture(int(readable[frame])), float(similarities[frame])) for frame in best)
    return Found(embedded.model, tuple(neighbors))


def nearest_of_other_videos(similarities: npt.NDArray[np.floating], videos: Integers, query: int, num: int) -> Integers:
    """Return the nearest frame of each of the `num` nearest videos other than the query's own, nearest first."""
    order = np.argsort(-similarities, kind="stable")
    order = order[videos[order] != videos[query]]
    firsts = np.sort(np.unique(videos[order], return_index=True)[1])
    nearest: Integers = order[firsts[:num]]
    return nearest
