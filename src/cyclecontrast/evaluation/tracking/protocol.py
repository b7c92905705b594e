"""The protocol `tracking`: a tracker, by default SiamFC on the backbone, follows a box through sequences or a video."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pyarrow as pa

from cyclecontrast.config import TrackingConfig
from cyclecontrast.data.decode import DecodedFrame
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.tracking_sequences import Sequence, Sequences, check_in_image
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.predictions import DataInfo, Json, Record
from cyclecontrast.evaluation.protocol import Predictions, Protocol, Score
from cyclecontrast.evaluation.resume_cache import Arrays, ResumeCache
from cyclecontrast.evaluation.tracking.data import (
    FROM_SIXTH,
    TrackingData,
    VideoFile,
    draw_box,
    open_data,
    write_video,
)
from cyclecontrast.evaluation.tracking.fit_head import OPTIONS, FittedHead, fit_head
from cyclecontrast.evaluation.tracking.scores import (
    Tracked,
    from_table,
    plot_scores,
    read_results,
    score_tracker,
    to_table,
    trackers_in,
    zip_results,
)
from cyclecontrast.evaluation.tracking.siamfc import PRESETS, DenseFeatures, SiamFC, make_head
from cyclecontrast.evaluation.tracking.tracker import IdentityTracker, PerfectTracker, Tracker, follow
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.hardware import pick_device
from cyclecontrast.progress import with_progress

OF_TRAINING = (*OPTIONS, "train_data")
GOT10K_NOTES = (
    "ao, sr_50, sr_75, success, success_rate: as the GOT-10k toolkit, over the frames of all sequences but their first "
    "ones; success is the mean of its success curve",
    "precision: as on OTB, the mean over sequences, with their first frames; the toolkit has none on GOT-10k",
    "frames without a visible target (cover 0) are not counted",
)
NO_TRUTH_NOTE = "no metrics: the true boxes are only on the GOT-10k server; upload the file that ends in .boxes.zip"


class _UnreadableFrameError(UserError):
    """An error that leaves out its sequence, but no other."""


class Tracking(Protocol[TrackingConfig, TrackingData]):
    """Success and precision of a tracker on OTB or GOT-10k, or its boxes in a video."""

    name = "tracking"
    config_class = TrackingConfig

    def open(self) -> TrackingData:
        """Open what is tracked and what trains the head; raises UserError with all problems."""
        return open_data(self.config)

    def describe(self, data: TrackingData) -> DataInfo:
        """Count the sequences that train the head and those that are tracked."""
        train = len(data.train) if data.train else 0
        tested = 1
        if isinstance(data.test, Sequences):
            tested = sum(not sequence.name.endswith(FROM_SIXTH) for sequence in data.test.sequences)
        return DataInfo(str(self.config.data), data.fingerprint, train, tested)

    def predict(self, backbone: Backbone, data: TrackingData, cache: ResumeCache) -> Predictions:
        """Train the head where there is one, then track every sequence."""
        tracker, head = make_tracker(backbone, data.train, self.config, cache)
        problems = [*(data.train.problems if data.train else ()), *head.problems]
        if isinstance(data.test, VideoFile):
            tables = [_track_video(tracker, data.test, self.config, cache, problems)]
        else:
            problems += data.test.problems
            tables = list(_track_sequences(tracker, data.test, self.config, cache, problems))
        if not tables:
            raise UserError(f"{self.config.data}: no sequence could be tracked", *problems)
        table = pa.concat_tables(tables)
        layout = "video" if isinstance(data.test, VideoFile) else data.test.layout
        details = {**head.details, "layout": layout, "num_frames": len(table)}
        # Of the tracker alone, without first frames, as the GOT-10k toolkit times it.
        updates = table["seconds"].to_numpy()[table["frame"].to_numpy() > 0]
        speed = ""
        if updates.sum() > 0:
            details["frames_per_second"] = round(len(updates) / float(updates.sum()), 1)
            speed = f", {details['frames_per_second']} per second"
        notes = [*data.notes, *head.notes]
        if layout == "video":
            notes.append(f"tracked {len(table):,} frames{speed}")
            notes += [f"the boxes are drawn in {self.config.save}"] if self.config.save else []
        found = self.describe(data)
        left_out = len(data.test.sequences) - len(tables) if isinstance(data.test, Sequences) else 0
        return Predictions(
            table,
            _tag(self.config, head),
            notes,
            problems,
            details,
            (found.num_train, found.num_test - left_out),
            frozenset({"train", "exact_geometry", "fix_scale_penalty", "box", *(() if data.train else OF_TRAINING)}),
        )

    def score(self, record: Record) -> Score:
        """Score the boxes, and those of other trackers beside them; the boxes of a video are only listed."""
        layout = record.about.details["layout"]
        tracked = from_table(record.table)
        if layout == "video":
            return Score({}, {"boxes": next(iter(tracked.values())).predicted.tolist()})
        truth = select_sequences(tracked, self.config.toolkit)
        files = {"boxes.zip": zip_results(truth, layout)}
        if any(np.isnan(item.truth[item.visible]).any() for item in truth.values()):
            frames = {name: {"frames": len(item.truth)} for name, item in truth.items()}
            return Score({}, {"sequences": frames}, notes=(NO_TRUTH_NOTE,), files=files)
        boxes = {name: item.predicted for name, item in truth.items()}
        ours = score_tracker(boxes, truth, self.config.toolkit, layout)
        others, notes = _score_others(self.config, tracked, truth, layout)
        if layout == self.config.toolkit == "got10k":
            notes = [*GOT10K_NOTES, *notes]
        name = record.about.model.name if self.config.tracker == "siamfc" else self.config.tracker
        return Score(
            ours["mean"],
            {**ours, "others": others},
            f"toolkit={self.config.toolkit}",
            notes,
            files | plot_scores({name: ours, **others}),
        )


def make_tracker(
    backbone: Backbone, train: Sequences | None, config: TrackingConfig, cache: ResumeCache
) -> tuple[Tracker, FittedHead]:
    """Return the configured tracker and its trained head (identity layers if `train` is None).

    The tracker `perfect` is created later, for each sequence. Raises UserError where the head cannot be trained.
    """
    preset = PRESETS[config.preset]
    raw = FittedHead(make_head(backbone.dim, preset, None))
    if config.tracker != "siamfc":
        return IdentityTracker(), raw
    features = DenseFeatures(backbone, pick_device(config.device))
    if train is not None:
        head = fit_head(features, train, config, cache)
    else:
        unused = [name for name in OF_TRAINING if name in config.model_fields_set]
        notes = (f"{' and '.join(unused)} had no effect: no head is trained",) if unused else ()
        head = raw._replace(notes=notes)
    return (
        SiamFC(features, head.head, preset.exemplar_size, config.exact_geometry, config.fix_scale_penalty),
        head,
    )


def _tag(config: TrackingConfig, head: FittedHead) -> str:
    if config.tracker != "siamfc":
        return f"tracking tracker={config.tracker}"
    trained = f"trained epochs={head.details['epochs']}" if head.details else "raw"
    geometry = " geometry=exact" if config.exact_geometry else ""
    penalty = " scale_penalty=fixed" if config.fix_scale_penalty else ""
    return f"tracking tracker=siamfc preset={config.preset} head={trained}{geometry}{penalty}"


def _track_sequences(
    tracker: Tracker, data: Sequences, config: TrackingConfig, cache: ResumeCache, problems: list[str]
) -> Iterator[pa.Table]:
    ends = np.cumsum([len(sequence) for sequence in data.sequences]).tolist()
    for position, sequence in enumerate(data.sequences):
        title = f"tracking {sequence.name}, sequence {position + 1} of {len(data)}"
        tracker = PerfectTracker(sequence.boxes) if config.tracker == "perfect" else tracker
        images = with_progress(_images(sequence), title, ends[-1], ends[position] - len(sequence))
        try:
            made = cache.arrays(f"tracked-{position}", partial(follow, tracker, images, sequence.boxes[0]))
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
    tracker: Tracker, video: VideoFile, config: TrackingConfig, cache: ResumeCache, problems: list[str]
) -> pa.Table:
    def make() -> Arrays:
        notices: list[str] = []
        images = with_progress((frame.image for frame in video.frames(notices)), f"tracking in {video.path.name}")
        return {**follow(tracker, images, video.box), "notices": np.array(notices, dtype=str)}

    made = cache.arrays("tracked", make)
    problems += made["notices"].tolist()
    if config.save is not None:
        frames = with_progress(video.frames(), f"drawing {config.save.name}", len(made["boxes"]))
        drawn = (
            DecodedFrame(draw_box(frame.image, box), frame.time)
            for frame, box in zip(frames, made["boxes"], strict=False)
        )
        write_video(config.save, drawn)
    return to_table(video.path.name, made)


def select_sequences(tracked: Mapping[str, Tracked], toolkit: str) -> dict[str, Tracked]:
    """Return the sequences that a toolkit scores: Tiger1 has 354 frames there, or the 349 from the sixth on."""
    sequences = {name: item for name, item in tracked.items() if not name.endswith(FROM_SIXTH)}
    if toolkit == "official":
        later = ((name, item) for name, item in tracked.items() if name.endswith(FROM_SIXTH))
        sequences |= {name.removesuffix(FROM_SIXTH): item for name, item in later}
    return sequences


def _score_others(
    config: TrackingConfig, tracked: Mapping[str, Tracked], truth: Mapping[str, Tracked], layout: str
) -> tuple[dict[str, Json], list[str]]:
    """Score each other tracker on the sequences in its folder; returns notes with its metrics and its problems too."""
    lengths = {name: len(item.truth) for name, item in truth.items()}
    skipped = {name: len(tracked[name].truth) - length for name, length in lengths.items()}
    scores: dict[str, Json] = {}
    notes = []
    for folder in trackers_in(config.others) if config.others is not None else ():
        boxes, problems = read_results(folder, lengths, skipped)
        if boxes:
            scores[folder.name] = score_tracker(boxes, truth, config.toolkit, layout)
            metrics = scores[folder.name]["mean"]
            numbers = ", ".join(f"{name} {100 * value:.2f} %" for name, value in metrics.items())
            notes.append(f"others: {folder.name}, {len(boxes)} of {len(truth)} sequences: {numbers}")
        notes += [f"others: {problem}; left out" for problem in problems]
    return scores, notes
