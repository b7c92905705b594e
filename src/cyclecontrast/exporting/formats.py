"""What a format of `export` is made of, and what all of them ask of a backbone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from torch import Tensor

from cyclecontrast.config.types import RESNET
from cyclecontrast.models.backbone import Backbone, ResNet, make_backbone

Renaming: TypeAlias = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
"""Patterns of torchvision's names, and what stands in their place elsewhere."""
PLAIN_OF_TIMM = ("resnet18", "resnet34", "resnet50")
"""Networks of timm that carry torchvision's names and compute the same."""


class Job(NamedTuple):
    """What is to be written where; `model` is what the user named, a run or anything else that holds a backbone."""

    backbone: Backbone
    path: Path
    model: str


class Format(NamedTuple):
    """One kind of output.

    `default` is its name without --out, and a `suffix` is one that others read it by. `holds` tells which backbones it
    can hold, `needs` the modules that writing it takes, which the extra of the format's name installs.
    """

    default: str
    suffix: str
    holds: Callable[[Backbone], bool]
    write: Callable[[Job], None]
    snippet: Callable[[Job], str]
    needs: tuple[str, ...] = ()


class Shape(NamedTuple):
    """Which ResNet a backbone is; the standard one has 64 channels behind its stem, and its stem is not small."""

    depth: int
    width: int
    is_small: bool

    @property
    def is_torchvisions(self) -> bool:
        """Whether torchvision has a class for it."""
        return self.depth != 10 and self.width == 64 and not self.is_small


def resnet_shape(backbone: Backbone) -> Shape | None:
    """Return which ResNet with torchvision's names this is, a plain one of timm too; None where it is none."""
    name = backbone.name
    if name.startswith("timm:"):
        name = name.removeprefix("timm:").partition(".")[0]
        return Shape(int(name.removeprefix("resnet")), 64, False) if name in PLAIN_OF_TIMM else None
    match = RESNET.fullmatch(name)
    return Shape(int(match[1]), int(match[3] or 64), match[2] is not None) if match else None


def is_torchvisions(backbone: Backbone) -> bool:
    """Whether torchvision has a class for this network."""
    shape = resnet_shape(backbone)
    return shape is not None and shape.is_torchvisions


def as_resnet(backbone: Backbone) -> ResNet | None:
    """Return the network as a ResNet of ours, a plain one of timm too; None where it is none."""
    shape = resnet_shape(backbone)
    if shape is None or isinstance(backbone.network, ResNet):
        return backbone.network if isinstance(backbone.network, ResNet) else None
    network = make_backbone(f"resnet{shape.depth}").network.eval()
    network.load_state_dict(backbone.network.state_dict())
    assert isinstance(network, ResNet)
    return network


def renamed(key: str, names: Renaming) -> str:
    """Return another tool's name of a weight: each pattern in turn is replaced."""
    for pattern, name in names:
        key = re.sub(pattern, name, key)
    return key


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    """Return the weights by name, on the CPU, each with memory of its own."""
    return {key: value.detach().cpu().contiguous() for key, value in backbone.network.state_dict().items()}
