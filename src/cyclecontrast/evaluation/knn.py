"""The protocol `knn`: weighted k-nearest-neighbor classification; nothing is trained."""

from collections.abc import Iterator

import numpy as np

from cyclecontrast.config import KnnConfig
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.evaluation.classification import (
    ClassificationProtocol,
    leaked,
    untested_class_notes,
    untrained_class_notes,
)
from cyclecontrast.evaluation.metrics import Block, nearest_neighbors, reduced_k_notes, vote
from cyclecontrast.evaluation.protocol import Predictions
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.progress import with_progress


def show_blocks(blocks: Iterator[Block], num_blocks: int) -> Iterator[Block]:
    """Yield the blocks of a search, and show how far it is."""
    return with_progress(blocks, "neighbors", num_blocks)


class Knn(ClassificationProtocol[KnnConfig]):
    """Weighted k-nearest-neighbor classification on frozen features."""

    name = "knn"
    config_class = KnnConfig

    def predict(self, backbone: Backbone, data: LabeledImages, cache: ResumeCache) -> Predictions:
        """Rank the classes of each test item.

        A k larger than the number of training items is reduced to it, with a note.
        """
        config = self.config
        gallery = self.embed_items(backbone, data.train, "train", cache, unit=True)
        queries = self.embed_items(backbone, data.test, "test", cache, unit=True)
        size = len(gallery.labels)
        ks = list(dict.fromkeys(min(k, size) for k in config.k))
        neighbors = nearest_neighbors(gallery.vectors, queries.vectors, max(ks), show=show_blocks)
        votes = {f"_k{k}": vote(neighbors, gallery.labels, k, config.temperature, len(data.classes)) for k in ks}
        # Only classes with votes rank: at k = 1, top-5 is top-1.
        votes = {name: np.where(scores > 0, scores, -np.inf) for name, scores in votes.items()}
        return Predictions(
            self.ranked_table(votes, queries, data),
            f"knn level={config.level}",
            (
                *data.notes,
                *reduced_k_notes(config.k, size, "training"),
                *untrained_class_notes(gallery.labels, data.classes),
                *untested_class_notes(queries.labels, data.classes),
                *leaked(data.train, data.test),
            ),
            gallery.problems + queries.problems,
            {"temperature": config.temperature, "classes": list(data.classes)},
            (size, len(queries.labels)),
        )
