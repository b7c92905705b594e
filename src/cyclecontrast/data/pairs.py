"""Two views of one video for every position of the training: a pure function of (seed, position).

So workers, resuming at any step and any number of processes see the same data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cyclecontrast.data.augment import Recipe, apply_view, draw_view
from cyclecontrast.data.frames import FrameStore, Pixels
from cyclecontrast.errors import UserError

QUERY, POSITIVE, FRAMES, ORDER = range(4)


class Sample(NamedTuple):
    """Two augmented frames of one video, and how many unreadable frames were replaced."""

    query: Pixels
    positive: Pixels
    video: int
    replaced: int


class Batch(NamedTuple):
    """Views as uint8 (batch, 3, size, size) in channels-last memory, and their video numbers (batch,)."""

    query: Tensor
    positive: Tensor
    video: Tensor
    replaced: int


def random_stream(seed: int, epoch: int, sample: int, purpose: int) -> np.random.Generator:
    """Return the generator that belongs to these numbers and to nothing else."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, purpose, sample, epoch]))


@lru_cache(maxsize=2)
def video_order(seed: int, epoch: int, num_videos: int) -> npt.NDArray[np.int64]:
    """Return the order in which an epoch visits the videos."""
    return random_stream(seed, epoch, 0, ORDER).permutation(num_videos)


@dataclass(frozen=True)
class FramePairs(Dataset[Sample]):
    """The sample at each position of the training; an epoch is one pass over the videos.

    With `same_frame` both views show one frame (Eq. 1), else two frames of the video (Eq. 2): distinct ones where
    `distinct` (Algorithm 1), or drawn independently, as in the release. A video of one frame gives two views of it.
    """

    store: FrameStore
    recipe: Recipe
    size: int
    seed: int
    same_frame: bool = False
    distinct: bool = True

    def __getitem__(self, position: int) -> Sample:
        epoch, place = divmod(position, self.store.num_videos)
        video = int(video_order(self.seed, epoch, self.store.num_videos)[place])
        first, second = self._choose(epoch, place, self.store.frames_in(video))
        query, query_replaced = self._view(video, first, epoch, place, QUERY)
        positive, positive_replaced = self._view(video, second, epoch, place, POSITIVE)
        return Sample(query, positive, video, query_replaced + positive_replaced)

    def _choose(self, epoch: int, place: int, num_frames: int) -> tuple[int, int]:
        rng = random_stream(self.seed, epoch, place, FRAMES)
        first = int(rng.integers(num_frames))
        if self.same_frame or num_frames == 1:
            return first, first
        if not self.distinct:
            return first, int(rng.integers(num_frames))
        return first, (first + 1 + int(rng.integers(num_frames - 1))) % num_frames

    def _view(self, video: int, index: int, epoch: int, place: int, role: int) -> tuple[Pixels, int]:
        image, replaced = self._readable(video, index)
        rng = random_stream(self.seed, epoch, place, role)
        return apply_view(image, draw_view(rng, image.shape[0], image.shape[1], self.recipe), self.size), replaced

    def _readable(self, video: int, index: int) -> tuple[Pixels, int]:
        num_frames = self.store.frames_in(video)
        for replaced in range(num_frames):
            try:
                return self.store.image(video, (index + replaced) % num_frames), replaced
            except UserError as error:
                last = error
        raise UserError(f"no frame of video {self.store.video_id(video)} can be read: {last}")


def collate(samples: list[Sample]) -> Batch:
    """Stack samples; the images' memory is channels-last as OpenCV wrote it."""
    query, positive = (
        torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        for views in ([s.query for s in samples], [s.positive for s in samples])
    )
    video = torch.tensor([s.video for s in samples])
    return Batch(query, positive, video, sum(s.replaced for s in samples))


def load_batches(pairs: FramePairs, steps: range, batch_size: int, rank: int, world: int, workers: int) -> Iterator[Batch]:
    """Yield this process's part of the batch of each step; `batch_size` counts all processes together."""
    share = batch_size // world
    starts = (step * batch_size + rank * share for step in steps)
    loader = DataLoader(
        pairs,
        batch_sampler=(list(range(start, start + share)) for start in starts),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_single_threaded,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def _single_threaded(_: int) -> None:
    cv2.setNumThreads(0)
