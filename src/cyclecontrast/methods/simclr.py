"""SimCLR (Chen et al. 2020): each view is contrasted with its other view among all views of the batch."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cyclecontrast.data.dataset import Batch
from cyclecontrast.methods.method import Losses, Method, StepInfo


class SimCLR(Method):
    """SimCLR: NT-Xent over the views of a batch. If `positives` is video, the two views show two frames of a video.

    Differs from SimCLR's release: negatives are not gathered from other processes; the optimizer is SGD instead of
    LARS; BatchNorm statistics are per view.
    """

    learns_from = "two views, contrasted with all other views of the batch"
    reads = frozenset({"temperature", "positives"})
    num_queries = 2
    compares_queries = True

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the loss of a micro-batch with two views per video."""
        first, second = (self.encode(view).intra for view in batch.views)  # NxD each
        loss = nt_xent(first, second, self.options.temperature)
        accuracy = self.in_batch_accuracy(first, second, batch.video) if info.measure else None
        return Losses(loss, loss, intra_accuracy=accuracy)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the NT-Xent loss: the mean cross entropy of each view's positive among the 2·batch - 1 other views."""
    views, num_images = torch.cat((first, second)), len(first)
    diagonal = torch.eye(2 * num_images, dtype=torch.bool, device=views.device)
    logits = (views @ views.T / temperature).masked_fill(diagonal, float("-inf"))
    other_view = torch.arange(2 * num_images, device=views.device).roll(num_images)
    return cross_entropy(logits, other_view)
