"""Opens and checks the test data (sequences or a video file) and the training sequences of the head."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from cyclecontrast.config import PrepareConfig, TrackingConfig
from cyclecontrast.data.decode import DecodedFrame, EveryKth, VideoError, open_video
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.tracking_sequences import (
    Boxes,
    Sequences,
    check_in_image,
    from_official_start,
    open_got10k,
    open_otb,
)
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.tracking.scores import trackers_in
from cyclecontrast.files import atomic_write, check_folder

GOT10K_NAMES = ("got10k", "GOT-10k", "GOT10k", "got-10k", "GOT-10K")
FROM_SIXTH = ".from6"
"""Suffix of Tiger1 without its first five frames, as the authors of OTB track it."""
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
CODECS = ("libx264", "mpeg4")
MAX_PIXELS: int = PrepareConfig.model_fields["max_pixels"].default
CLOCK = 60_000
"""Ticks per second of the times in a written video."""
FPS = 25
"""Frames per second where a video does not say when its frames are shown."""
COLOR = (255, 40, 40)
HASHED_BYTES = 2**20


@dataclass(frozen=True)
class VideoFile:
    """A video, and the box (4,) of the target in its first frame."""

    path: Path
    box: Boxes

    @staticmethod
    def open(path: Path, box: list[float]) -> "VideoFile":
        """Decode the first frame, and check that the box touches it; raises UserError."""
        video = VideoFile(path, np.array(box))
        check_in_image(f"box: in {path}", video.box, next(video.frames()).image)
        return video

    def frames(self, notices: list[str] | None = None) -> Iterator[DecodedFrame]:
        """Yield every frame as displayed, and add a line on missing frames to `notices`.

        Raises UserError where there are no frames.
        """
        try:
            with open_video(self.path, MAX_PIXELS) as video:
                yield from video.frames(EveryKth(1), MAX_PIXELS)
                if notices is not None and video.notice:
                    notices.append(f"{self.path}: {video.notice}; the frames that decode are tracked")
        except VideoError as error:
            raise UserError(f"{self.path}: cannot be read as a video ({error})") from error

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the size, the first and the last bytes of the file; 16 hex digits."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            first = file.read(HASHED_BYTES)
            file.seek(max(0, size - HASHED_BYTES))
            return hashlib.sha256(str(size).encode() + first + file.read(HASHED_BYTES)).hexdigest()[:16]


class TrackingData(NamedTuple):
    """The test data, the training sequences of the head (None without training), and notes."""

    test: Sequences | VideoFile
    train: Sequences | None
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of the content of both; 16 hex digits."""
        text = self.test.fingerprint + (self.train.fingerprint if self.train else "")
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_data(config: TrackingConfig) -> TrackingData:
    """Open what is tracked and what trains the head; raises UserError with all problems."""
    problems: list[str] = []
    if config.others is not None:
        attempt(partial(trackers_in, config.others), problems)
    test = attempt(partial(_open_test, config), problems)
    needs_head = config.tracker == "siamfc" and config.train
    train = attempt(partial(_open_train, config), problems) if needs_head else None
    if problems:
        raise UserError(*problems)
    assert test is not None
    return TrackingData(test, train, _notes(config, test, train))


def open_sequences(root: Path, subset: str = "val") -> Sequences:
    """Open an OTB root, or the subset of a GOT-10k root; raises UserError."""
    splits = [split for split in ("train", "val", "test") if (root / split / "list.txt").is_file()]
    if (root / "list.txt").is_file() and root.name in ("train", "val", "test"):
        raise UserError(f"{root}: is one split of GOT-10k; name {root.parent} and --subset {root.name}")
    if not splits and any(next((root / name).glob("GOT-10k_*"), None) for name in ("train", "val", "test")):
        splits = [subset]  # the error then names the missing list
    return open_got10k(root, subset) if splits else open_otb(root)  # type: ignore[arg-type]


def _open_test(config: TrackingConfig) -> Sequences | VideoFile:
    if config.data.is_file():
        return _open_video(config)
    for name in ("box", "save"):
        if getattr(config, name) is not None:
            raise UserError(f"{name}: belongs to a video file, but {config.data} is a folder; remove it")
    if not config.data.is_dir():
        raise UserError(f"data: {config.data}: no such file or folder")
    opened = open_sequences(config.data, config.subset)
    if config.tracker == "perfect" and any(len(item.boxes) < len(item) for item in opened.sequences):
        raise UserError("tracker: perfect needs the box of every frame; the test split of GOT-10k has only the first")
    official = [(item, from_official_start(item)) for item in opened.sequences]
    shorter = [dataclasses.replace(b, name=b.name + FROM_SIXTH) for a, b in official if len(b) < len(a)]
    return dataclasses.replace(opened, sequences=(*opened.sequences, *shorter))


