"""What the response map of a pair should be, and how far it is from that (protocols.md §a, "Training")."""

import torch
from torch import Tensor, nn

FOCUS = 2.0


def make_labels(num_cells: int, positive_distance: float, shifts: Tensor) -> Tensor:
    """Return labels of 0 and 1 (batch, num_cells, num_cells): 1 where |dy| + |dx| from the target is small enough.

    Distances are in cells; `shifts` (batch, 2) says how far the target lies from the middle of the map, as y, x.
    """
    places = torch.arange(num_cells, device=shifts.device) - (num_cells - 1) / 2
    dy, dx = ((places - shift[:, None]).abs() for shift in shifts.T)
    near: Tensor = dy[:, :, None] + dx[:, None, :] <= positive_distance
    return near.float()


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of the focal cross-entropies, divided by the mean of their weights.

    Gradients run through the weights too. Where all cells are certain beyond single precision, the loss is 0.
    """
    probability = logits.sigmoid()
    positive, negative = labels * (1 - probability) ** FOCUS, (1 - labels) * probability**FOCUS
    losses = -positive * nn.functional.logsigmoid(logits) - negative * nn.functional.logsigmoid(-logits)
    weight = (positive + negative).mean().clamp_min(torch.finfo(logits.dtype).tiny)
    return (losses / weight).mean()


def balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy in which positives and negatives of the batch have half of the weight each."""
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    positive, negative = labels / labels.sum(), (1 - labels) / (1 - labels).sum()
    return ((positive + negative) / 2 * losses).sum()


LOSSES = {"focal": focal_loss, "balanced": balanced_loss}
