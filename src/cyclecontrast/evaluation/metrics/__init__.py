"""Scores of predictions: pure functions on arrays."""

from cyclecontrast.evaluation.metrics.arrays import Floats, Integers, Masks
from cyclecontrast.evaluation.metrics.classification import (
    confusion_matrix,
    knn_scores,
    per_class_accuracy,
    rank_classes,
    ranked_accuracy,
    top_k_accuracy,
    vote,
)
from cyclecontrast.evaluation.metrics.masks import (
    boundary_f,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
    pixel_confusion,
    region_similarity,
)
from cyclecontrast.evaluation.metrics.neighbors import (
    Neighbors,
    nearest_in_block,
    nearest_neighbors,
    similarity_blocks,
    unit_vectors,
    video_means,
)
from cyclecontrast.evaluation.metrics.retrieval import average_precision, hit_at_k
from cyclecontrast.evaluation.metrics.tracking import (
    center_errors,
    official_center_errors,
    official_overlaps,
    overlaps,
    precision_curve,
    success_curve,
)

__all__ = [
    "Floats",
    "Integers",
    "Masks",
    "Neighbors",
    "average_precision",
    "boundary_f",
    "center_errors",
    "confusion_matrix",
    "hit_at_k",
    "iou_per_class",
    "knn_scores",
    "mean_iou",
    "nearest_in_block",
    "nearest_neighbors",
    "official_center_errors",
    "official_overlaps",
    "overlaps",
    "per_class_accuracy",
    "pixel_accuracy",
    "pixel_confusion",
    "precision_curve",
    "rank_classes",
    "ranked_accuracy",
    "region_similarity",
    "similarity_blocks",
    "success_curve",
    "top_k_accuracy",
    "unit_vectors",
    "video_means",
    "vote",
]
