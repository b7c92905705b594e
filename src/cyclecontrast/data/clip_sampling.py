"""Which frames of a video make up a clip: picked by time, so that clips of all videos are equally fast.

A video is seen as ticks of the clips' own rate; the tick at time t shows the frame int(t · fps of the video), as in the
release (protocols.md §c). What is too short for a clip is taken whole and repeated from its start.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.clips import Footage

ROUNDING = 1e-6
"""Parts of a frame: 0.28 s of 25 frames per second is frame 7, though the product is below 7."""


class ClipShape(NamedTuple):
    """Frames per clip, and how many of them make a second."""

    num_frames: int
    fps: float

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_frames / self.fps


def random_clip(footage: Footage, clip: ClipShape, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the frames (num_frames,) of a clip that starts at any time from which the video is long enough."""
    start = rng.uniform(0, max(0.0, footage.seconds - clip.seconds))
    return _frames(footage, start + _ticks(footage, clip) / clip.fps)


def spread_clips(footage: Footage, clip: ClipShape, num_clips: int) -> npt.NDArray[np.int64]:
    """Return the frames (num_clips, num_frames) of clips that start at even distances, at the first and last tick."""
    starts = np.linspace(0, max(0, _num_ticks(footage, clip) - clip.num_frames), num_clips).astype(np.int64)
    return _frames(footage, (starts[:, None] + _ticks(footage, clip)) / clip.fps)


def _num_ticks(footage: Footage, clip: ClipShape) -> int:
    return max(1, math.ceil(footage.seconds * clip.fps - ROUNDING))


def _ticks(footage: Footage, clip: ClipShape) -> npt.NDArray[np.int64]:
    return np.arange(clip.num_frames) % _num_ticks(footage, clip)


def _frames(footage: Footage, times: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    frames = np.floor(times * footage.fps + ROUNDING).astype(np.int64)
    return np.minimum(frames, footage.num_frames - 1)
