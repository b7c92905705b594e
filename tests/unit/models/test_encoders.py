"""Encoders: unit vectors, a follower that no gradient reaches, and keys that do not know who else is in the batch."""

import pytest
import torch
from torch import nn

from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.encoders import (
    Encoder,
    encode_in_groups,
    follow,
    make_momentum_encoder,
    make_projector,
)
from cyclecontrast.models.hardware import autocast

CPU = torch.device("cpu")


def make_encoder(projector="mlp", dim=16):
    """A small encoder in training mode."""
    torch.manual_seed(0)
    return Encoder(make_backbone("resnet10-small-w8"), projector, dim).train()


def images(number, seed=0):
    """Normalised images."""
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("projector", ["linear", "mlp", "mlp-bn", "mlp3-bn"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_are_unit_vectors_in_fp32(projector, precision):
    """Both projections have length 1 in fp32, also where the network runs in bf16."""
    encoder = make_encoder(projector)
    with autocast(CPU, precision):
        features = encoder(images(4))
    for vectors in features:
        assert (vectors.dtype, vectors.shape) == (torch.float32, (4, 16))
        assert torch.allclose(vectors.double().norm(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-6)
    assert not torch.allclose(features.intra, features.cycle, atol=0.1), "the projectors are two"


def test_features_are_the_normalised_projections():
    """Each vector is its projector's output of the backbone's representation, divided by its length."""
    encoder = make_encoder().eval()
    features = encoder(images(3))
    representation = encoder.backbone(images(3))
    for vectors, projector in ((features.intra, encoder.intra_projector), (features.cycle, encoder.cycle_projector)):
        raw = projector(representation)
        assert torch.allclose(vectors, raw / raw.square().sum(1, keepdim=True).sqrt(), atol=1e-6)


def test_projectors_are_those_of_paper_and_release():
    """`linear` is one layer; `mlp` two with a ReLU between, as wide as the representation inside."""
    assert [tuple(p.shape) for p in make_projector("linear", 32, 8).parameters()] == [(8, 32), (8,)]
    mlp = make_projector("mlp", 32, 8)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(32, 32), (32,), (8, 32), (8,)]
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.ReLU, nn.Linear]


def test_simsiams_projector_has_three_layers():
    """`mlp3-bn` has BatchNorm behind each of three layers, the last without parameters of its own."""
    projector = make_projector("mlp3-bn", 32, 8)
    assert [tuple(p.shape) for p in projector.parameters()] == [
        *((32, 32), (32,), (32,)),
        *((32, 32), (32,), (32,)),
        (8, 32),
    ]
    names = [type(layer).__name__ for layer in projector]
    assert names == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear", "BatchNorm1d"]


def test_the_projections_are_the_features_before_normalisation():
    """What a predictor reads has the features' directions and lengths of its own."""
    encoder = make_encoder().eval()
    projections, features = encoder.project(images(3)), encoder(images(3))
    for raw, vectors in zip(projections, features, strict=True):
        assert torch.allclose(raw / raw.norm(dim=1, keepdim=True), vectors, atol=1e-6)
        assert not torch.allclose(raw.norm(dim=1), torch.ones(3), atol=0.05)


def test_the_batchnorm_projector_takes_out_what_all_share():
    """`mlp-bn` gives each dimension mean 0 and variance 1 over the batch."""
    projector = make_projector("mlp-bn", 32, 8).train()
    vectors = projector(torch.randn(64, 32) + 100)
    assert torch.allclose(vectors.mean(0), torch.zeros(8), atol=1e-4)
    assert torch.allclose(vectors.var(0, correction=0), torch.ones(8), atol=1e-2)


def test_the_momentum_encoder_gets_no_gradient():
    """The follower starts equal, shares no memory, needs no gradient and stays where it is when the encoder learns."""
    encoder = make_encoder()
    follower = make_momentum_encoder(encoder)
    before = [parameter.clone() for parameter in follower.parameters()]
    assert follower.training
    assert not any(parameter.requires_grad for parameter in follower.parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    (encoder(images(4)).intra * follower(images(4)).intra).sum().backward()
    assert all(parameter.grad is None for parameter in follower.parameters())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, follower.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.999, 1.0])
def test_following_is_the_moving_average(momentum):
    """θ_k becomes m·θ_k + (1 - m)·θ_q, of every parameter and of no running statistic."""
    encoder = make_encoder()
    follower = make_momentum_encoder(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    encoder(images(4))
    expected = [
        momentum * k.double() + (1 - momentum) * q.double()
        for k, q in zip(follower.parameters(), encoder.parameters(), strict=True)
    ]
    statistics = [buffer.clone() for buffer in follower.buffers()]
    follow(follower, encoder, momentum)
    for parameter, value in zip(follower.parameters(), expected, strict=True):
        assert torch.allclose(parameter.double(), value, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(statistics, follower.buffers(), strict=True))


# --- groups


@pytest.mark.parametrize(("number", "num_groups", "sizes"), [(8, 2, (4, 4)), (10, 4, (3, 3, 2, 2)), (7, 3, (3, 2, 2))])
def test_groups_are_encoded_by_themselves(number, num_groups, sizes):
    """The features are those of each group encoded by hand, in the order of the batch; no group is one image."""
    encoder = make_encoder()
    order = torch.randperm(number, generator=torch.Generator().manual_seed(1))
    features = encode_in_groups(encoder, images(number), num_groups, order)
    start = 0
    for size in sizes:
        members = order[start : start + size]
        by_hand = encoder(images(number)[members])
        for got, expected in zip(features, by_hand, strict=True):
            assert torch.allclose(got[members], expected, atol=1e-6)
        start += size
    assert start == number


def test_a_key_does_not_depend_on_other_groups():
    """Changing an image changes the keys of its own group only, although BatchNorm uses the batch."""
    encoder = make_encoder()
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    batch = images(6)
    before = encode_in_groups(encoder, batch, 2, order)
    batch[3] += 1
    after = encode_in_groups(encoder, batch, 2, order)
    changed = [not torch.equal(a, b) for a, b in zip(before.intra, after.intra, strict=True)]
    assert changed == [True, False, False, True, False, True]


def test_one_group_is_the_whole_batch():
    """With one group, and for a batch too small for more, it is one pass; a single image works too."""
    encoder = make_encoder()
    order = torch.tensor([2, 0, 1])
    for num_groups in (1, 8):
        features = encode_in_groups(encoder, images(3), num_groups, order)
        assert torch.allclose(features.cycle, encoder(images(3)).cycle, atol=1e-6)
    assert encode_in_groups(encoder, images(1), 8, torch.tensor([0])).intra.shape == (1, 16)


def test_keys_carry_no_gradient():
    """Encoding in groups builds no graph, even with an encoder that learns."""
    features = encode_in_groups(make_encoder(), images(4), 2, torch.arange(4))
    assert not any(vectors.requires_grad for vectors in features)
