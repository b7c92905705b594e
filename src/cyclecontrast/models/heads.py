"""What is learned beside the encoder and looked at by a loss only: predictors, and SeCo's order of frames."""

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cyclecontrast.models.encoders import Features


class Encoded(NamedTuple):
    """The views of a step as the networks see them: per query its projection before normalisation and its features,
    per key its features."""

    projections: tuple[Tensor, ...]
    queries: tuple[Features, ...]
    keys: tuple[Features, ...]


class NoHead(nn.Module):
    """Nothing to learn, nothing to say."""

    def forward(self, encoded: Encoded) -> tuple[Tensor, ...]:
        """Return no answers."""
        return ()


class Predictor(nn.Module):
    """Two layers that foretell, from one view's projection, the other view's."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self, encoded: Encoded) -> tuple[Tensor, ...]:
        """Return a unit vector (batch, dim) for each query."""
        return tuple(normalize(self.layers(projection).float(), dim=1) for projection in encoded.projections)


class OrderHead(nn.Module):
    """A linear classifier of whether the query comes before or behind two other frames of its video.

    Differs from SeCo's release, which has a third projector for it: it reads the one that tells frames apart.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * dim, 2)

    def forward(self, encoded: Encoded) -> tuple[Tensor, ...]:
        """Return logits (batch, 2): before, after; the keys behind the first are the other frames."""
        others = (key.cycle.detach() for key in encoded.keys[1:])
        return (self.layer(torch.cat((encoded.queries[0].cycle, *others), dim=1)).float(),)


Head: TypeAlias = nn.Module
"""A module whose forward makes a tuple of tensors of what is `Encoded`: an objective finds them in its `answers`."""


def make_bottleneck_predictor(dim: int) -> Predictor:
    """Build SimSiam's predictor: a quarter as wide inside (2048-512-2048)."""
    return Predictor(dim, max(1, dim // 4))


def make_wide_predictor(dim: int) -> Predictor:
    """Build BYOL's predictor: sixteen times as wide inside (256-4096-256)."""
    return Predictor(dim, 16 * dim)
