"""The equations against plain loops in float64, in value and in gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from cyclecontrast.loss import cycle_consistency, info_nce, soft_nearest_neighbor
from cyclecontrast.loss.losses import positive_comes_first


def unit(rows, dim, seed, dtype=torch.float32):
    """Draw unit vectors."""
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(
        dtype
    )


def draw_case(batch, keys, dim, seed, masked):
    """Draw query, positive, support, negatives and masks that leave each query at least one candidate."""
    generator = torch.Generator().manual_seed(seed)
    ignore_support = torch.rand(batch, keys, generator=generator) < 0.3
    ignore_support[:, 0] = False
    ignore_negatives = torch.rand(batch, keys + 3, generator=generator) < 0.3
    masks = (ignore_support, ignore_negatives) if masked else (None, None)
    return (
        unit(batch, dim, seed),
        unit(batch, dim, seed + 1),
        unit(keys, dim, seed + 2),
        unit(keys + 3, dim, seed + 3),
        *masks,
    )


def dot(a, b):
    """Multiply and add, one number at a time."""
    return sum(a[i] * b[i] for i in range(len(a)))


def loop_nce(query, positive, negatives, temperature, ignore):
    """Eq. 1 and 2 for one query, as written."""
    up = torch.exp(dot(query, positive) / temperature)
    down = up + sum(
        torch.exp(dot(query, u) / temperature) for j, u in enumerate(negatives) if ignore is None or not ignore[j]
    )
    return -torch.log(up / down)


def loop_neighbor(query, support, temperature, ignore, top_k=None):
    """Eq. 3 and 4 for one query, as written, then scaled to length one."""
    allowed = [u for j, u in enumerate(support) if ignore is None or not ignore[j]]
    allowed = sorted(allowed, key=lambda u: -dot(query, u).item())[:top_k]
    weights = [torch.exp(dot(query, u) / temperature) for u in allowed]
    total = sum(weights)
    mixed = [sum(w / total * u[i] for w, u in zip(weights, allowed, strict=True)) for i in range(len(query))]
    length = torch.sqrt(sum(x * x for x in mixed))
    return torch.stack([x / length for x in mixed])


def loop_cycle(query, positive, support, negatives, temperature, ignore_support, ignore_negatives, top_k=None):
    """Eq. 5, mean over the batch."""
    losses = []
    for i in range(len(query)):
        rows = [None if m is None else m[i] for m in (ignore_support, ignore_negatives)]
        neighbor = loop_neighbor(query[i], support, temperature, rows[0], top_k)
        losses.append(loop_nce(neighbor, positive[i], negatives, temperature, rows[1]))
    return sum(losses) / len(losses)


def assert_same(ours, reference, query):
    """Compare value and gradient of a loss with its float64 reference to 1e-5, relative where large."""
    q32, q64 = query.clone().requires_grad_(), query.double().requires_grad_()
    value, expected = ours(q32), reference(q64)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    scale = max(1.0, q64.grad.abs().max().item())
    assert (q32.grad.double() - q64.grad).abs().max().item() <= 1e-5 * scale


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_is_equation_1(batch, masked, temperature):
    """info_nce equals the plain loop in value and gradient, with and without mask, at batch 1 too."""
    query, positive, _, negatives, _, ignore = draw_case(batch, 6, 5, 0, masked)

    def reference(q):
        losses = [
            loop_nce(q[i], positive[i].double(), negatives.double(), temperature, None if ignore is None else ignore[i])
            for i in range(batch)
        ]
        return sum(losses) / batch

    assert_same(lambda q: info_nce(q, positive, negatives, temperature, ignore), reference, query)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("top_k", [None, 2, 100])
def test_soft_nearest_neighbor_is_equation_3(batch, masked, top_k):
    """soft_nearest_neighbor equals the plain loop in value and gradient, and gives unit vectors."""
    query, _, support, _, ignore, _ = draw_case(batch, 6, 5, 1, masked)
    direction = unit(batch, 5, 9)
    neighbor = soft_nearest_neighbor(query, support, 0.07, ignore, top_k)
    assert torch.allclose(neighbor.norm(dim=1), torch.ones(batch), atol=1e-6)

    def reference(q):
        rows = [
            loop_neighbor(q[i], support.double(), 0.07, None if ignore is None else ignore[i], top_k)
            for i in range(batch)
        ]
        return (torch.stack(rows) * direction.double()).sum()

    assert_same(lambda q: (soft_nearest_neighbor(q, support, 0.07, ignore, top_k) * direction).sum(), reference, query)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("top_k", [None, 3])
def test_cycle_consistency_is_equation_5(batch, masked, top_k):
    """cycle_consistency equals the plain loop in value and gradient, with and without masks, at batch 1 too."""
    query, *rest, ignore_support, ignore_negatives = draw_case(batch, 6, 5, 2, masked)

    def reference(q):
        return loop_cycle(q, *(r.double() for r in rest), 0.07, ignore_support, ignore_negatives, top_k)

    assert_same(lambda q: cycle_consistency(q, *rest, 0.07, ignore_support, ignore_negatives, top_k), reference, query)


def test_gradient_reaches_the_query_only():
    """Positives, support and negatives get no gradient, whatever they require."""
    query, positive, support, negatives, *_ = (
        x if x is None else x.requires_grad_() for x in draw_case(3, 6, 5, 3, False)
    )
    loss = info_nce(query, positive, negatives, 0.07) + cycle_consistency(query, positive, support, negatives, 0.07)
    loss.backward()
    assert query.grad.abs().sum() > 0
    assert positive.grad is None
    assert support.grad is None
    assert negatives.grad is None


def test_a_query_without_candidates_does_not_count():
    """Where all of the support is the query's own video, the loss is that of the other queries, and no nan appears."""
    query, positive, support, negatives, *_ = draw_case(3, 6, 5, 4, False)
    ignore = torch.zeros(3, 6, dtype=torch.bool)
    ignore[1] = True
    query.requires_grad_()
    loss = cycle_consistency(query, positive, support, negatives, 0.07, ignore)
    loss.backward()
    others = [0, 2]
    expected = cycle_consistency(query[others], positive[others], support, negatives, 0.07)
    assert loss.item() == pytest.approx(expected.item())
    assert torch.isfinite(query.grad).all()
    assert not query.grad[1].any()
    everything = torch.ones(3, 6, dtype=torch.bool)
    assert cycle_consistency(query, positive, support, negatives, 0.07, everything).item() == 0


def test_hand_computed_values():
    """Orthogonal vectors give the values that pencil and paper give."""
    e = torch.eye(3)
    assert info_nce(e[:1], e[:1], e[1:], 1.0).item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-6)
    neighbor = soft_nearest_neighbor(e[:1], e[:2], 1.0)[0]
    norm = math.hypot(math.e, 1)
    assert neighbor.tolist() == pytest.approx([math.e / norm, 1 / norm, 0], rel=1e-6)
    assert positive_comes_first(e[:2], e[[0, 2]], e[1:2]).tolist() == [True, False]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(2, 6), st.integers(0, 10_000), st.booleans())
def test_cycle_matches_the_loop_on_any_shape(batch, keys, dim, seed, masked):
    """The cycle loss equals the plain loop whatever the numbers of queries, keys and dimensions."""
    query, *rest, ignore_support, ignore_negatives = draw_case(batch, keys, dim, seed, masked)
    ours = cycle_consistency(query, *rest, 0.1, ignore_support, ignore_negatives)
    reference = loop_cycle(query.double(), *(r.double() for r in rest), 0.1, ignore_support, ignore_negatives)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-4, abs=1e-5)
