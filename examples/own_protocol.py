"""A protocol of your own: a config, and beside it the four functions that `cc.evaluate` calls.

Records, results and stopped evaluations work as for the built-in protocols; two_steps.py says what each function does.

    python examples/own_protocol.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np

import cyclecontrast as cc
from cyclecontrast.config import ClassifyConfig
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos
from cyclecontrast.evaluation.classification import describe, embed_items, open_data, parts, rank, ranked_table, score
from cyclecontrast.evaluation.two_steps import Predictions
from cyclecontrast.evaluation.unfinished import Unfinished

SPEC = SyntheticSpec(num_videos=1, num_categories=4, num_train_per_category=4, num_test_per_category=4)
__all__ = ["NearestMeanConfig", "describe", "open_data", "parts", "predict", "score"]


class NearestMeanConfig(ClassifyConfig):
    """Each test image gets the class whose mean of training images is nearest."""


def predict(
    backbone: cc.Backbone, data: LabeledImages, config: NearestMeanConfig, unfinished: Unfinished
) -> Predictions:
    """Rank the classes of each test image by the cosine to their means."""
    train = embed_items(backbone, data.train, config, "train", unfinished, unit=True)
    test = embed_items(backbone, data.test, config, "test", unfinished, unit=True)
    means = np.stack([train.vectors[train.labels == label].mean(axis=0) for label in range(len(data.classes))])
    ranked = rank(test.vectors @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T)
    table = ranked_table({"": ranked}, test, data, config)
    return Predictions(table, "nearest-mean", (), train.problems + test.problems, {"classes": list(data.classes)})


def main(folder: Path) -> None:
    """Make labeled frames and evaluate random weights on them, by the protocol's config in place of its name."""
    made = make_videos(folder / "made", SPEC, seed=0, workers=0)
    result = cc.evaluate(
        NearestMeanConfig, "random:resnet10-small-w16", made.labeled, out=folder / "results", image_size=32, workers=0
    )
    print(result, f"top-1: {result.metrics['top1']:.3f}", sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
