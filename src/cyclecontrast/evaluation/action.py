"""The protocol `action`: action recognition, with softmax scores averaged over the clips of a video.

The model is the backbone on each frame, the mean over the frames of a clip, and a linear layer. It is trained on random
clips in two stages: first the linear layer only, then all layers (mode finetune) or again only the linear layer
(linear).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from cyclecontrast.config import ActionConfig
from cyclecontrast.data.augment import Recipe, apply_view, draw_view
from cyclecontrast.data.clips import ClipShape, measure, random_clip, read_frames, spread_clips
from cyclecontrast.data.device_augment import on_device
from cyclecontrast.data.images import CROP_MARGIN, Pixels
from cyclecontrast.data.labeled_videos import LabeledVideos, VideoSplit
from cyclecontrast.data.random_streams import FRAMES, ORDER, QUERY, random_stream
from cyclecontrast.errors import UserError, some
from cyclecontrast.evaluation.classification import (
    NUM_RANKED,
    breakdown,
    doubts,
    leaked,
    untested_class_notes,
    untrained_class_notes,
)
from cyclecontrast.evaluation.embed import Loading, check_finite, concatenated, exact_convolutions
from cyclecontrast.evaluation.epochs import EpochReader, step_decay, train_epochs
from cyclecontrast.evaluation.image_batches import CenterCrop, ImageBatch, chunks, load_image_batches
from cyclecontrast.evaluation.metrics import top_k_accuracy, video_means
from cyclecontrast.evaluation.predictions import DataInfo, Record, column_to_matrix, matrix_to_column
from cyclecontrast.evaluation.protocol import Predictions, Protocol, Score
from cyclecontrast.evaluation.resume_cache import Arrays, ResumeCache
from cyclecontrast.models.backbone import Backbone

VIDEOS_PER_PART = 256
MILESTONES = (6 / 16, 10 / 16, 14 / 16)
FACTOR = 0.3
CLIPS_AT_ONCE = 8
"""Clips per forward pass, over which BatchNorm statistics are computed, as on each of the release's four GPUs."""
JITTER = (0.4, 0.4, 0.4, 0.2)
MIN_CROP = 0.08


