"""Select and decode frames of a video in one sequential pass. This module is independent of frame stores."""

import errno
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Colorspace, VideoReformatter

from cyclecontrast.data.images import Pixels, size_problem
from cyclecontrast.data.storage import PatientFile, check_memory, is_passing, short_reason

# Only containers that contain their own frames: a playlist renamed to .mp4 must not open other files or URLs.
DEMUXERS = (
    "mov,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,live_flv,ogg,gif,apng,mxf,dv,ivf,nut,rm,wtv,m4v,mjpeg,"
    "h261,h263,h264,hevc,obu,av1,vc1,yuv4mpegpipe,dhav"
)
MAX_ROUNDING = 0.005
"""Seconds by which a container may round a time: GIF counts in hundredths."""
DEFAULT_RATE = 25
"""Frames per second of a video that does not say."""
TRUNCATED_SECONDS, TRUNCATED_PART = 1.0, 0.05
"""A video is truncated if it ends earlier than its header specifies by more than both of these limits."""
TS_PACKETS = 188, 192, 204
"""Bytes of a packet of a transport stream: plain, with a time stamp, and with error correction."""
LOST_FRAMES, LOST_PART = 2, 0.05
"""Number and fraction of frames that an intact video may lack compared with its header; the larger limit applies."""
MAX_PACKETS = 10_000_000
"""Packets read at most, 92 hours at 30 frames per second; the counts in headers are not trusted."""

DEFAULT_FPS = 2.0
MAX_REORDERING = 32
"""Frames by which a packet may precede or follow its place in time; H.264 and HEVC allow 16."""
MAX_INTERLACED_FPS = 31
"""Interlaced pictures per second; where there are more packets, each holds one field."""
HD_WIDTH, HD_HEIGHT = 1_280, 720
"""Players show videos from this size on in the colors of HDTV where the file does not name its colors."""
UNNAMED_COLORS = 2
"""FFmpeg's number of the color space of a frame whose file names none."""
FIRST_INTERLACED = 2
"""FFmpeg's orders of fields count from 0, unknown, and 1, progressive."""
VP8_SHOWN = 0x10
"""The bit of the first byte of a VP8 packet that says that its picture is shown."""
TIME_TAG = re.compile(r"([0-9]{1,6}):([0-9]{2}):([0-9]{2}(?:\.[0-9]{1,9})?)")
MAX_PIXEL_ASPECT = 4.0
"""A pixel that is wider or taller than this is a mistake in the header."""

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


class ScannedPacket(NamedTuple):
    """What is known of a packet without decoding it."""

    pts: int | None
    is_keyframe: bool
    is_shown: bool


class DecodedFrame(NamedTuple):
    """A frame: RGB (h, w, 3), upright, with square pixels, and its seconds on the clock of a player (nan: unknown)."""

    image: Pixels
    time: float


