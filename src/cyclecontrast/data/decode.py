"""The picked frames of one video in one sequential pass; it knows nothing of stores or shards."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av

from cyclecontrast.data.images import excess
from cyclecontrast.data.policies import (
    Clock,
    EveryKth,
    Keyframes,
    Numbered,
    Packet,
    PerSecond,
    Policy,
    SpreadEvenly,
    Target,
    evenly,
    find_targets,
    pts_are_true,
)
from cyclecontrast.data.upright import Image, Scaler, Turn
from cyclecontrast.data.video import VideoError, open_container, reason_of

MOST_ROUNDING = 0.005
"""Seconds by which a container may round a time: GIF counts in hundredths."""
DEFAULT_RATE = 25
"""Frames per second of a video that does not say."""
TRUNCATED_SECONDS, TRUNCATED_PART = 1.0, 0.05
"""A video that ends earlier than its header says, by more than both of these, is called truncated."""
LOST_FRAMES, LOST_PART = 2, 0.05
"""A whole video may lack frames that its header or its packets announce: no more than the larger of these."""
MOST_PACKETS = 10_000_000
"""A video is read up to here, which is 92 hours at 30 frames per second; what headers claim is never counted on."""


class DecodedFrame(NamedTuple):
    """One picked frame: RGB (h, w, 3), upright, and its seconds since the video's start (nan: unknown)."""

    image: Image
    time: float


class _Picked(NamedTuple):
    frame: Any
    time: float


def decode_frames(path: Path, policy: Policy, size: int, max_pixels: int) -> Iterator[DecodedFrame]:
    """The frames of a video that the policy picks, in order, short side at most size pixels.

    Raises VideoError if there is no frame to be had; `open_video` also tells of damage after the first frame.
    """
    with open_video(path, max_pixels) as video:
        yield from video.frames(policy, size)


@contextmanager
def open_video(path: Path, max_pixels: int) -> Iterator["OpenVideo"]:
    """Opens a video file for one decoding pass; raises VideoError with the reason where that is impossible."""
    with closing(open_container(path)) as container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & stream.disposition.attached_pic:
            raise VideoError("no video stream")
        if stream.codec_context is None:
            raise VideoError("no decoder for its codec")
        yield OpenVideo(path, container, stream, max_pixels)