class Action(Protocol[ActionConfig, LabeledVideos]):
    """Action recognition on labeled videos."""

    name = "action"
    config_class = ActionConfig

    def open(self) -> LabeledVideos:
        """Read the lists of the videos; raises UserError, also where there are fewer than two classes."""
        data = LabeledVideos.open(self.config.data, self.config.split)
        if len(data.classes) < 2:
            raise UserError(f"{data.root}: names one class, {data.classes[0]}; a classifier needs two")
        return data

    def describe(self, data: LabeledVideos) -> DataInfo:
        """Return which videos are classified."""
        return DataInfo(str(data.root), data.fingerprint, len(data.train), len(data.test))

    def predict(self, backbone: Backbone, data: LabeledVideos, cache: ResumeCache) -> Predictions:
        """Train, then predict class probabilities for the clips of each test video.

        Differs from the release: an unreadable video is skipped and reported, not replaced by another.
        """
        config, loading = self.config, Loading.of(self.config, backbone)
        model = ClipClassifier(backbone, len(data.classes), config.dropout, config.seed).to(loading.device)
        num_epochs = config.warmup_epochs + config.epochs
        reader = EpochReader("action", f"{len(data.train):,} training videos", num_epochs, loading.workers, cache)
        losses = train(model, data.train, config, loading, reader)
        # All clips of an unreadable video are one line.
        unread = {position // config.clips_per_video: line for position, line in reader.unread().items()}
        learned = np.delete(data.train.labels, list(unread))
        tested = _test(model, data.test, config, loading, cache)
        videos = np.unique(tested["videos"])
        num_unread, num_untested = len(unread), len(data.test) - len(videos)
        left_out = (
            f"left out: {len(data.problems)} listed videos or lines, {num_unread} of {len(data.train):,} training and "
            f"{num_untested} of {len(data.test):,} test videos that cannot be read"
        )
        return Predictions(
            _table(tested, data),
            f"action mode={config.mode}" + (f" bn={config.bn}" if config.mode == "linear" else ""),
            (
                *data.notes,
                *leaked(data.train, data.test),
                *((left_out,) if num_unread or num_untested or data.problems else ()),
                *untrained_class_notes(learned, data.classes, "videos"),
                *untested_class_notes(data.test.labels[videos], data.classes, "videos"),
                *doubts(losses["training"][-1], len(data.classes)),
            ),
            (*data.problems, *unread.values(), *tested["problems"].tolist()),
            {"classes": list(data.classes), "losses": losses},
            (len(learned), len(videos)),
        )

    def score(self, record: Record) -> Score:
        """Score single clips, and videos by the mean softmax of their clips; top-5 if there are more than five classes.

        Differs from the release: clip_top1 is of the test clips, not of 25 random ones.
        """
        classes = record.about.details["classes"]
        clips = column_to_matrix(record.table["probabilities"]).astype(np.float64)
        clip_labels = record.table["label"].to_numpy()
        ids = record.table["id"].to_numpy(zero_copy_only=False)
        _, first, members = np.unique(ids, return_index=True, return_inverse=True)
        videos, labels = video_means(clips, members, len(first)), clip_labels[first]
        ks = (1, NUM_RANKED) if len(classes) > NUM_RANKED else (1,)
        metrics = {
            "clip_top1": top_k_accuracy(clips, clip_labels, 1),
            **{f"video_top{k}": top_k_accuracy(videos, labels, k) for k in ks},
        }
        return Score(metrics, breakdown("video_top1", videos.argmax(axis=1), labels, classes))


class ClipClassifier(nn.Module):
    """A copy of a backbone with a new last layer; the given backbone is not modified."""

    def __init__(self, backbone: Backbone, num_classes: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).requires_grad_(True)
        self.dropout = nn.Dropout(dropout)
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            self.head = nn.Linear(backbone.dim, num_classes)

    def features(self, pixels: Tensor) -> Tensor:
        """Clips as uint8 (batch, num_frames, 3, h, w) → the mean of their frames' features (batch, dim)."""
        vectors = self.backbone(self.backbone.normalize(pixels.flatten(0, 1)))
        return vectors.float().unflatten(0, pixels.shape[:2]).mean(1)  # type: ignore[no-any-return]

    def logits(self, features: Tensor) -> Tensor:
        """Features of clips (batch, dim) → logits (batch, num_classes)."""
        return self.head(self.dropout(features))  # type: ignore[no-any-return]

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Clips (batch, num_frames, 3, h, w) → softmax (batch, num_classes); raises UserError if it is not finite."""
        with torch.inference_mode():
            probabilities = self.logits(self.features(pixels)).softmax(1)
        check_finite(probabilities, self.backbone)
        return probabilities


# Clips as items to load: which frames, and the view that all of them share.


@dataclass(frozen=True)
class RandomClips:
    """`clips_per_video` random clips of each video; the video of a position is position // clips_per_video."""

    videos: VideoSplit
    clip: ClipShape
    clips_per_video: int
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.videos) * self.clips_per_video

    def image(self, position: int) -> Pixels:
        """Return the frames (num_frames, height, width, 3); raises UserError naming the file."""
        path = self.videos.path(position // self.clips_per_video)
        rng = _clip_stream(self.seed, self.epoch, position, self.clips_per_video, FRAMES)
        return read_frames(path, random_clip(measure(path), self.clip, rng).tolist())


@dataclass(frozen=True)
class ClipView:
    """One random crop, flip and color jitter for all frames of a clip, as a function of (seed, epoch, video, clip)."""

    size: int
    flip: bool
    clips_per_video: int
    seed: int
    epoch: int

    def __call__(self, frames: Pixels, position: int) -> Pixels:
        """Return the views (num_frames, size, size, 3)."""
        rng = _clip_stream(self.seed, self.epoch, position, self.clips_per_video, QUERY)
        recipe = Recipe(JITTER, 1.0, 0.0, 0.0, min_crop=MIN_CROP, flip=self.flip)
        view = draw_view(rng, frames.shape[1], frames.shape[2], recipe)
        return np.stack([apply_view(frame, view, self.size) for frame in frames])


def _clip_stream(seed: int, epoch: int, position: int, clips_per_video: int, role: int) -> np.random.Generator:
    """Return the random stream of a clip of a video; it does not depend on the number of clips per video."""
    video, clip = divmod(position, clips_per_video)
    return random_stream(seed, epoch, video << 32 | clip, role)


@dataclass(frozen=True)
class SpreadClips:
    """All test clips of a video, one after the other, decoded in one pass."""

    videos: VideoSplit
    clip: ClipShape
    num_clips: int
    size: int

    def __len__(self) -> int:
        return len(self.videos)

    def image(self, position: int) -> Pixels:
        """Return the frames (num_clips · num_frames, height, width, 3); raises UserError naming the file."""
        path = self.videos.path(position)
        frames = spread_clips(measure(path), self.clip, self.num_clips)
        return read_frames(path, frames.ravel().tolist(), round(self.size * CROP_MARGIN))


# Training in two stages.


def train(
    model: ClipClassifier, videos: VideoSplit, config: ActionConfig, loading: Loading, reader: EpochReader
) -> dict[str, list[float]]:
    """Train in two stages, each with its own Adam, and end in evaluation mode; returns the mean losses of each.

    Differs from the release: all randomness comes from the seed.
    """
    finetunes = config.mode == "finetune"
    model.train()
    # Differs from the release: mode linear freezes BatchNorm too, unless `bn` selects the release's behavior.
    model.backbone.train(finetunes or config.bn == "train")
    stage = partial(_train_stage, model, videos, config, loading, reader)
    decay = step_decay(config.epochs, MILESTONES, FACTOR)
    warmup, training = range(config.warmup_epochs), range(config.warmup_epochs, reader.num_epochs)
    losses = {
        "warm-up": stage("warm-up", warmup, trains_backbone=False, factor_of=lambda _: 1.0),
        "training": stage("training", training, trains_backbone=finetunes, factor_of=decay),
    }
    model.eval()
    return losses


def _train_stage(
    model: ClipClassifier,
    videos: VideoSplit,
    config: ActionConfig,
    loading: Loading,
    reader: EpochReader,
    name: str,
    epochs: range,
    trains_backbone: bool,
    factor_of: Callable[[int], float],
) -> list[float]:
    labels = torch.from_numpy(videos.labels).to(loading.device)

    def parts_of(batch: ImageBatch) -> Iterator[Tensor]:
        size = len(batch.positions)
        num = math.ceil(size / CLIPS_AT_ONCE)
        for pixels, positions in zip(batch.pixels.tensor_split(num), batch.positions.tensor_split(num), strict=True):
            with torch.set_grad_enabled(trains_backbone):
                features = model.features(*on_device(loading.device, pixels))
            classes = labels[positions.to(loading.device) // config.clips_per_video]
            yield nn.functional.cross_entropy(model.logits(features), classes, reduction="sum") / size

    trained = model if trains_backbone else model.head
    return train_epochs(
        f"action {name}",
        {"model": model if model.backbone.training else model.head},
        torch.optim.Adam(trained.parameters(), config.learning_rate, weight_decay=0),
        lambda epoch: _random_clip_batches(videos, config, loading.image_size, epochs[epoch], reader),
        parts_of,
        factor_of,
        len(epochs),
        config.seed,
        reader.cache,
    )


def _random_clip_batches(
    videos: VideoSplit, config: ActionConfig, size: int, epoch: int, reader: EpochReader
) -> Iterator[ImageBatch]:
    """Yield the shuffled clips of an epoch in batches of nearly equal size, because BatchNorm needs several clips."""
    clip = ClipShape(config.num_frames, config.fps)
    clips = RandomClips(videos, clip, config.clips_per_video, config.seed, epoch)
    view = ClipView(size, config.flip, config.clips_per_video, config.seed, epoch)
    order = random_stream(config.seed, epoch, 0, ORDER).permutation(len(clips))
    batches = [part.tolist() for part in np.array_split(order, -(-len(order) // config.batch_size))]
    return reader.read(epoch, clips, view, batches)


# The test.


def _test(
    model: ClipClassifier, videos: VideoSplit, config: ActionConfig, loading: Loading, cache: ResumeCache
) -> Arrays:
    tested = concatenated(
        [
            cache.arrays(f"test {part[0]}-{part[-1]}", partial(_test_part, model, videos, part, config, loading))
            for part in chunks(range(len(videos)), VIDEOS_PER_PART)
        ]
    )
    if not len(tested["videos"]):
        raise UserError(f"action: none of the {len(videos):,} test videos can be read", *some(list(tested["problems"])))
    return tested


def _test_part(
    model: ClipClassifier, videos: VideoSplit, part: Sequence[int], config: ActionConfig, loading: Loading
) -> Arrays:
    clip = ClipShape(config.num_frames, config.fps)
    clips = SpreadClips(videos, clip, config.num_clips, loading.image_size)
    batches = chunks(part, max(1, config.batch_size // config.num_clips))
    title = f"action, test videos {part[0] + 1} to {part[-1] + 1} of {len(videos)}"
    numbers: list[int] = []
    problems: list[str] = []
    probabilities = [np.empty((0, model.head.out_features), np.float32)]
    with exact_convolutions():
        for batch in load_image_batches(clips, CenterCrop(loading.image_size), batches, loading.workers, title):
            problems += batch.problems
            if len(batch.positions):
                pixels = batch.pixels.reshape(-1, config.num_frames, *batch.pixels.shape[2:])
                probabilities.append(model.probabilities(pixels.to(loading.device)).cpu().numpy())
                numbers += batch.positions.tolist()
    return {
        "videos": np.repeat(np.array(numbers, np.int64), config.num_clips),
        "clips": np.tile(np.arange(config.num_clips), len(numbers)),
        "probabilities": np.concatenate(probabilities),
        "problems": np.array(problems, str),
    }


def _table(tested: Arrays, data: LabeledVideos) -> pa.Table:
    videos = tested["videos"]
    return pa.table(
        {
            "id": pa.array([data.test.paths[video] for video in videos]),
            "label": data.test.labels[videos],
            "clip": tested["clips"],
            "probabilities": matrix_to_column(tested["probabilities"]),
        }
    )
