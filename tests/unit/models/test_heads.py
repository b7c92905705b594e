"""Heads: predictors of the right widths, and an order that is read from the query and two other frames."""

import torch
from torch import nn

from cyclecontrast.models.encoders import Features
from cyclecontrast.models.heads import (
    Encoded,
    NoHead,
    OrderHead,
    make_bottleneck_predictor,
    make_wide_predictor,
)
from tests.unit.loss.test_losses import unit


def draw_encoded(dim=8, num_queries=2, num_keys=3):
    """Draw projections and features of a few views of five images."""
    features = [Features(unit(5, dim, seed), unit(5, dim, seed + 50)) for seed in range(num_queries + num_keys)]
    projections = tuple(3 * query.intra for query in features[:num_queries])
    return Encoded(projections, tuple(features[:num_queries]), tuple(features[num_queries:]))


def test_predictors_are_as_wide_as_their_sources():
    """SimSiam's is a bottleneck of a quarter (2048-512-2048), BYOL's sixteen times as wide (256-4096-256)."""
    for made, dim, hidden in ((make_bottleneck_predictor, 2048, 512), (make_wide_predictor, 256, 4096)):
        layers = made(dim).layers
        assert [type(layer) for layer in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert [tuple(p.shape) for p in layers.parameters()] == [
            *((hidden, dim), (hidden,), (hidden,)),
            *((dim, hidden), (dim,)),
        ]


def test_a_predictor_answers_for_each_query():
    """Each answer is the unit vector of the layers' output for that view's projection, in fp32."""
    predictor, encoded = make_bottleneck_predictor(8).eval(), draw_encoded()
    answers = predictor(encoded)
    for answer, projection in zip(answers, encoded.projections, strict=True):
        raw = predictor.layers(projection)
        assert torch.allclose(answer, raw / raw.norm(dim=1, keepdim=True), atol=1e-6)


def test_the_order_is_read_from_the_query_and_the_other_frames():
    """Logits come of the frame-level vectors of query, second and third key; the gradient reaches the query alone."""
    head, encoded = OrderHead(8), draw_encoded(num_queries=1)
    vectors = [encoded.queries[0].cycle, encoded.keys[1].cycle, encoded.keys[2].cycle]
    for vector in vectors:
        vector.requires_grad_()
    (logits,) = head(encoded)
    assert torch.allclose(logits, torch.cat(vectors, 1) @ head.layer.weight.T + head.layer.bias, atol=1e-6)
    logits.sum().backward()
    assert [vector.grad is not None for vector in vectors] == [True, False, False]


def test_no_head_has_nothing():
    """An objective without a head saves nothing and gets no answers."""
    assert NoHead()(draw_encoded()) == ()
    assert not NoHead().state_dict()
