"""Exact neighbors: ties that hold whatever the blocks, the same as brute force, and bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclecontrast.evaluation.metrics import (
    SIMILARITIES_AT_ONCE,
    Neighbors,
    nearest_in_block,
    nearest_neighbors,
    rounding_errors,
    similarity_blocks,
    unit_vectors,
)

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, num, dim):
    """Draw unit vectors in single precision."""
    return unit_vectors(np.random.default_rng(seed).standard_normal((num, dim), dtype=np.float32))


def brute_force(gallery, queries, k):
    """Sort every row of the products in double precision, equal ones by index."""
    products = [[float((q.astype(float) * g.astype(float)).sum()) for g in gallery] for q in queries]
    return [sorted(range(len(gallery)), key=lambda i: (-row[i], i))[:k] for row in products]


@given(SEEDS, st.integers(1, 60), st.integers(0, 5), st.integers(1, 40), st.integers(1, 2000))
def test_neighbors_equal_brute_force(seed, num_gallery, num_queries, dim, at_once):
    """Any gallery, any k up to all of it, blocks of any size."""
    gallery, queries = drawn(seed, num_gallery, dim), drawn(seed + 1, num_queries, dim)
    k = int(np.random.default_rng(seed).integers(1, num_gallery + 1))
    assert nearest_neighbors(gallery, queries, k, at_once).indices.tolist() == brute_force(gallery, queries, k)


def test_large_galleries_equal_brute_force():
    """More items than groups, and not a multiple of them: the last items can be neighbors too."""
    gallery, queries = drawn(0, 5003, 8), drawn(1, 6, 8)
    gallery[[5002, 4999, 1024]] = queries[:3]
    for k in (1, 50, 400):
        found = nearest_neighbors(gallery, queries, k)
        expected = np.argsort(-(queries.astype(float) @ gallery.T.astype(float)), axis=1)[:, :k]
        assert (found.indices == expected).all()
        assert found.similarities.dtype == np.float32
        assert (np.diff(found.similarities, axis=1) <= 0).all()


@pytest.mark.parametrize(("dim", "num_gallery"), [(17, 5), (64, 333), (512, 333), (17, 4001)])
def test_equal_items_tie_whatever_the_blocks(dim, num_gallery):
    """BLAS gives equal rows different last bits, in blocks of one query above all; the lower index still comes first.

    The same indices and similarities come out for each size of blocks, and for one query alone.
    """
    places = np.random.default_rng(0).permutation(np.tile(np.arange(num_gallery), 3))
    gallery, queries = drawn(0, num_gallery, dim)[places], drawn(1, max(13, 2000 // num_gallery), dim)
    exact = np.array([(gallery.astype(float) * query).sum(axis=1) for query in queries])
    # The eighth is one of three equal items: two of them are among the neighbors, the third is not.
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :8]
    found = [nearest_neighbors(gallery, queries, 8, rows * len(gallery)) for rows in (1, 2, 3, 7, 13)]
    alone = [nearest_neighbors(gallery, query[None], 8) for query in queries]
    found.append(Neighbors(*(np.concatenate(column) for column in zip(*alone, strict=True))))
    for similarities, indices in found:
        assert (indices == expected).all()
        assert (similarities == found[0].similarities).all()
        assert (similarities[:, 0:6:3] == similarities[:, 2:6:3]).all()


@given(SEEDS, st.integers(1, 20), st.integers(1, 10))
def test_rounding_as_large_as_it_may_be_changes_no_neighbor(seed, num_gallery, dim):
    """Whatever a BLAS makes of the last bits: products off by all of the error that is allowed give the same result."""
    rng = np.random.default_rng(seed)
    gallery = drawn(seed, num_gallery, dim)[rng.integers(0, num_gallery, 3 * num_gallery)]
    ((queries, similarities),) = similarity_blocks(gallery, drawn(seed + 1, 4, dim))
    error = rounding_errors(gallery, queries)[:, None]
    exact = np.array([(gallery.astype(float) * query).sum(axis=1) for query in queries])
    wrong = exact + error * rng.choice([-0.99, 0.99], exact.shape)
    k = int(rng.integers(1, len(gallery) + 1))
    found = nearest_in_block(gallery, queries, wrong, k)
    assert found.indices.tolist() == brute_force(gallery, queries, k)
    assert (np.abs(similarities - exact) <= error).all()


def test_a_collapsed_network_gives_the_first_items():
    """Where all items are equal, or nothing but zeros, neighbors are the first k."""
    for vector in (unit_vectors(np.random.default_rng(0).random((1, 100), np.float32)), np.zeros((1, 100), np.float32)):
        gallery = np.repeat(vector, 3000, axis=0)
        assert nearest_neighbors(gallery, gallery[:2], 5).indices.tolist() == [[0, 1, 2, 3, 4]] * 2


@given(SEEDS, st.integers(1, 4), st.integers(1, 60), st.integers(1, 5))
def test_galleries_of_many_copies_equal_brute_force(seed, num_kinds, num_gallery, dim):
    """However often an item is there, and however many of its copies are among the k nearest."""
    rng = np.random.default_rng(seed)
    gallery, queries = drawn(seed, num_kinds, dim)[rng.integers(0, num_kinds, num_gallery)], drawn(seed + 1, 3, dim)
    k = int(rng.integers(1, num_gallery + 1))
    assert nearest_neighbors(gallery, queries, k, 50).indices.tolist() == brute_force(gallery, queries, k)


def test_memory_is_bounded_by_the_block():
    """2,000 queries of 20,000 items are 160 MB of similarities; in blocks of 2^16 it takes less than 4 MB."""
    gallery, queries = drawn(0, 20_000, 4), drawn(1, 2000, 4)
    tracemalloc.start()
    try:
        nearest_neighbors(gallery, queries, 3, 2**16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6


def test_blocks_of_the_whole_of_ucf101_are_small():
    """At 95,370 items a block is at most 64 MiB, and each of an odd number of queries is in one, in order."""
    assert SIMILARITIES_AT_ONCE * 4 <= 64 * 2**20
    queries = np.arange(353, dtype=np.float32)[:, None]
    blocks = list(similarity_blocks(np.ones((95_370, 1), np.float32), queries))
    assert len(blocks) > 1
    assert all(similarities.size <= SIMILARITIES_AT_ONCE for _, similarities in blocks)
    assert np.concatenate([similarities[:, -1] for _, similarities in blocks]).tolist() == queries[:, 0].tolist()
