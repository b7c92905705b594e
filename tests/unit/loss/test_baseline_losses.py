"""The equations of the methods beside ours against plain loops in float64, in value and in gradient."""

import math

import pytest
import torch

from cyclecontrast.methods.seco import intra_frame_loss, order_loss
from cyclecontrast.methods.simclr import nt_xent
from cyclecontrast.methods.simsiam import negative_cosine
from cyclecontrast.methods.vince import multi_positive_nce, self_batch_nce
from tests.unit.loss.test_losses import dot, unit


def compare(ours, reference, *inputs):
    """Compare value and gradient towards each input with the float64 reference to 1e-5, relative where large."""
    singles = [value.clone().requires_grad_() for value in inputs]
    doubles = [value.double().requires_grad_() for value in inputs]
    value, expected = ours(*singles), reference(*doubles)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    for single, double in zip(singles, doubles, strict=True):
        scale = max(1.0, double.grad.abs().max().item())
        assert (single.grad.double() - double.grad).abs().max().item() <= 1e-5 * scale


def loop_multi_positive(query, keys, positives, temperature, ignore):
    """Every positive's own NCE term, the other positives left out of its denominator."""
    terms = []
    for i, row in enumerate(query):
        negative = [j for j in range(len(keys)) if not positives[i, j] and not (ignore is not None and ignore[i, j])]
        down = sum(torch.exp(dot(row, keys[j]) / temperature) for j in negative)
        for j in range(len(keys)):
            if positives[i, j]:
                up = torch.exp(dot(row, keys[j]) / temperature)
                terms.append(-torch.log(up / (up + down)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_multi_positive_nce_is_vinces(temperature, masked):
    """Each positive stands alone against the negatives; ignored keys are neither, though positives stay positives."""
    query, keys = unit(6, 5, 0), unit(13, 5, 1)
    video = torch.tensor([0, 1, 2]).repeat(2)
    key_video = torch.tensor([0, 1, 2, 0, 1, 2, 7, 8, 0, 1, 9, 3, 0])
    positives = video[:, None] == key_video.where(torch.arange(13) < 6, -1)
    ignore = (video[:, None] == key_video) if masked else None
    compare(
        lambda q: multi_positive_nce(q, keys, positives, temperature, ignore),
        lambda q: loop_multi_positive(q, keys.double(), positives, temperature, ignore),
        query,
    )


def test_one_positive_each_is_ordinary_nce():
    """With a single positive per query VINCE's loss is the usual contrast."""
    query, keys = unit(4, 6, 2), unit(9, 6, 3)
    positives = torch.zeros(4, 9, dtype=torch.bool)
    positives[range(4), range(4)] = True
    expected = torch.nn.functional.cross_entropy((query @ keys.T / 0.1).double(), torch.arange(4))
    assert multi_positive_nce(query, keys, positives, 0.1).item() == pytest.approx(expected.item(), rel=1e-5)


def test_self_batch_nce_is_vinces():
    """Queries against each other, the diagonal among the positives; the gradient flows through both sides."""
    query, video = unit(8, 5, 4), torch.tensor([0, 1, 2, 3]).repeat(2)
    positives = video == video[:, None]
    compare(
        lambda q: self_batch_nce(q, positives, 0.3),
        lambda q: loop_multi_positive(q, q, positives, 0.3, None),
        query,
    )


def loop_nt_xent(temperature, *views):
    """Each other view of its image among itself and all views of other images, for each view of each image."""
    places = [(image, number) for image in range(len(views[0])) for number in range(len(views))]
    terms = []
    for image, number in places:
        query = views[number][image]
        negatives = [views[b][a] for a, b in places if a != image]
        assert len(negatives) == len(views) * (len(views[0]) - 1)
        for positive in (views[other][image] for other in range(len(views)) if other != number):
            down = sum(torch.exp(dot(query, key) / temperature) for key in [positive, *negatives])
            terms.append(-torch.log(torch.exp(dot(query, positive) / temperature) / down))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("num_views", [2, 4])
def test_nt_xent_is_simclrs(number, temperature, num_views):
    """Value and gradient towards all views equal the plain loop's; with two views there are 2N - 2 negatives."""
    compare(
        lambda *views: nt_xent(list(views), temperature),
        lambda *views: loop_nt_xent(temperature, *views) + 0 * sum(view.sum() for view in views),
        *(unit(number, 5, 5 + view) for view in range(num_views)),
    )


def test_negative_cosine_is_byols_distance_and_simsiams_loss():
    """It is -cos, and BYOL's squared distance is 2 + 2 times it; the target gets no gradient."""
    prediction, target = unit(4, 5, 7).requires_grad_(), unit(4, 5, 8).requires_grad_()
    loss = negative_cosine(prediction, target)
    pairs = list(zip(prediction.tolist(), target.tolist(), strict=True))
    cosines = [dot(p, t) / math.sqrt(dot(p, p) * dot(t, t)) for p, t in pairs]
    assert loss.item() == pytest.approx(-sum(cosines) / 4, rel=1e-5)
    assert 2 + 2 * loss.item() == pytest.approx((prediction - target).square().sum(1).mean().item(), rel=1e-5)
    loss.backward()
    assert torch.allclose(prediction.grad, -target / 4)
    assert target.grad is None


@pytest.mark.parametrize("counts", [(True, True, True, True), (True, False, True, False)])
def test_same_frame_first_is_secos(counts):
    """The query's own frame against the one other frame, a softmax of two, over the rows that have another."""
    query, same, other = unit(4, 5, 9), unit(4, 5, 10), unit(4, 5, 11)

    def reference(q):
        terms = []
        for i in range(4):
            if counts[i]:
                up, down = (torch.exp(dot(q[i], key[i].double()) / 0.1) for key in (same, other))
                terms.append(-torch.log(up / (up + down)))
        return sum(terms) / len(terms)

    compare(lambda q: intra_frame_loss(q, same, other, 0.1, torch.tensor(counts)), reference, query)
    same.requires_grad_()
    other.requires_grad_()
    intra_frame_loss(query.requires_grad_(), same, other, 0.1, torch.tensor(counts)).backward()
    assert same.grad is None
    assert other.grad is None


def test_order_loss_is_a_binary_choice():
    """Cross-entropy of before and after over the rows that count; without any it is zero and leaves no nan."""
    logits = torch.tensor([[1.0, 3.0], [0.5, -1.0], [9.0, -9.0]], requires_grad=True)
    after, counts = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1.5))) / 2
    assert order_loss(logits, after, counts).item() == pytest.approx(expected, rel=1e-6)
    nothing = order_loss(logits, after, torch.zeros(3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()
