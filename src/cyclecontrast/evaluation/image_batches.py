"""Batches of images: decoded, cropped and stacked by worker processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cyclecontrast.data.images import Pixels, resize_short_side
from cyclecontrast.data.loader import CHECK_SECONDS, HANG_SECONDS, begin_worker, received
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Integers
from cyclecontrast.progress import with_progress

CROP_MARGIN = 8 / 7

T = TypeVar("T")


class Images(Protocol):
    """Images by position; `image` raises UserError, one line, for one that cannot be read."""

    def __len__(self) -> int: ...

    def image(self, position: int) -> Pixels:
        """Return RGB (height, width, 3)."""
        ...


@dataclass(frozen=True)
class StoreImages:
    """All frames of a store, one after the other."""

    store: FrameStore

    def __len__(self) -> int:
        return self.store.num_frames

    def image(self, position: int) -> Pixels:
        """Return the decoded frame; raises UserError naming it."""
        video = int(self.videos(np.array([position]))[0])
        return self.store.image(video, position - int(self.store.starts[video]))

    def videos(self, positions: Integers) -> Integers:
        """Return the video of each position."""
        videos: Integers = np.searchsorted(self.store.starts, positions, side="right") - 1
        return videos


class ImageBatch(NamedTuple):
    """Pixels uint8 (batch, 3, size, size) of the readable positions, and a line for each unreadable one."""

    positions: Tensor
    pixels: Tensor
    problems: tuple[str, ...]


Crop = Callable[[Pixels, int], Pixels]
"""Transforms the image at a position; all results have the same size."""


@dataclass(frozen=True)
class CenterCrop:
    """Scale the short side to 8/7 of the size (256 for 224), then crop the middle."""

    size: int

    def __call__(self, image: Pixels, position: int) -> Pixels:
        """Return the crop (size, size, 3), or those of several frames (num_frames, size, size, 3)."""
        if image.ndim == 4:
            return np.stack([self(frame, position) for frame in image])
        image = resize_short_side(image, round(self.size * CROP_MARGIN))
        top, left = (round((side - self.size) / 2) for side in image.shape[:2])
        return image[top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class _Cropped(Dataset[tuple[int, Pixels | str]]):
    """Dataset of (position, pixels), or (position, error message) for an unreadable image."""

    images: Images
    crop: Crop | None

    def __getitem__(self, position: int) -> tuple[int, Pixels | str]:
        try:
            image = self.images.image(position)
            return position, image if self.crop is None else self.crop(image, position)
        except UserError as error:
            return position, str(error)


def load_image_batches(
    images: Images,
    crop: Crop | None,
    batches: Sequence[Sequence[int]],
    workers: int,
    title: str,
    epoch: int = 0,
    epochs: int = 1,
) -> Iterator[ImageBatch]:
    """Yield the batches of these positions in order, and show the progress through all epochs."""
    workers = max(0, min(workers, len(batches) - 1))
    loader = DataLoader(
        _Cropped(images, crop),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_collate,
        num_workers=workers,
        worker_init_fn=begin_worker,
        timeout=CHECK_SECONDS if workers > 0 else 0,
        pin_memory=torch.cuda.is_available(),
    )
    batches_read = received(iter(loader), "the images", HANG_SECONDS + max(map(len, batches), default=0))
    yield from with_progress(batches_read, title, epochs * len(batches), epoch * len(batches))


def _collate(items: list[tuple[int, Pixels | str]]) -> ImageBatch:
    readable = [(position, pixels) for position, pixels in items if not isinstance(pixels, str)]
    problems = tuple(problem for _, problem in items if isinstance(problem, str))
    if not readable:
        return ImageBatch(torch.empty(0, dtype=torch.int64), torch.empty(0, 3, 1, 1, dtype=torch.uint8), problems)
    positions, pixels = zip(*readable, strict=True)
    return ImageBatch(torch.tensor(positions), torch.from_numpy(np.stack(pixels)).movedim(-1, -3), problems)


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split into parts of this size, in order; the last one may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]
