"""Backbones that differ from what is drawn, images for them, and the printed code run as a user would."""

import ast
from contextlib import suppress

import torch
from torch import nn

from cyclecontrast.models.backbone import import_torchvision, make_backbone

import_torchvision()  # before anything else imports it: the printed code does so plainly


def shaken(name, seed=0, image_size=64):
    """A backbone whose every weight and statistic differs from its initial value."""
    backbone = make_backbone(name, seed, image_size=image_size).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, value in backbone.network.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.mul_(0.8 + 0.4 * noise) if "weight" in key else value.add_(0.1 * noise)
    return backbone


def pixels(*sides, seed=1):
    """Three random images."""
    shape = (3, 3, *(sides or (64, 64)))
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def features(backbone, images=None):
    """What the backbone computes for the random images."""
    with torch.no_grad():
        return backbone(backbone.normalize(pixels() if images is None else images))


def last_map(backbone, images=None):
    """The map of its last stage."""
    with torch.no_grad():
        return backbone.feature_map(backbone.normalize(pixels() if images is None else images), 4)


def execute(snippet, **variables):
    """Run the printed code, then the code in its comments, which needs the user's images; return all variables."""
    exec(snippet, variables)
    if variables.keys() & {"images", "pixels"}:
        with torch.no_grad():
            for line in snippet.splitlines():
                if is_code(line.removeprefix("# ")) and line.startswith("# "):
                    exec(line.removeprefix("# "), variables)
    return variables


def is_code(text):
    """Whether a comment is a statement that does something, not a sentence."""
    with suppress(SyntaxError):
        return any(isinstance(node, ast.Assign | ast.Call) for node in ast.walk(ast.parse(text)))
    return False


class Net(nn.Module):
    """A user's network that returns a map of few channels."""

    def __init__(self, width=6):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, images):
        """Return the map."""
        return self.layers(images)


class Flat(Net):
    """The same network, which returns vectors."""

    def forward(self, images):
        """Return the means over all places."""
        return super().forward(images).mean(dim=(2, 3))


def seeded(make_network, seed=0):
    """Make a network with the same weights each time."""
    torch.manual_seed(seed)
    return make_network()
