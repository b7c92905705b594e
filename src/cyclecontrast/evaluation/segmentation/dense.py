"""Image → feature map of a given stride; and scores of its cells → scores of the image's pixels."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import frozen
from cyclecontrast.models.backbone import Backbone, ResNet
from cyclecontrast.models.stride import TOTAL_STRIDE_8, PerStage, restride

STAGE = 4
DENSER: tuple[tuple[PerStage, PerStage], ...] = (
    ((1, 2, 2, 2), (1, 1, 1, 1)),
    ((1, 2, 2, 1), (1, 1, 1, 2)),
    TOTAL_STRIDE_8,
)
"""Strides and dilations that give a map 1, 2 and 4 times as dense as a ResNet's own."""


class Dense(NamedTuple):
    """A copy of a backbone whose last map has one cell of `channels` numbers for `stride` x `stride` pixels."""

    backbone: Backbone
    stride: int
    channels: int

    def maps(self, pixels: Tensor) -> Tensor:
        """Return the feature maps (batch, channels, h', w') of uint8 (batch, 3, h, w), padded to whole cells."""
        images = self.backbone.normalise(pixels)
        height, width = pixels.shape[-2:]
        # After normalisation 0 is the mean colour.
        padded = functional.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        return self.backbone.feature_map(padded, STAGE)


def make_dense(backbone: Backbone, stride: int, crop_size: int, device: torch.device) -> Dense:
    """Copy a backbone with a last map of this stride; raises UserError where it has none, or one of a single cell."""
    if crop_size < 2 * stride:
        raise UserError(f"crop_size: {crop_size} is less than two cells of stride {stride}; name {2 * stride} or more")
    dense = Dense(_densified(backbone, stride, device), stride, 0)
    side = -(-crop_size // stride)
    # Not square: a network that takes one size alone would fail on the test images later.
    channels, *found = _try(dense.backbone, side * stride, (side + 1) * stride, device)
    if found != [side, side + 1]:
        raise UserError(
            f"{backbone.source}: {backbone.name} has a feature map of {found[0]}x{found[1]} cells where stride "
            f"{stride} needs {side}x{side + 1}; name another stride"
        )
    return dense._replace(channels=channels)


def enlarge(scores: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Return scores (batch, classes, height, width) of pixels, between those of the cells (batch, classes, h', w')."""
    scores = functional.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
    return scores[..., :height, :width]


def _densified(backbone: Backbone, stride: int, device: torch.device) -> Backbone:
    if not isinstance(backbone.network, ResNet):
        return copy.deepcopy(backbone)
    own = 64 // _try(copy.deepcopy(backbone), 64, 64, device)[1]
    halvings = round(math.log2(own / stride))
    if not 0 <= halvings < len(DENSER):
        known = ", ".join(str(own // 2**number) for number in range(len(DENSER)))
        raise UserError(f"stride: {backbone.name} has no feature map of stride {stride}; it has {known}")
    return restride(backbone, *DENSER[halvings])


def _try(backbone: Backbone, height: int, width: int, device: torch.device) -> tuple[int, int, int]:
    """Return the shape (channels, h', w') of the last map of an image of this size."""
    with frozen(backbone, device), torch.inference_mode():
        try:
            channels, *cells = backbone.feature_map(torch.zeros(1, 3, height, width, device=device), STAGE).shape[1:]
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"{backbone.source}: {backbone.name} gives no feature map of {height}x{width} pixels ({error}); "
                "segmentation needs a network that takes images of any size"
            ) from error
    return channels, cells[0], cells[1]
