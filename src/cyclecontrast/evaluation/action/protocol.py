"""The protocol `action`: which action a video shows, by the mean softmax of its clips (protocols.md §c)."""

import numpy as np
import pyarrow as pa

from cyclecontrast.config import ActionConfig
from cyclecontrast.data.clips import ClipShape
from cyclecontrast.data.labeled_videos import LabeledVideos, VideoSplit
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.action.classifier import ClipClassifier
from cyclecontrast.evaluation.action.clip_images import SpreadClips
from cyclecontrast.evaluation.action.training import ClipEpochs, train
from cyclecontrast.evaluation.breakdown import breakdown, doubts, not_learned, not_tested
from cyclecontrast.evaluation.embeddings import Loading, exact_convolutions
from cyclecontrast.evaluation.image_batches import CenterCrops, in_order, load_image_batches
from cyclecontrast.evaluation.metrics import top_k_accuracy, video_means
from cyclecontrast.evaluation.record import Record
from cyclecontrast.evaluation.result import DataInfo
from cyclecontrast.evaluation.two_steps import Predictions, Score
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished
from cyclecontrast.models.backbone import Backbone

VIDEOS_PER_PART = 256
NUM_RANKED = 5


def open_data(config: ActionConfig) -> LabeledVideos:
    """Read the lists of the videos; raises UserError."""
    data = LabeledVideos.open(config.data, config.split)
    if len(data.classes) < 2:
        raise UserError(f"{data.root}: names one class, {data.classes[0]}; a classifier needs two")
    return data


def describe(data: LabeledVideos, config: ActionConfig) -> DataInfo:
    """Return which videos are classified."""
    return DataInfo(str(data.root), data.fingerprint, len(data.train), len(data.test))


def predict(backbone: Backbone, data: LabeledVideos, config: ActionConfig, unfinished: Unfinished) -> Predictions:
    """Train, then give the probabilities of the classes for the clips of each test video.

    Differs from the release: a video that cannot be read is left out and told of, no other takes its place.
    """
    loading = Loading.of(config, backbone)
    model = ClipClassifier(backbone, len(data.classes), config.dropout, config.seed).to(loading.device)
    epochs = ClipEpochs(data.train, config, loading, unfinished)
    losses = train(model, epochs)
    unread = epochs.problems()
    learned = np.delete(data.train.labels, list(unread))
    tested = _test(model, data.test, config, loading, unfinished)
    videos = np.unique(tested["videos"])
    return Predictions(
        _table(tested, data),
        f"action mode={config.mode}" + (f" bn={config.bn}" if config.mode == "linear" else ""),
        (
            *data.notes,
            *_left_out(data, len(unread), len(videos)),
            *not_learned(learned, data.classes, "videos"),
            *not_tested(data.test.labels[videos], data.classes, "videos"),
            *doubts(losses["training"][-1], len(data.classes)),
        ),
        (*data.problems, *unread.values(), *tested["problems"].tolist()),
        {"classes": list(data.classes), "losses": losses},
        (len(learned), len(videos)),
    )


def score(record: Record, config: ActionConfig) -> Score:
    """Score a record: single clips, and videos by the mean softmax of their clips; top-5 where there are more classes.

    Differs from the release: clip_top1 is of the test clips, not of 25 random ones.
    """
    classes = record.about.details["classes"]
    column = record.table["probabilities"].combine_chunks()
    clips = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float64)
    clip_labels = record.table["label"].to_numpy()
    ids = record.table["id"].to_numpy(zero_copy_only=False)
    _, first, members = np.unique(ids, return_index=True, return_inverse=True)
    videos, labels = video_means(clips, members, len(first)), clip_labels[first]
    metrics = {
        "clip_top1": top_k_accuracy(clips, clip_labels, 1),
        **{f"video_top{k}": top_k_accuracy(videos, labels, k) for k in (1, NUM_RANKED) if k == 1 or k < len(classes)},
    }
    return Score(metrics, breakdown("video_top1", videos.argmax(axis=1), labels, classes))


def _test(
    model: ClipClassifier, videos: VideoSplit, config: ActionConfig, loading: Loading, unfinished: Unfinished
) -> Arrays:
    parts = [
        unfinished.arrays(f"test {part[0]}-{part[-1]}", lambda p=part: _test_part(model, videos, p, config, loading))  # type: ignore[misc]
        for part in in_order(len(videos), VIDEOS_PER_PART)
    ]
    tested = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not len(tested["videos"]):
        raise UserError(f"action: none of the {len(videos):,} test videos can be read", *tested["problems"][:3])
    return tested


def _test_part(
    model: ClipClassifier, videos: VideoSplit, part: range, config: ActionConfig, loading: Loading
) -> Arrays:
    clip = ClipShape(config.num_frames, config.fps)
    clips = SpreadClips(videos, clip, config.num_clips, loading.image_size)
    asked = [part[at.start : at.stop] for at in in_order(len(part), max(1, config.batch_size // config.num_clips))]
    title = f"action, test videos {part[0] + 1} to {part[-1] + 1} of {len(videos)}"
    numbers: list[int] = []
    problems: list[str] = []
    probabilities = [np.empty((0, model.head.out_features), np.float32)]
    with exact_convolutions():
        for batch in load_image_batches(clips, CenterCrops(loading.image_size), asked, loading.workers, title):
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
    videos, probabilities = tested["videos"], tested["probabilities"]
    return pa.table(
        {
            "id": pa.array([data.test.paths[video] for video in videos]),
            "label": data.test.labels[videos],
            "clip": tested["clips"],
            "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel()), probabilities.shape[1]),
        }
    )


def _left_out(data: LabeledVideos, num_unread: int, num_tested: int) -> tuple[str, ...]:
    unread = {"train": num_unread, "test": len(data.test) - num_tested}
    if not any(unread.values()) and not data.problems:
        return ()
    return (
        f"left out: {len(data.problems)} listed videos or lines, {unread['train']} of {len(data.train):,} training and "
        f"{unread['test']} of {len(data.test):,} test videos that cannot be read",
    )
