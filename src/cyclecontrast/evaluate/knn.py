"""The protocol `knn`: weighted votes of the most similar training items (protocols.md §b); nothing is trained."""

from cyclecontrast.config import KnnConfig
from cyclecontrast.data.labeled import LabeledImages
from cyclecontrast.evaluate.classification import Prediction, embed_items, evaluate_classifier, rank
from cyclecontrast.evaluate.metrics import nearest_neighbors, vote
from cyclecontrast.evaluate.result import Result
from cyclecontrast.model.backbone import Backbone


def open_data(config: KnnConfig) -> LabeledImages:
    """Read the lists and folders of the data; raises UserError."""
    return LabeledImages.open(config.data)


def evaluate(backbone: Backbone, data: LabeledImages, config: KnnConfig) -> Result:
    """Classify the test items by their neighbors in the training split, at each k; raises UserError."""
    return evaluate_classifier("knn", predict, backbone, data, config)


def predict(backbone: Backbone, data: LabeledImages, config: KnnConfig) -> Prediction:
    """Rank the classes of each test item; k beyond the number of training items is clipped to it, and noted."""
    gallery = embed_items(backbone, data.train, config, "train", unit=True)
    queries = embed_items(backbone, data.test, config, "test", unit=True)
    size = len(gallery.labels)
    ks = sorted({min(k, size) for k in config.k})
    neighbors = nearest_neighbors(gallery.vectors, queries.vectors, ks[-1])
    ranked = {f"_k{k}": rank(vote(neighbors, gallery.labels, k, config.temperature, len(data.classes))) for k in ks}
    notes = tuple(f"k={k} is more than the {size} training items: {size} used" for k in config.k if k > size)
    return Prediction(f"knn level={config.level}", ranked, notes, {"temperature": config.temperature})
