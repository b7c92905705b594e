"""The equations of the paper: unit vectors in, mean over the batch out, gradient through the query only.

Shapes: query, positive (batch, dim); support (num_support, dim); negatives (num_negatives, dim); `ignore` is bool,
one row per query or one row for all, True where a key is no candidate.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


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
    support = support.detach()
    logits = query @ support.T / temperature
    if ignore is not None:
        logits = logits.masked_fill(ignore & _has_candidate(ignore), float("-inf"))
    if top_k is None or top_k >= len(support):
        neighbor = logits.softmax(dim=1) @ support
    else:
        best = logits.topk(top_k, dim=1)
        neighbor = torch.einsum("bk,bkd->bd", best.values.softmax(dim=1), support[best.indices])
    neighbor = normalize(neighbor, dim=1)
    return neighbor if ignore is None else neighbor * _has_candidate(ignore)


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
    counts = _has_candidate(ignore_support).squeeze(1).expand_as(losses)
    return losses.where(counts, 0).sum() / counts.sum().clamp(min=1)


def positive_comes_first(query: Tensor, positive: Tensor, negatives: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Tell for each query (batch,) whether its positive is more similar than every negative: the cycle closes."""
    similarity = query @ negatives.T
    if ignore is not None:
        similarity = similarity.masked_fill(ignore, float("-inf"))
    best = similarity.amax(dim=1) if len(negatives) else similarity.new_full((len(query),), float("-inf"))
    return (query * positive).sum(dim=1) > best


def _nce_per_query(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, ignore: Tensor | None
) -> Tensor:
    positive_logit = (query * positive.detach()).sum(dim=1, keepdim=True) / temperature
    negative_logits = query @ negatives.detach().T / temperature
    if ignore is not None:
        negative_logits = negative_logits.masked_fill(ignore, float("-inf"))
    return torch.cat((positive_logit, negative_logits), dim=1).logsumexp(dim=1) - positive_logit.squeeze(1)


def _has_candidate(ignore: Tensor) -> Tensor:
    return ~ignore.reshape(-1, ignore.shape[-1]).all(dim=1, keepdim=True)
