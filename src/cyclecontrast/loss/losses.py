"""Loss functions of the paper and of the baselines: unit vectors in, mean over the batch out.

Shapes: query, positive, prediction, target (batch, dim); support (num_support, dim); negatives (num_negatives, dim);
keys (num_keys, dim). `ignore` is a bool mask, one row per query or one row for all; True: the key is not a candidate.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, softplus

from cyclecontrast.loss.attention import all_but_best, best_similarity, log_sum_exp, soft_mean

ROUNDING = 1e-6
"""Two ways to compute the same similarity differ by less, so a key is never nearer than itself."""


def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, ignore: Tensor | None = None
) -> Tensor:
    """Contrast each query's positive with the negatives: Eq. 1 for two views of an image, Eq. 2 for two of a video.

    Gradient through the query only.
    """
    return _nce_per_query(query, positive, negatives, temperature, ignore).mean()


def soft_nearest_neighbor(
    query: Tensor, support: Tensor, temperature: float, ignore: Tensor | None = None, top_k: int | None = None
) -> Tensor:
    """Return the softmax-weighted mean of the support for each query, as unit vectors (batch, dim) (Eq. 3, 4).

    `top_k` keeps only the most similar candidates (Table 7). A query without candidates gets the zero vector.
    Gradient through the query only.
    """
    if top_k is not None and top_k < len(support):
        ignore = all_but_best(query, support, top_k, ignore)
    return normalize(soft_mean(query, support, temperature, ignore), dim=1)


def cycle_consistency(
    query: Tensor,
    positive: Tensor,
    support: Tensor,
    negatives: Tensor,
    temperature: float,
    ignore_support: Tensor | None = None,
    ignore_negatives: Tensor | None = None,
    top_k: int | None = None,
) -> Tensor:
    """Require that each query's soft nearest neighbor cycles back to the query's own video (Eq. 5).

    Queries without candidates in the support are left out of the mean. Gradient through the query only.
    """
    neighbor = soft_nearest_neighbor(query, support, temperature, ignore_support, top_k)
    losses = _nce_per_query(neighbor, positive, negatives, temperature, ignore_negatives)
    if ignore_support is None:
        return losses.mean()
    return _mean_of(losses, (~ignore_support.all(dim=-1)).expand_as(losses))


def is_nearest(query: Tensor, positive: Tensor, negatives: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Tell for each query (batch,) whether its positive is more similar than every negative."""
    return (query * positive).sum(dim=1) > best_similarity(query, negatives, ignore) + ROUNDING


def multi_positive_nce(
    query: Tensor, keys: Tensor, positives: Tensor, temperature: float, ignore: Tensor | None = None
) -> Tensor:
    """Contrast each query with each of its positives, against all keys that are not a positive of it (VINCE).

    `positives` (batch, num_keys) marks them; the denominator of a term holds one positive and the negatives. The mean
    is over all terms. Gradient through the query only.
    """
    return _term_per_positive(query @ keys.detach().T / temperature, positives, ignore)


def self_batch_nce(query: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Contrast the queries of a batch with each other, each also its own positive; gradient through both (VINCE)."""
    return _term_per_positive(query @ query.T / temperature, positives, None)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Find each view's other view among all 2·batch - 1 other views; gradient through all of them (SimCLR)."""
    views, num_images = torch.cat((first, second)), len(first)
    diagonal = torch.eye(2 * num_images, dtype=torch.bool, device=views.device)
    logits = (views @ views.T / temperature).masked_fill(diagonal, float("-inf"))
    other_view = torch.arange(2 * num_images, device=views.device).roll(num_images)
    return cross_entropy(logits, other_view)


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return minus the cosine of prediction and target; no gradient through the target (SimSiam, BYOL).

    BYOL's squared distance of unit vectors is 2 + 2 times this: a learning rate there is twice as much here.
    """
    return -(prediction * target.detach()).sum(dim=1).mean()


def same_frame_first(query: Tensor, same: Tensor, other: Tensor, temperature: float, counts: Tensor) -> Tensor:
    """Tell the key of the query's own frame from that of another frame of its video, the one negative (SeCo, intra).

    Only rows where `counts` (batch,) is True enter the mean. Gradient through the query only.
    """
    margin = (query * (other - same).detach()).sum(dim=1) / temperature
    return _mean_of(softplus(margin), counts)


def order_loss(logits: Tensor, is_after: Tensor, counts: Tensor) -> Tensor:
    """Classify, from logits (batch, 2), the query as before (0) or after (1) its video's other frames (SeCo).

    Only rows where `counts` (batch,) is True enter the mean.
    """
    return _mean_of(cross_entropy(logits, is_after.long(), reduction="none"), counts)


def _nce_per_query(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, ignore: Tensor | None
) -> Tensor:
    positive_logit = (query * positive.detach()).sum(dim=1) / temperature
    return softplus(log_sum_exp(query, negatives, temperature, ignore) - positive_logit)


def _term_per_positive(logits: Tensor, positives: Tensor, ignore: Tensor | None) -> Tensor:
    not_negative = positives if ignore is None else positives | ignore
    negatives = logits.masked_fill(not_negative, float("-inf")).logsumexp(dim=1, keepdim=True)
    return softplus(negatives - logits)[positives].mean()


def _mean_of(values: Tensor, counts: Tensor) -> Tensor:
    return values.where(counts, 0).sum() / counts.sum().clamp(min=1)
