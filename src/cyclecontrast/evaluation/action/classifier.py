"""Frames → the class of a clip: a backbone for each frame, the mean over the clip, one linear layer."""

import copy

import torch
from torch import Tensor, nn

from cyclecontrast.evaluation.finite import check_finite
from cyclecontrast.models.backbone import Backbone


class ClipClassifier(nn.Module):
    """A copy of a backbone with a new last layer; the backbone that was given stays as it is."""

    def __init__(self, backbone: Backbone, num_classes: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).requires_grad_(True)
        self.dropout = nn.Dropout(dropout)
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            self.head = nn.Linear(backbone.dim, num_classes)

    def features(self, pixels: Tensor) -> Tensor:
        """Clips as uint8 (batch, num_frames, 3, h, w) → the mean of their frames' features (batch, dim)."""
        vectors = self.backbone(self.backbone.normalise(pixels.flatten(0, 1)))
        return vectors.float().unflatten(0, pixels.shape[:2]).mean(1)  # type: ignore[no-any-return]

    def logits(self, features: Tensor) -> Tensor:
        """Features of clips (batch, dim) → logits (batch, num_classes)."""
        return self.head(self.dropout(features))  # type: ignore[no-any-return]

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Clips (batch, num_frames, 3, h, w) → softmax (batch, num_classes); raises UserError if it is not finite."""
        with torch.inference_mode():
            probabilities = self.logits(self.features(pixels)).softmax(1)
        check_finite(probabilities, self.backbone)
        return probabilities
