"""One step of the training: what it changes, and that each term of the loss can be learned."""

import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.pairs import Batch
from cyclecontrast.loss.objectives import OBJECTIVES
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.distributed import World
from cyclecontrast.training.train_step import _encode, _gather_inputs, _take_share, train_step
from cyclecontrast.training.training import Hardware, make_training, restore, state_of

HARDWARE = Hardware(torch.device("cpu"), "fp32", World(0, 1))


def make(**changes):
    """Build a small training with the full method."""
    settings = {
        "projector": "mlp-bn",
        "queue_size": 32,
        "cycle_queue_size": 32,
        "support_size": 12,
        "bn_groups": 2,
        "batch_keys": True,
        "temperature": 0.2,
        "learning_rate": 0.1,
        "schedule": "cosine",
    }
    config = PretrainConfig(data="d", out="o", **(settings | changes))
    return make_training(config, make_backbone("resnet10-small-w8"), 10, HARDWARE)


def draw_batch(seed=0):
    """Draw views of eight videos."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randint(0, 256, (2, 8, 16, 16, 3), generator=generator, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    return Batch(views[0], views[1], torch.arange(8), 0)


def test_a_step_changes_what_it_should():
    """A step moves the encoder, lets the momentum encoder follow, and enqueues the keys with their videos."""
    training = make(momentum=0.9)
    before = {name: {k: v.clone() for k, v in part.items()} for name, part in state_of(training).items()}
    train_step(training, draw_batch(), 0)
    after = state_of(training)
    weight = "backbone.network.layer1.0.conv1.weight"
    old, new = before["encoder"][weight], after["encoder"][weight]
    assert not torch.equal(old, new)
    followed = 0.9 * before["momentum_encoder"][weight] + 0.1 * new
    assert torch.allclose(after["momentum_encoder"][weight], followed, atol=1e-7)
    assert after["intra_queue"]["video"].tolist() == [-1] * 24 + list(range(8))
    assert torch.equal(after["intra_queue"]["keys"][:24], before["intra_queue"]["keys"][8:])


def test_the_momentum_encoder_gets_no_gradient():
    """After a step no parameter of the momentum encoder has a gradient, and every one of the encoder has one."""
    training = make(cycle_start=0.0)
    train_step(training, draw_batch(), 0)
    assert all(parameter.grad is None for parameter in training.momentum_encoder.parameters())
    assert all(parameter.grad is not None for parameter in training.encoder.parameters())


def test_restoring_a_state_goes_on_as_if_nothing_had_happened():
    """Steps behind a restored state give the same bits as steps that were never interrupted."""
    whole, part = make(), make(seed=9)
    train_step(whole, draw_batch(1), 0)
    restore(part, {name: {k: v.clone() for k, v in values.items()} for name, values in state_of(whole).items()})
    object.__setattr__(part, "config", whole.config)
    results = [train_step(training, draw_batch(2), 1) for training in (whole, part)]
    assert results[0].losses.total.item() == results[1].losses.total.item()
    for name, values in state_of(whole).items():
        assert all(torch.equal(value, state_of(part)[name][key]) for key, value in values.items())


def test_the_cycle_can_be_learned():
    """Minimised on one batch against fixed keys, the cycle loss alone falls well below where it began."""
    training, batch = make(cycle_weight=1.0, batch_keys=False), draw_batch()
    optimizer = torch.optim.SGD(training.encoder.parameters(), lr=0.05, momentum=0.9)
    losses, share = [], _take_share(training, batch, 0)
    for _ in range(60):
        inputs = _gather_inputs(training, _encode(training, share), share, None, 0)
        loss = OBJECTIVES["cycle"].losses(inputs).cycle
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
