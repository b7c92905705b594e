"""Softmax attention of queries over constant keys, computed in blocks, so memory does not grow with the number of keys.

Shapes: query (batch, dim), keys (num_keys, dim). `ignore` is a bool mask, one row per query or one row for all queries;
True removes a key. The candidates of a query are the remaining keys. Only first-order gradients
with respect to the query are supported. All functions compute in fp32 or fp64, also under autocast.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

BLOCK = 2**22  # similarities per block: 16 MiB in fp32, small next to a network and enough to keep a GPU busy


def log_sum_exp(query: Tensor, keys: Tensor, temperature: float, ignore: Tensor | None = None) -> Tensor:
    """Return log Σ exp(sim / τ) over each query's candidates (batch,); minus infinity without candidates."""
    result: Tensor = _LogSumExp.apply(_wide(query) / temperature, keys.detach(), ignore)  # type: ignore[no-untyped-call]
    return result.to(query.dtype)


def softmax_mean(query: Tensor, keys: Tensor, temperature: float, ignore: Tensor | None = None) -> Tensor:
    """Return the mean of each query's candidates weighted by softmax(sim / τ) (batch, dim); zero without candidates."""
    result: Tensor = _SoftMean.apply(_wide(query) / temperature, keys.detach(), ignore)  # type: ignore[no-untyped-call]
    return result.to(query.dtype)


def max_similarity(query: Tensor, keys: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Return the largest similarity of each query to its candidates (batch,); -inf without candidates."""
    best = query.new_full((len(query),), float("-inf"))
    for _, _, similarity in _blocks(query.detach(), keys.detach(), ignore):
        best = torch.maximum(best, similarity.amax(dim=1))
    return best


def top_k_mask(query: Tensor, keys: Tensor, number: int, ignore: Tensor | None = None) -> Tensor:
    """Return the mask (batch, num_keys) that removes all keys except each query's `number` most similar candidates."""
    indices = _indices_of_best(_wide(query.detach()), keys.detach(), number, ignore)
    others = torch.ones(len(query), len(keys), dtype=torch.bool, device=query.device).scatter_(1, indices, False)
    return others if ignore is None else others.logical_or_(ignore)


class _LogSumExp(Function):
    """log-sum-exp whose forward pass also computes the gradient, the softmax-weighted mean of the keys."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, ignore: Tensor | None) -> Tensor:
        total, mean = _attend(query, keys, ignore, ctx.needs_input_grad[0])
        ctx.save_for_backward(mean)
        return total.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mean,) = ctx.saved_tensors
        return gradient[:, None] * mean, None, None


class _SoftMean(Function):
    """Softmax-weighted mean; backward recomputes the weights, so that it need not store them."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, ignore: Tensor | None) -> Tensor:
        total, mean = _attend(query, keys, ignore)
        ctx.save_for_backward(query, keys, ignore, total, mean)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        query, keys, ignore, total, mean = ctx.saved_tensors
        return _gradient_of_mean(query, keys, ignore, total, mean, gradient), None, None


def _wide(query: Tensor) -> Tensor:
    return query.to(torch.promote_types(query.dtype, torch.float32))


def _attend(query: Tensor, keys: Tensor, ignore: Tensor | None, with_mean: bool = True) -> tuple[Tensor, Tensor]:
    """Return log Σ exp (batch, 1) and the soft mean (batch, dim); the mean is zero without `with_mean`.

    This is an online softmax: sums are scaled by the maximum so far, which starts at the lowest finite number, because
    -inf - (-inf) is nan.
    """
    highest = query.new_full((len(query), 1), torch.finfo(query.dtype).min)
    total, mean = torch.zeros_like(highest), torch.zeros_like(query)
    for _, block, logits in _blocks(query, keys, ignore):
        before, highest = highest, torch.maximum(highest, logits.amax(dim=1, keepdim=True))
        weights, shrink = logits.sub_(highest).exp_(), (before - highest).exp_()
        total.mul_(shrink).add_(weights.sum(dim=1, keepdim=True))
        if with_mean:
            mean.mul_(shrink).addmm_(weights, block)
    # The highest logit adds 1 to the total, so a total below 1 means that the query has no candidate.
    return highest + total.log(), mean / total.clamp(min=1)


def _gradient_of_mean(
    query: Tensor, keys: Tensor, ignore: Tensor | None, total: Tensor, mean: Tensor, gradient: Tensor
) -> Tensor:
    """Return the gradient with respect to the query: Σ w (u·g - mean·g) u over the candidates u with softmax weights w;
    g is the gradient with respect to the mean.
    """
    result, of_mean = torch.zeros_like(query), (mean * gradient).sum(dim=1, keepdim=True)
    total = total.clamp(min=torch.finfo(total.dtype).min)
    for _, block, logits in _blocks(query, keys, ignore):
        weights = logits.sub_(total).exp_()
        result.addmm_(_similarity(gradient, block).sub_(of_mean).mul_(weights), block)
    return result


def _indices_of_best(query: Tensor, keys: Tensor, number: int, ignore: Tensor | None) -> Tensor:
    """Return the indices of each query's most similar keys (batch, number), unordered."""
    best, indices = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.long, device=query.device)
    for start, block, similarity in _blocks(query, keys, ignore):
        found = similarity.topk(min(number, len(block)), dim=1)
        best, indices = torch.cat((best, found.values), dim=1), torch.cat((indices, found.indices + start), dim=1)
        if best.shape[1] > number:
            best, order = best.topk(number, dim=1)
            indices = indices.gather(1, order)
    return indices


def _blocks(query: Tensor, keys: Tensor, ignore: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the start of a block of keys, the block, and its similarities, -inf where a key is not a candidate."""
    size = max(1, BLOCK // max(1, len(query)))
    ignore = None if ignore is None else ignore.expand(len(query), len(keys))
    for start in range(0, len(keys), size):
        block = keys[start : start + size].to(query.dtype)
        similarity = _similarity(query, block)
        if ignore is not None:
            similarity.masked_fill_(ignore[:, start : start + size], float("-inf"))
        yield start, block, similarity


def _similarity(query: Tensor, keys: Tensor) -> Tensor:
    """Return query @ keys.T in the dtype of the inputs, also under autocast."""
    with torch.autocast(query.device.type, enabled=False):
        return query @ keys.T
