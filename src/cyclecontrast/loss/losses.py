"""The equations of the paper as loss functions: unit vectors in, mean over the batch out.

Shapes: query, positive (batch, dim); support (num_support, dim); negatives (num_negatives, dim).
`ignore` is a bool mask, one row per query or one row for all queries; True removes a key. The candidates of a query are
the remaining keys.
"""

from torch import Tensor
from torch.nn.functional import normalize, softplus

from cyclecontrast.loss.attention import log_sum_exp, max_similarity, softmax_mean, top_k_mask

ROUNDING = 1e-6
"""Tolerance for rounding: the same similarity computed in two ways differs by less."""


def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, ignore: Tensor | None = None
) -> Tensor:
    """Return the InfoNCE loss: Eq. 1 for two views of a frame, Eq. 2 for two frames of a video.

    The gradient flows through the query only.
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
        ignore = top_k_mask(query, support, top_k, ignore)
    return normalize(softmax_mean(query, support, temperature, ignore), dim=1)


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
    """Return the cycle loss (Eq. 5).

    InfoNCE of each query's soft nearest neighbor in U, its positive and the negatives. The cycle closes if the neighbor
    is more similar to the positive than to every negative. In the formula of the paper the denominator contains the
    positive and all keys of U. In its text and in Algorithm 1 it contains the positive and the keys outside of U; this
    function follows the text. `ignore_support` and `ignore_negatives` are masks of the two sets, `top_k` is that of
    `soft_nearest_neighbor`. Queries without candidates in the support are left out of the mean. Gradient through the
    query only.
    """
    neighbor = soft_nearest_neighbor(query, support, temperature, ignore_support, top_k)
    losses = _nce_per_query(neighbor, positive, negatives, temperature, ignore_negatives)
    if ignore_support is None:
        return losses.mean()
    return masked_mean(losses, (~ignore_support.all(dim=-1)).expand_as(losses))


def is_nearest(query: Tensor, positive: Tensor, negatives: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Return whether each query's positive is more similar than every negative, as booleans (batch,)."""
    return (query * positive).sum(dim=1) > max_similarity(query, negatives, ignore) + ROUNDING


def _nce_per_query(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, ignore: Tensor | None
) -> Tensor:
    positive_logit = (query * positive.detach()).sum(dim=1) / temperature
    return softplus(log_sum_exp(query, negatives, temperature, ignore) - positive_logit)


def masked_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the values where the mask `counts` is True, 0 if the mask is empty."""
    return values.where(counts, 0).sum() / counts.sum().clamp(min=1)