class OpenVideo:
    """A video file during its one decoding pass; made by `open_video`.

    `width` and `height` are those of the first frame as displayed, 0 before it; `notice` says what is missing
    from a video that could be read in part only, "" before the pass and when nothing is; `is_damaged` says that it is
    not only the end. `num_packets` and `num_decoded` count the pictures that were read and those that came of them.
    """

    def __init__(self, path: Path, container: Any, stream: Any, max_pixels: int) -> None:
        self.width = 0
        self.height = 0
        self.notice = ""
        self.is_damaged = False
        self.num_packets = self.num_decoded = 0
        self.duration = _duration(container, stream)
        self._path, self._container, self._stream, self._max_pixels = path, container, stream, max_pixels
        self._end, self._num_read = 0.0, 0
        self._scaler = Scaler()
        self._check_pixels(stream.codec_context.width, stream.codec_context.height)
        # Frames of damaged videos depend on the number of threads, and a store may not: workers are the parallelism.
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(max_pixels)}

    def frames(self, policy: Policy, size: int) -> Iterator[DecodedFrame]:
        """Picks, scales and turns upright, in one pass; raises VideoError if not one frame can be had."""
        try:
            for frame, time in self._picked(policy):
                self._check_pixels(frame.width, frame.height)
                yield DecodedFrame(self._rgb(frame, size), time)
        except (VideoError, OSError, av.FFmpegError) as error:
            if self.width == 0 and isinstance(error, VideoError):
                raise
            self._stopped(error)
        if self.width == 0:
            raise VideoError("no frame could be decoded")

    def count_frames(self) -> int:
        """Count the frames by a pass over the packets that decodes none; it takes the place of `frames`."""
        return sum(_is_counted(packet) for packet in self._packets())

    @property
    def fps(self) -> float:
        """Frames per second as the container says or FFmpeg guesses, 25 where neither is known."""
        return float(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_RATE)

    @property
    def frames_in_header(self) -> int:
        """Number of frames that the header names, 0 where it names none."""
        return int(self._stream.frames)

    def is_cut(self) -> bool:
        """Whether all packets, once read, are clearly fewer than the header says, and end clearly too early.

        Fewer alone is no sign, for dropped frames have no packet; nor is the duration, which AVI's reader shortens.
        """
        told = self.frames_in_header
        ends_early = not self._end or not are_few(told - round(self._end * self.fps), told)
        return ends_early and not are_few(told - self._num_read, told)

    def _picked(self, policy: Policy) -> Iterator[_Picked]:
        match policy:
            case SpreadEvenly():
                return self._spread_evenly(policy.num_frames)
            case Keyframes():
                return self._keyframes()
            case Numbered():
                return self._numbered(policy.numbers)
            case PerSecond() | EveryKth():
                return self._by_clock(policy)

    def _by_clock(self, policy: PerSecond | EveryKth) -> Iterator[_Picked]:
        last_tick = -1
        # Containers round to their time base: what is early by half a unit still belongs to the tick.
        slack = min(float(self._stream.time_base) / 2, MOST_ROUNDING) + 1e-9
        for ordinal, picked in enumerate(self._timed()):
            ticks = ordinal / policy.k if isinstance(policy, EveryKth) else (picked.time + slack) * policy.fps
            if math.floor(ticks) > last_tick:
                last_tick = math.floor(ticks)
                yield picked

    def _keyframes(self) -> Iterator[_Picked]:
        self._stream.codec_context.skip_frame = "NONKEY"
        start = self._stream.start_time
        for frame in self._decoded(self._packets()):
            if frame.key_frame:
                start = frame.pts if start is None else start
                yield _Picked(frame, math.nan if frame.pts is None else self._seconds(frame.pts - start))

    def _spread_evenly(self, num_frames: int) -> Iterator[_Picked]:
        packets = self._scan()
        if pts_are_true(packets, self._container):
            start = self._stream.start_time
            if start is None:
                start = min((packet.pts for packet in packets if packet.pts is not None), default=0)
            return self._at_pts(find_targets(packets, num_frames), start)
        return self._at_ordinals(evenly(len(packets), num_frames))

    def _at_pts(self, targets: deque[Target], start: int) -> Iterator[_Picked]:
        for frame in self._decoded(self._needed_packets(targets)):
            if targets and frame.pts is not None and frame.pts >= targets[0].pts:
                # A damaged frame is replaced by the next that decodes, once.
                while targets and frame.pts >= targets[0].pts:
                    targets.popleft()
                yield _Picked(frame, self._seconds(frame.pts - start))

    def _at_ordinals(self, ordinals: Sequence[int]) -> Iterator[_Picked]:
        wanted = set(ordinals)
        for ordinal, picked in enumerate(self._timed()):
            if ordinal in wanted:
                yield picked
            if ordinal >= ordinals[-1]:
                return

    def _numbered(self, numbers: Sequence[int]) -> Iterator[_Picked]:
        waiting, picked = deque(numbers), None
        for ordinal, picked in enumerate(self._timed()):
            if ordinal == waiting[0]:
                yield picked
                waiting.popleft()
                if not waiting:
                    return
        # Packets at the end that hold no picture of their own repeat the last one, as players do.
        is_complete = not self.is_damaged and are_few(self.num_packets - self.num_decoded, self.num_packets)
        for number in waiting:
            if picked is not None and is_complete and number < self.num_packets:
                yield picked

    def _timed(self) -> Iterator[_Picked]:
        """All frames, each with its time."""
        clock = Clock(self._stream, self._container)
        for frame in self._decoded(self._packets()):
            yield _Picked(frame, clock.seconds(frame))

    def _decoded(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Frames in display order; packets that do not decode are noted and passed over."""
        damaged, first = 0, 0.0
        for packet in packets:
            try:
                frames = self._stream.decode(packet)
            except (OSError, av.FFmpegError) as error:
                if isinstance(error, av.ArgumentError) and self.width == 0:
                    raise VideoError(f"invalid data or frames of more than {self._max_pixels:,} pixels") from error
                damaged, first = damaged + 1, first if damaged else self._end
                self.notice, self.is_damaged = f"packets damaged: {damaged}, the first at {first:.1f} s", True
                continue
            for frame in frames:
                self.num_decoded += 1
                yield frame

    def _packets(self) -> Iterator[Any]:
        try:
            for number, packet in enumerate(self._container.demux(self._stream)):
                if number >= MOST_PACKETS:
                    raise VideoError(f"more than {MOST_PACKETS:,} frames")
                self._num_read += bool(packet.size)
                if packet.pts is not None:
                    past_end = packet.pts + (packet.duration or 0) - (self._stream.start_time or 0)
                    self._end = max(self._end, self._seconds(past_end))
                self.num_packets += _is_counted(packet)
                yield packet
        except (VideoError, OSError, IndexError, av.FFmpegError) as error:
            self._stopped(error)
        missing = self.duration - self._end
        if missing > max(TRUNCATED_SECONDS, TRUNCATED_PART * self.duration) and self._end:
            self.notice = f"truncated: ends at {self._end:.1f} s of {self.duration:.1f} s"

    def _needed_packets(self, targets: deque[Target]) -> Iterator[Any]:
        """The packets from the keyframe before each target up to the target; targets are taken off outside."""
        index, skipped = 0, False
        for packet in self._packets():
            if not targets:
                return
            if _is_counted(packet) and index < targets[0].first_packet:
                skipped = True
            else:
                if skipped:
                    self._stream.codec_context.flush_buffers()
                    skipped = False
                yield packet
            index += _is_counted(packet)

    def _scan(self) -> list[Packet]:
        """All packets with a picture, read without decoding by a pass of its own."""
        with open_video(self._path, self._max_pixels) as video:
            packets = [Packet(packet.pts, packet.is_keyframe) for packet in video._packets() if _is_counted(packet)]
        self.notice = video.notice
        return packets

    def _seconds(self, pts: int) -> float:
        return float(pts * self._stream.time_base)

    def _stopped(self, error: Exception) -> None:
        self.is_damaged = True
        self.notice = f"stopped at {self._end:.1f} s: {reason_of(error)}"

    def _check_pixels(self, width: int, height: int) -> None:
        if why := excess(width, height, self._max_pixels):
            raise VideoError(f"frames of {why}")

    def _rgb(self, frame: Any, size: int) -> Image:
        turn = Turn.of(frame)
        image = turn.upright(self._scaler.rgb(frame, size))
        if self.width == 0:
            shown = (frame.height, frame.width) if turn.is_transposed else (frame.width, frame.height)
            self.width, self.height = shown
        return image


def are_few(frames: int, of: int) -> bool:
    """Whether this many frames may be missing from a video that is whole."""
    return frames <= max(LOST_FRAMES, LOST_PART * of)


def _is_counted(packet: Any) -> bool:
    return bool(packet.size) and not packet.is_discard


def _duration(container: Any, stream: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return math.nan if container.duration is None else container.duration / av.time_base
