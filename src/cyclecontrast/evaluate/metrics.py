"""Scores of predictions: pure functions on arrays; ties go to the lower index, so that results repeat."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SIMILARITIES_AT_ONCE = 2**23

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]


class Neighbors(NamedTuple):
    """Most similar gallery items of each query, nearest first; both (num_queries, k)."""

    similarities: Floats
    indices: Integers


def rank_classes(scores: Floats, num: int) -> Integers:
    """Return the `num` classes of highest score (num_items, num), best first, of scores (num_items, num_classes)."""
    if not 1 <= num <= scores.shape[1]:
        raise ValueError(f"{num} classes of {scores.shape[1]}")
    return np.argsort(-scores, axis=1, kind="stable")[:, :num]


def ranked_accuracy(ranked: Integers, labels: Integers, k: int) -> float:
    """Return the part of items (num_items, num_ranked) whose label is among the first k."""
    if not 1 <= k <= ranked.shape[1]:
        raise ValueError(f"top {k} of {ranked.shape[1]} ranked classes")
    return float((ranked[:, :k] == labels[:, None]).any(axis=1).mean())


def top_k_accuracy(scores: Floats, labels: Integers, k: int) -> float:
    """Return the part of items whose label (num_items,) is among the k classes of highest score."""
    return ranked_accuracy(rank_classes(scores, k), labels, k)


def confusion_matrix(predicted: Integers, labels: Integers, num_classes: int) -> npt.NDArray[np.int64]:
    """Count items by label (rows) and predicted class (columns)."""
    cells: npt.NDArray[np.int64] = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def per_class_accuracy(predicted: Integers, labels: Integers, num_classes: int) -> npt.NDArray[np.float64]:
    """Return the part of each class's items that is predicted right (num_classes,); nan for a class without items."""
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    accuracy: npt.NDArray[np.float64] = np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return accuracy


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


def vote(neighbors: Neighbors, labels: Integers, k: int, temperature: float, num_classes: int) -> Floats:
    """Sum exp(similarity / temperature) of the first k neighbors by their class → (num_queries, num_classes).

    Votes are relative to that of the nearest neighbor, which keeps small temperatures from overflowing.
    """
    similarities = neighbors.similarities[:, :k].astype(np.float64)
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    cells = np.arange(len(weights))[:, None] * num_classes + labels[neighbors.indices[:, :k]]
    scores = np.zeros((len(weights), num_classes))
    scores.ravel()[:] = np.bincount(cells.ravel(), weights.ravel(), minlength=scores.size)
    return scores


def knn_scores(
    train: Floats, train_labels: Integers, queries: Floats, k: int, temperature: float, num_classes: int
) -> Floats:
    """Classify unit vectors by weighted voting of the k nearest (protocols.md §b) → (num_queries, num_classes)."""
    return vote(nearest_neighbors(train, queries, k), train_labels, k, temperature, num_classes)
