"""The protocol `retrieval`: hit@k and mAP of retrieving training videos of the same class for each test video.

Differs from the release: it has no code for this table. The paper leaves the level open (clips or videos); the default
is to compare single clips, and the tag contains the level.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from cyclecontrast.config import RetrievalConfig
from cyclecontrast.data.clips import measure, read_frames
from cyclecontrast.data.images import CROP_MARGIN, Pixels
from cyclecontrast.data.labeled_images import Numbers
from cyclecontrast.data.labeled_videos import LabeledVideos, VideoSplit
from cyclecontrast.errors import UserError, attempt, some
from cyclecontrast.evaluation.classification import leaked, untested_class_notes
from cyclecontrast.evaluation.embed import IMAGES_PER_PART, Loading, compute_parts, concatenated, encode, frozen
from cyclecontrast.evaluation.image_batches import (
    CenterCrop,
    ImageBatch,
    chunks,
    load_image_batches,
)
from cyclecontrast.evaluation.metrics import (
    Floats,
    Integers,
    average_precision,
    hit_at_k,
    nearest_in_block,
    nearest_neighbors,
    per_class_accuracy,
    reduced_k_notes,
    similarity_blocks,
    unit_vectors,
)
from cyclecontrast.evaluation.predictions import DataInfo, Record, column_to_matrix, matrix_to_column
from cyclecontrast.evaluation.protocol import Part, Predictions, Protocol, Score
from cyclecontrast.evaluation.resume_cache import Arrays, ResumeCache
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.progress import with_progress

RECORDED = 200
"""Number of neighbors stored in a record, independent of `k`, so that `k` can be changed with --score-only."""
TAG_SETTINGS = ("per_video", "clip_length", "split", "center", "ann")
QUERIES_PER_PART = 2**11

CELLS_PER_ROOT = 4
MIN_ITEMS_PER_CELL = 39
"""With fewer training items per cell faiss warns."""
SEARCHED_FRACTION, MIN_SEARCHED = 1 / 8, 16
QUERIES_CHECKED = 100


class VideoItems(NamedTuple):
    """Frames, clips or videos of a split: vectors (num_items, dim) and labels (num_items,).

    `numbers` count the items of all listed videos; `problems` has a line for each unreadable video.
    """

    vectors: Floats
    labels: Numbers
    numbers: Numbers
    problems: tuple[str, ...]


class Retrieval(Protocol[RetrievalConfig, LabeledVideos]):
    """Nearest training frames, clips or videos of each one of the test split."""

    name = "retrieval"
    config_class = RetrievalConfig

    def open(self) -> LabeledVideos:
        """Read the lists; raises UserError, also where faiss is requested and absent, or k is more than recorded."""
        if self.config.ann == "faiss" and not self.config.score_only:
            check_faiss()
        data = LabeledVideos.open(self.config.data, self.config.split)
        if max(self.config.k) > RECORDED < len(data.train) * items_per_video(self.config):
            raise UserError(f"k: {max(self.config.k)} is more than the {RECORDED} nearest that are computed; use less")
        return data

    def describe(self, data: LabeledVideos) -> DataInfo:
        """Return which videos are compared, and how many items they are at this level."""
        num = items_per_video(self.config)
        return DataInfo(str(data.root), data.fingerprint, len(data.train) * num, len(data.test) * num)

    def parts(self, backbone: Backbone, data: LabeledVideos) -> list[Part]:
        """Return the videos of both splits as parts."""
        splits = ("train", data.train), ("test", data.test)
        return [part for name, split in splits for part in video_parts(backbone, split, self.config, name)]

    def predict(self, backbone: Backbone, data: LabeledVideos, cache: ResumeCache) -> Predictions:
        """Find the nearest training items of each test item.

        RECORDED of them, or all if there are fewer, independent of k.
        """
        config = self.config
        gallery, queries = (
            _scaled(embed_videos(backbone, split, config, name, cache), config.center)
            for name, split in (("train", data.train), ("test", data.test))
        )
        num = min(len(gallery.labels), RECORDED)
        notes = [
            *data.notes,
            *untested_class_notes(queries.labels, data.classes, "videos"),
            *leaked(data.train, data.test),
        ]
        if config.ann == "faiss":
            ranking, line = rank_by_faiss(gallery.vectors, queries.vectors, num)
            notes.append(line)
        else:
            ranking = rank(gallery, queries, num, cache)
        if config.level == "frame" and "clip_length" in config.model_fields_set:
            notes.append("clip_length did nothing: level frame has no clips")
        return Predictions(
            self._table(ranking, gallery, queries, data.test),
            self._tag(),
            notes,
            (*data.problems, *gallery.problems, *queries.problems),
            {
                "classes": list(data.classes),
                "num_gallery": len(gallery.labels),
                "items_per_video": items_per_video(self.config),
            },
            (len(gallery.labels), len(queries.labels)),
            frozenset(
                {"center", "clip_length"} if config.level == "frame" else {"center"}
            ),  # in the tag as a word without a value, or without effect
        )

    def score(self, record: Record) -> Score:
        """Score hit@k for each k up to the gallery, mAP, and hit@1 by class; raises UserError for a larger k."""
        labels, precision = (record.table[name].to_numpy() for name in ("label", "average_precision"))
        neighbor_labels = column_to_matrix(record.table["neighbor_labels"])
        size, recorded = record.about.details["num_gallery"], neighbor_labels.shape[1]
        ks = sorted({min(k, size) for k in self.config.k})
        if ks[-1] > recorded:
            raise UserError(f"k: the record holds the {recorded} nearest, not {ks[-1]}; use less")
        metrics = {f"hit@{k}": hit_at_k(neighbor_labels, labels, k) for k in ks}
        notes = reduced_k_notes(self.config.k, size, "gallery")
        known = ~np.isnan(precision)
        if known.any():
            metrics["mAP"] = float(precision[known].mean())
            lost = int((~known).sum())
            notes += [f"mAP is without {lost} queries whose class has nothing in the gallery"] if lost else []
        classes = record.about.details["classes"]
        hits = per_class_accuracy(neighbor_labels[:, 0], labels, len(classes))
        by_class = {
            "of": "hit@1",
            "classes": classes,
            "num_items": np.bincount(labels, minlength=len(classes)).tolist(),
            "hit@1": [None if np.isnan(hit) else hit for hit in hits.tolist()],
        }
        return Score(metrics, by_class, notes=notes)

    def _tag(self) -> str:
        """Name the level, and other settings that make numbers incomparable where they are not the defaults."""
        changed = self.config.model_dump(include=set(TAG_SETTINGS), exclude_defaults=True)
        words = [
            name if changed[name] is True else f"{name}={changed[name]}" for name in TAG_SETTINGS if name in changed
        ]
        return " ".join([f"retrieval level={self.config.level}", *words])

    def _table(self, ranking: Arrays, gallery: VideoItems, queries: VideoItems, test: VideoSplit) -> pa.Table:
        """Make the record, a row per query; neighbors are numbers of the training videos' items, nearest first."""
        videos, places = np.divmod(queries.numbers, items_per_video(self.config))
        names = [test.paths[video] for video in videos]
        is_video = self.config.level == "video"
        ids = names if is_video else [f"{name}#{place}" for name, place in zip(names, places, strict=True)]
        indices = ranking["indices"]
        labels, numbers = (np.where(indices < 0, -1, column[indices]) for column in (gallery.labels, gallery.numbers))
        precision = ranking.get("average_precision", np.full(len(indices), np.nan))
        return pa.table(
            {
                "id": ids,
                "label": queries.labels,
                "neighbor_labels": matrix_to_column(labels.astype(np.int32)),
                "neighbors": matrix_to_column(numbers.astype(np.int32)),
                "average_precision": pa.array(precision, mask=np.isnan(precision)),
            }
        )


