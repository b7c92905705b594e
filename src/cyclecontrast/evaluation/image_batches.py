"""Images → batches of pixels: decoded, cropped and stacked by worker processes; no network is involved."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cyclecontrast.data.images import Pixels, resize_short_side
from cyclecontrast.data.loader import CHECK_SECONDS, HANG_SECONDS, begin_worker, received
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Integers

CROP_MARGIN = 8 / 7


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


class _Item(NamedTuple):
    position: int
    pixels: Pixels | None
    problem: str


Crop = Callable[[Pixels, int], Pixels]
"""Transforms the image at a position; all results have the same size."""


@dataclass(frozen=True)
class CenterCrop:
    """Scale the short side to 8/7 of the size (256 for 224), then crop the middle."""

    size: int

    def __call__(self, image: Pixels, position: int) -> Pixels:
        """Return the crop (size, size, 3)."""
        image = resize_short_side(image, round(self.size * CROP_MARGIN))
        top, left = (round((side - self.size) / 2) for side in image.shape[:2])
        return image[top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class CenterCrops:
    """The centre crop of every frame."""

    size: int

    def __call__(self, frames: Pixels, position: int) -> Pixels:
        """Return the crops (num_frames, size, size, 3)."""
        crop = CenterCrop(self.size)
        return np.stack([crop(frame, position) for frame in frames])


@dataclass(frozen=True)
class _Cropped(Dataset[_Item]):
    images: Images
    crop: Crop

    def __getitem__(self, position: int) -> _Item:
        try:
            return _Item(position, self.crop(self.images.image(position), position), "")
        except UserError as error:
            return _Item(position, None, str(error))


def load_image_batches(
    images: Images, crop: Crop, batches: Sequence[Sequence[int]], workers: int, title: str
) -> Iterator[ImageBatch]:
    """Yield the batches of these positions in order, with a progress bar in a terminal."""
    workers = min(workers, len(batches) - 1)
    loader = DataLoader(
        _Cropped(images, crop),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_collate,
        num_workers=workers,
        worker_init_fn=begin_worker,
        timeout=CHECK_SECONDS if workers > 0 else 0,
        pin_memory=torch.cuda.is_available(),
    )
    console = Console(stderr=True)
    batches_read = received(iter(loader), "the images", HANG_SECONDS + max(map(len, batches), default=0))
    yield from track(
        batches_read, title, len(batches), console=console, disable=not console.is_terminal, transient=True
    )


def in_order(num_images: int, batch_size: int) -> list[range]:
    """Return the positions of all images, batch by batch."""
    return [range(start, min(start + batch_size, num_images)) for start in range(0, num_images, batch_size)]


def _collate(items: list[_Item]) -> ImageBatch:
    readable = [(item.position, item.pixels) for item in items if item.pixels is not None]
    problems = tuple(item.problem for item in items if item.pixels is None)
    if not readable:
        return ImageBatch(torch.empty(0, dtype=torch.int64), torch.empty(0, 3, 1, 1, dtype=torch.uint8), problems)
    positions, pixels = zip(*readable, strict=True)
    return ImageBatch(torch.tensor(positions), torch.from_numpy(np.stack(pixels)).movedim(-1, -3), problems)
