"""A video file to track in, and the same video with the boxes drawn."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import cv2
import numpy as np

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.decode import DecodedFrame, VideoError, open_video
from cyclecontrast.data.frame_sampling import EveryKth
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.tracking_sequences import check_in_image
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Floats
from cyclecontrast.evaluation.tracking.tracker import Box
from cyclecontrast.files import check_folder, replacing

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
CODECS = ("libx264", "mpeg4")
MAX_PIXELS: int = PrepareConfig.model_fields["max_pixels"].default
CLOCK = 60_000
"""Units of a second in which frames' times are written."""
DEFAULT_FPS = 25.0
COLOR = (255, 40, 40)
HASHED_BYTES = 2**20


@dataclass(frozen=True)
class VideoFile:
    """A video, and the box of the target in its first frame."""

    path: Path
    box: Box

    @staticmethod
    def open(path: Path, box: list[float]) -> "VideoFile":
        """Decode the first frame, and check that the box touches it; raises UserError."""
        video = VideoFile(path, np.array(box))
        check_in_image(f"box: in {path}", video.box, next(video.frames()).image)
        return video

    def frames(self, notices: list[str] | None = None) -> Iterator[DecodedFrame]:
        """Yield every frame as displayed; `notices` is told what is missing; raises UserError where there is none."""
        try:
            with open_video(self.path, MAX_PIXELS) as video:
                yield from video.frames(EveryKth(1), MAX_PIXELS)
                if notices is not None and video.notice:
                    notices.append(f"{self.path}: {video.notice}; the frames that decode are tracked")
        except VideoError as error:
            raise UserError(f"{self.path}: cannot be read as a video ({error})") from error

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: its size, its beginning and its end; 16 hex digits."""
        size = self.path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with self.path.open("rb") as file:
            digest.update(file.read(HASHED_BYTES))
            file.seek(max(0, size - HASHED_BYTES))
            digest.update(file.read(HASHED_BYTES))
        return digest.hexdigest()[:16]


def check_save(path: Path, video: Path) -> None:
    """Raise UserError where a video cannot be written to this path."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"save: {path}: a video with boxes is one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise UserError(f"save: {path}: is a folder; name a file")
    if path.resolve() == video.resolve():
        raise UserError(f"save: {path}: is the video itself; name another file")
    check_folder(path.parent)


def draw(image: Pixels, box: Floats) -> Pixels:
    """Return the image with the outline of a box; what is outside of the image is not drawn."""
    height, width = image.shape[:2]
    corners = np.concatenate([box[:2] - 1, box[:2] + box[2:] - 2])
    left, top, right, bottom = np.clip(corners.round(), -width - height, 2 * (width + height)).astype(int).tolist()
    thickness = max(1, round(min(height, width) / 200))
    return cv2.rectangle(image.copy(), (left, top), (right, bottom), COLOR, thickness)  # type: ignore[no-any-return]


def write_video(path: Path, frames: Iterable[DecodedFrame]) -> None:
    """Encode frames at their times as H.264, or MPEG-4 where that encoder is not there; all have the first's size."""
    frames = iter(frames)
    head = list(itertools.islice(frames, 2))
    with replacing(path) as aside, av.open(str(aside), "w", format=FORMATS[path.suffix.lower()]) as container:
        codec = next(name for name in CODECS if name in av.codecs_available)
        height, width = (side + side % 2 for side in head[0].image.shape[:2])
        stream = container.add_stream(codec, rate=_rate(head))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        last = -1
        for number, frame in enumerate(itertools.chain(head, frames)):
            picture = av.VideoFrame.from_ndarray(_sized(frame.image, width, height), format="rgb24")
            time = frame.time if np.isfinite(frame.time) else number / DEFAULT_FPS
            last = max(last + 1, round(time * CLOCK))
            picture.pts, picture.time_base = last, Fraction(1, CLOCK)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _rate(head: list[DecodedFrame]) -> Fraction:
    """Guess frames per second from the first two: a hint to the encoder, which is told each frame's time."""
    gap = head[-1].time - head[0].time
    return Fraction(1 / gap if gap > 0 else DEFAULT_FPS).limit_denominator(1001)


def _sized(image: Pixels, width: int, height: int) -> Pixels:
    """Repeat the last row and column up to a whole number of 2 x 2 blocks; scale what has another size."""
    missing = height - image.shape[0], width - image.shape[1]
    if missing in ((0, 0), (0, 1), (1, 0), (1, 1)):
        return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), "edge")
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[no-any-return]
