"""Your own protocol: a subclass of Protocol, passed to `cc.evaluate` in place of a name.

Records, results and resuming work as for the built-in protocols. ClassificationProtocol opens labeled images and scores
ranked classes; cyclecontrast/evaluation/protocol.py has the contract for anything else.

    python examples/own_protocol.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np

import cyclecontrast as cc
from cyclecontrast.config import ClassifyConfig
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos
from cyclecontrast.evaluation.classification import ClassificationProtocol
from cyclecontrast.evaluation.protocol import Predictions
from cyclecontrast.evaluation.resume_cache import ResumeCache

SPEC = SyntheticSpec(num_videos=1, num_categories=4, num_train_per_category=4, num_test_per_category=4)


class NearestMean(ClassificationProtocol[ClassifyConfig]):
    """Each test image gets the class whose mean of training images is nearest."""

    name = "nearest-mean"
    config_class = ClassifyConfig

    def predict(self, backbone: cc.Backbone, data: LabeledImages, cache: ResumeCache) -> Predictions:
        """Score the classes of each test image by the cosine to their means."""
        train = self.embed_items(backbone, data.train, "train", cache, unit=True)
        test = self.embed_items(backbone, data.test, "test", cache, unit=True)
        means = np.stack([train.vectors[train.labels == label].mean(axis=0) for label in range(len(data.classes))])
        cosines = test.vectors @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
        table = self.ranked_table({"": cosines}, test, data)
        return Predictions(table, self.name, (), train.problems + test.problems, {"classes": list(data.classes)})


def main(folder: Path) -> None:
    """Make labeled frames and evaluate random weights on them."""
    made = make_videos(folder / "made", SPEC, seed=0, workers=0)
    result = cc.evaluate(
        NearestMean, "random:resnet10-small-w8", made.labeled, out=folder / "results", image_size=32, workers=0
    )
    print(result, f"top-1: {result.metrics['top1']:.3f}", sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
