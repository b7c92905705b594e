"""The trainer: schedules, micro-batches, states that restore to the bit, and a loss that can be learned."""

import contextlib
import re

import pytest
import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.distributed import ALONE
from cyclecontrast.errors import UserError, checked
from cyclecontrast.methods import METHODS, StepInfo
from cyclecontrast.training.trainer import Trainer, learning_rate
from tests.unit.methods.make_methods import draw_batch, make_method, make_trainer


@pytest.mark.parametrize(
    ("progress", "schedule", "warmup", "expected"),
    [
        (0.0, "cosine", 0.0, 1.0),
        (0.5, "cosine", 0.0, 0.5),
        (1.0, "cosine", 0.0, 0.0),
        (1 / 3, "cosine", 0.0, 0.75),
        (0.05, "cosine", 0.1, 0.5),
        (0.1, "cosine", 0.1, 1.0),
        (0.55, "cosine", 0.1, 0.5),
        (0.0, "step", 0.0, 1.0),
        (119 / 200, "step", 0.0, 1.0),
        (120 / 200, "step", 0.0, 0.1),
        (160 / 200, "step", 0.0, 0.01),
        (0.0, "step", 0.1, 0.0),
    ],
)
def test_learning_rate(progress, schedule, warmup, expected):
    """The rate follows half a cosine or the steps of MoCo (epochs 120 and 160 of 200), after a linear warm-up."""
    assert learning_rate(0.06, progress, schedule, warmup) == pytest.approx(0.06 * expected, abs=1e-9)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_restored_trainer_continues_to_the_bit(name):
    """Steps after a restored state give the same bits as steps that were never interrupted."""
    views = {"vince": 8, "seco": 4}.get(name, 2)
    whole, part = make_trainer(name), make_trainer(name)
    whole.train_step(draw_batch(views, 1), StepInfo(0, 10))
    part.load_state_dict({key: value.clone() for key, value in whole.state_dict().items()})
    results = [trainer.train_step(draw_batch(views, 2), StepInfo(1, 10)) for trainer in (whole, part)]
    assert results[0][0].total.item() == results[1][0].total.item()
    assert all(torch.equal(value, part.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("name", list(METHODS))
def test_a_step_stays_on_its_device_and_never_waits_for_it(name, monkeypatch):
    """On a device without numbers, mixing devices or reading a number is an error; a step with augmentation runs there.

    So on a GPU all tensors are on the GPU, and its host does not wait for it between two lines of metrics.
    """
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown for this device
    method = make_method(name, top_k=5, gradient_clip=1.0)
    device, views = torch.device("meta"), {"vince": 8, "seco": 4}.get(name, 2)
    trainer, batch = Trainer(method, method.options, 10, device, ALONE), draw_batch(views)
    numbers = torch.tensor([1.2, 0.8, 1.1, 0.05, 3, 1, 0, 2, 0, 0.7]).repeat(len(batch.video), views, 1)
    losses, norm = trainer.train_step(batch._replace(device_params=numbers), StepInfo(9, 10))  # with λ
    momenta = [trainer.optimizer.state[parameter]["momentum_buffer"] for parameter in method.trainable_parameters()]
    tensors = (*method.parameters(), *method.buffers(), *momenta, losses.total, norm, trainer._first_bad_step)
    assert {tensor.device for tensor in tensors} == {device}
    with pytest.raises((NotImplementedError, RuntimeError)):
        losses.total.item()


def test_a_state_of_another_network_is_refused():
    """A state with other shapes raises RuntimeError, which names them."""
    state = make_trainer(projector_dim=8).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_trainer().load_state_dict(state)


def test_the_gradient_of_micro_batches_is_their_mean():
    """With accumulate 2 the gradient is the mean of those of both halves, and both halves' keys are enqueued."""
    batch = draw_batch(num_videos=8)
    halves = []
    for micro_batch in batch.micro_batches(2):
        alone = make_trainer("intra-video", momentum=0.5)
        alone.train_step(micro_batch, StepInfo(0, 10))
        halves.append([p.grad.clone() for p in alone.method.trainable_parameters() if p.grad is not None])
    both = make_trainer("intra-video", accumulate=2, momentum=0.5)
    losses, _ = both.train_step(batch, StepInfo(0, 10, measure=True))
    found = [p.grad for p in both.method.trainable_parameters() if p.grad is not None]
    for first, second, gradient in zip(*halves, found, strict=True):
        # BatchNorm's running statistics do not enter, so the halves are independent.
        assert torch.allclose(gradient, (first + second) / 2, atol=1e-5)
    assert both.method.intra_queue.video[-8:].tolist() == list(range(8))
    assert losses.intra_accuracy is not None


def test_the_norm_of_the_gradient_can_be_limited():
    """With gradient_clip a step of plain SGD is as long as the learning rate times that norm; the metric is not."""
    trainer = make_trainer("simclr", gradient_clip=0.01, sgd_momentum=0.0, weight_decay=0.0)
    before = [weight.detach().clone() for weight in trainer.method.trainable_parameters()]
    _, norm = trainer.train_step(draw_batch(), StepInfo(0, 10))
    moves = [now.detach() - old for now, old in zip(trainer.method.trainable_parameters(), before, strict=True)]
    assert torch.nn.utils.get_total_norm(moves).item() == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert norm.item() > 0.01


def test_numbers_that_are_not_finite_end_the_training():
    """A loss that is not finite is reported with its step, and weights that explode behind a finite loss too."""
    trainer = make_trainer("intra-video")
    with torch.no_grad():
        trainer.method.encoder.intra_projector[-2].weight.fill_(float("nan"))
    for step in (3, 4):
        trainer.train_step(draw_batch(), StepInfo(step, 10))
    with pytest.raises(UserError, match="not finite at step 4; lower --learning-rate"):
        trainer.check_finite()
    trainer = make_trainer("intra-video")
    with torch.no_grad():
        trainer.method.encoder.intra_projector[-2].weight.fill_(1e7)
    with pytest.raises(UserError, match="the weights diverge, the largest is 1e\\+07"):
        trainer.check_finite()


# --- continuing from given weights


def states_of(num_steps, **options):
    """Return the tensors of a method before and after each step of a training from given weights."""
    trainer = make_trainer("intra-video", init="given", weight_decay=0.0, momentum_ramp=0, **options)
    states = []
    for step in range(num_steps + 1):
        states.append({name: value.clone() for name, value in trainer.method.state_dict().items()})
        trainer.train_step(draw_batch(2, step), StepInfo(step, 10))
    return states


def test_projectors_can_be_trained_first():
    """For the fraction `projector_first` only projectors and BatchNorm statistics change; then the backbone as well."""
    start, *states = states_of(4, projector_first=0.2)
    weights = [name for name in start if name.startswith("encoder.backbone") and name.endswith("conv1.weight")]
    for step, state in enumerate(states):
        assert {torch.equal(state[name], start[name]) for name in weights} == {step < 2}
    for name in ("encoder.intra_projector.0.weight", "encoder.backbone.network.bn1.running_mean"):
        assert not torch.equal(states[0][name], start[name])


def test_stages_can_be_frozen():
    """With `freeze` 1 the stem and the first stage keep weights and statistics, in both encoders; the others learn."""
    start, _, end = states_of(2, freeze=1)
    for name in [name for name in start if "backbone" in name and "num_batches" not in name]:
        is_frozen = re.search(r"network\.(conv1|bn1|layer1)", name)
        assert torch.equal(end[name], start[name]) == bool(is_frozen), name


def test_batchnorm_can_be_frozen():
    """With `freeze_batchnorm` both backbones keep and use their statistics: an image is encoded without the others.

    The scale of BatchNorm and the statistics of the projectors are trained.
    """
    trainer = make_trainer("intra-video", init="given", freeze_batchnorm=True)
    start = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    for step in range(3):
        trainer.train_step(draw_batch(2, step), StepInfo(step, 10))
    end = trainer.method.state_dict()
    statistics = [name for name in start if "backbone" in name and "running" in name]
    assert len(statistics) > 20
    assert all(torch.equal(start[name], end[name]) for name in statistics)
    for name in ("encoder.backbone.network.bn1.weight", "encoder.intra_projector.1.running_mean"):
        assert not torch.equal(start[name], end[name])
    images = torch.randn(4, 3, 32, 32)
    for encoder in (trainer.method.encoder, trainer.method.momentum_encoder):
        torch.testing.assert_close(encoder.backbone(images)[:1], encoder.backbone(images[:1]), rtol=1e-4, atol=1e-5)


def test_the_backbone_can_have_its_own_rate():
    """A first step of SGD changes the backbone by `backbone_rate` times as much, the projectors by the same."""
    (start, full), (_, quarter) = (states_of(1, backbone_rate=rate) for rate in (1.0, 0.25))
    name = "encoder.backbone.network.layer2.0.conv1.weight"
    torch.testing.assert_close(quarter[name] - start[name], (full[name] - start[name]) / 4, rtol=1e-3, atol=1e-7)
    assert torch.equal(full["encoder.intra_projector.0.weight"], quarter["encoder.intra_projector.0.weight"])


def test_rates_decay_by_layer():
    """With `layer_decay` a first step of SGD changes each block half as much as the next; the last as without it."""
    options = {"backbone": "timm:test_vit", "momentum": 0.5}
    (start, full), (_, decayed) = (states_of(1, layer_decay=decay, **options) for decay in (1.0, 0.5))
    names = ["cls_token", *(f"blocks.{number}.attn.qkv.weight" for number in range(6)), "norm.bias"]
    for name, depth in zip(names, [6, 5, 4, 3, 2, 1, 0, 0], strict=True):
        key = f"encoder.backbone.network.{name}"
        moved = (full[key] - start[key]) / 2**depth
        assert moved.abs().max() > 0
        torch.testing.assert_close(decayed[key] - start[key], moved, rtol=1e-2, atol=1e-6)
    with pytest.raises(
        UserError, match="layer_decay: resnet10-small-w8 is not a network of timm; remove --layer-decay"
    ):
        make_trainer("intra-video", init="given", layer_decay=0.5)


@pytest.mark.parametrize(
    "option", [{"freeze": 1}, {"freeze_batchnorm": True}, {"layer_decay": 0.5}, {"projector_first": 0.1}]
)
def test_random_weights_are_not_spared(option):
    """Options that spare given weights are refused for random ones."""
    with pytest.raises(UserError, match=f"{next(iter(option))} needs pretrained weights: set --init"):
        checked(PretrainConfig, {"data": "d", "out": "o"} | option)
