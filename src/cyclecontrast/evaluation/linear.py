"""The protocol `linear`: a linear classifier on frozen features, by the paper's recipe or by a convex fit."""

from typing import NamedTuple

import numpy as np

from cyclecontrast.config import LinearConfig
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import classification, convex_probe, sgd_probe
from cyclecontrast.evaluation.breakdown import doubts, not_learned, not_tested
from cyclecontrast.evaluation.classification import (
    Items,
    describe,
    embed_items,
    open_data,
    rank,
    ranked_table,
    score,
)
from cyclecontrast.evaluation.metrics import Floats
from cyclecontrast.evaluation.result import Json
from cyclecontrast.evaluation.shares import Part
from cyclecontrast.evaluation.two_steps import Predictions
from cyclecontrast.evaluation.unfinished import Unfinished
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.training.leading import runs_alone

__all__ = ["describe", "open_data", "parts", "predict", "score"]

MAX_CONVEX = 50_000
SGD_ONLY = ("epochs", "learning_rate")


class _Fitted(NamedTuple):
    """Scores of the test items (num_items, num_classes), from how many training items, and what is to be said."""

    scores: Floats
    num_train: int
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    details: Json


def predict(backbone: Backbone, data: LabeledImages, config: LinearConfig, unfinished: Unfinished) -> Predictions:
    """Rank the classes of each test item by the probe that was asked for; `auto` decides by the number of images."""
    probe = _probe(data, config)
    notes = (f"probe: auto is {probe} for {len(data.train):,} training images",) if config.probe == "auto" else ()
    test = embed_items(backbone, data.test, config, "test", unfinished)
    fitted = (_convex if probe == "lbfgs" else _sgd)(backbone, data, config, test, unfinished)
    return Predictions(
        ranked_table({"": rank(fitted.scores)}, test, data, config),
        f"linear probe={probe} level={config.level}",
        (*notes, *fitted.notes, *not_tested(test.labels, data.classes)),
        fitted.problems + test.problems,
        {**fitted.details, "probe": probe, "classes": list(data.classes)},
        (fitted.num_train, len(test.labels)),
        idle=frozenset({*SGD_ONLY, "batch_size"} if probe == "lbfgs" else ()),
    )


def parts(backbone: Backbone, data: LabeledImages, config: LinearConfig) -> list[Part]:
    """Return what is embedded, for several processes to share; raises UserError where images are trained on."""
    if _probe(data, config) == "sgd":
        raise UserError(f"{runs_alone('linear with --probe sgd')}, or take --probe lbfgs")
    return classification.parts(backbone, data, config)


def _probe(data: LabeledImages, config: LinearConfig) -> str:
    auto = "lbfgs" if len(data.train) <= MAX_CONVEX else "sgd"
    return auto if config.probe == "auto" else config.probe


def _sgd(backbone: Backbone, data: LabeledImages, config: LinearConfig, test: Items, unfinished: Unfinished) -> _Fitted:
    head = sgd_probe.fit(backbone, data.train, len(data.classes), config, unfinished)
    notes = doubts(head.last_loss, len(data.classes)) + not_learned(head.labels, data.classes)
    details = {"learning_rate": head.learning_rate, "last_loss": head.last_loss}
    num_train = len(head.labels) if config.level == "frame" else data.train.num_videos
    return _Fitted(head.scores(test.vectors), num_train, notes, head.problems, details)


def _convex(
    backbone: Backbone, data: LabeledImages, config: LinearConfig, test: Items, unfinished: Unfinished
) -> _Fitted:
    train = embed_items(backbone, data.train, config, "train", unfinished)
    learned, labels = np.unique(train.labels, return_inverse=True)
    absent = not_learned(train.labels, data.classes)
    if len(learned) < 2:
        raise UserError(f"{data.root}: only one class has training images that can be read", *absent[:3])
    head = convex_probe.fit(train.vectors, labels, train.videos, config.seed)
    scores = np.full((len(test.vectors), len(data.classes)), -np.inf)
    scores[:, learned] = head.scores(test.vectors)
    unused = [name for name in SGD_ONLY if name in config.model_fields_set]
    notes = [f"{' and '.join(unused)} did nothing: probe lbfgs has no such option"] if unused else []
    return _Fitted(scores, len(labels), (*notes, *head.notes, *absent), train.problems, head.details())
