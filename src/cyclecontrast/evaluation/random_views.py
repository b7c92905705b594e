"""Random crops and flips of all training images, epoch by epoch: what classifiers are trained on (protocols.md §b)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cyclecontrast.data.augment import Recipe, apply_view, draw_view
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.pairs import ORDER, QUERY, random_stream
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.image_batches import ImageBatch, Images, load_image_batches
from cyclecontrast.evaluation.metrics import Integers
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished

RECIPE = Recipe((0.0, 0.0, 0.0, 0.0), 0.0, 0.0, 0.0, min_crop=0.08, flip=True)


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
class RandomViews:
    """One view of every image per epoch, in an order of the epoch's own; `title` stands beside the progress bar.

    What could not be read is kept for each epoch, so that it is told of after a stop, too.
    """

    images: Images
    seed: int
    size: int
    batch_size: int
    epochs: int
    workers: int
    title: str
    unfinished: Unfinished

    def batches(self, epoch: int) -> Iterator[ImageBatch]:
        """Yield the batches of an epoch; raises UserError where no image at all can be read."""
        order = random_stream(self.seed, epoch, 0, ORDER).permutation(len(self.images)).tolist()
        asked = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        title = f"{self.title}, epoch {epoch + 1} of {self.epochs}"
        lost: list[int] = []
        problems: list[str] = []
        views = RandomView(self.seed, epoch, self.size)
        loaded = load_image_batches(self.images, views, asked, self.workers, title)
        for positions, batch in zip(asked, loaded, strict=True):
            lost += sorted(set(positions) - set(batch.positions.tolist()))
            problems += batch.problems
            if len(batch.positions):
                yield batch
        if len(lost) == len(order):
            raise UserError(f"{self.title}: none of the {len(order):,} training images can be read", *problems[:3])
        self.unfinished.arrays(_part(epoch), lambda: {"lost": np.array(lost, int), "problems": np.array(problems, str)})

    def lost(self) -> Integers:
        """Return the positions that could not be read in some epoch, when all epochs are over."""
        return np.unique(np.concatenate([part["lost"] for part in self._parts()]))

    def problems(self) -> tuple[str, ...]:
        """Return a line for each image that could not be read, when all epochs are over."""
        return tuple(dict.fromkeys(str(line) for part in self._parts() for line in part["problems"]))

    def _parts(self) -> Iterator[Arrays]:
        for epoch in range(self.epochs):
            yield self.unfinished.arrays(_part(epoch), dict)


def _part(epoch: int) -> str:
    return f"unreadable in epoch {epoch}"
