"""The equations against plain loops in float64, in value and in gradient."""

import math
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from cyclecontrast.loss import attention, cycle_consistency, info_nce, soft_nearest_neighbor
from cyclecontrast.loss.losses import is_nearest


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
    assert is_nearest(e[:2], e[[0, 2]], e[1:2]).tolist() == [True, False]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(2, 6), st.integers(0, 10_000), st.booleans())
def test_cycle_matches_the_loop_on_any_shape(batch, keys, dim, seed, masked):
    """The cycle loss equals the plain loop whatever the numbers of queries, keys and dimensions."""
    query, *rest, ignore_support, ignore_negatives = draw_case(batch, keys, dim, seed, masked)
    ours = cycle_consistency(query, *rest, 0.1, ignore_support, ignore_negatives)
    reference = loop_cycle(query.double(), *(r.double() for r in rest), 0.1, ignore_support, ignore_negatives)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-4, abs=1e-5)


# --- block by block


def draw_mask(kind, batch, keys, seed):
    """Draw a mask of a kind; those of `any` may leave a query nothing."""
    drawn = torch.rand(batch, keys, generator=torch.Generator().manual_seed(seed)) < 0.5
    return {"none": None, "any": drawn, "one row": drawn[:1], "flat": drawn[0], "all": torch.ones_like(drawn)}[kind]


def rows_of(mask, batch):
    """Return what each query ignores."""
    return [None] * batch if mask is None else list(mask.expand(batch, mask.shape[-1]))


def loop_losses(query, positive, support, negatives, masks, top_k):
    """Eq. 2 plus Eq. 5, the latter over the queries that have a candidate in the support."""
    of_support, of_negatives = (rows_of(mask, len(query)) for mask in masks)
    zipped = list(zip(query, positive, of_support, of_negatives, strict=True))
    intra = sum(loop_nce(q, p, negatives, 0.1, row) for q, p, _, row in zipped) / len(query)
    counted = [(q, p, a, b) for q, p, a, b in zipped if a is None or not a.all()]
    cycles = [loop_nce(loop_neighbor(q, support, 0.1, a, top_k), p, negatives, 0.1, b) for q, p, a, b in counted]
    return intra + (sum(cycles) / len(cycles) if cycles else 0)


KINDS = st.sampled_from(["none", "any", "one row", "flat", "all"])


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 60), st.none() | st.integers(1, 10), KINDS, KINDS, st.data()
)
def test_blocks_of_any_size_give_the_same(batch, keys, block, top_k, kind, other_kind, data):
    """However many keys are compared at a time, value and gradient are the plain loop's, whatever is masked."""
    seed = data.draw(st.integers(0, 10_000))
    query, positive, support, negatives = (
        unit(n, 4, seed + i, torch.float64) for i, n in enumerate((batch, batch, keys, keys + 3))
    )
    masks = draw_mask(kind, batch, keys, seed), draw_mask(other_kind, batch, keys + 3, seed + 1)
    ours, theirs = query.clone().requires_grad_(), query.clone().requires_grad_()
    with mock.patch.object(attention, "BLOCK", block):
        loss = info_nce(ours, positive, negatives, 0.1, masks[1])
        loss = loss + cycle_consistency(ours, positive, support, negatives, 0.1, *masks, top_k)
        loss.backward()
    expected = loop_losses(theirs, positive, support, negatives, masks, top_k)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8, abs=1e-9)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-7, atol=1e-8)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(0, 9), st.integers(1, 60), KINDS, st.integers(0, 10_000))
def test_the_best_of_all_blocks_is_compared(batch, keys, block, kind, seed):
    """The positive comes first exactly where no candidate of any block is as similar."""
    query, positive, negatives = (unit(n, 2, seed + i, torch.float64) for i, n in enumerate((batch, batch, keys)))
    mask = draw_mask(kind, batch, keys, seed)
    with mock.patch.object(attention, "BLOCK", block):
        first = is_nearest(query, positive, negatives, mask)
    for q, p, row, ours in zip(query, positive, rows_of(mask, batch), first, strict=True):
        assert ours.item() == all(dot(q, p) > dot(q, u) for j, u in enumerate(negatives) if row is None or not row[j])


@pytest.mark.parametrize("rising", [True, False])
def test_cold_softmax_neither_overflows_nor_vanishes(rising):
    """At logits of ±200 in fp32 the losses are the loop's, whether the best key is in the first block or the last."""
    query, positive, support, negatives, *_ = draw_case(1, 6, 5, 7, False)
    support, negatives = (
        keys[(keys @ query[0]).argsort(descending=not rising)] for keys in (-support, torch.cat((negatives, query)))
    )
    doubles = [x.double() for x in (query, positive, support, negatives)]
    with mock.patch.object(attention, "BLOCK", 1):
        losses = (
            info_nce(query, positive, negatives, 0.005),
            cycle_consistency(query, positive, support, negatives, 0.005),
        )
    expected = loop_nce(doubles[0][0], doubles[1][0], doubles[3], 0.005, None), loop_cycle(*doubles, 0.005, None, None)
    assert [loss.item() for loss in losses] == pytest.approx([loss.item() for loss in expected], rel=1e-4)


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("kind", ["none", "any", "one row"])
def test_gradients_are_those_of_finite_differences(kind, top_k):
    """In float64 the gradients agree with finite differences to the precision of those."""
    query, positive, support, negatives = (unit(n, 3, i, torch.float64) for i, n in enumerate((4, 4, 6, 6)))
    mask = draw_mask(kind, 4, 6, 1)
    assert mask is None or not mask.all(dim=1).any()
    with mock.patch.object(attention, "BLOCK", 8):
        inputs = query.requires_grad_()
        assert torch.autograd.gradcheck(lambda q: info_nce(q, positive, negatives, 0.3, mask), inputs)
        assert torch.autograd.gradcheck(lambda q: soft_nearest_neighbor(q, support, 0.3, mask, top_k), inputs)
        args = positive, support, negatives, 0.3, mask, mask, top_k
        assert torch.autograd.gradcheck(lambda q: cycle_consistency(q, *args), inputs)


