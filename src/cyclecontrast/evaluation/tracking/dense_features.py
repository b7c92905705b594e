"""Pixels → the dense feature maps that a tracker correlates; the backbone is a copy, frozen."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cyclecontrast.evaluation.embed import exact_convolutions
from cyclecontrast.models.backbone import Backbone, ResNet
from cyclecontrast.models.stride import TOTAL_STRIDE_8, restride

SMALL_STEM_STRIDES = (1, 2, 2, 2)
"""Of a backbone whose stem has no stride: it keeps those it was trained with, which make 8 in all."""


class DenseFeatures(NamedTuple):
    """Stage 4 of a ResNet at a total stride of 8, later stages dilated instead (protocols.md §a, "Backbone")."""

    backbone: Backbone
    device: torch.device

    @staticmethod
    def of(backbone: Backbone, device: torch.device) -> "DenseFeatures":
        """Copy the backbone; raises UserError for what is no ResNet."""
        network = backbone.network
        has_small_stem = isinstance(network, ResNet) and isinstance(network.maxpool, nn.Identity)
        dense = restride(backbone, SMALL_STEM_STRIDES) if has_small_stem else restride(backbone, *TOTAL_STRIDE_8)
        return DenseFeatures(dense.eval().to(device), device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (batch, 3, h, w) → maps of inference mode (batch, dim, h / 8, w / 8), rounded up."""
        with exact_convolutions(), torch.inference_mode():
            return self.backbone.feature_map(self.backbone.normalise(pixels.to(self.device)), 4)


def stride_of(size: int, num_cells: int) -> int:
    """Return the stride of a map whose image had this side: 255 pixels in 32 cells make 8."""
    return round(size / num_cells)
