"""Everything that a step of the training reads or changes: made, saved and restored. It knows nothing of files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cyclecontrast.config import PretrainConfig
from cyclecontrast.loss.key_queue import KeyQueue
from cyclecontrast.loss.step import Objective
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.compiled import compiled
from cyclecontrast.models.encoders import Encoder, Features, Projections, make_momentum_encoder
from cyclecontrast.models.heads import Head
from cyclecontrast.training.distributed import World
from cyclecontrast.training.own import NOTHING_OWN, Own, objective_of


class Hardware(NamedTuple):
    """Where the training runs."""

    device: torch.device
    precision: str
    world: World


class Passes(NamedTuple):
    """How images go through the encoders in a step: by the networks that are saved, called as they are or compiled."""

    queries: Callable[[Tensor], Projections]
    keys: Callable[[Tensor], Features] | None


@dataclass(frozen=True)
class Training:
    """The networks, the optimizer and the queues; frozen, for a step changes their content only."""

    encoder: Encoder
    momentum_encoder: Encoder | None
    head: Head
    optimizer: torch.optim.SGD
    intra_queue: KeyQueue
    cycle_queue: KeyQueue
    objective: Objective
    config: PretrainConfig
    hardware: Hardware
    num_steps: int
    passes: Passes

    @property
    def learned(self) -> nn.ModuleList:
        """What the optimizer changes."""
        return nn.ModuleList((self.encoder, self.head))


def make_training(
    config: PretrainConfig, backbone: Backbone, num_steps: int, hardware: Hardware, own: Own = NOTHING_OWN
) -> Training:
    """Build encoders, head, optimizer and queues around a backbone, all on the device and in training mode."""
    device = hardware.device
    objective = objective_of(config, own)
    needs = objective.needs
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(config.seed)
        encoder = Encoder(backbone, config.projector, config.projector_dim).train()
        head = needs.make_head(config.projector_dim).train().to(device)
    encoder = encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    momentum_encoder = make_momentum_encoder(encoder) if needs.keys else None
    intra_queue_size = config.queue_size if needs.has_intra else 0
    cycle_queue_size = config.cycle_queue_size if needs.has_cycle else 1
    passes = Passes(encoder.project, momentum_encoder)
    return Training(
        encoder,
        momentum_encoder,
        head,
        _make_optimizer(encoder, head, config),
        KeyQueue(intra_queue_size, config.projector_dim, config.seed).to(device),
        KeyQueue(cycle_queue_size, config.projector_dim, config.seed + 1).to(device),
        objective,
        config,
        hardware,
        num_steps,
        _compiled(passes) if config.compile else passes,
    )


def _compiled(passes: Passes) -> Passes:
    return Passes(compiled(passes.queries), None if passes.keys is None else compiled(passes.keys))


def state_of(training: Training) -> dict[str, dict[str, Tensor]]:
    """Return every tensor that resuming needs, by part."""
    momenta = {
        str(number): training.optimizer.state[parameter]["momentum_buffer"]
        for number, parameter in enumerate(training.learned.parameters())
    }
    return {name: module.state_dict() for name, module in _modules(training).items()} | {"sgd": momenta}


def restore(training: Training, state: dict[str, dict[str, Tensor]]) -> None:
    """Put back what `state_of` returned."""
    for name, module in _modules(training).items():
        module.load_state_dict(state[name])
    for number, parameter in enumerate(training.learned.parameters()):
        training.optimizer.state[parameter]["momentum_buffer"].copy_(state["sgd"][str(number)])


def _modules(training: Training) -> dict[str, nn.Module]:
    names = ("encoder", "momentum_encoder", "head", "intra_queue", "cycle_queue")
    return {name: module for name in names if (module := getattr(training, name)) is not None}


def _make_optimizer(encoder: Encoder, head: Head, config: PretrainConfig) -> torch.optim.SGD:
    parts = [list(part.parameters()) for part in (encoder, head)]
    optimizer = torch.optim.SGD(
        [{"params": parameters} for parameters in parts if parameters],
        lr=config.learning_rate,
        momentum=config.sgd_momentum,
        weight_decay=config.weight_decay,
        fused=parts[0][0].device.type in ("cpu", "cuda"),
    )
    for parameter in (parameter for parameters in parts for parameter in parameters):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
