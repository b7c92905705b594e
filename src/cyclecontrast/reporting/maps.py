"""Vectors → maps: frames as dots in the plane, so that similar frames lie together."""

from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Floats, Integers
from cyclecontrast.reporting.atlas import Atlas, Tile
from cyclecontrast.reporting.sample import Embedded, Sample

MOST_DOTS = 600
MOST_ON_THE_PAGE = 4800
FEWEST_FOR_TSNE = 20
PERPLEXITY = 30
NUM_COLORS = 7
"""The last of the eight is a grey."""
MARGIN = 2.0
"""Percent of the map around the dots."""


class Dot(NamedTuple):
    """A frame: its place in percent from the left and from the top, its color (None: grey), its picture and name."""

    x: float
    y: float
    color: int | None
    tile: Tile


class Map(NamedTuple):
    """The frames as one model sees them."""

    model: str
    dots: tuple[Dot, ...]


class MapSheet(NamedTuple):
    """The maps of one data set, which all show the same frames; `problem` says why there are none.

    `legend` names the colored videos in the order of their colors; `rows` are the numbers, one row for each frame.
    """

    data: str
    meaning: str = ""
    maps: tuple[Map, ...] = ()
    legend: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    problem: str = ""


def draw_maps(embedded: Embedded, atlas: Atlas, num_maps: int, seed: int) -> MapSheet:
    """Draw a map for each run of one data set; `num_maps` is how many the whole page has."""
    if embedded.sample is None:
        return MapSheet(embedded.data, problem=embedded.problem)
    try:
        return _draw(embedded, embedded.sample, atlas, min(MOST_DOTS, MOST_ON_THE_PAGE // num_maps), seed)
    except UserError as error:
        return MapSheet(embedded.data, problem=f"The map cannot be shown: {error}")


def _draw(embedded: Embedded, sample: Sample, atlas: Atlas, most: int, seed: int) -> MapSheet:
    chosen = whole_videos(sample.videos, most, seed)
    colored = most_shown(sample.videos[chosen], seed)
    colors = {int(video): color for color, video in enumerate(colored)}
    tiles = [sample.tile(int(frame), atlas) for frame in chosen]
    maps, columns = [], [[str(index) for index in sample.indices[chosen]]]
    for one in embedded.trained:
        places = place(one.vectors[chosen], seed)
        dots = (
            Dot(x, y, colors.get(int(sample.videos[frame])), tile)
            for (x, y), frame, tile in zip(places.tolist(), chosen, tiles, strict=True)
        )
        maps.append(Map(one.model, tuple(dots)))
        columns += [[f"{value:.1f}" for value in column] for column in places.T]
    names = [sample.video(int(frame)) for frame in chosen]
    several = len(maps) > 1
    axes = (f"{axis}, {one.model}" if several else axis for one in maps for axis in ("x", "y"))
    return MapSheet(
        embedded.data,
        _meaning(len(chosen), len(np.unique(sample.videos[chosen])), len(colored)),
        tuple(maps),
        tuple(sample.video(int(np.flatnonzero(sample.videos == video)[0])) for video in colored),
        ("video", "frame", *axes),
        tuple(zip(names, *columns, strict=True)),
    )


def _meaning(num_frames: int, num_videos: int, num_colored: int) -> str:
    way = "t-SNE of cosine distances" if num_frames >= FEWEST_FOR_TSNE else "the two main axes (PCA)"
    told = (
        "Dots that touch are frames that the backbone finds similar; how far groups lie apart, and how large they are, "
        "means nothing."
        if num_frames >= FEWEST_FOR_TSNE
        else "Near dots may still differ in all other axes."
    )
    colors = f"{num_colored} of the videos with the most frames have a color, all others are grey."
    return f"{num_frames} frames of {num_videos} videos, each a dot, placed by {way}. {told} {colors}"


def whole_videos(videos: Integers, most: int, seed: int) -> Integers:
    """Choose positions of at most so many frames, all of a video where they fit, of random videos; in order."""
    found, of_frame = np.unique(videos, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(found))[of_frame]
    chosen: Integers = np.sort(np.argsort(rank, kind="stable")[:most])
    return chosen


def most_shown(videos: Integers, seed: int) -> Integers:
    """Return the videos with most frames, as many as there are colors; none where they are one frame each."""
    found, counts = np.unique(videos, return_counts=True)
    drawn = np.random.default_rng(seed).permutation(len(found))
    first: Integers = found[np.lexsort((drawn, -counts))[:NUM_COLORS]]
    return first if counts.max() > 1 else first[:0]


def place(vectors: Floats, seed: int) -> Floats:
    """Place unit vectors (num, dim) in the plane (num, 2), in percent of a square: by t-SNE, or by PCA where few.

    Van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    distinct = len(np.unique(vectors, axis=0))
    if distinct < 2:
        return np.full((len(vectors), 2), 50.0)
    if distinct < FEWEST_FOR_TSNE:
        return _into_square(_main_axes(vectors))
    tsne = TSNE(metric="cosine", init="pca", perplexity=min(PERPLEXITY, distinct / 4), random_state=seed, n_jobs=1)
    return _into_square(tsne.fit_transform(np.asarray(vectors, np.float32)))


def _main_axes(vectors: Floats) -> Floats:
    axes: Floats = PCA(2, random_state=0).fit_transform(vectors)
    return axes


def _into_square(places: Floats) -> Floats:
    """Scale both axes alike, so that the longer one fills the square up to its margin; round to a tenth."""
    places = places.astype(np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    scale = (100 - 2 * MARGIN) / (high - low).max()
    scaled: Floats = np.round(50 + (places - (low + high) / 2) * scale, 1)
    return scaled
