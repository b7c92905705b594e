"""Scores of predictions: pure functions on arrays."""

from cyclecontrast.evaluate.metrics.arrays import Floats, Integers, Masks
from cyclecontrast.evaluate.metrics.classification import (
    confusion_matrix,
    knn_scores,
    per_class_accuracy,
    rank_classes,
    ranked_accuracy,
    top_k_accuracy,
    vote,
)
from cyclecontrast.evaluate.metrics.neighbors import Neighbors, nearest_neighbors, unit_vectors, video_means

__all__ = [
    "Floats",
    "Integers",
    "Masks",
    "Neighbors",
    "confusion_matrix",
    "knn_scores",
    "nearest_neighbors",
    "per_class_accuracy",
    "rank_classes",
    "ranked_accuracy",
    "top_k_accuracy",
    "unit_vectors",
    "video_means",
    "vote",
]
