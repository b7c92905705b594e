"""Base class of the classification protocols: embeds images or videos, stores ranked classes, computes accuracies."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.config import ClassifyConfig
from cyclecontrast.data.labeled_images import LabeledImages, Numbers, Split
from cyclecontrast.data.labeled_videos import VideoSplit
from cyclecontrast.data.masked_images import MaskedSplit
from cyclecontrast.data.storage import MAX_LISTED, same_content
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import Loading, embed_images, image_parts
from cyclecontrast.evaluation.metrics import (
    Floats,
    Integers,
    confusion_matrix,
    hit_at_k,
    per_class_accuracy,
    rank_classes,
    unit_vectors,
    video_means,
)
from cyclecontrast.evaluation.predictions import DataInfo, Json, Record, column_to_matrix, matrix_to_column
from cyclecontrast.evaluation.protocol import Part, Protocol, Score
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import Backbone

NUM_RANKED = 5
RANKED = "ranked"

ClassifyT = TypeVar("ClassifyT", bound=ClassifyConfig)


class Items(NamedTuple):
    """The classified items (frames or videos): vectors (num_items, dim), labels and video numbers (num_items,).

    `numbers` says which frames or videos of the split they are; `problems` has a line for each unreadable image.
    """

    vectors: npt.NDArray[np.float32]
    labels: Numbers
    videos: Numbers
    numbers: Numbers
    problems: tuple[str, ...]


class ClassificationProtocol(Protocol[ClassifyT, LabeledImages]):
    """Base class of protocols that rank classes for labeled images or videos; subclasses implement `predict`."""

    def open(self) -> LabeledImages:
        """Read the lists and folders of the data; raises UserError, also where there are fewer than two classes."""
        data = LabeledImages.open(self.config.data, self.config.classes)
        if len(data.classes) < 2:
            raise UserError(f"{data.root}: holds one class, {data.classes[0]}; a classifier needs two")
        return data

    def describe(self, data: LabeledImages) -> DataInfo:
        """Return which images are classified, and how many items they are at this level."""
        numbers = [len(s) if self.config.level == "frame" else s.num_videos for s in (data.train, data.test)]
        return DataInfo(str(data.root), data.fingerprint, *numbers)

    def score(self, record: Record) -> Score:
        """Score top-1, top-5 where there are more classes, and the first variant's breakdown by class."""
        labels, classes = record.table["label"].to_numpy(), record.about.details["classes"]
        variants = [name.removeprefix(RANKED) for name in record.table.column_names if name.startswith(RANKED)]
        ranked = {variant: column_to_matrix(record.table[RANKED + variant]) for variant in variants}
        metrics = {
            f"top{k}{variant}": hit_at_k(values, labels, k)
            for variant, values in ranked.items()
            for k in ((1, NUM_RANKED) if len(classes) > NUM_RANKED else (1,))
        }
        first = variants[0]
        return Score(metrics, breakdown(f"top1{first}", ranked[first][:, 0], labels, classes))

    def parts(self, backbone: Backbone, data: LabeledImages) -> list[Part]:
        """Return the work of `embed_items` for both splits as parts."""
        splits, loading = (("train", data.train), ("test", data.test)), Loading.of(self.config, backbone)
        return [part for name, split in splits for part in image_parts(backbone, split, loading, f"embedding {name}")]

    def embed_items(self, backbone: Backbone, split: Split, name: str, cache: ResumeCache, unit: bool = False) -> Items:
        """Embed the readable images of a split; at level video an item is the mean of a video's vectors.

        `unit` then scales the vectors of the items to length 1.
        """
        embedded = embed_images(backbone, split, Loading.of(self.config, backbone), f"embedding {name}", cache)
        vectors, positions = embedded.vectors, embedded.positions
        scale = unit_vectors if unit else np.asarray
        if self.config.level == "frame":
            items = split.labels[positions], split.videos[positions], positions
            return Items(scale(vectors), *items, embedded.problems)
        videos, members = np.unique(split.videos[positions], return_inverse=True)
        means = scale(video_means(vectors, members, len(videos)))
        return Items(means, split.video_labels[videos], videos, videos, embedded.problems)

    def readable(self, train: Split, unread: Collection[int]) -> tuple[Numbers, int]:
        """Return the labels of the images that are not in `unread`, and the number of items (images or videos)."""
        positions = np.delete(np.arange(len(train)), list(unread))
        items = positions if self.config.level == "frame" else np.unique(train.videos[positions])
        return train.labels[positions], len(items)

    def ranked_table(self, scores: Mapping[str, Floats], test: Items, data: LabeledImages) -> pa.Table:
        """Return the table of predictions: id, label and ranked classes of each test item, one column per variant.

        `scores` are (num_items, num_classes) for each variant.
        """
        ids = data.test.names if self.config.level == "frame" else data.test.video_ids
        columns = {"id": ids.take(pa.array(test.numbers)), "label": test.labels}
        for variant, values in scores.items():
            ranked = rank_classes(values, min(NUM_RANKED, values.shape[1]))
            columns[RANKED + variant] = matrix_to_column(ranked.astype(np.int32))
        return pa.table(columns)


def breakdown(metric: str, predicted: Integers, labels: Integers, classes: Sequence[str]) -> Json:
    """Return a metric by class, from the predicted and the true class of each item (num_items,)."""
    accuracy = per_class_accuracy(predicted, labels, len(classes))
    confusion = confusion_matrix(predicted, labels, len(classes))
    return {
        "of": metric,
        "classes": list(classes),
        "num_items": confusion.sum(axis=1).tolist(),
        "accuracy": [None if math.isnan(value) else value for value in accuracy.tolist()],
        "confusion": confusion.tolist(),
    }


def untrained_class_notes(labels: Integers, classes: Sequence[str], items: str = "images") -> tuple[str, ...]:
    """Return a note for each class that is not among the labels of the readable training items."""
    absent = np.setdiff1d(np.arange(len(classes)), labels)
    return tuple(f"class {classes[i]} was not trained: all of its training {items} are unreadable" for i in absent)


def untested_class_notes(labels: Integers, classes: Sequence[str], items: str = "images") -> tuple[str, ...]:
    """Return a note where classes are not among the labels of the readable test items."""
    names = [classes[label] for label in np.setdiff1d(np.arange(len(classes)), labels)]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    line = f"not tested, because all of their test {items} are unreadable: {', '.join(names[:MAX_LISTED])}{more}"
    return (line,) if names else ()


def leaked(train: Split | VideoSplit | MaskedSplit, test: Split | VideoSplit | MaskedSplit) -> tuple[str, ...]:
    """Return a note if files of the test are training files, too, under any name."""
    same = same_content(test.files(), train.files())
    if not same:
        return ()
    first = min(same)
    num, of = f"{len(same):,}", f"{sum(1 for _ in test.files()):,}"
    return (f"{num} of the {of} test files are also training files ({first} is {same[first]}): the result is biased",)


def doubts(last_loss: float, num_classes: int) -> tuple[str, ...]:
    """Return a note if the mean loss of the last epoch is above that of uniform predictions."""
    uniform = math.log(num_classes)
    line = f"the loss on train ended at {last_loss:.4g}, above chance level ({uniform:.4g}); try another learning_rate"
    return (line,) if last_loss > uniform else ()
