"""The protocol `propagation`: the mask of a video's first frame is propagated to all frames, and scored as in DAVIS."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from cyclecontrast.config import PropagationConfig
from cyclecontrast.data.davis import LISTS, Davis, MaskedVideo
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.storage import raise_problems
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.embed import check_finite, frozen
from cyclecontrast.evaluation.image_batches import chunks, load_image_batches
from cyclecontrast.evaluation.label_propagation import (
    LabelPropagation,
    Preset,
    labels_of_mask,
    mask_of_labels,
    preset_for,
)
from cyclecontrast.evaluation.mask_files import (
    OBJECT_LEGEND,
    decode_mask,
    draw_objects,
    draw_sheet,
    encode_mask,
)
from cyclecontrast.evaluation.metrics import boundary_f, region_similarity
from cyclecontrast.evaluation.predictions import DataInfo, Record
from cyclecontrast.evaluation.protocol import Predictions, Protocol, Score
from cyclecontrast.evaluation.resume_cache import Arrays, ResumeCache
from cyclecontrast.models.backbone import Backbone, restride
from cyclecontrast.models.hardware import pick_device, pick_workers
from cyclecontrast.progress import with_progress

STRIDES = (1, 2, 1, 1)
"""Of the stages; they are not dilated, unlike those of tracking."""
USUAL_STRIDE = 8
USUAL_HEIGHT = 480
SMALLEST_MAP = 2
RECALL_FROM = 0.5


class Propagation(Protocol[PropagationConfig, Davis]):
    """J, F and J&F of label propagation on frozen features, over the objects of DAVIS."""

    name = "propagation"
    config_class = PropagationConfig

    def open(self) -> Davis:
        """Read the list of videos and look for their files; raises UserError."""
        return Davis.open(self.config.data, self.config.year)

    def describe(self, data: Davis) -> DataInfo:
        """Count the videos; none are trained on."""
        return DataInfo(str(data.root), data.fingerprint, 0, len(data.videos))

    def predict(self, backbone: Backbone, data: Davis, cache: ResumeCache) -> Predictions:
        """Propagate the first mask of each video; a video with a file that cannot be read is left out."""
        config = self.config
        device = pick_device(config.device)
        preset = preset_for(config.preset, backbone)
        # The patches of a vision transformer have one stride.
        with frozen(backbone if backbone.patch > 1 else restride(backbone, STRIDES), device) as dense:
            parts = [
                cache.arrays(
                    f"video-{number}",
                    partial(
                        follow, dense, video, preset, config, device, f", video {number + 1} of {len(data.videos)}"
                    ),
                )
                for number, video in enumerate(data.videos)
            ]
        problems = [str(problem) for part in parts for problem in part["problems"]]
        followed = [pair for pair in zip(data.videos, parts, strict=True) if not len(pair[1]["problems"])]
        if not followed:
            none = f"{data.root}: none of the {len(parts)} videos can be followed"
            raise_problems([none, *data.problems, *problems])
        heights = [int(part["size"][0]) for _, part in followed]
        stride = round(heights[0] / int(followed[0][1]["cells"][0]))
        # Results on smaller videos may not be compared with those of full size.
        usual = f"height{'=' if set(heights) == {USUAL_HEIGHT} else '<='}{USUAL_HEIGHT}"
        height = usual if config.height is None else f"height={config.height}"
        return Predictions(
            pa.concat_tables([_table(*pair) for pair in followed]),
            f"propagation preset={config.preset} radius={preset.radius} stage={config.stage} {height} davis{data.year}",
            tuple(_notes(data, config, preset, heights, stride)),
            (*data.problems, *problems),
            {"preset": preset._asdict(), "pixels_per_cell": stride},
            (0, len(followed)),
            frozenset({"year"}),
        )

    def score(self, record: Record) -> Score:
        """Score each object of the first masks in all frames but the first and the last; each object counts the same.

        J is the intersection over union of regions, F the F-measure of boundaries within 0.008 of the diagonal.
        """
        scores: dict[str, dict[str, dict[str, float]]] = {}
        repeated: list[float] = []
        rows: list[Pixels] = []
        for name, predicted, truth in with_progress(_videos(record), "propagation, scoring videos"):
            scores[name] = score_objects(predicted, truth)
            for number in map(int, scores[name]):
                still = [region_similarity(truth[0] == number, mask == number) for mask in truth[1:-1]]
                repeated.append(float(np.mean(still)))
            rows.append(draw_objects(name, predicted, truth))
        values = [list(item.values()) for objects in scores.values() for item in objects.values()]
        j_mean, j_recall, f_mean, f_recall = np.mean(values, axis=0).tolist()
        means = {"j_mean": j_mean, "j_recall": j_recall, "f_mean": f_mean, "f_recall": f_recall}
        return Score(
            {"j_and_f": (j_mean + f_mean) / 2, **means},
            scores,
            notes=(f"repeating the first mask gives a j_mean of {100 * np.mean(repeated):.2f} %",),
            files={"masks.png": draw_sheet(OBJECT_LEGEND, rows)},
        )


def _table(video: MaskedVideo, part: Arrays) -> pa.Table:
    masks = {name: pa.array(part[name].tolist(), pa.binary()) for name in ("predicted", "truth")}
    return pa.table({"video": [video.name] * len(video), "frame": [path.stem for path in video.frames], **masks})


def _notes(data: Davis, config: PropagationConfig, preset: Preset, heights: list[int], stride: int) -> Iterator[str]:
    if config.year is None:
        yield f"year: {data.year}" + ("" if data.year == "2017" else f", there is no {LISTS['2017'][0]}")
    num_small = sum(height < USUAL_HEIGHT for height in heights)
    if config.height is None and num_small:
        yield f"height: frames of {num_small} videos have fewer than {USUAL_HEIGHT} rows, and were not enlarged"
    if stride != USUAL_STRIDE:
        reach = f"the radius of {preset.radius} cells is {preset.radius * stride} pixels"
        yield f"the feature map has stride {stride} instead of {USUAL_STRIDE} as in the papers; {reach}"


@dataclass(frozen=True)
class _ToSize:
    """Frames that are as large as their mask, scaled for the network."""

    video: MaskedVideo
    mask_size: tuple[int, ...]
    size: tuple[int, int]

    def __call__(self, image: Pixels, position: int) -> Pixels:
        """Return the frame (height, width, 3); raises UserError where it does not fit its mask."""
        height, width = self.mask_size
        if image.shape[:2] != self.mask_size:
            found = f"{image.shape[1]}x{image.shape[0]}"
            raise UserError(f"{self.video.frames[position]}: is {found}, its mask {width}x{height}; fix or remove it")
        method = cv2.INTER_AREA if self.size[0] < height else cv2.INTER_LINEAR
        return cv2.resize(image, self.size[::-1], interpolation=method)  # type: ignore[no-any-return]


def network_size(
    height: int, width: int, requested: int | None, width_multiple: int, patch: int = 1
) -> tuple[int, int]:
    """Return the height and width of frames for the network: by default 480 rows, but never enlarged.

    Both are cut down to whole patches of a vision transformer.
    """
    rows = min(height, USUAL_HEIGHT) if requested is None else requested
    columns = max(1, round(width * rows / height))
    columns = max(width_multiple, columns // width_multiple * width_multiple)
    return max(1, rows // patch) * patch, max(1, columns // patch) * patch


def follow(
    backbone: Backbone,
    video: MaskedVideo,
    preset: Preset,
    config: PropagationConfig,
    device: torch.device,
    position: str = "",
) -> Arrays:
    """Return `predicted` and `truth` as packed PNG files, `size` of the frames and `cells` of their maps, h and w.

    `position`, such as `, video 3 of 30`, is part of the title of the progress bar.

    If a file cannot be read, returns only `problems`, which is otherwise empty. Raises UserError if the network cannot
    be used.
    """
    problems: list[str] = []
    truth = attempt(video.objects, problems)
    if truth is None:
        return _left_out(problems)
    height, width = truth[0].shape
    size = network_size(height, width, config.height, preset.width_multiple, backbone.patch)
    crop = _ToSize(video, (height, width), size)
    predicted, workers = [truth[0]], pick_workers(config.workers, device)
    propagation: LabelPropagation | None = None
    title = f"propagating {video.name}{position}"
    for batch in load_image_batches(video, crop, chunks(range(len(video)), 1), workers, title):
        if batch.problems:
            return _left_out(batch.problems)
        with torch.inference_mode():
            features = _features(backbone, batch.pixels.to(device), config.stage)
            if propagation is None:
                labels = labels_of_mask(torch.from_numpy(truth[0]), features, preset.first_labels)
                propagation = LabelPropagation(preset, features, labels)
            else:
                labels = propagation.advance(features)
                predicted.append(mask_of_labels(labels, height, width, preset.stretch).cpu().numpy())
    return {
        **_left_out([]),
        "size": np.array(size),
        "cells": np.array(labels.shape[:2]),
        "predicted": np.array([encode_mask(mask) for mask in predicted]),
        "truth": np.array([encode_mask(mask) for mask in truth]),
    }


def _features(backbone: Backbone, pixels: Tensor, stage: int) -> Tensor:
    """Return the feature map of one frame as unit vectors (h, w, dim)."""
    found = backbone.feature_map(backbone.normalize(pixels), stage)[0].float().permute(1, 2, 0)
    check_finite(found, backbone)
    if min(found.shape[:2]) < SMALLEST_MAP:
        height, width = pixels.shape[2:]
        raise UserError(
            f"frames of {width}x{height} give a feature map of {found.shape[1]}x{found.shape[0]} cells, too few to "
            "follow an object; raise --height"
        )
    return F.normalize(found, dim=2)


def _left_out(problems: Sequence[str]) -> Arrays:
    return {"problems": np.array(problems, dtype=str)}


def score_objects(predicted: Sequence[Pixels], truth: Sequence[Pixels]) -> dict[str, dict[str, float]]:
    """Score each object of a video's first mask, by its number.

    Means are over the frames between the first and the last; recall is the fraction of them above one half.
    """
    scores = {}
    for number in range(1, int(truth[0].max()) + 1):
        pairs = [(ours == number, theirs == number) for ours, theirs in zip(predicted, truth, strict=True)][1:-1]
        j = np.array([region_similarity(*pair) for pair in pairs])
        f = np.array([boundary_f(*pair) for pair in pairs])
        scores[str(number)] = {
            "j_mean": float(j.mean()),
            "j_recall": float((j > RECALL_FROM).mean()),
            "f_mean": float(f.mean()),
            "f_recall": float((f > RECALL_FROM).mean()),
        }
    return scores


def _videos(record: Record) -> Iterator[tuple[str, list[Pixels], list[Pixels]]]:
    """Yield name, predicted and true masks of one video at a time: those of all videos may not fit into memory."""
    for name, rows in groupby(record.table.to_pylist(), key=lambda row: row["video"]):
        files = [(row["predicted"], row["truth"]) for row in rows]
        predicted, truth = ([decode_mask(file) for file in column] for column in zip(*files, strict=True))
        yield name, predicted, truth
