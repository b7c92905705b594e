"""Two views of one video or more for every position of the training: a pure function of (seed, position).

So workers, resuming at any step and any number of processes see the same data.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cyclecontrast.data.augment import Recipe, apply_view, cut_view, draw_view, smallest_crop
from cyclecontrast.data.device_augment import numbers_of
from cyclecontrast.data.further_views import FurtherFrames, no_further
from cyclecontrast.data.images import Pixels, decode_image
from cyclecontrast.data.loader_workers import LONGEST_READ, QUIET_SECONDS, begin_worker, received
from cyclecontrast.data.own_augment import Augmentation, make_own_view
from cyclecontrast.data.permutation import Keys, draw_keys, shuffled
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError

QUERY, POSITIVE, FRAMES, ORDER, FURTHER_FRAMES, FURTHER = range(6)
"""Purposes of random numbers; further views count on from the last."""

NO_FRAMES = torch.empty(0, 0, dtype=torch.long)
NOTHING_LEFT = torch.empty(0, 0)
MOST_STAND_INS = 100
"""Videos in a row without any readable frame, after which the data as a whole count as unreadable."""


class BadFrame(NamedTuple):
    """A frame that cannot be read: the number of its video, its number there, and why."""

    video: int
    frame: int
    reason: str


class ViewPair(NamedTuple):
    """Two augmented frames of one video, and how many show another than was drawn, for one could not be read.

    `more` are further views, where wanted; `frames` numbers the frame of each view, query and positive first.
    `unreadable` names each frame that was tried in vain, once. `left` has, for each view, what `finish_views` does.
    """

    query: Pixels
    positive: Pixels
    video: int
    replaced: int
    more: tuple[Pixels, ...] = ()
    frames: tuple[int, ...] = ()
    unreadable: tuple[BadFrame, ...] = ()
    left: tuple[tuple[float, ...], ...] = ()


class Frame(NamedTuple):
    """A decoded frame and its number in the video."""

    image: Pixels
    number: int


class Made(NamedTuple):
    """A view, and the numbers of what is left to do to it: none where it is done."""

    pixels: Pixels
    left: tuple[float, ...] = ()


class Batch(NamedTuple):
    """Views as uint8 (batch, 3, size, size) in channels-last memory, and their video numbers (batch,).

    `frames` (batch, num_views) numbers the frame of each view in its video. `replaced` counts the views that show
    another frame than was drawn; `unreadable` names each frame that was tried in vain, once. `left` (batch, num_views,
    10) has what `finish_views` is to do to the views, and is empty where they are done.
    """

    query: Tensor
    positive: Tensor
    video: Tensor
    replaced: int
    more: tuple[Tensor, ...] = ()
    frames: Tensor = NO_FRAMES
    unreadable: tuple[BadFrame, ...] = ()
    left: Tensor = NOTHING_LEFT


def random_stream(seed: int, epoch: int, place: int, purpose: int) -> np.random.Generator:
    """Return the generator that belongs to these numbers and to nothing else."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, purpose, place, epoch]))


def video_at(seed: int, epoch: int, place: int, num_videos: int) -> int:
    """Return the video at a place of an epoch's order, which visits each once; no list of them is made."""
    return shuffled(place, num_videos, _order_keys(seed, epoch))


@lru_cache(maxsize=8)
def _order_keys(seed: int, epoch: int) -> Keys:
    return draw_keys(random_stream(seed, epoch, 0, ORDER))


class _NoFrameError(Exception):
    """No frame of a video can be read."""


