"""Finds video files and decodes chosen frames in one sequential pass; it knows nothing of stores or shards."""

import math
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]

VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".apng", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".ivf", ".m1v", ".m2ts"),
    *(".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m"),
)
# Only containers that hold their own pictures: a playlist named .mp4 must not open other files or addresses.
DEMUXERS = (
    "mov,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,live_flv,ogg,gif,apng,mxf,dv,ivf,nut,rm,wtv,m4v,mjpeg,"
    "h261,h263,h264,hevc,obu,av1,vc1,yuv4mpegpipe"
)
DEEPEST_REORDERING = 32
"""Frames that a packet may come before or after its place in time; H.264 and HEVC allow 16."""
MOST_ROUNDING = 0.005
"""Seconds by which a container may round a time: GIF counts in hundredths."""
TRUNCATED_SECONDS, TRUNCATED_PART = 1.0, 0.05
"""A video that ends earlier than its header says, by more than both of these, is called truncated."""


class VideoError(Exception):
    """A video of which no frame can be had; the text is a short reason for the user."""


class FoundVideo(NamedTuple):
    """A file with the suffix of a video; `reason` says why it cannot be decoded, "" where it may be."""

    id: str
    path: Path
    size_bytes: int
    reason: str


class DecodedFrame(NamedTuple):
    """One picked frame: RGB (h, w, 3), upright, and its seconds since the video's start (nan: unknown)."""

    image: Image
    time: float


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


Policy: TypeAlias = SpreadEvenly | PerSecond | EveryKth | Keyframes


def find_videos(root: Path) -> list[FoundVideo]:
    """All files below root that are named like videos, sorted by id: the posix path relative to root.

    Links are followed, except into a folder that holds the link; names that begin with a dot are passed over.
    Raises OSError if root itself cannot be listed.
    """
    found = sorted(_walk(root, root, ()), key=lambda video: (video.id, video.reason))
    # A name made readable can meet a real one; the real one, whose reason sorts first, is kept.
    return [video for i, video in enumerate(found) if i == 0 or video.id != found[i - 1].id]