@pytest.mark.parametrize("kind", ["none", "any", "all"])
def test_the_soft_mean_has_its_gradient(kind):
    """Before it is scaled to length one, the mean has the gradient of finite differences; without candidates, zero."""
    query, keys = unit(4, 3, 0, torch.float64).requires_grad_(), unit(6, 3, 2, torch.float64)
    mask = draw_mask(kind, 4, 6, 1)
    with mock.patch.object(attention, "BLOCK", 8):
        assert torch.autograd.gradcheck(lambda q: attention.softmax_mean(q, keys, 0.3, mask), query)


def losses_and_gradient(case, **changes):
    """Return both losses and the gradient of their sum."""
    query, *rest, ignore_support, ignore_negatives = case
    query = query.clone().requires_grad_()
    intra = info_nce(query, rest[0], rest[2], 0.07, ignore_negatives)
    cycle = cycle_consistency(query, *rest, 0.07, ignore_support, ignore_negatives, **changes)
    (intra + cycle).backward()
    return intra, cycle, query.grad


@pytest.mark.parametrize("top_k", [None, 5])
def test_the_same_inputs_give_the_same_bits(top_k):
    """Two runs over the same inputs agree in every bit of value and gradient."""
    case = draw_case(8, 500, 16, 0, True)
    with mock.patch.object(attention, "BLOCK", 1000):
        first, second = (losses_and_gradient(case, top_k=top_k) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("top_k", [None, 5])
def test_autocast_changes_no_bit(top_k):
    """Within autocast the losses are computed in fp32, forward and backward, as without it."""
    case = draw_case(8, 500, 16, 0, True)
    plain = losses_and_gradient(case, top_k=top_k)
    with torch.autocast("cpu", torch.bfloat16):
        cast = losses_and_gradient(case, top_k=top_k)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_sums_over_many_keys_do_not_stagnate_in_half_precision():
    """Vectors of bf16 are summed in fp32: thousands of keys, block by block, count as much as the first."""
    query, positive, support, negatives, *_ = (
        x if x is None else x.bfloat16() for x in draw_case(4, 6000, 16, 0, False)
    )
    with mock.patch.object(attention, "BLOCK", 32):
        loss = info_nce(query, positive, negatives, 1.0)
        neighbor = soft_nearest_neighbor(query, support, 1.0)
    assert (loss.dtype, neighbor.dtype) == (torch.bfloat16, torch.bfloat16)
    expected = info_nce(query.float(), positive.float(), negatives.float(), 1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    cosine = (neighbor.float() * soft_nearest_neighbor(query.float(), support.float(), 1.0)).sum(dim=1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize("top_k", [None, 3])
def test_nothing_to_compare_with(top_k):
    """Without negatives there is nothing to lose; an empty support makes the zero vector, which finds by chance."""
    query, positive, support, negatives, *_ = draw_case(3, 6, 5, 4, False)
    query.requires_grad_()
    assert info_nce(query, positive, negatives[:0], 0.07).item() == 0
    assert cycle_consistency(query, positive, support, negatives[:0], 0.07, top_k=top_k).item() == 0
    assert not soft_nearest_neighbor(query, support[:0], 0.07, top_k=top_k).any()
    by_chance = cycle_consistency(query, positive, support[:0], negatives, 0.07, top_k=top_k)
    assert by_chance.item() == pytest.approx(math.log(1 + len(negatives)))
    by_chance.backward()
    assert not query.grad.any()
    none = torch.ones(3, 0, dtype=torch.bool)
    assert cycle_consistency(query, positive, support[:0], negatives, 0.07, none).item() == 0


def test_equal_keys_are_no_more_than_asked_for():
    """Of keys that are equally similar, top_k takes as many as it says, not all of them."""
    query, twins = torch.eye(2)[:1], torch.tensor([[0.6, 0.8], [0.6, -0.8], [0.6, 0.8], [0.6, -0.8]])
    for number in (1, 3):
        assert abs(soft_nearest_neighbor(query, twins, 0.07, top_k=number)[0, 1].item()) > 0.1
    assert soft_nearest_neighbor(query, twins, 0.07, top_k=4)[0, 1].item() == pytest.approx(0, abs=1e-6)


def test_the_losses_need_pytorch_alone():
    """Imported for a training of one's own, they load neither what reads images and tables nor other networks."""
    code = (
        "import sys, cyclecontrast.loss; assert 'torch' in sys.modules; "
        "print({'cv2', 'pyarrow', 'av', 'PIL', 'sklearn', 'scipy', 'timm', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_mask_of_another_width_is_refused():
    """A mask that is wider or narrower than the keys is an error, also where it ends with a block."""
    query, positive, _, negatives, *_ = draw_case(2, 5, 5, 0, False)
    with mock.patch.object(attention, "BLOCK", 8):
        for width in (4, 7, 12):
            with pytest.raises(RuntimeError):
                info_nce(query, positive, negatives, 0.07, torch.zeros(2, width, dtype=torch.bool))
