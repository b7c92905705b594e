"""The training dataset: each position gives two or more random views of a video, as a function of (seed, position).

The data therefore depends neither on the number of workers and processes nor on interruptions.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cyclecontrast.data.augment import Augmentation, Recipe, apply_view, crop_view, draw_view, smallest_crop, user_view
from cyclecontrast.data.device_augment import augmentation_params
from cyclecontrast.data.images import CROP_MARGIN, Pixels, center_crop, decode_image
from cyclecontrast.data.random_streams import (
    EXTRA_FRAMES,
    EXTRA_VIEWS,
    FRAMES,
    POSITIVE,
    QUERY,
    random_stream,
    shuffled,
)
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError

ExtraFrames: TypeAlias = Callable[[np.random.Generator, int, int], tuple[int, ...]]
"""A function (generator, frame of the query, number of frames of the video) → frame numbers of the extra views."""
NO_NUMBERS = torch.empty(0, 0)
MAX_UNREADABLE_VIDEOS = 100
"""Maximum number of consecutive videos without a readable frame, before UserError is raised."""


class ReadError(NamedTuple):
    """A frame that cannot be read: the number of its video, the number of the frame, and the reason."""

    video: int
    frame: int
    reason: str


class Sample(NamedTuple):
    """Views of one video: the query, the positive, then extra views; `frames` has the frame number of each.

    `num_replaced` is the number of views that show a replacement, because their frame is in `read_errors`.
    `device_params` are the parameters of `augment_on_device` for each view; empty if nothing remains to be done.
    """

    views: tuple[Pixels, ...]
    video: int
    frames: tuple[int, ...]
    num_replaced: int = 0
    read_errors: tuple[ReadError, ...] = ()
    device_params: tuple[tuple[float, ...], ...] = ()


class Batch(NamedTuple):
    """Stacked samples: each view uint8 (batch, 3, size, size), channels-last; video (batch,); frames (batch, views).

    `device_params` (batch, num_views, 10) are the arguments of `augment_on_device`; empty if the views are finished.
    """

    views: tuple[Tensor, ...]
    video: Tensor
    frames: Tensor
    num_replaced: int = 0
    read_errors: tuple[ReadError, ...] = ()
    device_params: Tensor = NO_NUMBERS

    def micro_batches(self, number: int) -> Iterator["Batch"]:
        """Yield `number` micro-batches of equal size, in order."""
        size = len(self.video) // number
        for part in (slice(start, start + size) for start in range(0, size * number, size)):
            views = tuple(view[part] for view in self.views)
            yield Batch(views, self.video[part], self.frames[part], device_params=self.device_params[part])


class _NoFrameError(Exception):
    """No frame of a video can be read."""


def no_extra_frames(rng: np.random.Generator, query: int, num_frames: int) -> tuple[int, ...]:
    """Draw no extra views."""
    return ()


def random_frames(number: int, rng: np.random.Generator, query: int, num_frames: int) -> tuple[int, ...]:
    """Return so many random frames, drawn with replacement."""
    return tuple(int(frame) for frame in rng.integers(num_frames, size=number))


@dataclass(frozen=True)
class ViewDataset(Dataset[Sample | UserError]):
    """Map-style dataset over all positions of a training run; an epoch is one pass over the videos.

    With `same_frame`, query and positive show the same frame (Eq. 1), otherwise two frames of the video (Eq. 2).
    Differs from the release with `distinct`: the release draws the two frames independently, so they may be equal.
    A video of one frame gives two views of this frame. `further` draws the frames of extra views. `videos` selects the
    videos, all by default. A frame that cannot be decoded is replaced by another one of its video, a video without
    readable frames by the next one. Failures of the storage are retried after pauses (`sleep`), then raised.
    With `finish_on_device` the workers only crop, resize and flip; `augment_on_device` does the rest on the device.
    """

    store: FrameStore
    recipe: Recipe | Augmentation
    size: int
    seed: int
    same_frame: bool = False
    distinct: bool = True
    extra_frames: ExtraFrames = no_extra_frames
    videos: npt.NDArray[np.int64] | None = None
    sleep: Callable[[float], object] = time.sleep
    finish_on_device: bool = False

    @property
    def num_videos(self) -> int:
        """Number of selected videos."""
        return self.store.num_videos if self.videos is None else len(self.videos)

    def __getitem__(self, position: int) -> Sample | UserError:
        """Return the sample, or a UserError instead of raising it, which the DataLoader would turn into a traceback."""
        try:
            return self.sample(position)
        except UserError as error:
            return error

    def sample(self, position: int) -> Sample:
        """Return the sample at a position; raises UserError if no frame can be read."""
        epoch, place = divmod(position, self.num_videos)
        num_tried = min(MAX_UNREADABLE_VIDEOS, self.num_videos)
        errors: list[ReadError] = []
        for stand_in in range(num_tried):
            number = shuffled(self.seed, epoch, (place + stand_in) % self.num_videos, self.num_videos)
            video = number if self.videos is None else int(self.videos[number])
            try:
                sample = self._sample_of(video, epoch, place, errors)
            except _NoFrameError:
                continue
            replaced = len(sample.views) if stand_in else sample.num_replaced
            return sample._replace(num_replaced=replaced, read_errors=tuple(dict.fromkeys(errors)))
        last = f"frame {errors[-1].frame} of {self.store.video_id(errors[-1].video)}: {errors[-1].reason}"
        raise UserError(f"{self.store.root}: no frame of {num_tried:,} videos can be read, the last is {last}")

    def plain_view(self, video: int, frame: int) -> Pixels | None:
        """Return the middle of this frame without augmentation, or of the next readable one; None without any."""
        try:
            return center_crop(self._read(video, frame, [], side=round(self.size * CROP_MARGIN))[0], self.size)
        except _NoFrameError:
            return None

    def _sample_of(self, video: int, epoch: int, place: int, errors: list[ReadError]) -> Sample:
        num_frames = self.store.frames_in(video)
        first, second = self._draw_frames(epoch, place, num_frames)
        query = self._read(video, first, errors)
        positive = query if first == second else self._read(video, second, errors, avoid=query[1])
        known = {first: query, second: positive}
        extra_frames = self.extra_frames(random_stream(self.seed, epoch, place, EXTRA_FRAMES), first, num_frames)
        frames = (query, positive, *(known.get(number) or self._read(video, number, errors) for number in extra_frames))
        roles = (QUERY, POSITIVE, *range(EXTRA_VIEWS, EXTRA_VIEWS + len(extra_frames)))
        made = [self._view(image, epoch, place, role) for (image, _), role in zip(frames, roles, strict=True)]
        numbers = tuple(number for _, number in frames)
        replaced = sum(number != drawn for number, drawn in zip(numbers, (first, second, *extra_frames), strict=True))
        device_params = tuple(rest for _, rest in made if rest)
        return Sample(tuple(view for view, _ in made), video, numbers, replaced, device_params=device_params)

    def _draw_frames(self, epoch: int, place: int, num_frames: int) -> tuple[int, int]:
        rng = random_stream(self.seed, epoch, place, FRAMES)
        first = int(rng.integers(num_frames))
        if self.same_frame or num_frames == 1:
            return first, first
        if not self.distinct:
            return first, int(rng.integers(num_frames))
        return first, (first + 1 + int(rng.integers(num_frames - 1))) % num_frames

    def _view(self, image: Pixels, epoch: int, place: int, role: int) -> tuple[Pixels, tuple[float, ...]]:
        """Return a view, and the arguments of `augment_on_device` for it."""
        rng = random_stream(self.seed, epoch, place, role)
        if not isinstance(self.recipe, Recipe):
            return user_view(self.recipe, image, rng, self.size), ()
        view = draw_view(rng, image.shape[0], image.shape[1], self.recipe)
        if self.finish_on_device:
            return crop_view(image, view, self.size), augmentation_params(view)
        return apply_view(image, view, self.size), ()

    def _read(
        self, video: int, frame: int, errors: list[ReadError], avoid: int | None = None, side: int | None = None
    ) -> tuple[Pixels, int]:
        """Return the pixels and the number of this frame, or of the next readable one. `avoid` is the last choice."""
        if side is None and isinstance(self.recipe, Recipe):
            # Decoding at this short side is enough for any crop; a user-defined augmentation gets the full frame.
            side = math.ceil(self.size / smallest_crop(self.recipe))
        others = chain(range(frame, self.store.frames_in(video)), range(frame))
        last = () if avoid is None else (avoid,)
        for candidate in chain((other for other in others if other != avoid), last):
            try:
                return decode_image(self.store.read_with_retry(video, candidate, self.sleep), side), candidate
            except ValueError as error:
                errors.append(ReadError(video, candidate, str(error)))
        raise _NoFrameError


def collate(samples: list[Sample | UserError]) -> Batch | UserError:
    """Return the samples as a batch, or the first error. Views keep OpenCV's channels-last memory format."""
    good = [sample for sample in samples if not isinstance(sample, UserError)]
    if len(good) < len(samples):
        return next(sample for sample in samples if isinstance(sample, UserError))
    columns = zip(*(sample.views for sample in good), strict=True)
    return Batch(
        tuple(torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2) for views in columns),
        torch.tensor([sample.video for sample in good]),
        torch.tensor([sample.frames for sample in good]),
        sum(sample.num_replaced for sample in good),
        tuple(dict.fromkeys(error for sample in good for error in sample.read_errors)),
        torch.tensor([sample.device_params for sample in good]),
    )