def _walk(root: Path, folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[FoundVideo]:
    try:
        here = folder.stat()
        identity = (here.st_dev, here.st_ino)
        entries = [] if identity in above else list(os.scandir(folder))
    except OSError as error:
        if folder == root:
            raise
        yield FoundVideo(_video_id(root, folder), folder, 0, f"folder not readable: {_reason(error)}")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(root, Path(entry.path), (*above, identity))
        elif os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:
            yield _found(root, Path(entry.path))


def _video_id(root: Path, path: Path) -> str:
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def _found(root: Path, path: Path) -> FoundVideo:
    video_id = _video_id(root, path)
    try:
        status = path.stat()
    except OSError as error:
        return FoundVideo(video_id, path, 0, _reason(error))
    if not stat.S_ISREG(status.st_mode):
        return FoundVideo(video_id, path, 0, "not a regular file")
    if video_id != path.relative_to(root).as_posix():
        return FoundVideo(video_id, path, status.st_size, "the name is not valid UTF-8")
    if not os.access(path, os.R_OK):
        return FoundVideo(video_id, path, 0, "permission denied")
    return FoundVideo(video_id, path, status.st_size, "")


def decode_frames(path: Path, policy: Policy, size: int, max_pixels: int) -> Iterator[DecodedFrame]:
    """The frames of a video that the policy picks, in order, short side at most size pixels.

    Raises VideoError if there is no frame to be had; `open_video` also tells of damage after the first frame.
    """
    with open_video(path, max_pixels) as video:
        yield from video.frames(policy, size)


@contextmanager
def open_video(path: Path, max_pixels: int) -> Iterator["OpenVideo"]:
    """Opens a video file for one decoding pass; raises VideoError with the reason where that is impossible."""
    with closing(_open_container(path)) as container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & stream.disposition.attached_pic:
            raise VideoError("no video stream")
        if stream.codec_context is None:
            raise VideoError("no decoder for its codec")
        yield OpenVideo(path, container, stream, max_pixels)


def _open_container(path: Path) -> Any:
    try:
        if not path.is_dir() and path.stat().st_size == 0:
            raise VideoError("empty file")
        return av.open(
            f"file:{path}",
            container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except av.ArgumentError as error:
        raise VideoError("not a video format") from error
    except (OSError, av.FFmpegError) as error:
        raise VideoError(_reason(error)) from error


def _reason(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "no such file"
        case PermissionError():
            return "permission denied"
        case IsADirectoryError():
            return "a folder, not a file"
        case av.InvalidDataError() | EOFError():
            return "invalid data"
        case av.PatchWelcomeError():
            return "not supported by FFmpeg"
    return (getattr(error, "strerror", None) or str(error)).lower()


class _Packet(NamedTuple):
    pts: int | None
    is_keyframe: bool


class _Target(NamedTuple):
    pts: int
    first_packet: int


class OpenVideo:
    """A video file during its one decoding pass; made by `open_video`.

    `width` and `height` are those of the first frame as displayed, 0 before it; `notice` says what is missing
    from a video that could be read in part only, "" before the pass and when nothing is.
    """

    def __init__(self, path: Path, container: Any, stream: Any, max_pixels: int) -> None:
        self.width = 0
        self.height = 0
        self.notice = ""
        self.duration = _duration(container, stream)
        self._path, self._container, self._stream, self._max_pixels = path, container, stream, max_pixels
        self._end = 0.0
        self._reformatter = VideoReformatter()
        self._check_pixels(stream.codec_context.width, stream.codec_context.height)
        # Frames of damaged videos depend on the number of threads, and a store may not: workers are the
        # parallelism.
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(max_pixels)}

    def frames(self, policy: Policy, size: int) -> Iterator[DecodedFrame]:
        """Picks, scales and turns upright, in one pass; raises VideoError if not one frame can be had."""
        picked = self._picked(policy)
        while True:
            try:
                frame, time = next(picked)
                self._check_pixels(frame.width, frame.height)
                image = self._rgb(frame, size)
            except StopIteration:
                break
            except (VideoError, OSError, av.FFmpegError) as error:
                if self.width == 0 and isinstance(error, VideoError):
                    raise
                self.notice = f"stopped at {self._end:.1f} s: {_reason(error)}"
                break
            yield DecodedFrame(image, time)
        if self.width == 0:
            raise VideoError("no frame could be decoded")

    def _picked(self, policy: Policy) -> Iterator[tuple[Any, float]]:
        if isinstance(policy, SpreadEvenly):
            return self._spread_evenly(policy.num_frames)
        if isinstance(policy, Keyframes):
            return self._keyframes()
        return self._by_clock(policy)

    def _by_clock(self, policy: PerSecond | EveryKth) -> Iterator[tuple[Any, float]]:
        clock, last_tick = _Clock(self._stream, self._container), -1
        # Containers round to their time base: what is early by half a unit still belongs to the tick.
        slack = min(float(self._stream.time_base) / 2, MOST_ROUNDING) + 1e-9
        for ordinal, frame in enumerate(self._decoded(self._packets())):
            time = clock.seconds(frame)
            ticks = ordinal / policy.k if isinstance(policy, EveryKth) else (time + slack) * policy.fps
            if math.floor(ticks) > last_tick:
                last_tick = math.floor(ticks)
                yield frame, time

    def _keyframes(self) -> Iterator[tuple[Any, float]]:
        self._stream.codec_context.skip_frame = "NONKEY"
        start = self._stream.start_time
        for frame in self._decoded(self._packets()):
            if frame.key_frame:
                start = frame.pts if start is None else start
                known = frame.pts is not None
                yield frame, float((frame.pts - start) * self._stream.time_base) if known else math.nan

    def _spread_evenly(self, num_frames: int) -> Iterator[tuple[Any, float]]:
        packets = self._scan()
        if _pts_are_true(packets, self._container):
            start = self._stream.start_time
            if start is None:
                start = min((packet.pts for packet in packets if packet.pts is not None), default=0)
            return self._at_pts(_targets(packets, num_frames), start)
        return self._at_ordinals(_evenly(len(packets), num_frames))

    def _at_pts(self, targets: deque[_Target], start: int) -> Iterator[tuple[Any, float]]:
        for frame in self._decoded(self._needed_packets(targets)):
            if targets and frame.pts is not None and frame.pts >= targets[0].pts:
                # A damaged frame is replaced by the next that decodes, once.
                while targets and frame.pts >= targets[0].pts:
                    targets.popleft()
                yield frame, float((frame.pts - start) * self._stream.time_base)

    def _at_ordinals(self, ordinals: Sequence[int]) -> Iterator[tuple[Any, float]]:
        clock, wanted = _Clock(self._stream, self._container), set(ordinals)
        for ordinal, frame in enumerate(self._decoded(self._packets())):
            time = clock.seconds(frame)
            if ordinal in wanted:
                yield frame, time
            if ordinal >= ordinals[-1]:
                return

    def _scan(self) -> list[_Packet]:
        with open_video(self._path, self._max_pixels) as video:
            packets = [
                _Packet(packet.pts, packet.is_keyframe)
                for packet in video._packets()
                if packet.size and not packet.is_discard
            ]
        self.notice = video.notice
        return packets

    def _packets(self) -> Iterator[Any]:
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    past_end = packet.pts + (packet.duration or 0) - (self._stream.start_time or 0)
                    self._end = max(self._end, float(past_end * self._stream.time_base))
                yield packet
        except (OSError, av.FFmpegError) as error:
            self.notice = f"stopped at {self._end:.1f} s: {_reason(error)}"
        missing = self.duration - self._end
        if missing > max(TRUNCATED_SECONDS, TRUNCATED_PART * self.duration) and self._end:
            self.notice = f"truncated: ends at {self._end:.1f} s of {self.duration:.1f} s"

    def _needed_packets(self, targets: deque[_Target]) -> Iterator[Any]:
        """The packets from the keyframe before each target up to the target; targets are taken off outside."""
        index, skipped = 0, False
        for packet in self._packets():
            if not targets:
                return
            is_counted = packet.size and not packet.is_discard
            if is_counted and index < targets[0].first_packet:
                skipped = True
            else:
                if skipped:
                    self._stream.codec_context.flush_buffers()
                    skipped = False
                yield packet
            index += bool(is_counted)

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
                self.notice = f"packets damaged: {damaged}, the first at {first:.1f} s"
                continue
            yield from frames

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise VideoError(f"frames of more than {self._max_pixels:,} pixels ({width}x{height})")

    def _rgb(self, frame: Any, size: int) -> Image:
        # Left to itself the scaler takes a thread per core, in every worker.
        rgb = np.asarray(self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8)
        turn = _Turn.of(frame)
        if self.width == 0:
            height, width = rgb.shape[:2]
            self.width, self.height = (height, width) if turn.is_transposed else (width, height)
        return turn.upright(_shrink(rgb, size))


def _duration(container: Any, stream: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return math.nan if container.duration is None else container.duration / av.time_base


def _evenly(num_all: int, num_picked: int) -> list[int]:
    """The middles of num_picked equal parts of range(num_all): (0 … 9, 2) → 2, 7."""
    if num_picked >= num_all:
        return list(range(num_all))
    return [(2 * part + 1) * num_all // (2 * num_picked) for part in range(num_picked)]


def _pts_are_true(packets: Sequence[_Packet], container: Any) -> bool:
    """Whether sorting by pts gives the order of display: not so in AVI, raw streams and joined recordings."""
    pts = [packet.pts for packet in packets if packet.pts is not None]
    if container.format.name == "avi" or len(set(pts)) < len(packets):
        return False
    order = np.argsort(pts)
    return bool(np.all(np.abs(order - np.arange(len(order))) <= DEEPEST_REORDERING))


def _targets(packets: Sequence[_Packet], num_frames: int) -> deque[_Target]:
    """For each picked pts, the number of the packet from which decoding has to start to reach it."""
    pts = np.array([packet.pts for packet in packets], dtype=np.int64)
    keyframes = np.array([i for i, packet in enumerate(packets) if packet.is_keyframe], dtype=np.int64)
    targets: deque[_Target] = deque()
    for wanted in np.sort(pts)[_evenly(len(pts), num_frames)]:
        before = keyframes[pts[keyframes] <= wanted]
        targets.append(_Target(int(wanted), int(before[-1]) if len(before) else 0))
    return targets


class _Clock:
    """Seconds since the start for frames in the order of display, never running backwards."""

    def __init__(self, stream: Any, container: Any) -> None:
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._frame_seconds = float(1 / rate)
        self._unit, self._start = stream.time_base, stream.start_time
        # AVI has a constant rate and gives no time of display for reordered frames.
        self._is_counting = container.format.name == "avi"
        self._num_frames, self._shift, self._last = 0, 0.0, -math.inf

    def seconds(self, frame: Any) -> float:
        """Time of the next frame; each frame is to be passed once."""
        self._num_frames += 1
        if self._is_counting or frame.pts is None:
            return (self._num_frames - 1) * self._frame_seconds
        if self._start is None:
            self._start = frame.pts
        time = float((frame.pts - self._start) * self._unit) + self._shift
        if time < self._last:
            self._shift += self._last + self._frame_seconds - time
            time = self._last + self._frame_seconds
        self._last = time
        return time


class _Turn(NamedTuple):
    """What brings a stored frame upright: a transposition first, then mirroring of either axis."""

    is_transposed: bool
    mirror_x: bool
    mirror_y: bool

    @classmethod
    def of(cls, frame: Any) -> "_Turn":
        """Reads the display matrix, rounded to quarter turns and mirrorings."""
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls(False, False, False)
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    def upright(self, image: Image) -> Image:
        """The image as it is meant to be seen, contiguous."""
        turned = image.swapaxes(0, 1) if self.is_transposed else image
        turned = turned[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return np.ascontiguousarray(turned)


def _shrink(image: Image, size: int) -> Image:
    height, width = image.shape[:2]
    short_side = min(height, width)
    if short_side <= size:
        return image
    target = (max(1, round(width * size / short_side)), max(1, round(height * size / short_side)))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]
