"""Epochs of training a head or a whole network for an evaluation: random views, the loop, and resuming after a stop."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cyclecontrast.data.augment import Recipe, apply_view, draw_view
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.random_streams import ORDER, QUERY, random_stream
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import exact_convolutions
from cyclecontrast.evaluation.image_batches import Crop, ImageBatch, Images, load_image_batches
from cyclecontrast.evaluation.resume_cache import ResumeCache

RECIPE = Recipe((0.0, 0.0, 0.0, 0.0), 0.0, 0.0, 0.0, min_crop=0.08, flip=True)
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
    cache: ResumeCache,
) -> list[float]:
    """Train on the batches of each epoch and return the mean loss of each; modules keep their modes.

    `parts_of(batch)` yields the parts that a batch's loss is the sum of; each is freed before the next is computed, so
    that a batch that does not fit into memory at once comes in several. `factor_of(epoch)` scales the optimizer's
    learning rates. After each epoch the state is cached under `name`; what is random depends on (seed, epoch) alone.
    Raises UserError where a loss is not finite.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = _restore(name, modules, optimizer, cache)
    for epoch in range(len(losses), epochs):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor_of(epoch)
        with torch.random.fork_rng(), exact_convolutions():
            torch.manual_seed(int(random_stream(seed, epoch, 0, DROPOUT).integers(2**31)))
            losses.append(_train_epoch(optimizer, batches_of(epoch), parts_of))
        if not np.isfinite(losses[-1]):
            raise UserError(f"{name}: the loss is not finite in epoch {epoch + 1}; lower learning_rate ({rates[0]:g})")
        states = {key: module.state_dict() for key, module in modules.items()}
        cache.save_state(name, {"losses": losses, "modules": states, "optimizer": optimizer.state_dict()})
    return losses


def _restore(
    name: str, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, cache: ResumeCache
) -> list[float]:
    state = cache.load_state(name)
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
    """Return the schedule that multiplies by `factor` after each of these fractions of the epochs."""
    return lambda epoch: float(factor ** sum(epoch >= milestone * epochs for milestone in milestones))


@dataclass(frozen=True)
class EpochReader:
    """Reads the batches of epochs, and caches what could not be read in each, so that resuming reports it, too.

    `title` stands beside the progress bar; `items` names what is trained on, as in "12 training images".
    """

    title: str
    items: str
    num_epochs: int
    workers: int
    cache: ResumeCache

    def read(self, epoch: int, images: Images, crop: Crop, batches: list[list[int]]) -> Iterator[ImageBatch]:
        """Yield the batches of these positions without unreadable images; raises UserError where none is readable."""
        lost: list[int] = []
        problems: list[str] = []
        title = f"{self.title}, epoch {epoch + 1} of {self.num_epochs}"
        loaded = load_image_batches(images, crop, batches, self.workers, title)
        for positions, batch in zip(batches, loaded, strict=True):
            readable = set(batch.positions.tolist())
            lost += [position for position in positions if position not in readable]
            problems += batch.problems
            if readable:
                yield batch
        if len(lost) == sum(map(len, batches)):
            raise UserError(f"{self.title}: none of the {self.items} can be read", *problems[:3])
        self.cache.arrays(_unread(epoch), lambda: {"lost": np.array(lost, int), "problems": np.array(problems, str)})

    def unread(self) -> dict[int, str]:
        """Return the positions that could not be read in some epoch, each with a line, when all epochs are over."""
        found: dict[int, str] = {}
        for epoch in range(self.num_epochs):
            part = self.cache.arrays(_unread(epoch), dict)
            found = dict(zip(part["lost"].tolist(), part["problems"].tolist(), strict=True)) | found
        return dict(sorted(found.items()))


def _unread(epoch: int) -> str:
    return f"unreadable in epoch {epoch}"


@dataclass(frozen=True)
class RandomView:
    """Random crop and flip of the image at a position: a function of (seed, epoch, position)."""

    seed: int
    epoch: int
    size: int

    def __call__(self, image: Pixels, position: int) -> Pixels:
        """Return the view (size, size, 3)."""
        rng = random_stream(self.seed, self.epoch, position, QUERY)
        return apply_view(image, draw_view(rng, image.shape[0], image.shape[1], RECIPE), self.size)


def random_view_batches(
    reader: EpochReader, images: Images, epoch: int, size: int, batch_size: int, seed: int
) -> Iterator[ImageBatch]:
    """Yield one random view (size, size) of every image, in the epoch's own order."""
    order = random_stream(seed, epoch, 0, ORDER).permutation(len(images)).tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return reader.read(epoch, images, RandomView(seed, epoch, size), batches)
