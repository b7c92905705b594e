"""Exact nearest neighbors in bounded memory, with ties to the lower index so that results repeat; retrieval scores."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]

SIMILARITIES_AT_ONCE = 2**24
NUMBERS_AT_ONCE = 2**18
GROUPS, GROUPS_PER_NEIGHBOR = 1024, 16


class Neighbors(NamedTuple):
    """Most similar gallery items of each query, nearest first; both (num_queries, k)."""

    similarities: Floats
    indices: Integers


class Block(NamedTuple):
    """Dot products of queries (num_queries, dim) with the gallery (num_queries, num_gallery).

    `error` bounds the rounding of each query's products (num_queries,).
    """

    queries: Floats
    similarities: Floats
    error: Floats


def unit_vectors(vectors: Floats) -> Floats:
    """Scale each row to length 1; a row of zeros stays, and is similar to nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def video_means(vectors: Floats, videos: Integers, num_videos: int) -> Floats:
    """Average the vectors (num_images, dim) of each video, numbered by `videos` (num_images,) → (num_videos, dim)."""
    counts = np.bincount(videos, minlength=num_videos)
    if len(counts) != num_videos or not counts.all():
        raise ValueError(f"{num_videos} videos, but vectors of {np.count_nonzero(counts)}")
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(vectors[np.argsort(videos, kind="stable")], starts, axis=0, dtype=np.float64)
    means: Floats = (sums / counts[:, None]).astype(vectors.dtype)
    return means


def nearest_neighbors(
    gallery: Floats, queries: Floats, k: int, similarities_at_once: int = SIMILARITIES_AT_ONCE
) -> Neighbors:
    """Find the k rows of the gallery with the largest dot product with each query, in blocks of bounded memory."""
    blocks = similarity_blocks(gallery, queries, similarities_at_once)
    found = [nearest_in_block(gallery, block, k) for block in blocks]
    return Neighbors(*(np.concatenate(column) for column in zip(*found, strict=True)))


def similarity_blocks(
    gallery: Floats, queries: Floats, similarities_at_once: int = SIMILARITIES_AT_ONCE
) -> Iterator[Block]:
    """Yield the dot products of all queries with the gallery, at most so many at once, or those of one query."""
    num_rows = max(1, similarities_at_once // len(gallery))
    longest = np.sqrt(np.einsum("id,id->i", gallery, gallery).max())
    for start in range(0, max(len(queries), 1), num_rows):
        rows = queries[start : start + num_rows]
        similarities = rows @ gallery.T
        # A sum of n products, in any order, is wrong by at most n·eps/2 of what the vectors' lengths allow.
        error = gallery.shape[1] * np.finfo(similarities.dtype).eps / 2 * longest * np.linalg.norm(rows, axis=1)
        yield Block(rows, similarities, error)


def nearest_in_block(gallery: Floats, block: Block, k: int, allowed: Integers | None = None) -> Neighbors:
    """Find the k nearest of the block's queries, among all rows of the gallery or the allowed ones.

    Rounding differs between equal items, by their place in the block. So all candidates for the k nearest are
    multiplied again in double precision: neither the order nor ties depend on blocks, threads or BLAS.
    """
    allowed = np.arange(len(gallery)) if allowed is None else allowed
    if not 1 <= k <= len(allowed):
        raise ValueError(f"{k} neighbors of a gallery of {len(allowed)}")
    similarities = block.similarities if len(allowed) == len(gallery) else block.similarities[:, allowed]
    bounds = _lower_bounds(similarities, k) - 2 * block.error
    rows, places = np.divmod(np.flatnonzero(similarities >= bounds[:, None]), len(allowed))
    indices = allowed[places]
    exact = _products(gallery, block.queries, rows, indices)
    order = np.lexsort((indices, -exact, rows))
    firsts = np.searchsorted(rows, np.arange(len(bounds)))
    chosen = order[firsts[:, None] + np.arange(k)]
    return Neighbors(exact[chosen].astype(similarities.dtype), indices[chosen])


def _lower_bounds(similarities: Floats, k: int) -> Floats:
    """Return for each query a similarity that its k nearest reach, and few other items do (num_queries,).

    The k-th largest of the maxima of groups is never above the k-th largest of all, and takes one pass to find.
    Adjacent items, often frames of one video, fall into different groups.
    """
    num_queries, num_items = similarities.shape
    num_groups = min(num_items, max(GROUPS, GROUPS_PER_NEIGHBOR * k))
    group_size = num_items // num_groups
    groups = similarities[:, : group_size * num_groups].reshape(num_queries, group_size, num_groups)
    bounds: Floats = np.partition(groups.max(axis=1), num_groups - k, axis=1)[:, num_groups - k]
    return bounds


def _products(gallery: Floats, queries: Floats, rows: Integers, indices: Integers) -> Floats:
    """Return the dot products of these pairs (num_pairs,): equal pairs give equal bits."""
    at_once = max(1, NUMBERS_AT_ONCE // gallery.shape[1])
    products = np.empty(len(rows))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        pairs = gallery[indices[part]].astype(np.float64)
        pairs *= queries[rows[part]]
        products[part] = pairs.sum(axis=1)
    return products


def hit_at_k(neighbor_labels: Integers, query_labels: Integers, k: int) -> float:
    """Return the fraction of queries whose label (num_queries,) is among those of the k nearest.

    `neighbor_labels` (num_queries, num_neighbors) are the gallery's labels, nearest first.
    """
    if not 1 <= k <= neighbor_labels.shape[1]:
        raise ValueError(f"hit@{k} of {neighbor_labels.shape[1]} neighbors")
    return float((neighbor_labels[:, :k] == query_labels[:, None]).any(axis=1).mean())


def average_precision(
    similarities: Floats, gallery_labels: Integers, query_labels: Integers
) -> npt.NDArray[np.float64]:
    """Return the average precision of each query (num_queries,) over the whole gallery; nan without any of its class.

    `similarities` are (num_queries, num_gallery). Equal ones count as one step, as in scikit-learn: so the value does
    not depend on the gallery's order.
    """
    values = np.full(len(query_labels), np.nan)
    for number, (row, label) in enumerate(zip(similarities, query_labels, strict=True)):
        relevant = np.sort(row[gallery_labels == label])
        if len(relevant):
            num_found = len(relevant) - np.searchsorted(relevant, relevant)
            num_seen = len(row) - np.searchsorted(np.sort(row), relevant)
            values[number] = (num_found / num_seen).mean()
    return values
