"""Exact nearest neighbors in bounded memory; ties go to the lower index, so that results repeat."""

from typing import NamedTuple

import numpy as np

from cyclecontrast.evaluate.metrics.arrays import Floats, Integers

SIMILARITIES_AT_ONCE = 2**23


class Neighbors(NamedTuple):
    """Most similar gallery items of each query, nearest first; both (num_queries, k)."""

    similarities: Floats
    indices: Integers


def unit_vectors(vectors: Floats) -> Floats:
    """Scale each row to length 1; a row of zeros stays, and is similar to nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def video_means(vectors: Floats, videos: Integers, num_videos: int) -> Floats:
    """Average the vectors (num_images, dim) of each video, numbered by `videos` (num_images,) → (num_videos, dim)."""
    counts = np.bincount(videos, minlength=num_videos)
    if len(counts) != num_videos or not counts.all():
        raise ValueError(f"{num_videos} videos, but vectors of {np.count_nonzero(counts)}")
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(vectors[np.argsort(videos, kind="stable")], starts, axis=0, dtype=np.float64)
    means: Floats = (sums / counts[:, None]).astype(vectors.dtype)
    return means


def nearest_neighbors(
    gallery: Floats, queries: Floats, k: int, similarities_at_once: int = SIMILARITIES_AT_ONCE
) -> Neighbors:
    """Find the k rows of the gallery with the largest dot product with each query, in blocks of bounded memory."""
    if not 1 <= k <= len(gallery):
        raise ValueError(f"{k} neighbors of a gallery of {len(gallery)}")
    rows = max(1, similarities_at_once // len(gallery))
    blocks = [_nearest(queries[start : start + rows] @ gallery.T, k) for start in range(0, max(len(queries), 1), rows)]
    return Neighbors(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _nearest(similarities: Floats, k: int) -> Neighbors:
    indices = np.sort(np.argpartition(-similarities, k - 1, axis=1)[:, :k], axis=1)
    found = np.take_along_axis(similarities, indices, axis=1)
    tied = (similarities >= found.min(axis=1, keepdims=True)).sum(axis=1) > k
    indices[tied] = np.sort(np.argsort(-similarities[tied], axis=1, kind="stable")[:, :k], axis=1)
    found = np.take_along_axis(similarities, indices, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return Neighbors(np.take_along_axis(found, order, axis=1), np.take_along_axis(indices, order, axis=1))
