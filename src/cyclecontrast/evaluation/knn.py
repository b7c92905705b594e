"""The protocol `knn`: weighted votes of the most similar training items (protocols.md §b); nothing is trained."""

from cyclecontrast.config import KnnConfig
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.evaluation.breakdown import not_learned, not_tested
from cyclecontrast.evaluation.classification import (
    describe,
    embed_items,
    open_data,
    parts,
    rank,
    ranked_table,
    score,
)
from cyclecontrast.evaluation.metrics import nearest_neighbors, vote
from cyclecontrast.evaluation.two_steps import Predictions
from cyclecontrast.evaluation.unfinished import Unfinished
from cyclecontrast.models.backbone import Backbone

__all__ = ["describe", "open_data", "parts", "predict", "score"]


def predict(backbone: Backbone, data: LabeledImages, config: KnnConfig, unfinished: Unfinished) -> Predictions:
    """Rank the classes of each test item; k beyond the number of training items is clipped to it, and noted."""
    gallery = embed_items(backbone, data.train, config, "train", unfinished, unit=True)
    queries = embed_items(backbone, data.test, config, "test", unfinished, unit=True)
    size = len(gallery.labels)
    ks = sorted({min(k, size) for k in config.k})
    neighbors = nearest_neighbors(gallery.vectors, queries.vectors, ks[-1])
    ranked = {f"_k{k}": rank(vote(neighbors, gallery.labels, k, config.temperature, len(data.classes))) for k in ks}
    return Predictions(
        ranked_table(ranked, queries, data, config),
        f"knn level={config.level}",
        (
            *(f"k={k} is more than the {size} training items: {size} used" for k in config.k if k > size),
            *not_learned(gallery.labels, data.classes),
            *not_tested(queries.labels, data.classes),
        ),
        gallery.problems + queries.problems,
        {"temperature": config.temperature, "classes": list(data.classes)},
        (size, len(queries.labels)),
    )
