"""Scores of retrieval: whether the query's class is among its nearest neighbors, and how high its items rank."""

import numpy as np
import numpy.typing as npt

from cyclecontrast.evaluation.metrics.arrays import Floats, Integers


def hit_at_k(neighbor_labels: Integers, query_labels: Integers, k: int) -> float:
    """Return the fraction of queries whose label (num_queries,) is among those of the k nearest.

    `neighbor_labels` (num_queries, num_neighbors) are the gallery's labels, nearest first.
    """
    if not 1 <= k <= neighbor_labels.shape[1]:
        raise ValueError(f"hit@{k} of {neighbor_labels.shape[1]} neighbors")
    return float((neighbor_labels[:, :k] == query_labels[:, None]).any(axis=1).mean())


def average_precision(
    similarities: Floats, gallery_labels: Integers, query_labels: Integers
) -> npt.NDArray[np.float64]:
    """Return the average precision of each query (num_queries,) over the whole gallery; nan without any of its class.

    `similarities` are (num_queries, num_gallery). Equal ones count as one step, as in scikit-learn: so the value does
    not depend on the gallery's order.
    """
    values = np.full(len(query_labels), np.nan)
    for number, (row, label) in enumerate(zip(similarities, query_labels, strict=True)):
        relevant = np.sort(row[gallery_labels == label])
        if len(relevant):
            num_found = len(relevant) - np.searchsorted(relevant, relevant)
            num_seen = len(row) - np.searchsorted(np.sort(row), relevant)
            values[number] = (num_found / num_seen).mean()
    return values
