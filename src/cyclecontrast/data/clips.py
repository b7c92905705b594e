"""Clips of video files: the length of a video, the frame numbers of a clip, and decoding of these frames.

All clips have the same frame rate, independent of the frame rate of the video: at time t they show the frame
int(t · fps of the video), as in the authors' release. A video that is shorter than a clip is repeated from its start.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.decode import Numbered, VideoError, open_video
from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError

MAX_PIXELS = 64_000_000
FULL_SIZE = 2**31 - 1
ROUNDING = 1e-6
"""Tolerance in frames: 0.28 s at 25 frames per second is frame 7, although the floating-point product is below 7."""


class Footage(NamedTuple):
    """The number of frames of a video and its frame rate (25 if the file does not specify it)."""

    num_frames: int
    fps: float

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_frames / self.fps


class ClipShape(NamedTuple):
    """The number of frames of a clip, and its frame rate."""

    num_frames: int
    fps: float

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_frames / self.fps


def measure(path: Path) -> Footage:
    """Return the length of a video, from a pass over its packets without decoding.

    Raises UserError if the file cannot be read, or has clearly fewer frames than its header specifies.
    """
    try:
        with open_video(path, MAX_PIXELS) as video:
            num_frames, fps = video.count_frames(), video.fps
            is_truncated, in_header = video.is_truncated(), video.frames_in_header
    except VideoError as error:
        raise UserError(f"{path}: {error}; expected a video") from error
    if num_frames == 0:
        raise UserError(f"{path}: holds no frames; expected a video")
    if is_truncated:
        cut = f"truncated, holds {num_frames:,} of the {in_header:,} frames that its header names"
        raise UserError(f"{path}: {cut if in_header else video.notice}")
    return Footage(num_frames, fps)


def read_frames(path: Path, indices: Sequence[int], size: int = FULL_SIZE) -> Pixels:
    """Decode the frames with these numbers, in any order and with repeats → RGB (len(indices), h, w, 3), upright.

    Numbers count frames in display order. `size` bounds the short side. Decoding stops at the last of the frames.
    Raises UserError where the file cannot be read, is damaged before a requested frame, or ends before it.
    """
    wanted = sorted(set(indices))
    if not wanted or wanted[0] < 0:
        raise ValueError(f"frames {list(indices)} of {path}")
    images: list[Pixels] = []
    video = None
    try:
        with open_video(path, MAX_PIXELS) as video:
            images.extend(frame.image for frame in video.frames(Numbered(tuple(wanted)), size))
    except VideoError as error:
        if video is None or not video.num_decoded:
            raise UserError(f"{path}: {error}; expected a video") from error
    if video.is_damaged:
        raise UserError(f"{path}: {video.notice}; expected the frames up to number {wanted[-1]:,} to be whole")
    if len(images) < len(wanted):
        raise UserError(f"{path}: {video.num_decoded:,} frames could be decoded; expected at least {wanted[-1] + 1:,}")
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{path}: its frames differ in size; expected one size")
    return np.stack(images)[np.searchsorted(wanted, indices)]


def random_clip(footage: Footage, clip: ClipShape, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the frames (num_frames,) of a clip that starts at a random time at which the video is long enough."""
    start = rng.uniform(0, max(0.0, footage.seconds - clip.seconds))
    return _frames(footage, start + _ticks(footage, clip) / clip.fps)


def spread_clips(footage: Footage, clip: ClipShape, num_clips: int) -> npt.NDArray[np.int64]:
    """Return the frame numbers (num_clips, num_frames) of evenly spaced clips.

    From the start to the end of the video.
    """
    starts = np.linspace(0, max(0, _num_ticks(footage, clip) - clip.num_frames), num_clips).astype(np.int64)
    return _frames(footage, (starts[:, None] + _ticks(footage, clip)) / clip.fps)


def _num_ticks(footage: Footage, clip: ClipShape) -> int:
    return max(1, math.ceil(footage.seconds * clip.fps - ROUNDING))


def _ticks(footage: Footage, clip: ClipShape) -> npt.NDArray[np.int64]:
    return np.arange(clip.num_frames) % _num_ticks(footage, clip)


def _frames(footage: Footage, times: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    frames = np.floor(times * footage.fps + ROUNDING).astype(np.int64)
    return np.minimum(frames, footage.num_frames - 1)
