"""A video's first mask → masks of all its frames, as packed PNG files; how labels spread is not known here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cyclecontrast.data.davis import MaskedVideo
from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.embed import check_finite
from cyclecontrast.evaluation.image_batches import ImageBatch, load_image_batches
from cyclecontrast.evaluation.mask_files import encode_mask, packed
from cyclecontrast.evaluation.propagation.labels import Propagation, labels_of_mask, mask_of_labels
from cyclecontrast.evaluation.propagation.presets import Preset
from cyclecontrast.evaluation.resume_cache import Arrays
from cyclecontrast.models.backbone import Backbone

USUAL_HEIGHT = 480
SMALLEST_MAP = 2


class How(NamedTuple):
    """How videos are followed, whatever the video; `height` is that of frames for the network."""

    preset: Preset
    height: int | None
    stage: int
    workers: int
    device: torch.device


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
            raise UserError(f"{self.video.frames[position]}: is {found}, its mask {width}x{height}; mend or remove it")
        method = cv2.INTER_AREA if self.size[0] < height else cv2.INTER_LINEAR
        return cv2.resize(image, self.size[::-1], interpolation=method)  # type: ignore[no-any-return]


def network_size(height: int, width: int, asked: int | None, width_multiple: int) -> tuple[int, int]:
    """Return the height and width of frames for the network: by default of 480 rows, but never enlarged."""
    rows = min(height, USUAL_HEIGHT) if asked is None else asked
    columns = max(1, round(width * rows / height))
    return rows, max(width_multiple, columns // width_multiple * width_multiple)


def follow(backbone: Backbone, video: MaskedVideo, how: How) -> Arrays:
    """Return `predicted` and `truth` as packed PNG, `size` and `cells` (height, width) that the network saw and gave.

    Where a file cannot be read, `problems` is not empty, and alone. Raises UserError for a network of no use.
    """
    problems: list[str] = []
    truth = attempt(video.objects, problems)
    if truth is None:
        return _left_out(problems)
    height, width = truth[0].shape
    size = network_size(height, width, how.height, how.preset.width_multiple)
    one_by_one = [range(position, position + 1) for position in range(len(video))]
    predicted: list[Pixels] = [truth[0]]
    propagation: Propagation | None = None
    for batch in load_image_batches(video, _ToSize(video, (height, width), size), one_by_one, how.workers, video.name):
        if batch.problems:
            return _left_out(batch.problems)
        with torch.inference_mode():
            features = _features(backbone, batch, how)
            if propagation is None:
                labels = labels_of_mask(torch.from_numpy(truth[0]), features, how.preset.first_labels)
                propagation = Propagation(how.preset, features, labels)
            else:
                labels = propagation.advance(features)
                predicted.append(mask_of_labels(labels, height, width, how.preset.stretch).cpu().numpy())
    return {
        **_left_out([]),
        "size": np.array(size),
        "cells": np.array(labels.shape[:2]),
        **packed("predicted", [encode_mask(mask) for mask in predicted]),
        **packed("truth", [encode_mask(mask) for mask in truth]),
    }


def _features(backbone: Backbone, batch: ImageBatch, how: How) -> Tensor:
    """Return the feature map of one frame as unit vectors (h, w, dim)."""
    pixels = batch.pixels.to(how.device)
    found = backbone.feature_map(backbone.normalise(pixels), how.stage)[0].float().permute(1, 2, 0)
    check_finite(found, backbone)
    if min(found.shape[:2]) < SMALLEST_MAP:
        height, width = pixels.shape[2:]
        raise UserError(
            f"frames of {width}x{height} give a feature map of {found.shape[1]}x{found.shape[0]} cells, on which "
            "nothing can be followed; raise --height"
        )
    return F.normalize(found, dim=2)


def _left_out(problems: Sequence[str]) -> Arrays:
    return {"problems": np.array(problems, dtype=str)}