def _open_video(config: TrackingConfig) -> VideoFile:
    problems = []
    if config.box is None:
        problems.append(f"box: is missing; {config.data} is a video file, set the target with --box x,y,w,h")
    if config.tracker == "perfect":
        problems.append(f"tracker: perfect needs true boxes; {config.data} is a video file")
    if config.others is not None:
        problems.append(f"others: belongs to sequences with true boxes; {config.data} is a video file")
    if config.save is not None:
        attempt(partial(_check_save, config.save, config.data), problems)
        if config.score_only:
            problems.append("save: the boxes are drawn while tracking; remove --score-only")
    if problems:
        raise UserError(*problems)
    assert config.box is not None
    return VideoFile.open(config.data, [float(number) for number in config.box.split(",")])


def _check_save(path: Path, video: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"save: {path}: the name of a video with boxes ends in {', '.join(FORMATS)}")
    if path.is_dir():
        raise UserError(f"save: {path}: is a folder; name a file")
    if path.resolve() == video.resolve():
        raise UserError(f"save: {path}: is the video itself; name another file")
    check_folder(path.parent)


def _open_train(config: TrackingConfig) -> Sequences:
    root = config.train_data or _got10k_near(config.data)
    if root is None:
        raise UserError(
            f"train_data: no GOT-10k ({', '.join(GOT10K_NAMES[:3])}) in or beside {config.data}; "
            "name one with --train-data, or correlate raw features with --no-train"
        )
    return open_got10k(root, "train" if (root / "train" / "list.txt").is_file() else "val")


def _got10k_near(data: Path) -> Path | None:
    if (data / "train" / "list.txt").is_file():
        return data
    data = data.absolute()
    for root in (folder / name for folder in (data, data.parent) for name in GOT10K_NAMES):
        if any((root / split / "list.txt").is_file() for split in ("train", "val")) and root != data:
            return root
    return None


def _notes(config: TrackingConfig, test: Sequences | VideoFile, train: Sequences | None) -> tuple[str, ...]:
    gone = [item for item in test.sequences if np.isnan(item.boxes).any()] if isinstance(test, Sequences) else []
    number = sum(int(np.isnan(item.boxes).any(axis=1).sum()) for item in gone)
    notes = [f"frames without a target, not scored: {number:,}, such as in {gone[0].name}"] if gone else []
    if train is None:
        return tuple(notes)
    folder = train.sequences[0].folder.parent
    how = "" if config.train_data else ", found near the data"
    notes.append(f"the head is trained on {len(train):,} sequences of {folder}{how}")
    if folder.name != "train":
        notes.append(f"{train.root} has no train/list.txt: the head is trained on its val, unlike the published code")
    tested = {item.folder.resolve() for item in test.sequences} if isinstance(test, Sequences) else set()
    if both := sum(item.folder.resolve() in tested for item in train.sequences):
        notes.append(f"{both:,} of the training sequences of the head are also test sequences: the result is biased")
    return tuple(notes)


def draw_box(image: Pixels, box: Boxes) -> Pixels:
    """Return the image with the outline of a box (4,), cut at the edges of the image."""
    height, width = image.shape[:2]
    corners = np.concatenate([box[:2] - 1, box[:2] + box[2:] - 2])
    left, top, right, bottom = np.clip(corners.round(), -width - height, 2 * (width + height)).astype(int).tolist()
    thickness = max(1, round(min(height, width) / 200))
    return cv2.rectangle(image.copy(), (left, top), (right, bottom), COLOR, thickness)  # type: ignore[no-any-return]


def write_video(path: Path, frames: Iterator[DecodedFrame]) -> None:
    """Encode frames at their times as H.264, or as MPEG-4 where that encoder is absent; all get the first's size."""
    first = next(frames)
    # Both encoders need even sides.
    height, width = (side + side % 2 for side in first.image.shape[:2])
    with atomic_write(path) as aside, av.open(str(aside), "w", format=FORMATS[path.suffix.lower()]) as container:
        codec = next(name for name in CODECS if name in av.codecs_available)
        stream = container.add_stream(codec, rate=FPS)  # a hint: every frame has a time of its own
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        last = -1
        for number, frame in enumerate(itertools.chain([first], frames)):
            image = cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_LINEAR)
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            time = frame.time if np.isfinite(frame.time) else number / FPS
            last = max(last + 1, round(time * CLOCK))
            picture.pts, picture.time_base = last, Fraction(1, CLOCK)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