@contextmanager
def open_video(path: Path, max_pixels: int, deinterlace: bool = False) -> Iterator["OpenVideo"]:
    """Open a video file for one decoding pass; raises VideoError with the reason where that is impossible."""
    with _open_file(path) as file, closing(_open_container(file)) as container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & stream.disposition.attached_pic:
            raise VideoError("no video stream")
        if stream.codec_context is None:
            raise VideoError("no decoder for its codec")
        yield OpenVideo(path, container, stream, max_pixels, deinterlace)


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
    `num_packets` and `num_decoded` count the packets with a picture that were read and the frames that were decoded;
    `frames_in_header` is the number of frames that the header names, 0 where it names none. `duration` is that of the
    picture in seconds, of what was read where the header does not say.
    """

    def __init__(self, path: Path, container: Any, stream: Any, max_pixels: int, deinterlace: bool) -> None:
        self.width = self.height = 0
        self.notice, self.is_damaged = "", False
        self.num_packets = self.num_decoded = 0
        self.frames_in_header = int(stream.frames)
        self.duration = _declared_seconds(stream, container)
        self._path, self._container, self._stream, self._max_pixels = path, container, stream, max_pixels
        self._deinterlace, self._scaler = deinterlace, Scaler(_pixel_aspect(stream))
        self._start = stream.start_time  # FFmpeg may change it while it reads
        self._delay = _delay(stream, container)
        self._arrivals: deque[int] = deque()
        self._end = self._end_of_all = self._first_damage = 0.0
        self._num_read = self._num_damaged = 0
        self._is_scanned = self._is_cut = False
        # Older versions of PyAV do not tell the order of fields.
        order = getattr(stream.codec_context, "field_order", FIRST_INTERLACED)
        self._is_interlaced = stream.codec_context.name == "h264" and order >= FIRST_INTERLACED
        self._check_pixels(stream.codec_context.width, stream.codec_context.height)
        # Frames of damaged videos depend on the number of threads, and a store may not; processes run in parallel.
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(max_pixels)}

    def frames(self, policy: Policy, size: int) -> Iterator[DecodedFrame]:
        """Pick, scale and turn frames upright, in one pass; raises VideoError where none can be decoded."""
        try:
            for frame, time in self._picked(policy):
                self._check_pixels(self._scaler.shown_width(frame), frame.height)
                yield DecodedFrame(self._rgb(frame, size), time)
        except (VideoError, av.FFmpegError) as error:
            if self.width == 0 and isinstance(error, VideoError):
                raise
            self._note_stop(error)
        if self.width == 0:
            raise VideoError("no frame could be decoded")

    def count_frames(self) -> int:
        """Count the frames by a pass over the packets, decoding only where a packet may hold a field.

        Use it instead of `frames`.
        """
        pts = [packet.pts for packet in self._packets() if self._is_shown(packet)]
        return self._count_decoded() if self._may_hold_fields(pts) else len(pts)

    @property
    def fps(self) -> float:
        """Frames per second as the container says or FFmpeg guesses, 25 where neither is known."""
        return self._rate / 2 if self._is_interlaced and self._rate > MAX_INTERLACED_FPS else self._rate

    def is_truncated(self) -> bool:
        """Return whether the file is cut off.

        It ends clearly earlier than its header specifies, or has clearly fewer packets, too. Call it after all packets
        were read. Fewer packets alone are not sufficient: dropped frames have none, and an edit list shows a part. The
        AVI demuxer reports a shorter duration.
        """
        if self._is_cut:
            return True
        expected = self.frames_in_header
        if not self._is_avi and not math.isnan(self.duration):
            expected = min(expected, round(self.duration * self.fps))
        ends_early = not self._end or not may_be_missing(expected - round(self._end * self.fps), expected)
        return ends_early and not may_be_missing(expected - self._num_read, expected)

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
        slack = min(float(self._stream.time_base) / 2, MAX_ROUNDING) + 1e-9
        for ordinal, (frame, time) in enumerate(self._timed()):
            ticks = ordinal / policy.k if isinstance(policy, EveryKth) else (time + slack) * policy.fps
            if math.floor(ticks) > last_tick:
                last_tick = math.floor(ticks)
                yield frame, time

    def _keyframes(self) -> Iterator[PickedFrame]:
        self._stream.codec_context.skip_frame = "NONKEY"
        start = self._start
        for frame in self._decoded(self._packets()):
            if frame.key_frame:
                start = frame.pts if start is None else start
                yield frame, math.nan if frame.pts is None else self._seconds(frame.pts - start) + self._delay

    def _spread_evenly(self, num_frames: int) -> Iterator[PickedFrame]:
        packets = self._scan()
        pts = [packet.pts for packet in packets if packet.is_shown]
        if self._may_hold_fields(pts):
            return self._at_ordinals(evenly(self._count_decoded(), num_frames))
        if not pts_give_display_order(pts, self._container):
            return self._at_ordinals(evenly(len(pts), num_frames))
        start = self._start
        if start is None:
            start = min((value for value in pts if value is not None), default=0)
        return self._at_pts(find_targets(packets, num_frames), start)

    def _at_pts(self, targets: deque[tuple[int, int]], start: int) -> Iterator[PickedFrame]:
        for frame in self._decoded(self._needed_packets(targets)):
            if targets and frame.pts is not None and frame.pts >= targets[0][0]:
                # A damaged frame is replaced by the next that decodes, once.
                while targets and frame.pts >= targets[0][0]:
                    targets.popleft()
                yield frame, self._seconds(frame.pts - start) + self._delay

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
        is_complete = not self.is_damaged and may_be_missing(self.num_packets - self.num_decoded, self.num_packets)
        for number in waiting:
            if picked is not None and is_complete and number < self.num_packets:
                yield picked

    def _timed(self) -> Iterator[PickedFrame]:
        clock = Clock(self._stream, self._container, self._arrivals, self._delay)
        for frame in self._decoded(self._packets()):
            yield frame, clock.seconds(frame)

    def _decoded(self, packets: Iterator[Any]) -> Iterator[Any]:
        frames = self._decoded_as_stored(packets)
        return deinterlaced(frames) if self._deinterlace else frames

    def _decoded_as_stored(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Yield frames in display order; packets that do not decode are noted and skipped."""
        for packet in packets:
            try:
                frames = self._stream.decode(packet)
            except av.FFmpegError as error:
                check_memory(error)
                if isinstance(error, av.ArgumentError) and self.width == 0:
                    raise VideoError(f"invalid data or frames of more than {self._max_pixels:,} pixels") from error
                self._note_damage(self._end)
                continue
            for frame in frames:
                self.num_decoded += 1
                yield frame

    def _packets(self) -> Iterator[Any]:
        """Yield the packets that can be decoded.

        A packet that is marked as damaged is left out, with those up to the next keyframe, which may refer to it. The
        mark is also at the joint of two recordings, where nothing is lost: there, the times begin anew.
        """
        left_out: list[Any] = []
        place = 0.0
        for packet in self._read_packets():
            # The demuxer of transport streams may mark the packet before the damaged one.
            if left_out and ((packet.is_keyframe and not left_out[-1].is_corrupt) or not packet.size):
                if packet.size and None not in (packet.pts, left_out[0].pts) and packet.pts < left_out[0].pts:
                    self.num_packets += sum(map(self._is_shown, left_out))
                    yield from left_out
                elif not self._is_scanned:
                    self._note_damage(place, is_last=not packet.size)
                left_out = []
            if left_out or packet.is_corrupt:
                place = place if left_out else self._end
                left_out.append(packet)
                continue
            self.num_packets += self._is_shown(packet)
            yield packet
        if not self._is_scanned:
            self._note_end()

    def _read_packets(self) -> Iterator[Any]:
        first, unit = self._start, self._stream.time_base
        # Without a duration of the picture, that of the file is compared with the end of its longest stream.
        needs_all = math.isnan(self.duration) and self._container.duration is not None
        streams = self._container.streams if needs_all else (self._stream,)
        try:
            for number, packet in enumerate(self._container.demux(*streams)):
                if number >= MAX_PACKETS:
                    raise VideoError(f"more than {MAX_PACKETS:,} frames")
                if packet.pts is not None:
                    past_end = packet.pts + (packet.duration or 0)
                    self._end_of_all = max(self._end_of_all, float(past_end * packet.time_base))
                if packet.stream.index != self._stream.index:
                    continue
                self._num_read += bool(packet.size)
                if packet.pts is not None:
                    first = packet.pts if first is None else first
                    self._end = max(self._end, float((past_end - first) * unit))
                if self._is_avi and packet.size and packet.dts is not None:
                    self._arrivals.append(packet.dts)
                yield packet
        except (VideoError, IndexError, av.FFmpegError) as error:
            self._note_stop(error)

    def _note_end(self) -> None:
        """Note where the file ends before it should."""
        whole, end = self.duration, self._end
        if math.isnan(whole):
            self.duration = end or math.nan
            whole, end = (self._container.duration or math.nan) / av.time_base, self._end_of_all
        if whole - end > max(TRUNCATED_SECONDS, TRUNCATED_PART * whole) and end:
            self.notice, self._is_cut = f"truncated: ends at {end:.1f} s of {whole:.1f} s", True
        elif self._container.format.name == "mpegts" and all(self._path.stat().st_size % size for size in TS_PACKETS):
            self.notice = f"truncated: ends at {end:.1f} s, within a packet"

    def _needed_packets(self, targets: deque[tuple[int, int]]) -> Iterator[Any]:
        """Yield the packets from the keyframe before each target to the target; the caller removes reached targets."""
        number, skipped = 0, False
        for packet in self._packets():
            if not targets:
                return
            if packet.size and number < targets[0][1]:
                skipped = True
            else:
                if skipped:
                    self._stream.codec_context.flush_buffers()
                    skipped = False
                yield packet
            number += bool(packet.size)

    def _scan(self) -> list[ScannedPacket]:
        """Return all packets, by a pass without decoding."""
        with open_video(self._path, self._max_pixels) as video:
            packets = [
                ScannedPacket(packet.pts, packet.is_keyframe, video._is_shown(packet))
                for packet in video._packets()
                if packet.size
            ]
        self.notice, self.is_damaged, self.duration = video.notice, video.is_damaged, video.duration
        self._is_scanned, self._is_cut = True, video._is_cut
        self._num_damaged, self._first_damage = video._num_damaged, video._first_damage
        return packets

    def _count_decoded(self) -> int:
        """Return the number of frames, by a pass that decodes all of them."""
        with open_video(self._path, self._max_pixels) as video:
            return sum(1 for _ in video._decoded(video._packets()))

    def _is_shown(self, packet: Any) -> bool:
        """Whether a packet has a picture to show: not outside of the edit list, nor a reference only, as in VP8."""
        if not packet.size or packet.is_discard:
            return False
        return self._stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & VP8_SHOWN)

    def _may_hold_fields(self, pts: Sequence[int | None]) -> bool:
        """Whether two packets may make up one picture; the second one has no time, or half of a picture's later."""
        return self._is_interlaced and (self._rate > MAX_INTERLACED_FPS or None in pts or len(set(pts)) < len(pts))

    @property
    def _is_avi(self) -> bool:
        return bool(self._container.format.name == "avi")

    @property
    def _rate(self) -> float:
        return float(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_RATE)

    def _seconds(self, pts: int) -> float:
        return float(pts * self._stream.time_base)

    def _note_stop(self, error: Exception) -> None:
        self.is_damaged = True
        self.notice = f"stopped at {self._end:.1f} s: {_reason(error)}"

    def _note_damage(self, place: float, is_last: bool = False) -> None:
        self._num_damaged += 1
        self._first_damage = place if self._num_damaged == 1 else self._first_damage
        self.is_damaged |= not is_last
        if not self._is_cut:
            self.notice = f"packets damaged: {self._num_damaged}, the first at {self._first_damage:.1f} s"

    def _check_pixels(self, width: int, height: int) -> None:
        if problem := size_problem(width, height, self._max_pixels):
            raise VideoError(f"frames of {problem}")

    def _rgb(self, frame: Any, size: int) -> Pixels:
        transposed, mirror_x, mirror_y = orientation(frame)
        image = self._scaler.rgb(frame, size)
        if self.width == 0:
            width, height = self._scaler.shown_width(frame), frame.height
            self.width, self.height = (height, width) if transposed else (width, height)
        image = image.swapaxes(0, 1) if transposed else image
        return np.ascontiguousarray(image[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])


