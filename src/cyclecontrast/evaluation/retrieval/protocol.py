"""The protocol `retrieval`: is the class of a test video among those of its nearest training videos (protocols.md §d).

Differs from the release: there is none for this table; of the two levels that the text leaves open, the one that
compares single clips is the default, and the level stands in the tag.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cyclecontrast.config import RetrievalConfig
from cyclecontrast.data.labeled_videos import LabeledVideos, VideoSplit
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.breakdown import check_classes, not_tested
from cyclecontrast.evaluation.metrics import Integers, hit_at_k, per_class_accuracy, unit_vectors
from cyclecontrast.evaluation.record import Record
from cyclecontrast.evaluation.result import DataInfo, Json
from cyclecontrast.evaluation.retrieval.ranking import check_faiss, rank, rank_by_faiss
from cyclecontrast.evaluation.retrieval.video_vectors import VideoItems, embed_videos, items_per_video, parts_of_videos
from cyclecontrast.evaluation.shares import Part
from cyclecontrast.evaluation.two_steps import Predictions, Score
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished
from cyclecontrast.models.backbone import Backbone

RECORDED = 200
"""Neighbors that a record holds, whatever k: another k is a matter of scoring."""
IN_TAG = ("per_video", "clip_length", "split", "center", "ann")


def open_data(config: RetrievalConfig) -> LabeledVideos:
    """Read the lists; raises UserError, also where faiss is asked for and absent, or k is more than a record holds."""
    if config.ann == "faiss" and not config.score_only:
        check_faiss()
    data = LabeledVideos.open(config.data, config.split)
    if max(config.k) > RECORDED < len(data.train) * items_per_video(config):
        raise UserError(f"k: {max(config.k)} is more than the {RECORDED} nearest that are looked for; name fewer")
    return data


def describe(data: LabeledVideos, config: RetrievalConfig) -> DataInfo:
    """Return which videos are compared, and how many items they are at the level asked for."""
    num = items_per_video(config)
    return DataInfo(str(data.root), data.fingerprint, len(data.train) * num, len(data.test) * num)


def parts(backbone: Backbone, data: LabeledVideos, config: RetrievalConfig) -> list[Part]:
    """Return what is embedded, for several processes to share."""
    splits = ("train", data.train), ("test", data.test)
    return [part for name, split in splits for part in parts_of_videos(backbone, split, config, name)]


def predict(backbone: Backbone, data: LabeledVideos, config: RetrievalConfig, unfinished: Unfinished) -> Predictions:
    """Find the nearest training items of each test item: RECORDED, or all where there are fewer, whatever k is."""
    gallery, queries = (
        _scaled(embed_videos(backbone, split, config, name, unfinished), config.center)
        for name, split in (("train", data.train), ("test", data.test))
    )
    num = min(len(gallery.labels), RECORDED)
    notes = [*data.notes, *not_tested(queries.labels, data.classes, "videos")]
    if config.ann == "faiss":
        ranking, line = rank_by_faiss(gallery.vectors, queries.vectors, num)
        notes.append(line)
    else:
        ranking = rank(gallery, queries, num, unfinished)
    if config.level == "frame" and "clip_length" in config.model_fields_set:
        notes.append("clip_length did nothing: level frame has no clips")
    return Predictions(
        _table(ranking, gallery, queries, data.test, config),
        _tag(config),
        tuple(notes),
        (*data.problems, *gallery.problems, *queries.problems),
        {"classes": list(data.classes), "num_gallery": len(gallery.labels), "items_per_video": items_per_video(config)},
        (len(gallery.labels), len(queries.labels)),
        frozenset({"center", "clip_length"} if config.level == "frame" else {"center"}),  # as a bare word, or idle
    )


def score(record: Record, config: RetrievalConfig) -> Score:
    """Score a record: hit@k for each k up to the gallery, mAP, and hit@1 by class.

    Raises UserError for a larger k, and for classes that the data do not have.
    """
    found, classes = _Found.of(record), record.about.details["classes"]
    check_classes(classes, found.labels, np.maximum(found.neighbor_labels, 0))  # -1: no neighbor
    size, recorded = record.about.details["num_gallery"], found.neighbor_labels.shape[1]
    ks = sorted({min(k, size) for k in config.k})
    if ks[-1] > recorded:
        raise UserError(f"k: the record holds the {recorded} nearest, not {ks[-1]}; run it again without --score-only")
    metrics = {f"hit@{k}": hit_at_k(found.neighbor_labels, found.labels, k) for k in ks}
    notes = [f"k={k} is more than the {size} gallery items: {size} used" for k in config.k if k > size]
    known = ~np.isnan(found.average_precision)
    if known.any():
        metrics["mAP"] = float(found.average_precision[known].mean())
        lost = int((~known).sum())
        notes += [f"mAP is without {lost} queries whose class has nothing in the gallery"] if lost else []
    return Score(metrics, _by_class(found, classes), notes=tuple(notes))


class _Found(NamedTuple):
    """A record's columns: labels and average precision (num_queries,), labels of the nearest (num_queries, num)."""

    labels: Integers
    neighbor_labels: Integers
    average_precision: np.ndarray[tuple[int], np.dtype[np.float64]]

    @staticmethod
    def of(record: Record) -> "_Found":
        labels, precision = (record.table[name].to_numpy() for name in ("label", "average_precision"))
        nearest = record.table["neighbor_labels"].combine_chunks()
        return _Found(labels, nearest.flatten().to_numpy().reshape(len(labels), -1), precision)


def _scaled(items: VideoItems, center: bool) -> VideoItems:
    """Scale vectors to length 1, after taking off the mean of their split where that is asked for."""
    vectors = items.vectors
    if center:
        vectors = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return items._replace(vectors=unit_vectors(vectors))


def _tag(config: RetrievalConfig) -> str:
    """Name the level, and what else makes numbers incomparable where it is not as usual."""
    changed = config.model_dump(include=set(IN_TAG), exclude_defaults=True)
    words = [name if changed[name] is True else f"{name}={changed[name]}" for name in IN_TAG if name in changed]
    return " ".join([f"retrieval level={config.level}", *words])


def _table(
    ranking: Arrays, gallery: VideoItems, queries: VideoItems, test: VideoSplit, config: RetrievalConfig
) -> pa.Table:
    """Make the record: a row per query; neighbors are numbers of the listed training videos' items, nearest first."""
    videos, places = np.divmod(queries.numbers, items_per_video(config))
    names = [test.paths[video] for video in videos]
    ids = names if config.level == "video" else [f"{x}#{place}" for x, place in zip(names, places, strict=True)]
    indices = ranking["indices"]
    labels, numbers = (np.where(indices < 0, -1, column[indices]) for column in (gallery.labels, gallery.numbers))
    precision = ranking.get("average_precision", np.full(len(indices), np.nan))
    return pa.table(
        {
            "id": ids,
            "label": queries.labels,
            "neighbor_labels": _lists(labels),
            "neighbors": _lists(numbers),
            "average_precision": pa.array(precision, mask=np.isnan(precision)),
        }
    )


def _lists(rows: Integers) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.int32).ravel()), rows.shape[1])


def _by_class(found: _Found, classes: list[str]) -> Json:
    hits = per_class_accuracy(found.neighbor_labels[:, 0], found.labels, len(classes))
    return {
        "of": "hit@1",
        "classes": classes,
        "num_items": np.bincount(found.labels, minlength=len(classes)).tolist(),
        "hit@1": [None if np.isnan(hit) else hit for hit in hits.tolist()],
    }