def _scaled(items: VideoItems, center: bool) -> VideoItems:
    """Scale vectors to length 1, with `center` after subtracting the mean of their split."""
    vectors = items.vectors
    if center:
        vectors = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return items._replace(vectors=unit_vectors(vectors))


# Vectors of frames, clips and videos: each frame is decoded and embedded once.


@dataclass(frozen=True)
class WantedFrames:
    """Videos by position, each as the wanted frames, no larger than the crop needs them."""

    split: VideoSplit
    frames: dict[int, Numbers]
    short_side: int

    def __len__(self) -> int:
        return len(self.split)

    def image(self, position: int) -> Pixels:
        """Return the video's frames, RGB (num_frames, height, width, 3); raises UserError naming the file."""
        return read_frames(self.split.path(position), self.frames[position].tolist(), self.short_side)


def items_per_video(config: RetrievalConfig) -> int:
    """Return how many items of this level a video has."""
    return 1 if config.level == "video" else config.per_video


def frame_indices(num_frames: int, num: int) -> Numbers:
    """Return the numbers of `num` frames from the first to the last (num,); short videos repeat some."""
    return np.linspace(0, num_frames - 1, num).astype(np.int64)


def clip_indices(num_frames: int, num: int, length: int) -> Numbers:
    """Return the numbers of the frames of `num` clips, spread evenly (num, length).

    In a video shorter than a clip, all clips are the video with its last frame repeated.
    """
    half = length / 2
    centers = np.linspace(half, num_frames - half, num)
    starts = np.maximum((centers - half).astype(np.int64), 0)
    indices: Numbers = np.minimum(starts[:, None] + np.arange(length), num_frames - 1)
    return indices