class Clock:
    """Computes monotonic times in seconds for frames in display order."""

    def __init__(self, stream: Any, container: Any, arrivals: deque[int] | None = None, delay: float = 0.0) -> None:
        """Take the decoding times of the packets as they are read, for AVI, and when the first frame is shown."""
        rate = stream.average_rate or stream.guessed_rate or Fraction(DEFAULT_RATE)
        self._frame_seconds = float(1 / rate)
        self._stream, self._unit, self._start, self._delay = stream, stream.time_base, stream.start_time, delay
        # AVI has no display times for reordered frames: they are those of the packets, in their order.
        self._arrivals = arrivals if container.format.name == "avi" else None
        self._num_frames, self._shift, self._last, self._has_pts = 0, 0.0, -math.inf, False

    def seconds(self, frame: Any) -> float:
        """Return the time of the next frame; call it once for each frame."""
        self._num_frames += 1
        pts = frame.pts
        if self._arrivals:
            pts = self._arrivals.popleft()
            while self._arrivals and not self._stream.codec_context.has_b_frames and pts < (frame.dts or 0):
                pts = self._arrivals.popleft()
        if pts is None and not self._has_pts:
            self._last = (self._num_frames - 1) * self._frame_seconds
            return self._last
        self._has_pts = True
        if pts is None:
            self._last += self._frame_seconds
            return self._last
        if self._start is None:
            self._start = pts
        time = float((pts - self._start) * self._unit) + self._delay + self._shift
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

    def __init__(self, pixel_aspect: float = 1.0) -> None:
        """Take the width of a stored pixel for its height; it is square in what comes out."""
        # Each reformatter caches a single conversion.
        self._to_size, self._to_rgb = VideoReformatter(), VideoReformatter()
        self._pixel_aspect = pixel_aspect

    def shown_width(self, frame: Any) -> int:
        """Return the width at which a player shows a stored frame."""
        return max(1, round(int(frame.width) * self._pixel_aspect))

    def rgb(self, frame: Any, size: int) -> Pixels:
        """Return the frame as stored, not turned upright."""
        shown = self.shown_width(frame), frame.height
        factor = min(1.0, size / min(shown))
        width, height = (max(1, round(side * factor)) for side in shown)
        is_rgb = frame.format.is_rgb or frame.format.has_palette
        is_hd = frame.width >= HD_WIDTH or frame.height >= HD_HEIGHT
        colors = Colorspace.ITU709 if frame.colorspace == UNNAMED_COLORS and is_hd and not is_rgb else None
        # By default the scaler starts a thread per core, in every worker.
        if (width, height) != (frame.width, frame.height):
            between = "rgb24" if is_rgb else "yuv444p"
            frame = self._to_size.reformat(frame, width, height, between, interpolation="AREA", threads=1)
        image = self._to_rgb.reformat(frame, format="rgb24", src_colorspace=colors, threads=1)
        return np.asarray(image.to_ndarray(), dtype=np.uint8)


