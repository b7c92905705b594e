"""Select and decode frames of a video in one sequential pass. This module is independent of frame stores."""

import errno
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from cyclecontrast.data.images import Pixels, size_problem
from cyclecontrast.data.storage import PatientFile, check_memory, is_passing, short_reason

# Only containers that contain their own frames: a playlist renamed to .mp4 must not open other files or URLs.
DEMUXERS = (
    "mov,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,live_flv,ogg,gif,apng,mxf,dv,ivf,nut,rm,wtv,m4v,mjpeg,"
    "h261,h263,h264,hevc,obu,av1,vc1,yuv4mpegpipe"
)
MOST_ROUNDING = 0.005
"""Seconds by which a container may round a time: GIF counts in hundredths."""
DEFAULT_RATE = 25
"""Frames per second of a video that does not say."""
TRUNCATED_SECONDS, TRUNCATED_PART = 1.0, 0.05
"""A video is truncated if it ends earlier than its header specifies by more than both of these limits."""
LOST_FRAMES, LOST_PART = 2, 0.05
"""Number and fraction of frames that an intact video may lack compared with its header; the larger limit applies."""
MOST_PACKETS = 10_000_000
"""Packets read at most, 92 hours at 30 frames per second; the counts in headers are not trusted."""

DEFAULT_FPS = 2.0
MOST_REORDERING = 32
"""Frames by which a packet may precede or follow its place in time; H.264 and HEVC allow 16."""

PickedFrame: TypeAlias = tuple[Any, float]
"""A frame of PyAV, and its time in seconds."""


@dataclass(frozen=True)
class SpreadEvenly:
    """`num_frames` frames, at the centers of equal parts of the video; all frames if there are not more."""

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


class VideoError(Exception):
    """Raised if no frame of a video can be decoded; the message is a short reason for the user."""


class DecodedFrame(NamedTuple):
    """One picked frame: RGB (h, w, 3), upright, and its seconds since the video's start (nan: unknown)."""

    image: Pixels
    time: float


@contextmanager
def open_video(path: Path, max_pixels: int) -> Iterator["OpenVideo"]:
    """Open a video file for one decoding pass; raises VideoError with the reason where that is impossible."""
    with _open_file(path) as file, closing(_open_container(file)) as container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & stream.disposition.attached_pic:
            raise VideoError("no video stream")
        if stream.codec_context is None:
            raise VideoError("no decoder for its codec")
        yield OpenVideo(path, container, stream, max_pixels)


def _open_file(path: Path) -> PatientFile:
    try:
        return PatientFile(path)
    except (OSError, ValueError) as error:
        if is_passing(error):
            raise
        raise VideoError(short_reason(error)) from error


