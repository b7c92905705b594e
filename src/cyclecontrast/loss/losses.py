"""The equations of the paper: unit vectors in, mean over the batch out, gradient through the query only.

Shapes: query, positive (batch, dim); support (num_support, dim); negatives (num_negatives, dim); `ignore` is bool,
one row per query or one row for all, True where a key is no candidate.
"""

from torch import Tensor
from torch.nn.functional import normalize, softplus

from cyclecontrast.loss.attention import all_but_best, best_similarity, log_sum_exp, soft_mean

ROUNDING = 1e-6
"""Two ways to the same similarity differ by less: a positive does not come before itself."""


def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, ignore: Tensor | None = None
) -> Tensor:
    """Contrast each query's positive with the negatives: Eq. 1 for views of one image, Eq. 2 for one video."""
    return _nce_per_query(query, positive, negatives, temperature, ignore).mean()


def soft_nearest_neighbor(
    query: Tensor, support: Tensor, temperature: float, ignore: Tensor | None = None, top_k: int | None = None
) -> Tensor:
    """Explain each query by the support: its softmax-weighted mean, as unit vectors (batch, dim) (Eq. 3, 4).

    `top_k` keeps only the most similar candidates and shares the weight among them (Table 7). A query without any
    candidate gets the zero vector.
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
    """Require the soft nearest neighbor's way back to lead to the query's own video (Eq. 5).

    Queries without any candidate in the support have no neighbor and do not count in the mean.
    """
    neighbor = soft_nearest_neighbor(query, support, temperature, ignore_support, top_k)
    losses = _nce_per_query(neighbor, positive, negatives, temperature, ignore_negatives)
    if ignore_support is None:
        return losses.mean()
    counts = (~ignore_support.all(dim=-1)).expand_as(losses)
    return losses.where(counts, 0).sum() / counts.sum().clamp(min=1)


def positive_comes_first(query: Tensor, positive: Tensor, negatives: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Tell for each query (batch,) whether its positive is more similar than every negative: the cycle closes."""
    return (query * positive).sum(dim=1) > best_similarity(query, negatives, ignore) + ROUNDING


def _nce_per_query(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, ignore: Tensor | None
) -> Tensor:
    positive_logit = (query * positive.detach()).sum(dim=1) / temperature
    return softplus(log_sum_exp(query, negatives, temperature, ignore) - positive_logit)
