"""A tracker run over the frames of one sequence, each decoded while the one before is looked at."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.resume_cache import Arrays
from cyclecontrast.evaluation.tracking.tracker import Box, Tracker

DEPTH = 16
"""Frames that are decoded ahead."""

T = TypeVar("T")
_END = object()


def follow(tracker: Tracker, images: Iterable[Pixels], box: Box) -> Arrays:
    """Track from the box in the first image on: boxes (num_frames, 4), image sizes (num_frames, 2), and seconds each.

    The first box is the one given. Raises UserError for a box that is not finite.
    """
    boxes: list[Box] = []
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
            raise UserError(f"frame {len(boxes)}: the tracker's box is not finite; the model's weights are broken")
    return {"boxes": np.array(boxes), "image_sizes": np.array(sizes, np.int32), "seconds": np.array(seconds)}


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items in order, made ahead by a thread; an error is raised where its item would have come."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T | object]] = deque(pool.submit(next, iterator, _END) for _ in range(DEPTH))
        try:
            while (item := pending.popleft().result()) is not _END:
                pending.append(pool.submit(next, iterator, _END))
                yield item  # type: ignore[misc]
        finally:
            pool.shutdown(cancel_futures=True)
