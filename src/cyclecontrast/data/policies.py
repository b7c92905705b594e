"""Which frames of a video are taken: the policies, and the arithmetic on packets and times behind them."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from cyclecontrast.config import PrepareConfig

DEFAULT_FPS = 2.0
DEEPEST_REORDERING = 32
"""Frames that a packet may come before or after its place in time; H.264 and HEVC allow 16."""


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
    """Frames by their numbers in the order of display, ascending."""

    numbers: tuple[int, ...]


Policy: TypeAlias = SpreadEvenly | PerSecond | EveryKth | Keyframes | Numbered


def policy_of(config: PrepareConfig) -> Policy:
    """The policy that a command names; 2 frames per second where it names none."""
    if config.frames_per_video is not None:
        return SpreadEvenly(config.frames_per_video)
    if config.every is not None:
        return EveryKth(config.every)
    return Keyframes() if config.keyframes else PerSecond(config.fps or DEFAULT_FPS)


class Packet(NamedTuple):
    """What a container tells of a packet before it is decoded; pts in units of the stream's time base."""

    pts: int | None
    is_keyframe: bool


class Target(NamedTuple):
    """A picked frame, by its pts, and the number of the packet from which decoding has to start to reach it."""

    pts: int
    first_packet: int


def evenly(num_all: int, num_picked: int) -> list[int]:
    """The middles of num_picked equal parts of range(num_all): (0 … 9, 2) → 2, 7."""
    if num_picked >= num_all:
        return list(range(num_all))
    return [(2 * part + 1) * num_all // (2 * num_picked) for part in range(num_picked)]


def pts_are_true(packets: Sequence[Packet], container: Any) -> bool:
    """Whether sorting by pts gives the order of display: not so in AVI, raw streams and joined recordings."""
    pts = [packet.pts for packet in packets if packet.pts is not None]
    if container.format.name == "avi" or len(set(pts)) < len(packets):
        return False
    order = np.argsort(pts)
    return bool(np.all(np.abs(order - np.arange(len(order))) <= DEEPEST_REORDERING))


def find_targets(packets: Sequence[Packet], num_frames: int) -> deque[Target]:
    """For each picked pts, the number of the packet from which decoding has to start to reach it."""
    pts = np.array([packet.pts for packet in packets], dtype=np.int64)
    keyframes = np.array([i for i, packet in enumerate(packets) if packet.is_keyframe], dtype=np.int64)
    targets: deque[Target] = deque()
    for wanted in np.sort(pts)[evenly(len(pts), num_frames)]:
        before = keyframes[pts[keyframes] <= wanted]
        targets.append(Target(int(wanted), int(before[-1]) if len(before) else 0))
    return targets


class Clock:
    """Seconds since the start for frames in the order of display, never running backwards."""

    def __init__(self, stream: Any, container: Any) -> None:
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._frame_seconds = float(1 / rate)
        self._unit, self._start = stream.time_base, stream.start_time
        # AVI has a constant rate and gives no time of display for reordered frames.
        self._is_counting = container.format.name == "avi"
        self._num_frames, self._shift, self._last, self._has_pts = 0, 0.0, -math.inf, False

    def seconds(self, frame: Any) -> float:
        """Time of the next frame; each frame is to be passed once."""
        self._num_frames += 1
        if self._is_counting or (frame.pts is None and not self._has_pts):
            self._last = (self._num_frames - 1) * self._frame_seconds
            return self._last
        self._has_pts = True
        if frame.pts is None:
            self._last += self._frame_seconds
            return self._last
        if self._start is None:
            self._start = frame.pts
        time = float((frame.pts - self._start) * self._unit) + self._shift
        if time < self._last:
            self._shift += self._last + self._frame_seconds - time
            time = self._last + self._frame_seconds
        self._last = time
        return time