def _open_container(file: PatientFile) -> Any:
    if file.size == 0:
        raise VideoError("empty file")
    try:
        return av.open(
            file,
            container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except av.ArgumentError as error:
        raise VideoError("not a video format") from error
    except av.FFmpegError as error:
        raise VideoError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Return why FFmpeg or the system cannot read a file, in a few words."""
    check_memory(error)
    match error:
        case av.InvalidDataError() | EOFError():
            return "invalid data"
        case OSError(errno=errno.EIO):  # of FFmpeg, about bytes that were read
            return "invalid data"
        case MemoryError():
            return "needs too much memory"
        case IndexError():
            return "a stream that the header does not name"
        case av.PatchWelcomeError():
            return "not supported by FFmpeg"
    return short_reason(error)


class OpenVideo:
    """An open video file, for a single decoding pass; created by `open_video`.

    `width` and `height` are those of the first frame as displayed, 0 before it. `notice` says what is missing from a
    video that could be read in part only, "" where nothing is; `is_damaged` says that more than its end is missing.
    `num_packets` and `num_decoded` count the packets that were read and the frames that were decoded from them;
    `frames_in_header` is the number of frames that the header names, 0 where it names none.
    """

    def __init__(self, path: Path, container: Any, stream: Any, max_pixels: int) -> None:
        self.width = self.height = 0
        self.notice, self.is_damaged = "", False
        self.num_packets = self.num_decoded = 0
        self.duration = math.nan if container.duration is None else container.duration / av.time_base
        if stream.duration is not None:
            self.duration = float(stream.duration * stream.time_base)
        self.frames_in_header = int(stream.frames)
        self._path, self._container, self._stream, self._max_pixels = path, container, stream, max_pixels
        self._end, self._num_read = 0.0, 0
        self._scaler = Scaler()
        self._check_pixels(stream.codec_context.width, stream.codec_context.height)
        # Frames of damaged videos depend on the number of threads, and a store may not; processes run in parallel.
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(max_pixels)}

    def frames(self, policy: Policy, size: int) -> Iterator[DecodedFrame]:
        """Pick, scale and turn frames upright, in one pass; raises VideoError where none can be decoded."""
        try:
            for frame, time in self._picked(policy):
                self._check_pixels(frame.width, frame.height)
                yield DecodedFrame(self._rgb(frame, size), time)
        except (VideoError, av.FFmpegError) as error:
            if self.width == 0 and isinstance(error, VideoError):
                raise
            self._note_stop(error)
        if self.width == 0:
            raise VideoError("no frame could be decoded")

    def count_frames(self) -> int:
        """Count the frames by a pass over the packets, without decoding; use it instead of `frames`."""
        return sum(_is_counted(packet) for packet in self._packets())

    @property
    def fps(self) -> float:
        """Frames per second as the container says or FFmpeg guesses, 25 where neither is known."""
        return float(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_RATE)

    def is_cut(self) -> bool:
        """Return whether the file is cut off.

        It has clearly fewer packets than its header specifies, and ends clearly earlier. Call it after all packets were
        read. Neither criterion is sufficient: dropped frames have no packets, and the AVI demuxer reports a shorter
        duration.
        """
        expected = self.frames_in_header
        ends_early = not self._end or not are_few(expected - round(self._end * self.fps), expected)
        return ends_early and not are_few(expected - self._num_read, expected)

    def _picked(self, policy: Policy) -> Iterator[PickedFrame]:
        match policy:
            case SpreadEvenly(num_frames):
                return self._spread_evenly(num_frames)
            case Keyframes():
                return self._keyframes()
            case Numbered(numbers):
                return self._numbered(numbers)
        return self._by_clock(policy)

    def _by_clock(self, policy: PerSecond | EveryKth) -> Iterator[PickedFrame]:
        last_tick = -1
        # Containers round to their time base: a frame that is early by half a unit still belongs to the tick.
        slack = min(float(self._stream.time_base) / 2, MOST_ROUNDING) + 1e-9
        for ordinal, (frame, time) in enumerate(self._timed()):
            ticks = ordinal / policy.k if isinstance(policy, EveryKth) else (time + slack) * policy.fps
            if math.floor(ticks) > last_tick:
                last_tick = math.floor(ticks)
                yield frame, time

    def _keyframes(self) -> Iterator[PickedFrame]:
        self._stream.codec_context.skip_frame = "NONKEY"
        start = self._stream.start_time
        for frame in self._decoded(self._packets()):
            if frame.key_frame:
                start = frame.pts if start is None else start
                yield frame, math.nan if frame.pts is None else self._seconds(frame.pts - start)

    def _spread_evenly(self, num_frames: int) -> Iterator[PickedFrame]:
        pts, is_keyframe = self._scan()
        if not pts_give_display_order(pts, self._container):
            return self._at_ordinals(evenly(len(pts), num_frames))
        start = self._stream.start_time
        if start is None:
            start = min((value for value in pts if value is not None), default=0)
        return self._at_pts(find_targets(pts, is_keyframe, num_frames), start)

    def _at_pts(self, targets: deque[tuple[int, int]], start: int) -> Iterator[PickedFrame]:
        for frame in self._decoded(self._needed_packets(targets)):
            if targets and frame.pts is not None and frame.pts >= targets[0][0]:
                # A damaged frame is replaced by the next that decodes, once.
                while targets and frame.pts >= targets[0][0]:
                    targets.popleft()
                yield frame, self._seconds(frame.pts - start)

    def _at_ordinals(self, ordinals: Sequence[int]) -> Iterator[PickedFrame]:
        wanted = set(ordinals)
        for ordinal, picked in enumerate(self._timed()):
            if ordinal in wanted:
                yield picked
            if ordinal >= ordinals[-1]:
                return

    def _numbered(self, numbers: Sequence[int]) -> Iterator[PickedFrame]:
        waiting, picked = deque(numbers), None
        for ordinal, picked in enumerate(self._timed()):
            if ordinal == waiting[0]:
                yield picked
                waiting.popleft()
                if not waiting:
                    return
        # Packets at the end without a picture of their own repeat the last one, as players do.
        is_complete = not self.is_damaged and are_few(self.num_packets - self.num_decoded, self.num_packets)
        for number in waiting:
            if picked is not None and is_complete and number < self.num_packets:
                yield picked

    def _timed(self) -> Iterator[PickedFrame]:
        clock = Clock(self._stream, self._container)
        for frame in self._decoded(self._packets()):
            yield frame, clock.seconds(frame)

    def _decoded(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Yield frames in display order; packets that do not decode are noted and skipped."""
        damaged, first = 0, 0.0
        for packet in packets:
            try:
                frames = self._stream.decode(packet)
            except av.FFmpegError as error:
                check_memory(error)
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
        except (VideoError, IndexError, av.FFmpegError) as error:
            self._note_stop(error)
        missing = self.duration - self._end
        if missing > max(TRUNCATED_SECONDS, TRUNCATED_PART * self.duration) and self._end:
            self.notice = f"truncated: ends at {self._end:.1f} s of {self.duration:.1f} s"

    def _needed_packets(self, targets: deque[tuple[int, int]]) -> Iterator[Any]:
        """Yield the packets from the keyframe before each target to the target; the caller removes reached targets."""
        index, skipped = 0, False
        for packet in self._packets():
            if not targets:
                return
            if _is_counted(packet) and index < targets[0][1]:
                skipped = True
            else:
                if skipped:
                    self._stream.codec_context.flush_buffers()
                    skipped = False
                yield packet
            index += _is_counted(packet)

    def _scan(self) -> tuple[list[int | None], list[bool]]:
        """Return the pts of all packets with a picture, and which are keyframes, by a pass without decoding."""
        with open_video(self._path, self._max_pixels) as video:
            packets = [(packet.pts, packet.is_keyframe) for packet in video._packets() if _is_counted(packet)]
        self.notice = video.notice
        return [pts for pts, _ in packets], [is_keyframe for _, is_keyframe in packets]

    def _seconds(self, pts: int) -> float:
        return float(pts * self._stream.time_base)

    def _note_stop(self, error: Exception) -> None:
        self.is_damaged = True
        self.notice = f"stopped at {self._end:.1f} s: {_reason(error)}"

    def _check_pixels(self, width: int, height: int) -> None:
        if problem := size_problem(width, height, self._max_pixels):
            raise VideoError(f"frames of {problem}")

    def _rgb(self, frame: Any, size: int) -> Pixels:
        transposed, mirror_x, mirror_y = orientation(frame)
        image = self._scaler.rgb(frame, size)
        if self.width == 0:
            shown = (frame.height, frame.width) if transposed else (frame.width, frame.height)
            self.width, self.height = shown
        image = image.swapaxes(0, 1) if transposed else image
        return np.ascontiguousarray(image[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])


class Clock:
    """Computes monotonic times in seconds for frames in display order."""

    def __init__(self, stream: Any, container: Any) -> None:
        rate = stream.average_rate or stream.guessed_rate or Fraction(DEFAULT_RATE)
        self._frame_seconds = float(1 / rate)
        self._unit, self._start = stream.time_base, stream.start_time
        # AVI has a constant rate and no display times for reordered frames.
        self._is_counting = container.format.name == "avi"
        self._num_frames, self._shift, self._last, self._has_pts = 0, 0.0, -math.inf, False

    def seconds(self, frame: Any) -> float:
        """Return the time of the next frame; call it once for each frame."""
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


class Scaler:
    """Converts frames of one video to RGB with a short side of at most `size`.

    Scaling before the conversion to RGB makes a frame of 720p five times cheaper. Colors keep their resolution: 4:4:4
    between the two steps.
    """

    def __init__(self) -> None:
        # Each reformatter caches a single conversion.
        self._to_size, self._to_rgb = VideoReformatter(), VideoReformatter()

    def rgb(self, frame: Any, size: int) -> Pixels:
        """Return the frame as stored, not turned upright."""
        factor = size / min(frame.width, frame.height)
        # By default the scaler starts a thread per core, in every worker.
        if factor < 1:
            width, height = (max(1, round(side * factor)) for side in (frame.width, frame.height))
            between = "rgb24" if frame.format.is_rgb or frame.format.has_palette else "yuv444p"
            frame = self._to_size.reformat(frame, width, height, between, interpolation="AREA", threads=1)
        return np.asarray(self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8)


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Return whether a stored frame must be transposed, then flipped horizontally and vertically, to be upright.

    The display matrix is rounded to quarter turns and mirrorings.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def are_few(frames: int, of: int) -> bool:
    """Return whether an intact video may lack this many frames."""
    return frames <= max(LOST_FRAMES, LOST_PART * of)


def _is_counted(packet: Any) -> bool:
    return bool(packet.size) and not packet.is_discard


def evenly(num_all: int, num_picked: int) -> list[int]:
    """Return the centers of num_picked equal parts of range(num_all): evenly(10, 2) → [2, 7]."""
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
