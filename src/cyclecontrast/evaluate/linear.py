"""The protocol `linear`: a linear classifier on frozen features, by the paper's recipe or by a convex fit."""

import math

from cyclecontrast.config import LinearConfig
from cyclecontrast.data.labeled import LabeledImages
from cyclecontrast.errors import UserError
from cyclecontrast.evaluate import convex_probe, sgd_probe
from cyclecontrast.evaluate.classification import Prediction, embed_items, evaluate_classifier, rank
from cyclecontrast.evaluate.result import Result
from cyclecontrast.model.backbone import Backbone

MAX_CONVEX = 50_000
SGD_ONLY = ("epochs", "learning_rate")


def open_data(config: LinearConfig) -> LabeledImages:
    """Read the lists and folders of the data; raises UserError."""
    return LabeledImages.open(config.data)


def evaluate(backbone: Backbone, data: LabeledImages, config: LinearConfig) -> Result:
    """Train a linear classifier on the training split and classify the test items; raises UserError."""
    return evaluate_classifier("linear", predict, backbone, data, config)


def predict(backbone: Backbone, data: LabeledImages, config: LinearConfig) -> Prediction:
    """Rank the classes of each test item by the probe that was asked for; `auto` decides by the number of images."""
    if len(data.classes) < 2:
        raise UserError(f"{data.root}: holds one class, {data.classes[0]}; a linear classifier needs two")
    auto = "lbfgs" if len(data.train) <= MAX_CONVEX else "sgd"
    probe = auto if config.probe == "auto" else config.probe
    notes = (f"probe: auto is {auto} for {len(data.train):,} training images",) if config.probe == "auto" else ()
    predicted = (_convex if probe == "lbfgs" else _sgd)(backbone, data, config)
    return predicted._replace(tag=f"linear probe={probe} level={config.level}", notes=notes + predicted.notes)


def _sgd(backbone: Backbone, data: LabeledImages, config: LinearConfig) -> Prediction:
    test = embed_items(backbone, data.test, config, "test")
    head = sgd_probe.fit(backbone, data.train, len(data.classes), config)
    details = {"learning_rate": head.learning_rate, "last_loss": head.last_loss}
    return Prediction("", {"": rank(head.scores(test.vectors))}, _doubts(head.last_loss, len(data.classes)), details)


def _doubts(loss: float, num_classes: int) -> tuple[str, ...]:
    guessing = math.log(num_classes)
    line = f"the loss on train ended at {loss:.3g}, worse than guessing ({guessing:.3g}); try another learning_rate"
    return (line,) if loss > guessing else ()


def _convex(backbone: Backbone, data: LabeledImages, config: LinearConfig) -> Prediction:
    train = embed_items(backbone, data.train, config, "train")
    test = embed_items(backbone, data.test, config, "test")
    head = convex_probe.fit(train.vectors, train.labels, train.videos, config.seed)
    unused = [name for name in SGD_ONLY if name in config.model_fields_set]
    notes = [f"{' and '.join(unused)} did nothing: probe lbfgs has no such option"] if unused else []
    return Prediction("", {"": rank(head.scores(test.vectors))}, (*notes, *head.notes), head.details())
