"""One step of the method, and everything that a step reads or changes. It knows nothing of files or of people."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.pairs import Batch
from cyclecontrast.loss.key_queue import KeyQueue
from cyclecontrast.loss.objectives import OBJECTIVES, Candidates, Losses, LossSettings, Objective, Step
from cyclecontrast.model.backbone import Backbone
from cyclecontrast.model.encoders import Encoder, Features, follow, make_momentum_encoder
from cyclecontrast.model.hardware import autocast
from cyclecontrast.train.distributed import World, average_gradients, encode_keys, gather
from cyclecontrast.train.schedule import cycle_weight, encoder_momentum, learning_rate

MODULES = ("encoder", "momentum_encoder", "intra_queue", "cycle_queue")


class Hardware(NamedTuple):
    """Where the training runs."""

    device: torch.device
    precision: str
    world: World


@dataclass(frozen=True)
class Training:
    """The networks, the optimizer and the queues; frozen, for a step changes their content only."""

    encoder: Encoder
    momentum_encoder: Encoder
    optimizer: torch.optim.SGD
    intra_queue: KeyQueue
    cycle_queue: KeyQueue
    objective: Objective
    config: PretrainConfig
    hardware: Hardware
    num_steps: int


class FreshKeys(NamedTuple):
    """The keys of this step, of all processes, and the videos they come from."""

    intra: Tensor
    cycle: Tensor
    video: Tensor


class StepResult(NamedTuple):
    """What a step computed, before anything was enqueued."""

    losses: Losses
    inputs: Step
    gradient_norm: Tensor


def make_training(config: PretrainConfig, backbone: Backbone, num_steps: int, hardware: Hardware) -> Training:
    """Build encoders, optimizer and queues around a backbone, all on the device and in training mode."""
    device = hardware.device
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(config.seed)
        encoder = Encoder(backbone, config.projector, config.projector_dim).train()
    encoder = encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        encoder.parameters(),
        lr=config.learning_rate,
        momentum=config.sgd_momentum,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    for parameter in encoder.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    objective = OBJECTIVES[config.objective]
    cycle_queue_size = config.cycle_queue_size if objective.has_cycle else 1
    return Training(
        encoder,
        make_momentum_encoder(encoder),
        optimizer,
        KeyQueue(config.queue_size, config.projector_dim, config.seed).to(device),
        KeyQueue(cycle_queue_size, config.projector_dim, config.seed + 1).to(device),
        objective,
        config,
        hardware,
        num_steps,
    )


def train_step(training: Training, batch: Batch, step: int) -> StepResult:
    """Update the encoder, then the momentum encoder, then the queues (Algorithm 1)."""
    query, positive = _encode(training, batch, step)
    inputs, fresh = _gather_inputs(training, query, positive, batch.video, step)
    losses = training.objective.losses(inputs)
    training.optimizer.zero_grad()
    losses.total.backward()  # type: ignore[no-untyped-call]
    gradient_norm = _update(training, step)
    momentum = encoder_momentum(training.config.momentum, step, training.config.momentum_ramp)
    follow(training.momentum_encoder, training.encoder, momentum)
    _enqueue(training, fresh)
    return StepResult(losses, inputs, gradient_norm)


def state_of(training: Training) -> dict[str, dict[str, Tensor]]:
    """Return every tensor that resuming needs, by part."""
    momenta = {
        str(number): training.optimizer.state[parameter]["momentum_buffer"]
        for number, parameter in enumerate(training.encoder.parameters())
    }
    return {name: getattr(training, name).state_dict() for name in MODULES} | {"sgd": momenta}


def restore(training: Training, state: dict[str, dict[str, Tensor]]) -> None:
    """Put back what `state_of` returned."""
    for name in MODULES:
        getattr(training, name).load_state_dict(state[name])
    for number, parameter in enumerate(training.encoder.parameters()):
        training.optimizer.state[parameter]["momentum_buffer"].copy_(state["sgd"][str(number)])


def _encode(training: Training, batch: Batch, step: int) -> tuple[Features, Features]:
    """Encode both views (Algorithm 1).

    Differs from the release, which encodes three: a second view of the query's frame is enqueued there, here it is the
    positive; and its keys share BatchNorm in twos, here in the groups of `bn_groups`.
    """
    config, (device, precision, world) = training.config, training.hardware
    normalise = training.encoder.backbone.normalise
    query_images, key_images = (normalise(pixels.to(device, non_blocking=True)) for pixels in batch[:2])
    with autocast(device, precision):
        query = training.encoder(query_images)
        positive = encode_keys(training.momentum_encoder, key_images, config.bn_groups, _seed(config, step), world)
    return query, positive


def _gather_inputs(
    training: Training, query: Features, positive: Features, video: Tensor, step: int
) -> tuple[Step, FreshKeys]:
    config, (device, _, world) = training.config, training.hardware
    video = video.to(device, non_blocking=True)
    fresh = FreshKeys(gather(positive.intra, world), gather(positive.cycle, world), gather(video, world))
    settings = LossSettings(
        config.temperature, config.support_size, config.top_k, config.mask_own_video, config.split_by
    )
    first = world.rank * len(video)
    places = torch.arange(first, first + len(video), device=device) if config.batch_keys else None
    inputs = Step(
        query,
        positive,
        video,
        _candidates(training.intra_queue, fresh.intra, fresh.video, places),
        _candidates(training.cycle_queue, fresh.cycle, fresh.video, places),
        cycle_weight(config.cycle_weight, step / training.num_steps, config.cycle_start),
        _seed(config, step) * world.size + world.rank,
        settings,
    )
    return inputs, fresh


def _candidates(queue: KeyQueue, keys: Tensor, video: Tensor, places: Tensor | None) -> Candidates:
    """Return the queue's keys, and with `places` of the positives in the batch, the batch's keys behind them.

    Differs from the release with the batch's keys: old keys alone are told from new ones by their age (docs/log.md).
    """
    if places is None:
        return Candidates(queue.keys, queue.video)
    joined = torch.cat((queue.keys, keys)), torch.cat((queue.video, video))
    return Candidates(*joined, place=len(queue.keys) + places)


def _seed(config: PretrainConfig, step: int) -> int:
    return config.seed * 1_000_003 + step


def _update(training: Training, step: int) -> Tensor:
    config = training.config
    average_gradients(training.encoder, training.hardware.world)
    gradients = [p.grad for p in training.encoder.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.gradient_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(training.encoder.parameters(), config.gradient_clip, norm)
    done = step / training.num_steps
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(config.learning_rate, done, config.schedule, config.warmup)
    training.optimizer.step()
    return norm


def _enqueue(training: Training, fresh: FreshKeys) -> None:
    training.intra_queue.push(fresh.intra, fresh.video)
    if training.objective.has_cycle:
        training.cycle_queue.push(fresh.cycle, fresh.video)
