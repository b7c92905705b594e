"""Backbone + projectors = encoder; the momentum encoder is its slow follower.

`Features` are unit vectors, one per projector: the two losses have different invariances and separate projectors.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cyclecontrast.models.backbone import Backbone


class Features(NamedTuple):
    """Unit vectors (batch, dim) of the intra-video and of the cycle projector."""

    intra: Tensor
    cycle: Tensor


class Encoder(nn.Module):
    """Images → unit vectors."""

    def __init__(self, backbone: Backbone, projector: str, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.intra_projector = make_projector(projector, backbone.dim, dim)
        self.cycle_projector = make_projector(projector, backbone.dim, dim)

    def forward(self, images: Tensor) -> Features:
        """Normalised images (batch, 3, h, w) → unit vectors in fp32."""
        return self.project(images).features()

    def project(self, images: Tensor) -> "Projections":
        """Normalised images → the projectors' outputs as they are: what a predictor reads."""
        representation = self.backbone(images)
        return Projections(self.intra_projector(representation), self.cycle_projector(representation))


class Projections(NamedTuple):
    """Outputs (batch, dim) of the two projectors, before normalisation."""

    intra: Tensor
    cycle: Tensor

    def features(self) -> Features:
        """Return them as unit vectors in fp32."""
        return Features(normalize(self.intra.float(), dim=1), normalize(self.cycle.float(), dim=1))


def make_projector(kind: str, in_dim: int, dim: int) -> nn.Module:
    """Representation → vector before normalisation: `linear` (paper §4.1), `mlp` (release), `mlp-bn`, or `mlp3-bn`.

    Differs from the release: `mlp-bn` normalises each dimension over the batch, which takes out what all images
    share; without it the vectors of an untrained network are nearly one, and small data hardly begin to learn.
    `mlp3-bn` has one such layer more, as SimSiam.
    """
    if kind == "linear":
        return nn.Linear(in_dim, dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(inplace=True), nn.Linear(in_dim, dim))
    hidden = [layer for _ in range(2 if kind == "mlp3-bn" else 1) for layer in _hidden_layer(in_dim)]
    return nn.Sequential(*hidden, nn.Linear(in_dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False))


def _hidden_layer(dim: int) -> tuple[nn.Module, ...]:
    return nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)


def make_momentum_encoder(encoder: Encoder) -> Encoder:
    """Return a copy of the encoder that no gradient reaches."""
    follower = copy.deepcopy(encoder)
    return follower.requires_grad_(False)


@torch.no_grad()
def follow(momentum_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """θ_k ← m·θ_k + (1 - m)·θ_q (§4.1), of the parameters; BatchNorm statistics are the follower's own."""
    torch._foreach_lerp_(list(momentum_encoder.parameters()), list(encoder.parameters()), 1 - momentum)


@torch.no_grad()
def encode_in_groups(encoder: Callable[[Tensor], Features], images: Tensor, num_groups: int, order: Tensor) -> Features:
    """Encode keys in groups of a shuffled order, so that BatchNorm cannot tell which key belongs to which query.

    `order` is a permutation of the batch; the features come back in the batch's own order. Groups hold two images
    at least: BatchNorm over one image would say nothing of the others, and at 1x1 it has no variance.
    """
    num_groups = max(1, min(num_groups, len(images) // 2))
    groups = [encoder(group) for group in images[order].tensor_split(num_groups)]
    back = torch.argsort(order)
    return Features(*(torch.cat(parts)[back] for parts in zip(*groups, strict=True)))
