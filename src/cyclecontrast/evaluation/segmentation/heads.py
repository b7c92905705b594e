"""Feature map → scores of classes per cell: one linear layer, or a small convolutional network."""

from collections import OrderedDict

import torch
from torch import nn

DROPOUT = 0.1
INITIAL_DEVIATION = 0.01


def make_head(kind: str, channels: int, num_classes: int, seed: int) -> nn.Sequential:
    """Return a new head, `linear` or `fcn`: maps (batch, channels, h, w) → scores (batch, num_classes, h, w).

    `linear` standardises each channel by running statistics, which keeps it linear and lets one learning rate serve
    backbones of any scale. `fcn` has two 3x3 convolutions of a quarter of the channels before its classifier.
    """
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        classifier = nn.Conv2d(channels if kind == "linear" else channels // 4, num_classes, 1)
        nn.init.normal_(classifier.weight, std=INITIAL_DEVIATION)
        assert classifier.bias is not None
        nn.init.zeros_(classifier.bias)
        if kind == "linear":
            standardise = nn.BatchNorm2d(channels, affine=False)
            return nn.Sequential(OrderedDict(standardise=standardise, classifier=classifier))
        layers = [*_convolution(channels, channels // 4), *_convolution(channels // 4, channels // 4)]
        return nn.Sequential(*layers, nn.Dropout(DROPOUT), classifier)


def _convolution(in_channels: int, channels: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
