"""Epochs of training a head or a whole network for an evaluation, which go on where they were stopped."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cyclecontrast.data.pairs import random_stream
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embeddings import exact_convolutions
from cyclecontrast.evaluation.unfinished import Unfinished

DROPOUT = 97
"""Names the stream of random numbers that layers draw from while they are trained."""

T = TypeVar("T")


def train_epochs(
    name: str,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    batches_of: Callable[[int], Iterable[T]],
    parts_of: Callable[[T], Iterable[Tensor]],
    factor_of: Callable[[int], float],
    epochs: int,
    seed: int,
    unfinished: Unfinished,
) -> list[float]:
    """Train on the batches of each epoch and return the mean loss of each; modules keep the mode that they have.

    `parts_of(batch)` yields the parts that a batch's loss is the sum of; each is forgotten before the next is computed,
    so that what does not fit into memory at once comes in several. `factor_of(epoch)` scales the learning rates that
    the optimizer came with. After each epoch the state is kept under `name`; what is random depends on (seed, epoch)
    alone. Raises UserError where a loss is not finite.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = _restore(name, modules, optimizer, unfinished)
    for epoch in range(len(losses), epochs):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor_of(epoch)
        with torch.random.fork_rng(), exact_convolutions():
            torch.manual_seed(int(random_stream(seed, epoch, 0, DROPOUT).integers(2**31)))
            losses.append(_train_epoch(optimizer, batches_of(epoch), parts_of))
        if not np.isfinite(losses[-1]):
            raise UserError(f"{name}: the loss is not finite in epoch {epoch + 1}; lower learning_rate ({rates[0]:g})")
        states = {key: module.state_dict() for key, module in modules.items()}
        unfinished.save_state(name, {"losses": losses, "modules": states, "optimizer": optimizer.state_dict()})
    return losses


def _restore(
    name: str, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, unfinished: Unfinished
) -> list[float]:
    state = unfinished.load_state(name)
    if state is None:
        return []
    for key, module in modules.items():
        module.load_state_dict(state["modules"][key])
    optimizer.load_state_dict(state["optimizer"])
    losses: list[float] = state["losses"]
    return losses


def _train_epoch(
    optimizer: torch.optim.Optimizer, batches: Iterable[T], parts_of: Callable[[T], Iterable[Tensor]]
) -> float:
    total, num_steps = torch.zeros(()), 0
    for batch in batches:
        optimizer.zero_grad()
        for part in parts_of(batch):
            part.backward()  # type: ignore[no-untyped-call]
            total = total.to(part.device) + part.detach()
        optimizer.step()
        num_steps += 1
    return float(total) / max(num_steps, 1)


def step_decay(epochs: int, milestones: tuple[float, ...] = (0.6, 0.8), factor: float = 0.1) -> Callable[[int], float]:
    """Return the schedule that multiplies by `factor` when each of these parts of the epochs is over."""
    return lambda epoch: float(factor ** sum(epoch >= milestone * epochs for milestone in milestones))
