"""Encoders: unit vectors, projectors of the right layers, and a momentum encoder that no gradient reaches."""

import pytest
import torch
from torch import nn

from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.encoder import (
    Encoder,
    Predictor,
    make_momentum_encoder,
    make_projector,
    update_momentum_encoder,
)
from cyclecontrast.models.hardware import autocast


def make_encoder(projector="mlp", dim=16):
    """A small encoder in training mode."""
    torch.manual_seed(0)
    return Encoder(make_backbone("resnet10-small-w8"), projector, dim).train()


def images(number, seed=0):
    """Normalized images."""
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("projector", ["linear", "mlp", "mlp-bn", "mlp3-bn"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_are_unit_vectors_in_fp32(projector, precision):
    """Both projections have length 1 in fp32, also where the network runs in bf16."""
    encoder = make_encoder(projector)
    with autocast(torch.device("cpu"), precision):
        features = encoder(images(4))
    for vectors in features:
        assert (vectors.dtype, vectors.shape) == (torch.float32, (4, 16))
        assert torch.allclose(vectors.double().norm(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-6)
    assert not torch.allclose(features.intra, features.cycle, atol=0.1), "there are two projectors"


def test_features_are_the_normalized_projections():
    """Each vector is its projector's output of the backbone's representation, divided by its length."""
    encoder = make_encoder().eval()
    features, projections = encoder(images(3)), encoder.project(images(3))
    representation = encoder.backbone(images(3))
    projectors = encoder.intra_projector, encoder.cycle_projector
    for vectors, projection, projector in zip(features, projections, projectors, strict=True):
        raw = projector(representation)
        assert torch.allclose(projection, raw, atol=1e-5)
        assert torch.allclose(vectors, raw / raw.square().sum(1, keepdim=True).sqrt(), atol=1e-6)


def test_projectors_are_those_of_paper_release_and_simsiam():
    """`linear` is one layer, `mlp` two with a ReLU, `mlp3-bn` three with BatchNorm, the last without parameters."""
    assert [tuple(p.shape) for p in make_projector("linear", 32, 8).parameters()] == [(8, 32), (8,)]
    mlp = make_projector("mlp", 32, 8)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(32, 32), (32,), (8, 32), (8,)]
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.ReLU, nn.Linear]
    deep = make_projector("mlp3-bn", 32, 8)
    assert [tuple(p.shape) for p in deep.parameters()] == [*((32, 32), (32,), (32,)) * 2, (8, 32)]
    names = [type(layer).__name__ for layer in deep]
    assert names == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear", "BatchNorm1d"]


def test_the_batchnorm_projector_removes_what_all_share():
    """`mlp-bn` gives each dimension mean 0 and variance 1 over the batch."""
    torch.manual_seed(0)
    vectors = make_projector("mlp-bn", 32, 8).train()(torch.randn(64, 32) + 100)
    assert torch.allclose(vectors.mean(0), torch.zeros(8), atol=1e-4)
    assert torch.allclose(vectors.var(0, correction=0), torch.ones(8), atol=1e-2)


def test_a_predictor_returns_unit_vectors():
    """It has a hidden layer of the given width, and returns the unit vectors of the layers' output in fp32."""
    predictor = Predictor(16, 64).eval()
    assert [tuple(p.shape) for p in predictor.parameters()] == [(64, 16), (64,), (64,), (16, 64), (16,)]
    raw = predictor.layers(images(5).flatten(1)[:, :16])
    assert torch.allclose(predictor(images(5).flatten(1)[:, :16]), raw / raw.norm(dim=1, keepdim=True), atol=1e-6)


def test_the_momentum_encoder_gets_no_gradient():
    """It starts equal, shares no memory, needs no gradient and stays where it is when the encoder learns."""
    encoder = make_encoder()
    momentum_encoder = make_momentum_encoder(encoder)
    before = [parameter.clone() for parameter in momentum_encoder.parameters()]
    assert not any(parameter.requires_grad for parameter in momentum_encoder.parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    (encoder(images(4)).intra * momentum_encoder(images(4)).intra).sum().backward()
    assert all(parameter.grad is None for parameter in momentum_encoder.parameters())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, momentum_encoder.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.999, 1.0])
def test_following_is_the_moving_average(momentum):
    """θ_k becomes m·θ_k + (1 - m)·θ_q, of every parameter and of no running statistic."""
    encoder = make_encoder()
    momentum_encoder = make_momentum_encoder(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    encoder(images(4))
    expected = [
        momentum * k.double() + (1 - momentum) * q.double()
        for k, q in zip(momentum_encoder.parameters(), encoder.parameters(), strict=True)
    ]
    statistics = [buffer.clone() for buffer in momentum_encoder.buffers()]
    update_momentum_encoder(momentum_encoder, encoder, momentum)
    for parameter, value in zip(momentum_encoder.parameters(), expected, strict=True):
        assert torch.allclose(parameter.double(), value, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(statistics, momentum_encoder.buffers(), strict=True))
