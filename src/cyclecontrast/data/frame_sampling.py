"""Which frames of a video are taken: the sampling policies, and the search for the packets that hold the frames."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

DEFAULT_FPS = 2.0
MOST_REORDERING = 32
"""Frames by which a packet may precede or follow its place in time; H.264 and HEVC allow 16."""


@dataclass(frozen=True)
class SpreadEvenly:
    """This many frames, in the middles of equal parts of the video; all of them if it has no more."""

    num_frames: int


@dataclass(frozen=True)
class PerSecond:
    """The first frame in every 1/fps seconds."""

    fps: float


@dataclass(frozen=True)
class EveryKth:
    """Frames 0, k, 2k, ..."""

    k: int


@dataclass(frozen=True)
class Keyframes:
    """Only frames that are decodable without others."""


@dataclass(frozen=True)
class Numbered:
    """Frames by their numbers in display order, ascending."""

    numbers: tuple[int, ...]


Policy: TypeAlias = SpreadEvenly | PerSecond | EveryKth | Keyframes | Numbered


def make_policy(frames_per_video: int | None, fps: float | None, every: int | None, keyframes: bool) -> Policy:
    """Return the policy that is set; 2 frames per second where none is."""
    if frames_per_video is not None:
        return SpreadEvenly(frames_per_video)
    if every is not None:
        return EveryKth(every)
    return Keyframes() if keyframes else PerSecond(fps or DEFAULT_FPS)


def evenly(num_all: int, num_picked: int) -> list[int]:
    """Return the middles of num_picked equal parts of range(num_all): (0 … 9, 2) → 2, 7."""
    if num_picked >= num_all:
        return list(range(num_all))
    return [(2 * part + 1) * num_all // (2 * num_picked) for part in range(num_picked)]


def pts_give_display_order(pts: Sequence[int | None], container: Any) -> bool:
    """Whether sorting packets by pts gives display order: not so in AVI, raw streams and joined recordings."""
    known = [value for value in pts if value is not None]
    if container.format.name == "avi" or len(set(known)) < len(pts):
        return False
    order = np.argsort(known)
    return bool(np.all(np.abs(order - np.arange(len(order))) <= MOST_REORDERING))


def find_targets(pts: Sequence[int | None], is_keyframe: Sequence[bool], num_frames: int) -> deque[tuple[int, int]]:
    """Return the pts of each picked frame, and the number of the packet from which decoding must start to reach it."""
    all_pts = np.array(pts, dtype=np.int64)
    keyframes = np.flatnonzero(is_keyframe)
    targets: deque[tuple[int, int]] = deque()
    for wanted in np.sort(all_pts)[evenly(len(all_pts), num_frames)]:
        before = keyframes[all_pts[keyframes] <= wanted]
        targets.append((int(wanted), int(before[-1]) if len(before) else 0))
    return targets
