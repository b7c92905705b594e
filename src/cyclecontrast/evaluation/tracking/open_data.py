"""Which sequences are tracked, and which train the head: found and checked before anything is computed."""

import dataclasses
import hashlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.config import TrackingConfig
from cyclecontrast.data.tracking_sequences import Sequence, Sequences, from_official_start, open_got10k, open_otb
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.tracking.records import FROM_SIXTH
from cyclecontrast.evaluation.tracking.toolkit_files import trackers_in
from cyclecontrast.evaluation.tracking.video_file import VideoFile, check_save

GOT10K_NAMES = ("got10k", "GOT-10k", "GOT10k", "got-10k", "GOT-10K")


class TrackingData(NamedTuple):
    """What is tracked, what trains the head (None: nothing), and what was decided on the way."""

    test: Sequences | VideoFile
    train: Sequences | None
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Name of the content of both; 16 hex digits."""
        text = self.test.fingerprint + (self.train.fingerprint if self.train else "")
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_data(config: TrackingConfig) -> TrackingData:
    """Open what is tracked and what trains the head; raises UserError with all that is wrong."""
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
    """Open an OTB root, or the subset of a GOT-10k root, whichever this is; raises UserError."""
    splits = [split for split in ("train", "val", "test") if (root / split / "list.txt").is_file()]
    if (root / "list.txt").is_file() and root.name in ("train", "val", "test"):
        raise UserError(f"{root}: is one split of GOT-10k; name {root.parent} and --subset {root.name}")
    if not splits and any(next((root / name).glob("GOT-10k_*"), None) for name in ("train", "val", "test")):
        splits = [subset]  # so that the missing list is named
    return open_got10k(root, subset) if splits else open_otb(root)  # type: ignore[arg-type]


def _open_test(config: TrackingConfig) -> Sequences | VideoFile:
    if config.data.is_file():
        return _open_video(config)
    for name in ("box", "save"):
        if getattr(config, name) is not None:
            raise UserError(f"{name}: belongs to a video file, but {config.data} is a folder; leave it away")
    if not config.data.is_dir():
        raise UserError(f"data: {config.data}: no such file or folder")
    opened = open_sequences(config.data, config.subset)
    if config.tracker == "perfect" and any(len(item.boxes) < len(item) for item in opened.sequences):
        raise UserError("tracker: perfect needs the box of every frame; the test split of GOT-10k has the first alone")
    return dataclasses.replace(opened, sequences=_with_tiger1_both_ways(opened.sequences))


def _open_video(config: TrackingConfig) -> VideoFile:
    problems = []
    if config.box is None:
        problems.append(f"box: is missing; {config.data} is a video file, say with --box x,y,w,h what to follow")
    if config.tracker == "perfect":
        problems.append(f"tracker: perfect needs true boxes; {config.data} is a video file")
    if config.others is not None:
        problems.append(f"others: belongs to sequences with true boxes; {config.data} is a video file")
    if config.save is not None:
        attempt(partial(check_save, config.save, config.data), problems)
        if config.score_only:
            problems.append("save: the boxes are drawn while tracking; leave --score-only away")
    if problems:
        raise UserError(*problems)
    assert config.box is not None
    return VideoFile.open(config.data, [float(number) for number in config.box.split(",")])


def _with_tiger1_both_ways(sequences: tuple[Sequence, ...]) -> tuple[Sequence, ...]:
    shorter = ((sequence, from_official_start(sequence)) for sequence in sequences)
    extra = (dataclasses.replace(b, name=b.name + FROM_SIXTH) for a, b in shorter if len(b) < len(a))
    return (*sequences, *extra)


def _open_train(config: TrackingConfig) -> Sequences:
    root = config.train_data or _got10k_near(config.data)
    if root is None:
        raise UserError(
            f"train_data: no GOT-10k ({', '.join(GOT10K_NAMES[:3])}) lies in or beside {config.data}; "
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
    if train is None:
        return ()
    folder = train.sequences[0].folder.parent
    how = "" if config.train_data else ", found near the data"
    notes = [f"the head is trained on {len(train):,} sequences of {folder}{how}"]
    if folder.name != "train":
        notes.append(
            f"{train.root} has no train/list.txt: the head is trained on its val, unlike the published protocol"
        )
    tested = {item.folder.resolve() for item in test.sequences} if isinstance(test, Sequences) else set()
    if both := sum(item.folder.resolve() in tested for item in train.sequences):
        notes.append(f"{both:,} of the sequences that train the head are evaluated too: this is no fair test")
    return tuple(notes)
