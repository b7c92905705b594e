"""What a tracker is: told where the target is in the first image, it says where it is in each next one."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.images import Pixels
from cyclecontrast.evaluation.predictions import Json

Box = npt.NDArray[np.float64]
"""x, y, w, h (4,) in pixels; the first pixel is 1, as OTB and GOT-10k count."""


class Tracker(Protocol):
    """Follows one target at a time; `init` forgets the one before."""

    def init(self, image: Pixels, box: Box) -> None:
        """Take the box in this image, RGB (height, width, 3), as the target."""
        ...

    def update(self, image: Pixels) -> Box:
        """Return the box of the target in the next image."""
        ...


class PreparedTracker(NamedTuple):
    """A tracker that is ready, and what a result says of it: its variant, what was decided, what was left out."""

    tracker: Tracker
    tag: str
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    details: Json = {}  # noqa: RUF012


class IdentityTracker:
    """Answers the first box for ever: what a tracker must beat."""

    def init(self, image: Pixels, box: Box) -> None:
        """Remember the box."""
        self._box = box

    def update(self, image: Pixels) -> Box:
        """Return the first box."""
        return self._box


class PerfectTracker:
    """Answers the true boxes that it was given, in their order: what no tracker can beat."""

    def __init__(self, truth: Iterable[Box]) -> None:
        self._truth: Iterator[Box] = iter(truth)

    def init(self, image: Pixels, box: Box) -> None:
        """Pass over the first box of the next sequence."""
        next(self._truth)

    def update(self, image: Pixels) -> Box:
        """Return the next true box."""
        return next(self._truth)