def embed_videos(
    backbone: Backbone, split: VideoSplit, config: RetrievalConfig, name: str, cache: ResumeCache
) -> VideoItems:
    """Embed the frames, clips or videos of a split, except those embedded before a stop.

    Leaves out and reports unreadable videos. Raises UserError where none is readable.
    """
    embedded = concatenated(compute_parts(video_parts(backbone, split, config, name), cache))
    videos, problems = embedded["videos"], embedded["problems"].tolist()
    if len(videos) == 0:
        raise UserError(f"embedding {name}: none of the {len(split):,} videos can be read", *some(problems))
    num = items_per_video(config)
    numbers = (videos[:, None] * num + np.arange(num)).ravel()
    return VideoItems(embedded["vectors"], split.labels[videos].repeat(num), numbers, tuple(problems))


def video_parts(backbone: Backbone, split: VideoSplit, config: RetrievalConfig, name: str) -> list[Part]:
    """Return the videos of a split, in order, as the parts that a process embeds at once."""
    loading, per_part = Loading.of(config, backbone), max(1, IMAGES_PER_PART // _indices(1, config).size)
    make = partial(_embed_part, backbone, split, config, loading, name)
    return [
        Part(f"embedding {name}-{videos[0]}-{videos[-1]}", videos, make)
        for videos in chunks(range(len(split)), per_part)
    ]


def _indices(num_frames: int, config: RetrievalConfig) -> Numbers:
    """Return the frames of a video's items before they are averaged (num, frames of each)."""
    if config.level == "frame":
        return frame_indices(num_frames, config.per_video)[:, None]
    return clip_indices(num_frames, config.per_video, config.clip_length)


def _embed_part(
    backbone: Backbone, split: VideoSplit, config: RetrievalConfig, loading: Loading, name: str, videos: Sequence[int]
) -> Arrays:
    title = f"{name}, videos {videos[0] + 1:,} to {videos[-1] + 1:,} of {len(split):,}"
    problems: list[str] = []
    indices: dict[int, Numbers] = {}
    for video in with_progress(videos, f"measuring {title}", len(videos)):
        footage = attempt(partial(measure, split.path(video)), problems)
        if footage is not None:
            indices[video] = _indices(footage.num_frames, config)
    wanted = WantedFrames(split, {v: np.unique(x) for v, x in indices.items()}, round(loading.image_size * CROP_MARGIN))
    read: list[int] = []

    def frames() -> Iterator[Tensor]:
        crop, batches = CenterCrop(loading.image_size), chunks(list(indices), 1)
        for batch in load_image_batches(wanted, crop, batches, loading.workers, f"embedding {title}"):
            problems.extend(batch.problems)
            read.extend(batch.positions.tolist())
            for video in batch.pixels if len(batch.positions) else ():
                yield from video

    # Full batches of frames may span videos.
    encoded, waiting = [torch.empty(0, backbone.dim)], frames()
    with frozen(backbone, loading.device):
        while pixels := list(islice(waiting, loading.batch_size)):
            batch = ImageBatch(torch.arange(len(pixels)), torch.stack(pixels), ())
            encoded.append(encode(backbone, batch, loading.device).cpu())
    vectors = torch.cat(encoded).numpy()
    ends = np.cumsum([len(wanted.frames[video]) for video in read], dtype=np.int64)
    items = [vectors[:0]]
    for number, found in zip(read, np.split(vectors, ends), strict=False):
        items.append(_averaged(found, np.searchsorted(wanted.frames[number], indices[number]), config))
    return {
        "vectors": np.concatenate(items),
        "videos": np.array(read, np.int64),
        "problems": np.array(problems, dtype=str),
    }


def _averaged(vectors: npt.NDArray[np.float32], places: Numbers, config: RetrievalConfig) -> npt.NDArray[np.float32]:
    """Return a video's items (num_items, dim): means over frames, and at level video over clips."""
    clips = vectors[places].mean(axis=1, dtype=np.float64)
    items = clips.mean(axis=0, keepdims=True) if config.level == "video" else clips
    return items.astype(np.float32)  # type: ignore[no-any-return]


# The nearest gallery items of each query, exactly or by faiss.


def rank(gallery: VideoItems, queries: VideoItems, k: int, cache: ResumeCache) -> Arrays:
    """Find the k nearest of each query (num_queries, k), and its average precision over the whole gallery.

    Both rank by the same products, of double precision: near duplicates differ in single precision by rounding alone.
    """
    gallery, queries = (items._replace(vectors=items.vectors.astype(np.float64)) for items in (gallery, queries))
    starts = range(0, len(queries.vectors), QUERIES_PER_PART)
    columns = _first_equals(gallery.vectors)
    return concatenated(
        [
            cache.arrays(f"ranking-{start}-{k}", partial(_rank_part, gallery, columns, queries, start, k))
            for start in with_progress(starts, "ranking")
        ]
    )


def _rank_part(gallery: VideoItems, columns: Integers | slice, queries: VideoItems, start: int, k: int) -> Arrays:
    indices, precisions = [], []
    for rows, similarities in similarity_blocks(gallery.vectors, queries.vectors[start : start + QUERIES_PER_PART]):
        labels = queries.labels[start : start + len(rows)]
        start += len(rows)
        indices.append(nearest_in_block(gallery.vectors, rows, similarities, k).indices)
        # Short videos have equal clips: rounding must not order them.
        precisions.append(average_precision(similarities[:, columns], gallery.labels, labels))
    return {"indices": np.concatenate(indices), "average_precision": np.concatenate(precisions)}


def _first_equals(vectors: Floats) -> Integers | slice:
    """Return for each row (num_rows,) the number of the first row that equals it; all rows where none are equal."""
    rows = np.ascontiguousarray(vectors).view(f"V{vectors.itemsize * vectors.shape[1]}")[:, 0]
    _, firsts, members = np.unique(rows, return_index=True, return_inverse=True)
    return slice(None) if len(firsts) == len(rows) else firsts[members]


def check_faiss() -> None:
    """Raise UserError where faiss is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise UserError("ann: faiss is not installed; pip install 'cyclecontrast[faiss]', or leave ann at exact")


def rank_by_faiss(gallery: Floats, queries: Floats, k: int) -> tuple[Arrays, str]:
    """Return approximate k nearest neighbors, found by faiss in some cells of the gallery.

    -1 if a cell has too few items. Returns the neighbors (num_queries, k), and a line that says how many of the exact
    neighbors are among them.
    """
    index = make_faiss_index(gallery)
    found = index.search(queries, k)[1]
    checked = slice(None, None, max(1, len(queries) // QUERIES_CHECKED))
    exact = nearest_neighbors(gallery, queries[checked], k).indices
    recall = float(np.mean([np.isin(true, ours).mean() for true, ours in zip(exact, found[checked], strict=True)]))
    line = f"ann=faiss searches {index.nprobe} of {index.nlist} cells and finds {recall:.1%} of the {k} nearest; no mAP"
    return {"indices": found}, line


def make_faiss_index(gallery: Floats) -> Any:
    """Return a faiss index of the gallery, which searches some of its cells."""
    faiss: Any = importlib.import_module("faiss")
    num_items, dim = gallery.shape
    num_cells = max(1, min(round(CELLS_PER_ROOT * num_items**0.5), num_items // MIN_ITEMS_PER_CELL))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_cells, faiss.METRIC_INNER_PRODUCT)
    index.train(gallery)
    index.add(gallery)
    index.nprobe = min(num_cells, max(MIN_SEARCHED, round(num_cells * SEARCHED_FRACTION)))
    return index