def deinterlaced(frames: Iterator[Any]) -> Iterator[Any]:
    """Yield as many frames, the interlaced ones filtered by FFmpeg's bwdif."""
    graph, shape = Graph(), None
    times: deque[tuple[int | None, Fraction]] = deque()

    def finished() -> Iterator[Any]:
        with suppress(av.BlockingIOError, av.EOFError):
            while times:
                frame: Any = graph.pull()
                frame.pts, frame.time_base = times.popleft()
                yield frame

    def flushed() -> Iterator[Any]:
        if times:
            graph.push(None)
            yield from finished()

    for frame in frames:
        if shape != (frame.width, frame.height, frame.format.name):
            yield from flushed()
            shape = frame.width, frame.height, frame.format.name
            graph = Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
            graph.configure()
        times.append((frame.pts, frame.time_base))
        graph.push(frame)
        yield from finished()
    yield from flushed()


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


def may_be_missing(frames: int, of: int) -> bool:
    """Return whether an intact video may lack this many frames."""
    return frames <= max(LOST_FRAMES, LOST_PART * of)


def _declared_seconds(stream: Any, container: Any) -> float:
    """Return the duration of the picture as the file says, nan where it names none of it alone."""
    # The demuxer of ASF gives every stream the duration of the file.
    if stream.duration is not None and container.format.name != "asf":
        return float(stream.duration * stream.time_base)
    if end := TIME_TAG.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = end.groups()
        last = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        # Tools that cut files may leave the tags of the whole.
        if container.duration is None or last <= container.duration / av.time_base + TRUNCATED_SECONDS:
            return last - float((stream.start_time or 0) * stream.time_base)
    return math.nan


