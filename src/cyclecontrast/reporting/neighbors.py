"""Frames and their nearest frames in other videos: of random frames, and where the backbones do worst."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Floats, Integers
from cyclecontrast.reporting.atlas import Atlas, Tile
from cyclecontrast.reporting.sample import Embedded, Sample, Vectors

NUM_QUERIES = 8
NUM_NEIGHBORS = 8
ROWS_AT_ONCE = 512


class Neighbor(NamedTuple):
    """A frame near the query, and their cosine similarity."""

    tile: Tile
    similarity: float


class Found(NamedTuple):
    """What one model finds nearest to the query, nearest first; `note` says how it fails."""

    model: str
    is_trained: bool
    neighbors: tuple[Neighbor, ...]
    note: str = ""


class Query(NamedTuple):
    """A frame, and what each model finds for it; `own` is what the first should have found: of the same video."""

    tile: Tile
    found: tuple[Found, ...]
    own: Tile | None = None


class QueryGroup(NamedTuple):
    """Queries chosen in one way, which `meaning` tells."""

    title: str
    meaning: str
    queries: tuple[Query, ...]


class NeighborSheet(NamedTuple):
    """The queries of one data set; `problem` says why there are none."""

    data: str
    groups: tuple[QueryGroup, ...]
    problem: str = ""


def find_neighbors(embedded: Embedded, atlas: Atlas, seed: int) -> NeighborSheet:
    """Show random queries and the worst ones with what each model finds for them."""
    sample = embedded.sample
    if sample is None:
        return NeighborSheet(embedded.data, (), embedded.problem)
    try:
        groups = _random(sample, embedded, atlas, seed), _worst(sample, embedded, atlas)
        return NeighborSheet(embedded.data, groups, embedded.problem)
    except UserError as error:
        return NeighborSheet(embedded.data, (), f"The neighbors cannot be shown: {error}")


def _random(sample: Sample, embedded: Embedded, atlas: Atlas, seed: int) -> QueryGroup:
    chosen = _of_different_videos(np.random.default_rng(seed).permutation(len(sample)), sample.videos)
    queries = tuple(
        Query(sample.tile(query, atlas), tuple(_found(sample, one, query, atlas) for one in embedded.models))
        for query in chosen
    )
    meaning = (
        f"{len(queries)} random frames, and for each the most similar frame of the {NUM_NEIGHBORS} nearest other "
        f"videos, by the cosine of the backbone's features (the number below). Searched: {len(sample):,} frames of "
        f"{len(np.unique(sample.videos)):,} videos."
    )
    return QueryGroup("Random frames", meaning, queries)


def _worst(sample: Sample, embedded: Embedded, atlas: Atlas) -> QueryGroup:
    counts = [strangers_before_own(one.vectors, sample.videos) for one in embedded.models]
    of_trained = [count for count, one in zip(counts, embedded.models, strict=True) if one.is_trained]
    mean = np.mean(of_trained, axis=0)
    order = np.argsort(-mean, kind="stable")
    chosen = _of_different_videos(order[mean[order] > 0], sample.videos)
    queries = tuple(_failure(sample, embedded, counts, query, atlas) for query in chosen)
    return QueryGroup("Worst frames", _meaning_of_worst(len(queries), len(of_trained), int(mean.max())), queries)


def _meaning_of_worst(num: int, num_trained: int, most: int) -> str:
    if most < 0:
        return "No video has two frames among those searched, so it cannot be told which frames fare worst."
    if not num:
        return "No frame fails: the frame most similar to each is of its own video."
    several = ", on average over the runs" if num_trained > 1 else ""
    return (
        f"{num} frames of which the backbone knows least that they belong to their video, measured without labels: how "
        f"many frames of other videos come before the nearest of its own{several}."
    )


def _failure(sample: Sample, embedded: Embedded, counts: list[Integers], query: int, atlas: Atlas) -> Query:
    of_others = int((sample.videos != sample.videos[query]).sum())
    found = (
        _found(sample, one, query, atlas)._replace(note=f"{count[query]:,} of {of_others:,} before its own video")
        for one, count in zip(embedded.models, counts, strict=True)
    )
    similarities = embedded.trained[0].vectors @ embedded.trained[0].vectors[query]
    same = np.flatnonzero(sample.videos == sample.videos[query])
    same = same[same != query]
    own = int(same[np.argmax(similarities[same])])
    return Query(sample.tile(query, atlas), tuple(found), sample.tile(own, atlas))


def _of_different_videos(order: Integers, videos: Integers) -> Iterable[int]:
    """Return the first frames in this order, one of each video."""
    firsts = np.unique(videos[order], return_index=True)[1]
    return map(int, order[np.sort(firsts)[:NUM_QUERIES]])


def _found(sample: Sample, model: Vectors, query: int, atlas: Atlas) -> Found:
    similarities = model.vectors @ model.vectors[query]
    best = nearest_of_other_videos(similarities, sample.videos, query, NUM_NEIGHBORS)
    neighbors = (Neighbor(sample.tile(int(frame), atlas), float(similarities[frame])) for frame in best)
    return Found(model.model, model.is_trained, tuple(neighbors))


def nearest_of_other_videos(similarities: npt.NDArray[np.floating], videos: Integers, query: int, num: int) -> Integers:
    """Return the nearest frame of each of the `num` nearest videos other than the query's own, nearest first."""
    order = np.argsort(-similarities, kind="stable")
    order = order[videos[order] != videos[query]]
    firsts = np.sort(np.unique(videos[order], return_index=True)[1])
    nearest: Integers = order[firsts[:num]]
    return nearest


def strangers_before_own(vectors: Floats, videos: Integers) -> Integers:
    """Count, for each frame, the frames of other videos as similar to it as the nearest of its own, or more.

    Takes unit vectors (num_frames, dim) and their videos (num_frames,); -1 where a video has no other frame.
    """
    counts = np.empty(len(videos), np.int64)
    for start in range(0, len(videos), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(videos)))
        similarities = vectors[rows] @ vectors.T
        same = videos[rows, None] == videos
        other = same.copy()
        other[np.arange(len(rows)), rows] = False
        own = np.where(other, similarities, -np.inf).max(axis=1)
        before = (~same & (similarities >= own[:, None])).sum(axis=1)
        counts[rows] = np.where(other.any(axis=1), before, -1)
    return counts
