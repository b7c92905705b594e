"""Scores of classification; ties go to the lower index, so that results repeat."""

import numpy as np
import numpy.typing as npt

from cyclecontrast.evaluation.metrics.neighbors import Floats, Integers, Neighbors, nearest_neighbors


def rank_classes(scores: Floats, num: int) -> Integers:
    """Return the `num` classes of highest score (num_items, num), best first, of scores (num_items, num_classes)."""
    if not 1 <= num <= scores.shape[1]:
        raise ValueError(f"{num} classes of {scores.shape[1]}")
    return np.argsort(-scores, axis=1, kind="stable")[:, :num]


def ranked_accuracy(ranked: Integers, labels: Integers, k: int) -> float:
    """Return the fraction of items (num_items, num_ranked) whose label is among the first k."""
    if not 1 <= k <= ranked.shape[1]:
        raise ValueError(f"top {k} of {ranked.shape[1]} ranked classes")
    return float((ranked[:, :k] == labels[:, None]).any(axis=1).mean())


def top_k_accuracy(scores: Floats, labels: Integers, k: int) -> float:
    """Return the fraction of items whose label (num_items,) is among the k classes of highest score."""
    return ranked_accuracy(rank_classes(scores, k), labels, k)


def confusion_matrix(predicted: Integers, labels: Integers, num_classes: int) -> npt.NDArray[np.int64]:
    """Count items by label (rows) and predicted class (columns)."""
    cells: npt.NDArray[np.int64] = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def per_class_accuracy(predicted: Integers, labels: Integers, num_classes: int) -> npt.NDArray[np.float64]:
    """Return the accuracy of each class (num_classes,); nan for a class without items."""
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    accuracy: npt.NDArray[np.float64] = np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return accuracy


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
    """Classify unit vectors by weighted voting of the k nearest → (num_queries, num_classes)."""
    return vote(nearest_neighbors(train, queries, k), train_labels, k, temperature, num_classes)
