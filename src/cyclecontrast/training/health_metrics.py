"""What unit vectors tell of a network without labels: pure functions on arrays (num_vectors, dim), in float64."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]


class Retrieval(NamedTuple):
    """Part of the vectors that are retrieved (R@1), and its standard error."""

    rate: float
    error: float = 0.0


def unit(vectors: Floats) -> npt.NDArray[np.float64]:
    """Return the vectors at length 1; zero vectors stay zero."""
    exact = vectors.astype(np.float64)
    lengths: npt.NDArray[np.float64] = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.maximum(lengths, 1e-12)


def same_video_recall(vectors: Floats, video: Integers) -> Retrieval:
    """Return the part of the vectors whose nearest other vector, by cosine, is of the same video.

    One that is as near to another video counts as missed, so vectors that are all the same recall nothing. Views of one
    video are not independent: the error is that of the mean over videos, nan of a single video.
    """
    similarity = unit(vectors) @ unit(vectors).T
    own = video[:, None] == video
    others = np.where(own, -np.inf, similarity).max(axis=1)
    np.fill_diagonal(own, False)
    found = np.where(own, similarity, -np.inf).max(axis=1) > others + 1e-9
    place = np.unique(video, return_inverse=True)[1]
    of_videos = np.bincount(place, found) / np.bincount(place)
    error = of_videos.std(ddof=1) / np.sqrt(len(of_videos)) if len(of_videos) > 1 else np.nan
    return Retrieval(float(found.mean()), float(error))


def rank_me(vectors: Floats) -> float:
    """Return the effective number of dimensions: exp of the entropy of the singular values (Garrido et al. 2023).

    Between 1, where all vectors lie on a line, and the smaller of their number and their length.
    """
    values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    parts = values / max(values.sum(), 1e-300)
    parts = parts[parts > 0]
    return float(np.exp(-(parts * np.log(parts)).sum()))


def deviation(vectors: Floats) -> float:
    """Return the mean standard deviation of a dimension times √dim, of unit vectors.

    1 where they spread evenly over the sphere, 0 where they are all the same (SimSiam, §4.1).
    """
    return float(unit(vectors).std(axis=0).mean() * np.sqrt(vectors.shape[1]))


def alignment(first: Floats, second: Floats) -> float:
    """Return the mean squared distance of two views of one thing as unit vectors (Wang & Isola 2020, α = 2)."""
    return float(((unit(first) - unit(second)) ** 2).sum(axis=1).mean())


def uniformity(vectors: Floats) -> float:
    """Return log of the mean of exp(-2 · squared distance) over all pairs of unit vectors (Wang & Isola 2020, t = 2).

    0 where all are the same; the lower, the more evenly they spread.
    """
    similarity = unit(vectors) @ unit(vectors).T
    above = similarity[np.triu_indices(len(similarity), k=1)]
    return float(np.log(np.exp(-2 * (2 - 2 * above)).mean()))
