"""The equations of the methods beside ours, as pure functions: unit vectors in, mean out.

Shapes: query, positive, prediction, target (batch, dim); keys (num_keys, dim); masks are bool.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus


def multi_positive_nce(
    query: Tensor, keys: Tensor, positives: Tensor, temperature: float, ignore: Tensor | None = None
) -> Tensor:
    """Contrast each query with every positive by itself, against all keys that are no positive of it (VINCE).

    `positives` (batch, num_keys) tells which keys are; a term's denominator holds its own positive and the negatives,
    no other positive. The mean is over all terms. Gradient through the query only.
    """
    return _term_per_positive(query @ keys.detach().T / temperature, positives, ignore)


def self_batch_nce(query: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Contrast the queries with each other as with keys, itself among the positives; gradient through both (VINCE)."""
    return _term_per_positive(query @ query.T / temperature, positives, None)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Find each view's other view among all 2·batch - 1 other views; gradient through all of them (SimCLR)."""
    views, num_images = torch.cat((first, second)), len(first)
    itself = torch.eye(2 * num_images, dtype=torch.bool, device=views.device)
    logits = (views @ views.T / temperature).masked_fill(itself, float("-inf"))
    other_view = torch.arange(2 * num_images, device=views.device).roll(num_images)
    return cross_entropy(logits, other_view)


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return minus the cosine of prediction and target; no gradient through the target (SimSiam, BYOL).

    BYOL's squared distance of unit vectors is 2 + 2 times this: a learning rate there is twice as much here.
    """
    return -(prediction * target.detach()).sum(dim=1).mean()


def same_frame_first(query: Tensor, same: Tensor, other: Tensor, temperature: float, counts: Tensor) -> Tensor:
    """Tell the key of the query's own frame from one of another frame of its video, the one negative (SeCo, intra).

    Rows where `counts` (batch,) is False have no other frame and are left out of the mean. Gradient through the query
    only.
    """
    margin = (query * (other - same).detach()).sum(dim=1) / temperature
    return _mean_of(softplus(margin), counts)


def order_loss(logits: Tensor, is_after: Tensor, counts: Tensor) -> Tensor:
    """Tell from logits (batch, 2) whether the query came before (0) or after (1) its video's other frames (SeCo)."""
    return _mean_of(cross_entropy(logits, is_after.long(), reduction="none"), counts)


def _term_per_positive(logits: Tensor, positives: Tensor, ignore: Tensor | None) -> Tensor:
    no_negative = positives if ignore is None else positives | ignore
    rest = logits.masked_fill(no_negative, float("-inf")).logsumexp(dim=1, keepdim=True)
    return softplus(rest - logits)[positives].mean()


def _mean_of(values: Tensor, counts: Tensor) -> Tensor:
    return values.where(counts, 0).sum() / counts.sum().clamp(min=1)
