"""What all protocols of classification share: predictions → record → accuracy, per class and in all.

A protocol gives ranked classes for the test items; how it came by them is not known here.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.config import ClassifyConfig, EvaluateConfig
from cyclecontrast.data.labeled_images import LabeledImages, Numbers, Split
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.breakdown import breakdown
from cyclecontrast.evaluation.embeddings import Loading, embed_images, parts_of_images
from cyclecontrast.evaluation.metrics import (
    Floats,
    Integers,
    rank_classes,
    ranked_accuracy,
    unit_vectors,
    video_means,
)
from cyclecontrast.evaluation.record import Record
from cyclecontrast.evaluation.result import DataInfo
from cyclecontrast.evaluation.shares import Part
from cyclecontrast.evaluation.two_steps import Score
from cyclecontrast.evaluation.unfinished import Unfinished
from cyclecontrast.models.backbone import Backbone

NUM_RANKED = 5
RANKED = "ranked"


class Items(NamedTuple):
    """What is classified, frames or videos: vectors (num_items, dim), labels and groups of one video (num_items,).

    `numbers` says which frames or videos of the split they are; `problems` has a line for each image not among them.
    """

    vectors: npt.NDArray[np.float32]
    labels: Numbers
    videos: Numbers
    numbers: Numbers
    problems: tuple[str, ...]


def open_data(config: ClassifyConfig) -> LabeledImages:
    """Read the lists and folders of the data; raises UserError, also where there is nothing to tell apart."""
    data = LabeledImages.open(config.data, config.classes)
    if len(data.classes) < 2:
        raise UserError(f"{data.root}: holds one class, {data.classes[0]}; there is nothing to tell apart")
    return data


def describe(data: LabeledImages, config: ClassifyConfig) -> DataInfo:
    """Return which images are classified, and how many items they are at the level asked for."""
    numbers = [len(s) if config.level == "frame" else s.num_videos for s in (data.train, data.test)]
    return DataInfo(str(data.root), data.fingerprint, *numbers)


def ranked_table(ranked: Mapping[str, Integers], test: Items, data: LabeledImages, config: ClassifyConfig) -> pa.Table:
    """Make the record: for each test item its id, its label, and its classes, best first, by variant ("": the one)."""
    ids = data.test.names if config.level == "frame" else data.test.video_ids
    columns = {"id": ids.take(pa.array(test.numbers)), "label": test.labels}
    for variant, classes in ranked.items():
        flat = pa.array(classes.astype(np.int32).ravel())
        columns[RANKED + variant] = pa.FixedSizeListArray.from_arrays(flat, classes.shape[1])
    return pa.table(columns)


def score(record: Record, config: EvaluateConfig) -> Score:
    """Score a record: top-1, top-5 where there are more classes, and the first variant's breakdown by class."""
    labels = record.table["label"].to_numpy()
    variants = [name.removeprefix(RANKED) for name in record.table.column_names if name.startswith(RANKED)]
    metrics = {
        f"top{k}{variant}": ranked_accuracy(_ranked(record, variant), labels, k)
        for variant in variants
        for k in ((1, NUM_RANKED) if len(record.about.details["classes"]) > NUM_RANKED else (1,))
    }
    predicted = _ranked(record, variants[0])[:, 0]
    return Score(metrics, breakdown(f"top1{variants[0]}", predicted, labels, record.about.details["classes"]))


def embed_items(
    backbone: Backbone, split: Split, config: ClassifyConfig, name: str, unfinished: Unfinished, unit: bool = False
) -> Items:
    """Embed a split; at level video an item is the mean of a video's vectors; `unit` scales before and after that.

    What cannot be read is left out, and told of.
    """
    scale = unit_vectors if unit else np.asarray
    embedded = embed_images(backbone, split, Loading.of(config, backbone), f"embedding {name}", unfinished)
    vectors, positions = scale(embedded.vectors), embedded.positions
    if config.level == "frame":
        return Items(vectors, split.labels[positions], split.videos[positions], positions, embedded.problems)
    videos, members = np.unique(split.videos[positions], return_inverse=True)
    means = scale(video_means(vectors, members, len(videos)))
    return Items(means, split.video_labels[videos], videos, videos, embedded.problems)


def parts(backbone: Backbone, data: LabeledImages, config: ClassifyConfig) -> list[Part]:
    """Return what `embed_items` embeds of both splits, for several processes to share."""
    splits, loading = (("train", data.train), ("test", data.test)), Loading.of(config, backbone)
    return [part for name, split in splits for part in parts_of_images(backbone, split, loading, f"embedding {name}")]


def rank(scores: Floats) -> Integers:
    """Return the classes that a record keeps of scores (num_items, num_classes), best first."""
    return rank_classes(scores, min(NUM_RANKED, scores.shape[1]))


def _ranked(record: Record, variant: str) -> Integers:
    column = record.table[RANKED + variant].combine_chunks()
    ranked: Integers = column.flatten().to_numpy().reshape(len(column), -1)
    return ranked
