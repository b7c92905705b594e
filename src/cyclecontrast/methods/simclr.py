"""SimCLR (Chen et al. 2020): two views find each other among all views of the batch (protocols.md §f)."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, FurtherFrames, no_further_frames
from cyclecontrast.methods.method import Losses, Method, StepInfo


class SimCLR(Method):
    """NT-Xent over the views of a batch; with `positives` video the two views show two frames of a video.

    Differs from SimCLR's release: with many processes the negatives are those of the own process; SGD, where it uses
    LARS; each view is a batch of its own for BatchNorm.
    """

    learns_from = "two views, against all others of the batch"
    reads = frozenset({"temperature"})
    num_queries = 2
    compares_queries = True

    @classmethod
    def frames(cls, options: PretrainConfig) -> tuple[bool, FurtherFrames]:
        """Return one frame for both views, or with `positives` video two."""
        return options.positives == "frame", no_further_frames

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the loss of a batch of two views of each video."""
        first, second = (self.encode(view).intra for view in batch.views)  # NxD each
        loss = nt_xent(first, second, self.options.temperature)
        accuracy = self.in_batch_accuracy(first, second, batch.video) if info.measure else None
        return Losses(loss, loss, intra_accuracy=accuracy)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Find each view's other view among all 2·batch - 1 other views; gradient through all of them."""
    views, num_images = torch.cat((first, second)), len(first)
    diagonal = torch.eye(2 * num_images, dtype=torch.bool, device=views.device)
    logits = (views @ views.T / temperature).masked_fill(diagonal, float("-inf"))
    other_view = torch.arange(2 * num_images, device=views.device).roll(num_images)
    return cross_entropy(logits, other_view)
