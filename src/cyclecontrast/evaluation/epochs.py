"""Training loop of evaluations (a head or a whole network): random views, epochs, and resuming."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cyclecontrast.config import FinetuneConfig, LinearConfig
from cyclecontrast.data.augment import Recipe, apply_view, draw_view
from cyclecontrast.data.images import Pixels, resize_short_side
from cyclecontrast.data.labeled_images import Split
from cyclecontrast.data.random_streams import ORDER, QUERY, random_stream
from cyclecontrast.errors import UserError, some
from cyclecontrast.evaluation.embed import exact_convolutions
from cyclecontrast.evaluation.image_batches import Crop, ImageBatch, Images, chunks, load_image_batches
from cyclecontrast.evaluation.resume_cache import ResumeCache

RECIPE = Recipe((0.0, 0.0, 0.0, 0.0), 0.0, 0.0, 0.0, min_crop=0.08, flip=True)
DROPOUT = 97
"""Purpose of the random stream that seeds dropout."""

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

    `parts_of(batch)` yields partial losses that sum to the loss of the batch; backward runs after each, so a batch can
    be split to save memory. `factor_of(epoch)` scales the optimizer's
    learning rates. After each epoch the state is cached under `name`; Random numbers depend only on (seed, epoch).
    Raises UserError if a loss is not finite, or an epoch has no batch.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    losses: list[float] = []
    if (state := cache.load_state(name)) is not None:
        losses = state["losses"]
        optimizer.load_state_dict(state["optimizer"])
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
    for epoch in range(len(losses), epochs):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor_of(epoch)
        with torch.random.fork_rng(), exact_convolutions():
            torch.manual_seed(int(random_stream(seed, epoch, 0, DROPOUT).integers(2**31)))
            losses.append(_train_epoch(name, optimizer, batches_of(epoch), parts_of))
        if not np.isfinite(losses[-1]):
            raise UserError(f"{name}: the loss is not finite in epoch {epoch + 1}; lower learning_rate ({rates[0]:g})")
        states = {key: module.state_dict() for key, module in modules.items()}
        cache.save_state(name, {"losses": losses, "modules": states, "optimizer": optimizer.state_dict()})
    return losses


def _train_epoch(
    name: str, optimizer: torch.optim.Optimizer, batches: Iterable[T], parts_of: Callable[[T], Iterable[Tensor]]
) -> float:
    total, num_steps = torch.zeros(()), 0
    for batch in batches:
        optimizer.zero_grad()
        for part in parts_of(batch):
            part.backward()  # type: ignore[no-untyped-call]
            total = total.to(part.device) + part.detach()
        optimizer.step()
        num_steps += 1
    if not num_steps:
        raise UserError(f"{name}: no batch has enough readable training images")
    return float(total) / num_steps


def step_decay(epochs: int, milestones: tuple[float, ...] = (0.6, 0.8), factor: float = 0.1) -> Callable[[int], float]:
    """Return the schedule that multiplies by `factor` after each of these fractions of the epochs."""
    return lambda epoch: float(factor ** sum(epoch >= milestone * epochs for milestone in milestones))


def shuffled_batches(seed: int, epoch: int, num_items: int, batch_size: int) -> list[Sequence[int]]:
    """Return all positions in the order of this epoch, in batches of which the last may be smaller."""
    return chunks(random_stream(seed, epoch, 0, ORDER).permutation(num_items).tolist(), batch_size)


@dataclass(frozen=True)
class EpochReader:
    """Reads the batches of epochs, and caches what could not be read in each, so that resuming reports it, too.

    `title` is the label of the progress bar; `items` describes the training data, such as "12 training images".
    """

    title: str
    items: str
    num_epochs: int
    workers: int
    cache: ResumeCache

    def read(
        self, epoch: int, images: Images, crop: Crop | None, batches: Sequence[Sequence[int]]
    ) -> Iterator[ImageBatch]:
        """Yield the batches of these positions without unreadable images; raises UserError where none is readable."""
        lost: list[int] = []
        problems: list[str] = []
        title = f"{self.title}, epoch {epoch + 1} of {self.num_epochs}"
        loaded = load_image_batches(images, crop, batches, self.workers, title, epoch, self.num_epochs)
        for positions, batch in zip(batches, loaded, strict=True):
            readable = set(batch.positions.tolist())
            lost += [position for position in positions if position not in readable]
            problems += batch.problems
            if readable:
                yield batch
        if len(lost) == sum(map(len, batches)):
            raise UserError(f"{self.title}: none of the {self.items} can be read", *some(problems))
        made = {"lost": np.array(lost, int), "problems": np.array(problems, str)}
        self.cache.arrays(f"unreadable in epoch {epoch}", lambda: made)

    def read_errors(self) -> Iterator[tuple[int, str]]:
        """Yield each position that could not be read, with a line, when all epochs are over; they may repeat."""
        for epoch in range(self.num_epochs):
            part = self.cache.arrays(f"unreadable in epoch {epoch}", dict)
            yield from zip(part["lost"].tolist(), part["problems"].tolist(), strict=True)

    def unread(self) -> dict[int, str]:
        """Return the positions that were unreadable in any epoch, sorted, with the first error message of each."""
        found: dict[int, str] = {}
        for position, line in self.read_errors():
            found.setdefault(position, line)
        return dict(sorted(found.items()))


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


@dataclass(frozen=True)
class RandomPlace(RandomView):
    """The short side scaled to the size, then a crop at a random place along the long side, without flip."""

    def __call__(self, image: Pixels, position: int) -> Pixels:
        """Return the crop (size, size, 3)."""
        rng = random_stream(self.seed, self.epoch, position, QUERY)
        image = resize_short_side(image, self.size)
        top, left = (int(rng.integers(side - self.size + 1)) for side in image.shape[:2])
        return image[top : top + self.size, left : left + self.size]


def train_classifier(
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    logits_of: Callable[[ImageBatch], Tensor],
    train: Split,
    config: LinearConfig | FinetuneConfig,
    image_size: int,
    reader: EpochReader,
    smallest_batch: int = 1,
    view: type[RandomView] = RandomView,
    decay: Callable[[int], float] | None = None,
) -> float:
    """Train on one random view of every image in each epoch; returns the mean cross-entropy of the last epoch.

    `decay` scales the learning rates in each epoch, by default `step_decay`.
    """
    labels = torch.from_numpy(train.labels)

    def batches_of(epoch: int) -> Iterator[ImageBatch]:
        batches = shuffled_batches(config.seed, epoch, len(train), config.batch_size)
        for batch in reader.read(epoch, train, view(config.seed, epoch, image_size), batches):
            if len(batch.positions) >= smallest_batch:
                yield batch

    def parts_of(batch: ImageBatch) -> Iterator[Tensor]:
        logits = logits_of(batch)
        yield nn.functional.cross_entropy(logits, labels[batch.positions].to(logits.device))

    decay = decay or step_decay(config.epochs)
    losses = train_epochs(
        reader.title, modules, optimizer, batches_of, parts_of, decay, config.epochs, config.seed, reader.cache
    )
    return losses[-1]
