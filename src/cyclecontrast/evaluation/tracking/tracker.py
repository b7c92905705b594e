"""What a tracker is, two trivial trackers, and the loop that runs a tracker over the frames of a sequence."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.data.tracking_sequences import Boxes
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.resume_cache import Arrays

DEPTH = 16
"""Frames that are decoded ahead."""

T = TypeVar("T")
_END = object()


class Tracker(Protocol):
    """Follows one target at a time. A box is x, y, w, h (4,) in pixels; the first pixel is 1."""

    def init(self, image: Pixels, box: Boxes) -> None:
        """Take the box in this image, RGB (height, width, 3), as the new target."""
        ...

    def update(self, image: Pixels) -> Boxes:
        """Return the box of the target in the next image."""
        ...


class IdentityTracker:
    """Always returns the first box: a baseline."""

    def init(self, image: Pixels, box: Boxes) -> None:
        """Remember the box."""
        self._box = box

    def update(self, image: Pixels) -> Boxes:
        """Return the first box."""
        return self._box


class PerfectTracker:
    """Returns the true boxes in order: an upper bound."""

    def __init__(self, truth: Iterable[Boxes]) -> None:
        self._truth = iter(truth)

    def init(self, image: Pixels, box: Boxes) -> None:
        """Skip the first true box."""
        self._last = next(self._truth)

    def update(self, image: Pixels) -> Boxes:
        """Return the next true box, or the one before where the target is absent."""
        box = next(self._truth)
        self._last = self._last if np.isnan(box).any() else box
        return self._last


def follow(tracker: Tracker, images: Iterable[Pixels], box: Boxes) -> Arrays:
    """Track from the box (4,) in the first image on.

    Returns `boxes` (num_frames, 4), the first of which is the given one, `image_sizes` (num_frames, 2) as width and
    height, and `seconds` (num_frames,). Raises UserError for a box that is not finite.
    """
    boxes: list[Boxes] = []
    sizes, seconds = [], []
    for image in ahead(images):
        start = time.perf_counter()
        if boxes:
            boxes.append(np.array(tracker.update(image), np.float64))
        else:
            tracker.init(image, box)
            boxes.append(np.array(box, np.float64))
        seconds.append(time.perf_counter() - start)
        sizes.append(image.shape[1::-1])
        if not np.isfinite(boxes[-1]).all():
            raise UserError(
                f"frame {len(boxes)}: the predicted box is not finite; the weights of the model are invalid"
            )
    return {"boxes": np.array(boxes), "image_sizes": np.array(sizes, np.int32), "seconds": np.array(seconds)}


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items in order, prefetched by a thread; an error is raised when its item is reached."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T | object]] = deque(pool.submit(next, iterator, _END) for _ in range(DEPTH))
        try:
            while (item := pending.popleft().result()) is not _END:
                pending.append(pool.submit(next, iterator, _END))
                yield item  # type: ignore[misc]
        finally:
            pool.shutdown(cancel_futures=True)
