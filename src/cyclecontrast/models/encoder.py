"""The encoder (backbone and two projectors), and the momentum encoder, its exponential moving average."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cyclecontrast.models.backbone import Backbone


class Features(NamedTuple):
    """Unit vectors (batch, dim) in fp32, one per projector.

    The intra-video loss and the cycle loss need different invariances, so each has its own projector.
    """

    intra: Tensor
    cycle: Tensor


class Projections(NamedTuple):
    """Outputs (batch, dim) of the two projectors before normalization, the input of a predictor."""

    intra: Tensor
    cycle: Tensor

    def features(self) -> Features:
        """Return the outputs as unit vectors in fp32."""
        return Features(normalize(self.intra.float(), dim=1), normalize(self.cycle.float(), dim=1))


class Encoder(nn.Module):
    """A backbone with two projectors: normalized images (batch, 3, h, w) → unit vectors."""

    def __init__(self, backbone: Backbone, projector: str, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.intra_projector = make_projector(projector, backbone.dim, dim)
        self.cycle_projector = make_projector(projector, backbone.dim, dim)
        self.trains_backbone = True
        """Whether the backbone gets gradients; its BatchNorm statistics are updated either way."""

    def project(self, images: Tensor) -> Projections:
        """Return the outputs of both projectors."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_backbone):
            representation = self.backbone(images)
        return Projections(self.intra_projector(representation), self.cycle_projector(representation))

    def forward(self, images: Tensor) -> Features:
        """Return the images' unit vectors."""
        return self.project(images).features()


class Predictor(nn.Module):
    """A two-layer MLP that predicts the projection of one view from that of another (SimSiam, BYOL)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_hidden_layer(dim, hidden_dim), nn.Linear(hidden_dim, dim))

    def forward(self, projection: Tensor) -> Tensor:
        """Return unit vectors (batch, dim) in fp32."""
        return normalize(self.layers(projection).float(), dim=1)


def make_projector(kind: str, in_dim: int, dim: int) -> nn.Module:
    """Return a projector: `linear` (paper §4.1), `mlp` (release), `mlp-bn`, or `mlp3-bn`.

    Differs from the release: `mlp-bn` ends in BatchNorm, which removes the mean vector of all images. Without it, the
    vectors of an untrained network are nearly equal, and training on small data hardly makes progress.
    `mlp3-bn` has one more layer, as in SimSiam. `none` returns its input.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(in_dim, dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(inplace=True), nn.Linear(in_dim, dim))
    hidden = [layer for _ in range(2 if kind == "mlp3-bn" else 1) for layer in _hidden_layer(in_dim, in_dim)]
    return nn.Sequential(*hidden, nn.Linear(in_dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False))


def _hidden_layer(in_dim: int, dim: int) -> tuple[nn.Module, ...]:
    return nn.Linear(in_dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)


def make_momentum_encoder(encoder: Encoder) -> Encoder:
    """Return a copy of the encoder with requires_grad False."""
    return copy.deepcopy(encoder).requires_grad_(False)


@torch.no_grad()
def update_momentum_encoder(momentum_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """Update the momentum encoder in place: θ_k ← m·θ_k + (1 - m)·θ_q (§4.1).

    Buffers are not updated: each encoder has its own BatchNorm statistics.
    """
    torch._foreach_lerp_(list(momentum_encoder.parameters()), list(encoder.parameters()), 1 - momentum)
