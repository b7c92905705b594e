"""Denser feature maps from the same weights: a ResNet whose stages have other strides and dilations."""

import copy

from torch import nn

from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import CRASHING_CHANNELS, Backbone, BasicBlock, Bottleneck, ResNet

PerStage = tuple[int, int, int, int]

TOTAL_STRIDE_8: tuple[PerStage, PerStage] = ((1, 2, 1, 1), (1, 1, 2, 4))
"""Strides and dilations for a total stride of 8: stages 3 and 4 gain in dilation what they lose in stride."""


def restride(backbone: Backbone, strides: PerStage, dilations: PerStage = (1, 1, 1, 1)) -> Backbone:
    """Return a copy whose stages 1 to 4 have these strides and dilations; raises UserError without a ResNet.

    As in the released tracking code, the first block of a dilated stage has half its dilation, and a block of two 3x3
    convolutions is dilated only in the first of them.
    """
    if not isinstance(backbone.network, ResNet):
        raise UserError(
            f"{backbone.source}: {backbone.name} is not a ResNet; this protocol changes the strides of a ResNet"
        )
    dense = copy.deepcopy(backbone)
    for number, (stride, dilation) in enumerate(zip(strides, dilations, strict=True), start=1):
        for index, block in enumerate(dense.network.get_submodule(f"layer{number}").children()):
            assert isinstance(block, BasicBlock | Bottleneck)
            is_first = index == 0
            _set(block, stride if is_first else 1, max(1, dilation // 2) if is_first else dilation)
    return dense


def _set(block: BasicBlock | Bottleneck, stride: int, dilation: int) -> None:
    conv = block.conv1 if isinstance(block, BasicBlock) else block.conv2
    conv.stride, conv.dilation, conv.padding = (stride, stride), (dilation, dilation), (dilation, dilation)
    if block.downsample is not None:
        shortcut = block.downsample[0]
        assert isinstance(shortcut, nn.Conv2d)
        if shortcut.in_channels <= CRASHING_CHANNELS:
            block.sampling = stride
        else:
            shortcut.stride = (stride, stride)