def _delay(stream: Any, container: Any) -> float:
    """Return how long a player shows nothing before the first frame, in seconds: the sound may start earlier.

    Sound before the time zero is an encoder's delay, which is not played.
    """
    if stream.start_time is None or container.start_time is None:
        return 0.0
    delay = float(stream.start_time * stream.time_base) - max(0.0, container.start_time / av.time_base)
    return delay if delay > 1e-5 else 0.0  # containers count in microseconds


def _pixel_aspect(stream: Any) -> float:
    """Return the width of a pixel for its height, 1 where the file does not say or cannot be right."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


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
    return bool(np.all(np.abs(order - np.arange(len(order))) <= MAX_REORDERING))


def find_targets(packets: Sequence[ScannedPacket], num_frames: int) -> deque[tuple[int, int]]:
    """Return the pts of each picked frame, and the number of the packet from which decoding must start to reach it."""
    shown = [(packet.pts, packet.is_keyframe, number) for number, packet in enumerate(packets) if packet.is_shown]
    pts, is_keyframe, numbers = np.array(shown, dtype=np.int64).reshape(-1, 3).T
    targets: deque[tuple[int, int]] = deque()
    for wanted in np.sort(pts)[evenly(len(pts), num_frames)]:
        before = numbers[(is_keyframe > 0) & (pts <= wanted)]
        targets.append((int(wanted), int(before[-1]) if len(before) else 0))
    return targets
