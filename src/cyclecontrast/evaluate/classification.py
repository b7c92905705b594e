"""What all protocols of classification share: predictions → record → accuracy, per class and in all.

A protocol gives ranked classes for the test items; how it came by them is not known here.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.config import EvaluateConfig
from cyclecontrast.data.labeled import LabeledImages, Numbers, Split
from cyclecontrast.evaluate.embeddings import Loading, embed_images
from cyclecontrast.evaluate.metrics import (
    Floats,
    Integers,
    confusion_matrix,
    per_class_accuracy,
    rank_classes,
    ranked_accuracy,
    unit_vectors,
    video_means,
)
from cyclecontrast.evaluate.record import Record, results_folder
from cyclecontrast.evaluate.result import About, DataInfo, Json, ModelInfo, Result
from cyclecontrast.files import check_folder
from cyclecontrast.model.backbone import Backbone
from cyclecontrast.model.checkpoint import fingerprint

NUM_RANKED = 5
RANKED = "ranked"

C = TypeVar("C", bound=EvaluateConfig)


class Prediction(NamedTuple):
    """Classes of each test item, best first (num_test, num_ranked), by variant ("" where there is one)."""

    tag: str
    ranked: Mapping[str, Integers]
    notes: tuple[str, ...]
    details: Json


class Items(NamedTuple):
    """What is classified, frames or videos: vectors (num_items, dim), labels and groups of one video (num_items,)."""

    vectors: npt.NDArray[np.float32]
    labels: Numbers
    videos: Numbers


Predict = Callable[[Backbone, LabeledImages, C], Prediction]


def evaluate_classifier(
    protocol: str, predict: Predict[C], backbone: Backbone, data: LabeledImages, config: C
) -> Result:
    """Predict into a record, or find the record where `score_only`; score it and write the result beside it."""
    folder = results_folder(config)
    check_folder(folder)
    about = _about(protocol, backbone, data, config)
    if config.score_only:
        record = Record.load(folder, about.key)
    else:
        record = _record(about, predict(backbone, data, config), data, config)
        record.save(folder)
    result = score(record)
    result.save(folder)
    return result


def score(record: Record) -> Result:
    """Score a record: top-1, top-5 where there are more classes, and the first variant's breakdown by class."""
    labels = record.table["label"].to_numpy()
    variants = [name.removeprefix(RANKED) for name in record.table.column_names if name.startswith(RANKED)]
    metrics = {
        f"top{k}{variant}": ranked_accuracy(_ranked(record, variant), labels, k)
        for variant in variants
        for k in ((1, NUM_RANKED) if len(record.about.details["classes"]) > NUM_RANKED else (1,))
    }
    return Result(record.about, metrics, _breakdown(record, f"top1{variants[0]}", _ranked(record, variants[0])[:, 0]))


def embed_items(backbone: Backbone, split: Split, config: EvaluateConfig, name: str, unit: bool = False) -> Items:
    """Embed a split; at level video an item is the mean of a video's vectors; `unit` scales before and after that."""
    scale = unit_vectors if unit else np.asarray
    vectors = scale(embed_images(backbone, split, Loading.of(config, backbone), f"embedding {name}"))
    if config.level == "frame":
        return Items(vectors, split.labels, split.videos)
    means = video_means(vectors, split.videos, split.num_videos)
    return Items(scale(means), split.video_labels, np.arange(split.num_videos))


def rank(scores: Floats) -> Integers:
    """Return the classes that a record keeps of scores (num_items, num_classes), best first."""
    return rank_classes(scores, min(NUM_RANKED, scores.shape[1]))


def _about(protocol: str, backbone: Backbone, data: LabeledImages, config: EvaluateConfig) -> About:
    numbers = [len(s) if config.level == "frame" else s.num_videos for s in (data.train, data.test)]
    return About(
        protocol,
        f"{protocol} level={config.level}",
        config.model_dump(mode="json", exclude={"score_only"}),
        ModelInfo(backbone.name, backbone.source, fingerprint(backbone)),
        DataInfo(str(data.root), data.fingerprint, *numbers),
    )


def _record(about: About, prediction: Prediction, data: LabeledImages, config: EvaluateConfig) -> Record:
    test = data.test
    ids, labels = (test.names, test.labels) if config.level == "frame" else (test.video_ids, test.video_labels)
    columns = {"id": ids, "label": labels}
    for variant, ranked in prediction.ranked.items():
        flat = pa.array(ranked.astype(np.int32).ravel())
        columns[RANKED + variant] = pa.FixedSizeListArray.from_arrays(flat, ranked.shape[1])
    details = {**prediction.details, "classes": list(data.classes)}
    made = dataclasses.replace(about, tag=prediction.tag, notes=prediction.notes, details=details)
    return Record(made, pa.table(columns))


def _ranked(record: Record, variant: str) -> Integers:
    column = record.table[RANKED + variant].combine_chunks()
    ranked: Integers = column.flatten().to_numpy().reshape(len(column), -1)
    return ranked


def _breakdown(record: Record, metric: str, predicted: Integers) -> Json:
    classes = record.about.details["classes"]
    labels = record.table["label"].to_numpy()
    accuracy = per_class_accuracy(predicted, labels, len(classes))
    confusion = confusion_matrix(predicted, labels, len(classes))
    return {
        "of": metric,
        "classes": classes,
        "num_items": confusion.sum(axis=1).tolist(),
        "accuracy": [None if math.isnan(value) else value for value in accuracy.tolist()],
        "confusion": confusion.tolist(),
    }
