"""The protocol `tracking`: a tracker on frozen features follows one box through sequences or a video (§a)."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track

from cyclecontrast.config import TrackingConfig
from cyclecontrast.data.decode import DecodedFrame
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.tracking_sequences import Sequence, Sequences, check_in_image
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.predictions import DataInfo, Json, Record
from cyclecontrast.evaluation.protocol import Predictions, Protocol, Score
from cyclecontrast.evaluation.resume_cache import Arrays, ResumeCache
from cyclecontrast.evaluation.tracking.follow import follow
from cyclecontrast.evaluation.tracking.open_data import TrackingData, open_data
from cyclecontrast.evaluation.tracking.records import FROM_SIXTH, to_table
from cyclecontrast.evaluation.tracking.scores import score
from cyclecontrast.evaluation.tracking.siamfc import OF_TRAINING, prepare_tracker
from cyclecontrast.evaluation.tracking.tracker import IdentityTracker, PerfectTracker, PreparedTracker, Tracker
from cyclecontrast.evaluation.tracking.video_file import VideoFile, draw, write_video
from cyclecontrast.models.backbone import Backbone

T = TypeVar("T")


class _UnreadableFrameError(UserError):
    """Damages its sequence, and no other."""


def describe(data: TrackingData, config: TrackingConfig) -> DataInfo:
    """Name the sequences that train the head and those that are tracked."""
    train = len(data.train) if data.train else 0
    if isinstance(data.test, VideoFile):
        return DataInfo(str(config.data), data.fingerprint, train, 1)
    tested = sum(not sequence.name.endswith(FROM_SIXTH) for sequence in data.test.sequences)
    return DataInfo(str(config.data), data.fingerprint, train, tested)


def predict(backbone: Backbone, data: TrackingData, config: TrackingConfig, unfinished: ResumeCache) -> Predictions:
    """Train the head where there is one, then track; what was tracked before a stop is not tracked again."""
    prepared = _prepare(backbone, data, config, unfinished)
    problems = [*(data.train.problems if data.train else ()), *prepared.problems]
    if isinstance(data.test, VideoFile):
        tables = [_track_video(prepared.tracker, data.test, config, unfinished, problems)]
    else:
        problems += data.test.problems
        tables = list(_track_sequences(prepared.tracker, data.test, config, unfinished, problems))
    if not tables:
        raise UserError(f"{config.data}: no sequence could be tracked", *problems)
    table = pa.concat_tables(tables)
    layout = "video" if isinstance(data.test, VideoFile) else data.test.layout
    details = {**prepared.details, "layout": layout, "num_frames": len(table), **_speed(table)}
    notes = (*data.notes, *prepared.notes, *(_video_notes(config, details) if layout == "video" else ()))
    listed = describe(data, config)
    lost = 0 if isinstance(data.test, VideoFile) else len(data.test.sequences) - len(tables)
    used = (listed.num_train, listed.num_test - lost)
    idle = {"train", "exact_geometry", "fix_scale_penalty", "box", *(() if data.train else OF_TRAINING)}
    return Predictions(table, prepared.tag, notes, tuple(problems), details, used, frozenset(idle))


def _prepare(
    backbone: Backbone, data: TrackingData, config: TrackingConfig, unfinished: ResumeCache
) -> PreparedTracker:
    if config.tracker == "siamfc":
        return prepare_tracker(backbone, config, data.train, unfinished)
    return PreparedTracker(IdentityTracker(), f"tracking tracker={config.tracker}")


def _track_sequences(
    tracker: Tracker, data: Sequences, config: TrackingConfig, unfinished: ResumeCache, problems: list[str]
) -> Iterator[pa.Table]:
    for position, sequence in enumerate(data.sequences):
        title = f"{sequence.name} {position + 1}/{len(data)}"
        tracker = PerfectTracker(sequence.boxes) if config.tracker == "perfect" else tracker
        images = _watched(_images(sequence), title, len(sequence))
        try:
            made = unfinished.arrays(
                f"tracked-{position}-{sequence.name}", partial(follow, tracker, images, sequence.boxes[0])
            )
        except _UnreadableFrameError as error:
            problems.append(f"{error}; {sequence.name} is left out")
        else:
            yield to_table(sequence.name, made, sequence)


def _images(sequence: Sequence) -> Iterator[Pixels]:
    for index in range(len(sequence)):
        try:
            image = sequence.image(index)
            if index == 0:
                check_in_image(f"{sequence.folder}, first frame", sequence.boxes[0], image)
            yield image
        except UserError as error:
            raise _UnreadableFrameError(*error.problems) from error


def _track_video(
    tracker: Tracker, video: VideoFile, config: TrackingConfig, unfinished: ResumeCache, problems: list[str]
) -> pa.Table:
    def make() -> Arrays:
        notices: list[str] = []
        images = _watched((frame.image for frame in video.frames(notices)), video.path.name)
        return {**follow(tracker, images, video.box), "notices": np.array(notices, dtype=str)}

    made = unfinished.arrays("tracked", make)
    problems += made["notices"].tolist()
    if config.save is not None:
        frames = zip(_watched(video.frames(), config.save.name, len(made["boxes"])), made["boxes"], strict=False)
        write_video(config.save, (DecodedFrame(draw(frame.image, box), frame.time) for frame, box in frames))
    return to_table(video.path.name, made)


def _watched(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """Show a progress bar where someone watches."""
    console = Console(stderr=True)
    return track(items, title, total, console=console, disable=not console.is_terminal, transient=True)


def _video_notes(config: TrackingConfig, details: Json) -> Iterator[str]:
    speed = f", {details['frames_per_second']} a second" if "frames_per_second" in details else ""
    yield f"tracked {details['num_frames']:,} frames{speed}"
    if config.save is not None:
        yield f"the boxes are drawn in {config.save}"


def _speed(table: pa.Table) -> Json:
    """Return frames per second of the tracker alone, first frames aside, as the GOT-10k toolkit times it."""
    updates = table["seconds"].to_numpy()[table["frame"].to_numpy() > 0]
    total = float(updates.sum())
    return {"frames_per_second": round(len(updates) / total, 1)} if total > 0 else {}


class Tracking(Protocol[TrackingConfig, TrackingData]):
    """The protocol as a class."""

    name = "tracking"
    config_class = TrackingConfig

    def open(self) -> TrackingData:
        """Open the data."""
        return open_data(self.config)

    def describe(self, data: TrackingData) -> DataInfo:
        """Return which data these are."""
        return describe(data, self.config)

    def predict(self, backbone: Backbone, data: TrackingData, cache: ResumeCache) -> Predictions:
        """Compute all predictions."""
        return predict(backbone, data, self.config, cache)

    def score(self, record: Record) -> Score:
        """Score a record."""
        return score(record, self.config)