@dataclass(frozen=True)
class FramePairs(Dataset[ViewPair]):
    """The sample at each position of the training; an epoch is one pass over the videos.

    With `same_frame` both views show one frame (Eq. 1), else two frames of the video (Eq. 2). Differs from the release
    where `distinct`: there they are drawn independently, and may be one. A video of one frame gives two views of it.
    `further` names the frames of further views. What does not decode is replaced: a frame by another of its video, a
    video without any by the next one; a storage that fails is an error, after pauses that `sleep` makes. `videos` names
    those that take part, without it all. With `cut_only` colours and blur are left to `finish_views`, which knows
    recipes only, no function of the user's.
    """

    store: FrameStore
    recipe: Recipe | Augmentation
    size: int
    seed: int
    same_frame: bool = False
    distinct: bool = True
    further: FurtherFrames = no_further
    videos: npt.NDArray[np.int64] | None = None
    sleep: Callable[[float], object] = time.sleep
    cut_only: bool = False

    @property
    def num_videos(self) -> int:
        """Number of videos that take part."""
        return self.store.num_videos if self.videos is None else len(self.videos)

    def __getitem__(self, position: int) -> ViewPair:
        epoch, place = divmod(position, self.num_videos)
        num_tried = min(MOST_STAND_INS, self.num_videos)
        bad: list[BadFrame] = []
        for stand_in in range(num_tried):
            number = video_at(self.seed, epoch, (place + stand_in) % self.num_videos, self.num_videos)
            try:
                pair = self._pair(number if self.videos is None else int(self.videos[number]), epoch, place, bad)
            except _NoFrameError:
                continue
            replaced = 2 + len(pair.more) if stand_in else pair.replaced
            return pair._replace(replaced=replaced, unreadable=tuple(dict.fromkeys(bad)))
        last = f"frame {bad[-1].frame} of {self.store.video_id(bad[-1].video)}: {bad[-1].reason}"
        raise UserError(f"{self.store.root}: no frame of {num_tried:,} videos can be read, the last is {last}")

    def _pair(self, video: int, epoch: int, place: int, bad: list[BadFrame]) -> ViewPair:
        num_frames = self.store.frames_in(video)
        first, second = self._choose(epoch, place, num_frames)
        query = self._readable(video, first, bad)
        positive = query if first == second else self._readable(video, second, bad, avoid=query.number)
        known = {first: query, second: positive}
        chosen = self.further(random_stream(self.seed, epoch, place, FURTHER_FRAMES), first, num_frames)
        frames = (query, positive, *(known.get(number) or self._readable(video, number, bad) for number in chosen))
        roles = (QUERY, POSITIVE, *range(FURTHER, FURTHER + len(chosen)))
        views = [self._view(frame.image, epoch, place, role) for frame, role in zip(frames, roles, strict=True)]
        numbers = tuple(frame.number for frame in frames)
        replaced = sum(number != wanted for number, wanted in zip(numbers, (first, second, *chosen), strict=True))
        query_view, positive_view, *more = (view.pixels for view in views)
        left = tuple(view.left for view in views if view.left)
        return ViewPair(query_view, positive_view, video, replaced, tuple(more), numbers, left=left)

    def _choose(self, epoch: int, place: int, num_frames: int) -> tuple[int, int]:
        rng = random_stream(self.seed, epoch, place, FRAMES)
        first = int(rng.integers(num_frames))
        if self.same_frame or num_frames == 1:
            return first, first
        if not self.distinct:
            return first, int(rng.integers(num_frames))
        return first, (first + 1 + int(rng.integers(num_frames - 1))) % num_frames

    def _view(self, image: Pixels, epoch: int, place: int, role: int) -> Made:
        rng = random_stream(self.seed, epoch, place, role)
        if not isinstance(self.recipe, Recipe):
            return Made(make_own_view(self.recipe, image, rng, self.size))
        view = draw_view(rng, image.shape[0], image.shape[1], self.recipe)
        if self.cut_only:
            return Made(cut_view(image, view, self.size), numbers_of(view))
        return Made(apply_view(image, view, self.size))

    def _readable(self, video: int, index: int, bad: list[BadFrame], avoid: int | None = None) -> Frame:
        """Return the frame or the next that can be read, and note the others; `avoid` only where there is no other."""
        others = chain(range(index, self.store.frames_in(video)), range(index))
        last = () if avoid is None else (avoid,)
        for candidate in chain((other for other in others if other != avoid), last):
            try:
                data = self.store.read_with_retry(video, candidate, self.sleep)
                return Frame(decode_image(data, self._enough()), candidate)
            except ValueError as error:
                bad.append(BadFrame(video, candidate, str(error)))
        raise _NoFrameError

    def _enough(self) -> int | None:
        """Return the short side of a frame that views are cut from without loss; a user's function gets all of it."""
        return math.ceil(self.size / smallest_crop(self.recipe)) if isinstance(self.recipe, Recipe) else None


@dataclass(frozen=True)
class _Batches(Dataset[Batch | UserError]):
    """Whole batches; an error is handed over as a value, for torch buries a raised one in the worker's traceback."""

    pairs: FramePairs

    def __getitem__(self, positions: range) -> Batch | UserError:
        try:
            return collate([self.pairs[position] for position in positions])
        except UserError as error:
            return error


def collate(pairs: list[ViewPair]) -> Batch:
    """Stack pairs; the images' memory is channels-last as OpenCV wrote it."""
    columns = zip(*((pair.query, pair.positive, *pair.more) for pair in pairs), strict=True)
    query, positive, *more = (torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2) for views in columns)
    video = torch.tensor([pair.video for pair in pairs])
    frames = torch.tensor([pair.frames for pair in pairs])
    unreadable = tuple(dict.fromkeys(frame for pair in pairs for frame in pair.unreadable))
    left = torch.tensor([pair.left for pair in pairs])
    replaced = sum(pair.replaced for pair in pairs)
    return Batch(query, positive, video, replaced, tuple(more), frames, unreadable, left)


def load_batches(
    pairs: FramePairs, steps: range, batch_size: int, rank: int, world: int, workers: int
) -> Iterator[Batch]:
    """Return this process's part of the batch of each step; `batch_size` counts all processes together.

    Raises UserError at once where the processes cannot share the batch, and later where no frame at all can be read,
    the storage fails, or a worker dies or hangs. Without workers a read that hangs is waited for.
    """
    share, rest = divmod(batch_size, world)
    if rest:
        raise UserError(f"batch_size: {batch_size} cannot be shared by {world} processes; name a multiple of {world}")
    starts = (step * batch_size + rank * share for step in steps)
    loader = DataLoader(
        _Batches(pairs),
        batch_size=None,
        sampler=(range(start, start + share) for start in starts),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        timeout=QUIET_SECONDS if workers else 0,
        worker_init_fn=begin_worker,
        pin_memory=torch.cuda.is_available(),
    )
    return received(iter(loader), pairs.store.root, LONGEST_READ + share)
