"""Frames of a video by number, in one sequential pass, and how many there are; nothing is sampled here."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cyclecontrast.data.decode import OpenVideo, open_video
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.policies import Numbered
from cyclecontrast.data.video import VideoError
from cyclecontrast.errors import UserError

MAX_PIXELS = 64_000_000
FULL_SIZE = 2**31 - 1


class Footage(NamedTuple):
    """How many frames a video has, and how many are shown per second (25 where the file does not say)."""

    num_frames: int
    fps: float

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_frames / self.fps


def measure(path: Path) -> Footage:
    """Count the frames of a video by one pass over its packets, without decoding; raises UserError, one line.

    A video that holds clearly fewer frames than its header says is truncated, and refused.
    """
    try:
        with open_video(path, MAX_PIXELS) as video:
            num_frames = video.count_frames()
            told = video.frames_in_header if video.is_cut() else 0
            fps = video.fps
    except VideoError as error:
        raise UserError(f"{path}: {error}; expected a video") from error
    if num_frames == 0:
        raise UserError(f"{path}: holds no frames; expected a video")
    if told:
        raise UserError(f"{path}: truncated, holds {num_frames:,} of the {told:,} frames that its header names")
    return Footage(num_frames, fps)


def read_frames(path: Path, indices: Sequence[int], size: int = FULL_SIZE) -> Pixels:
    """Decode the frames with these numbers, in any order and with repeats → RGB (len(indices), h, w, 3), upright.

    Numbers count frames in the order of display. `size` bounds the short side. Decoding stops at the last frame that
    is wanted. Raises UserError, one line, where the file cannot be read, is damaged on the way or ends before a wanted
    frame.
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
    if video.is_damaged or len(images) < len(wanted):
        raise UserError(_incomplete(path, video, wanted[-1]))
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{path}: its frames differ in size; expected one size")
    return np.stack(images)[np.searchsorted(wanted, indices)]


def _incomplete(path: Path, video: OpenVideo, last: int) -> str:
    if video.is_damaged:
        return f"{path}: {video.notice}; expected the frames up to number {last:,} to be whole"
    return f"{path}: {video.num_decoded:,} frames could be decoded; expected at least {last + 1:,}"
