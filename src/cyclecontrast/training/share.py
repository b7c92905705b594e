"""What a process has of a step's batch, cut into parts that go through the encoder one after the other, and joined."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cyclecontrast.loss.step import Losses, Term
from cyclecontrast.models.encoders import Features
from cyclecontrast.models.heads import Encoded


class Share(NamedTuple):
    """Videos of the batch on the device: views by number, keys, and what the loss must know of them.

    Shapes: each view uint8 (num_videos, 3, size, size), video (num_videos,), frames (num_videos, num_views); `first` is
    the place of its first video in the batch of all processes.
    """

    pixels: dict[int, Tensor]
    keys: tuple[Features, ...]
    video: Tensor
    frames: Tensor
    first: int

    def parts(self, number: int) -> Iterator["Share"]:
        """Yield so many parts of equal size, in order."""
        size = len(self.video) // number
        for start in range(0, size * number, size):
            part = slice(start, start + size)
            yield Share(
                {view: pixels[part] for view, pixels in self.pixels.items()},
                tuple(Features(*(vectors[part] for vectors in key)) for key in self.keys),
                self.video[part],
                self.frames[part],
                self.first + start,
            )


class EncodedStep(NamedTuple):
    """A step's views after all networks: `answers` are the head's."""

    encoded: Encoded
    answers: tuple[Tensor, ...]


@torch.no_grad()
def join(parts: Sequence[EncodedStep]) -> EncodedStep:
    """Return the views of all parts as those of one, without their gradient."""
    encoded = [part.encoded for part in parts]
    return EncodedStep(
        Encoded(
            _joined([one.projections for one in encoded]),
            tuple(Features(*_joined(views)) for views in zip(*(one.queries for one in encoded), strict=True)),
            tuple(Features(*_joined(views)) for views in zip(*(one.keys for one in encoded), strict=True)),
        ),
        _joined([part.answers for part in parts]),
    )


def mean_losses(parts: Sequence[Losses]) -> Losses:
    """Return the mean of each term over parts of equal size, without its gradient."""
    total, intra, cycle = (_mean([getattr(part, name) for part in parts]) for name in ("total", "intra", "cycle"))
    more = zip(*(part.more for part in parts), strict=True)
    return Losses(total, intra, cycle, tuple(Term(terms[0].name, _mean([t.value for t in terms])) for terms in more))


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.detach() for value in values]).mean()


def _joined(columns: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*columns, strict=True))
