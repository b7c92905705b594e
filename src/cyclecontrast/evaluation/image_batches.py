"""Batches of images: decoded, cropped and stacked by worker processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cyclecontrast.data.images import CROP_MARGIN, Pixels, center_crop
from cyclecontrast.data.loader import HANG_SECONDS, loaded
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError, explained, system_error
from cyclecontrast.evaluation.metrics import Integers
from cyclecontrast.progress import with_progress

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
    """Scale the short side to `margin` times the size (256 for 224), then crop the middle."""

    size: int
    margin: float = CROP_MARGIN

    def __call__(self, image: Pixels, position: int) -> Pixels:
        """Return the crop (size, size, 3), or those of several frames (num_frames, size, size, 3)."""
        if image.ndim == 4:
            return np.stack([self(frame, position) for frame in image])
        return center_crop(image, self.size, self.margin)


@dataclass(frozen=True)
class _Cropped(Dataset[tuple[int, Pixels | str | UserError]]):
    """Dataset of (position, pixels), or (position, error message) for an unreadable image."""

    images: Images
    crop: Crop | None

    def __getitem__(self, position: int) -> tuple[int, Pixels | str | UserError]:
        try:
            image = self.images.image(position)
            return position, image if self.crop is None else self.crop(image, position)
        except UserError as error:
            return position, str(error)
        except (OSError, MemoryError) as error:  # not a property of the image
            return position, UserError(explained(system_error(error) or OSError(str(error))))


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
    seconds = HANG_SECONDS + max(map(len, batches), default=0)
    cropped, pin_memory = _Cropped(images, crop), torch.cuda.is_available()
    batches_read = loaded(cropped, batches, _collate, workers, "the images", seconds, pin_memory)
    yield from with_progress(batches_read, title, epochs * len(batches), epoch * len(batches))


def _collate(items: list[tuple[int, Pixels | str | UserError]]) -> ImageBatch | UserError:
    if failure := next((pixels for _, pixels in items if isinstance(pixels, UserError)), None):
        return failure
    readable = [(position, pixels) for position, pixels in items if isinstance(pixels, np.ndarray)]
    problems = tuple(problem for _, problem in items if isinstance(problem, str))
    if not readable:
        return ImageBatch(torch.empty(0, dtype=torch.int64), torch.empty(0, 3, 1, 1, dtype=torch.uint8), problems)
    positions, pixels = zip(*readable, strict=True)
    return ImageBatch(torch.tensor(positions), torch.from_numpy(np.stack(pixels)).movedim(-1, -3), problems)


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split into parts of this size, in order; the last one may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]
