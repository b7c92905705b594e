"""The command `label`: a class with a confidence for every frame, by a linear classifier fitted to a few examples.

The classifier is scikit-learn's logistic regression on vectors of length 1. It is saved as safetensors, which cannot
run code, and applies to all indexes of the same network.
"""

import csv
import io
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cyclecontrast.config import LabelConfig
from cyclecontrast.config.types import STRICT
from cyclecontrast.data.storage import MAX_LISTED, parse_digits, raise_problems, read_file, read_text
from cyclecontrast.errors import UserError, attempt, did_you_mean
from cyclecontrast.evaluation.metrics import Floats, Integers, dot_products
from cyclecontrast.files import atomic_folder, check_new_folder
from cyclecontrast.output import UNPRINTABLE, join_lines, quoted
from cyclecontrast.searching.explore import write_table
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.labeling_tools import LabeledFrame, check_export, write_for_tools
from cyclecontrast.searching.results import open_thumbnails

CLASSIFIER, FORMAT = "classifier.safetensors", "cyclecontrast-classifier"
MAX_CLASSIFIER_BYTES = 2**28
FRAMES_PER_VIDEO = 10
"""Frames of a video that is labeled as a whole to learn from, evenly spaced."""
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Values of C, the inverse strength of the regularization, of which cross-validation chooses."""
DEFAULT_STRENGTH = 10.0
MAX_ITERATIONS = 1000
NUM_FOLDS = 5
LEAST_PROBABILITY = 1e-6
ROUNDING = 1e-3
"""Seconds by which times in tables may be off."""
CONFIDENCES = (0.9, 0.7, 0.5)
MAX_MISTAKES, MAX_SHOWN_MISTAKES = 20, 3
EXPECTED = "expected a line of column names: video, class, and frame or time where a label is of one frame"
GIVEN = {"1": True, "1.0": True, "0": False, "0.0": False, "": False}
"""Values of the column `given`; pandas writes the second and fourth beside empty cells."""
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Examples(NamedTuple):
    """Frames to fit to: their rows in the index, and the number of each one's class in the sorted `classes`.

    `given` has the number of the class of every frame of the index, -1 where none is given: all frames of a video that
    is labeled as a whole have one, though the classifier is fitted to a few.
    """

    rows: Integers
    labels: Integers
    classes: tuple[str, ...]
    given: Integers


class Trust(BaseModel):
    """How often held-out examples are labeled right, by cross-validation in which a video is in one fold only.

    Each video counts as much as any other. `chance` is the accuracy of always naming the most frequent class, `error`
    the standard error over videos, computed with one more video right and one wrong (after Agresti and Coull), so that
    it is not 0 for a few videos without a mistake. `by_confidence` has, for each of CONFIDENCES, the fraction of
    examples with at least this confidence, and their accuracy (None without examples). `untested` are the classes whose
    labels are in one video or fold; `mistakes` the most frequent ones: class, label instead, number of examples.
    """

    model_config = STRICT
    examples: Count
    videos: Count
    accuracy: Fraction
    error: Fraction
    chance: Fraction
    by_confidence: tuple[tuple[Fraction, Fraction, Fraction | None], ...]
    untested: tuple[str, ...]
    mistakes: tuple[tuple[str, str, Count], ...]

    def lines(self) -> list[str]:
        """Return what to print about it."""
        if not self.videos:
            return [
                "not cross-validated, which takes two classes with labels in two videos each; label more to know how "
                "far to trust this"
            ]
        found = [
            f"cross-validation: {100 * self.accuracy:.0f} ± {100 * self.error:.0f} % right on the {self.examples:,} "
            f"labeled frames of {self.videos:,} videos, each without its own video (chance {100 * self.chance:.0f} %)"
        ]
        found += [
            f"  confidence {least} or more: {100 * share:.0f} % of the frames, {100 * right:.0f} % of these right"
            for least, share, right in self.by_confidence
            if right is not None
        ]
        found += [f"  {count} × {true} labeled as {given}" for true, given, count in self.mistakes[:MAX_SHOWN_MISTAKES]]
        if self.untested:
            found.append(f"  labels in one video or one fold only, so not tested: {', '.join(self.untested)}")
        return found


class About(BaseModel):
    """The description in the file of a classifier: which network's vectors it takes, and how far to trust it."""

    model_config = STRICT
    format: str
    model_fingerprint: str
    image_size: str
    classes: tuple[str, ...] = Field(min_length=2)
    strength: float = Field(gt=0, allow_inf_nan=False)
    trust: Trust


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of vectors of length 1: weight (num_classes, dim) and bias (num_classes,)."""

    weight: Floats
    bias: Floats
    about: About

    def probabilities(self, vectors: Floats) -> Floats:
        """Return the probability of each class (num, num_classes)."""
        found: Floats = softmax(dot_products(vectors, self.weight.T) + self.bias, axis=1)
        return found

    def to_bytes(self) -> bytes:
        """Return the content of its file."""
        # safetensors writes arrays in the order of their memory, whatever their strides
        arrays = {"weight": np.ascontiguousarray(self.weight), "bias": np.ascontiguousarray(self.bias)}
        return save(arrays, {"about": self.about.model_dump_json()})


@dataclass(frozen=True)
class Labeled:
    """The labels in the folder `out`: how many frames and videos got one, and how far to trust them."""

    out: Path
    num_frames: int
    num_videos: int
    num_examples: int
    classes: tuple[str, ...]
    trust: Trust
    is_new: bool
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        source = f"{self.num_examples:,} examples" if self.is_new else "a saved classifier"
        lines = [
            f"labeled: {self.num_frames:,} frames of {self.num_videos:,} videos by {source} of {len(self.classes):,} "
            "classes",
            *self.trust.lines(),
            f"labels: {self.out / 'labels.csv'}; of whole videos: {self.out / 'videos.csv'}",
        ]
        if self.is_new:
            lines.append(f"for other footage: cyclecontrast label INDEX {quoted(self.out / CLASSIFIER)}")
        return join_lines([*lines, *self.notes])


def label_index(config: LabelConfig) -> Labeled:
    """Label every frame of an index, into a new folder; raises UserError with all problems, before writing."""
    out = config.out or config.index.with_suffix(".labels")
    problems: list[str] = []
    attempt(lambda: check_new_folder(out), problems)
    index = attempt(lambda: FrameIndex.open(config.index), problems)
    if index is None:
        raise UserError(*problems)
    pictures = attempt(lambda: open_thumbnails(index, config.data), problems) if config.format else None
    attempt(lambda: check_export(config.format, len(index)), problems)
    is_new = config.labels.suffix.lower() != ".safetensors"
    examples = attempt(lambda: read_examples(config.labels, index), problems) if is_new else None
    classifier = None if is_new else attempt(lambda: open_classifier(config.labels, index), problems)
    if problems:
        raise UserError(*problems)
    if classifier is None:
        assert examples is not None
        classifier = fit(index, examples, config.seed)
    of_people = np.full(len(index), -1) if examples is None else examples.given
    classes, confidences, videos = _predict(classifier, index, of_people)
    given = of_people >= 0
    names = classifier.about.classes
    with atomic_folder(out) as folder:
        rows = ((row, [names[classes[row]], f"{confidences[row]:.4f}", int(given[row])]) for row in range(len(index)))
        write_table(folder / "labels.csv", index, rows, ["class", "confidence", "given"])
        _write_videos(folder / "videos.csv", index, videos, names)
        if is_new:
            (folder / CLASSIFIER).write_bytes(classifier.to_bytes())
        notes: list[str] = []
        if pictures is not None:
            frames = [
                LabeledFrame(row, names[classes[row]], None if given[row] else float(confidences[row]))
                for row in range(len(index))
            ]
            notes = write_for_tools(folder, out, config.format, frames, pictures, "class")
    num_examples = 0 if examples is None else len(examples.rows)
    num_videos = len(index.video_ids)
    return Labeled(out, len(index), num_videos, num_examples, names, classifier.about.trust, is_new, tuple(notes))


# --- examples


def read_examples(path: Path, index: FrameIndex) -> Examples:
    """Read a CSV file with columns video, class and frame or time; lines without a class are left out.

    A line with neither frame nor time labels its whole video. Where there is a column `given`, as in the table that
    this command writes, lines where it is not 1 are left out: predictions are no examples. Raises UserError with a line
    for each mistake.
    """
    text = _read_table(path)
    first = text.partition("\n")[0]
    table = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count), strict=True)
    problems: list[str] = []
    numbers: dict[str, int] = {}
    given, line_of = np.full(len(index), -1), np.zeros(len(index), np.int64)
    try:
        header = [name.strip().lower() for name in next(table, [])]
        names = {"label": "class", "video_id": "video", "index": "frame"}
        columns = {names.get(name, name): place for place, name in reversed([*enumerate(header)])}
        if not {"video", "class"} <= columns.keys():
            raise UserError(f"labels: {path}: has no columns video and class; {EXPECTED}")
        rows_of = _rows_by_video(index)
        for cells in itertools.takewhile(lambda _: len(problems) <= MAX_LISTED, table):
            where = f"{path}:{table.line_num}"
            if any(map(str.strip, cells[len(header) :])):
                problems.append(
                    f"{where}: has {len(cells)} cells for {len(header)} columns; put a text that contains the "
                    "separator in double quotes"
                )
                continue
            cell = {name: cells[place].strip() if place < len(cells) else "" for name, place in columns.items()}
            if cell.get("given", "1") not in GIVEN:
                problems.append(f"{where}: given is {cell['given']}; expected 1 (an example) or 0 (a prediction)")
            elif cell["class"] and GIVEN[cell.get("given", "1")]:
                rows = attempt(lambda: _rows(cell, where, index, rows_of), problems)  # noqa: B023
                if rows is None:
                    continue
                number, before = numbers.setdefault(cell["class"], len(numbers)), given[rows]
                if (differs := (before >= 0) & (before != number)).any():
                    other = rows[differs.argmax()]
                    problems.append(
                        f"{where}: a frame of {cell['video']} is {cell['class']}, but {[*numbers][given[other]]} in "
                        f"{path}:{line_of[other]}; keep one of the two"
                    )
                    continue
                given[rows] = number
                line_of[rows[before < 0]] = table.line_num
    except csv.Error as error:
        raise UserError(f"labels: {path}:{table.line_num}: is not CSV ({error})") from error
    raise_problems([f"labels: {problem}" for problem in problems])
    if len(numbers) < 2:
        what = f"only of {next(iter(numbers))}" if numbers else "none"
        hint = "where there is a column given, only lines with given = 1 count" if "given" in columns else EXPECTED
        raise UserError(f"labels: {path}: holds labels of two classes at least, found {what}; {hint}")
    classes = tuple(sorted(numbers))
    places = np.array([classes.index(name) for name in numbers])
    given = np.where(given < 0, -1, places[given])
    rows = np.sort(np.concatenate([_to_fit(one, given[one]) for one in rows_of.values()]))
    return Examples(rows, given[rows], classes, given)


def _read_table(path: Path) -> str:
    """Return the text of a CSV file, with line breaks of any system as newlines; raises UserError."""
    try:
        text = io.StringIO(read_text(path), newline=None).getvalue()
    except UserError as error:
        hint = "; save it as CSV in UTF-8" if isinstance(error.__cause__, UnicodeError) else ""
        raise UserError(f"labels: {error}{hint}") from error
    if "\0" in text:  # UTF-16 without its mark, for one
        raise UserError(f"labels: {path}: is not a text in UTF-8; save it as CSV in UTF-8")
    return text


def _to_fit(rows: Integers, given: Integers) -> Integers:
    """Return the given rows of a video; of one all of whose frames are of one class, evenly spaced ones."""
    places = np.flatnonzero(given >= 0)
    if len(places) == len(rows) and (given == given[0]).all():
        places = np.unique(np.linspace(0, len(rows) - 1, FRAMES_PER_VIDEO).round().astype(int))
    found: Integers = rows[places]
    return found


def _rows_by_video(index: FrameIndex) -> dict[str, Integers]:
    order = np.argsort(index.video, kind="stable")
    return dict(zip(index.video_ids, np.split(order, np.cumsum(np.bincount(index.video))[:-1]), strict=True))


def _rows(cell: dict[str, str], where: str, index: FrameIndex, rows_of: dict[str, Integers]) -> Integers:
    """Return the rows that a line labels; raises UserError."""
    video, frame, time = cell["video"], cell.get("frame", ""), cell.get("time", "")
    if UNPRINTABLE.search(cell["class"]):
        raise UserError(f"{where}: the class {cell['class']} has unprintable characters; remove them")
    if video not in rows_of:
        hint = did_you_mean(video, itertools.islice(rows_of, 10_000)) or f"; its first is {index.video_ids[0]}"
        raise UserError(f"{where}: the video {video} is not in {index.path}{hint}")
    rows = rows_of[video]
    if frame:
        number = parse_digits(re.sub(r"\.0*$", "", frame))  # pandas writes 5.0 beside empty cells
        if number is None:
            raise UserError(f"{where}: the frame {frame} is not a whole number")
        found = rows[index.index[rows] == number]
        if not len(found):
            known = f"{index.index[rows].min()} to {index.index[rows].max()}"
            raise UserError(f"{where}: {video} has no frame {frame}; {index.path} has {known}")
        rows = found[:1]
    if frame or not time:
        return rows
    try:
        seconds = float(time)
    except ValueError:
        seconds = np.nan
    timed = rows[~np.isnan(index.time[rows])]
    if not np.isfinite(seconds) or not len(timed):
        raise UserError(f"{where}: {time} is not a time in seconds at which {index.path} has a frame of {video}")
    times = np.sort(index.time[timed])
    spacing = np.diff(times).max() if len(times) > 1 else 1.0
    if not times[0] - spacing - ROUNDING <= seconds <= times[-1] + spacing + ROUNDING:
        raise UserError(f"{where}: {time} s is not in {video}; its frames are at {times[0]:.3f} to {times[-1]:.3f} s")
    nearest: Integers = timed[[np.argmin(np.abs(index.time[timed] - seconds))]]
    return nearest


# --- fitting


def fit(index: FrameIndex, examples: Examples, seed: int) -> Classifier:
    """Fit a classifier; the strength of its regularization is the one with the best likelihood in cross-validation."""
    vectors = np.empty((len(examples.rows), index.dim), np.float32)
    for start, block in index.blocks_with_progress("loading the vectors"):
        first, last = np.searchsorted(examples.rows, (start, start + len(block)))
        vectors[first:last] = block[examples.rows[first:last] - start]
    videos, labels = index.video[examples.rows], examples.labels
    weights = video_weights(videos)
    folds, is_tested = assign_folds(videos, labels, seed)
    held_out = {strength: cross_validate(vectors, labels, weights, folds, strength) for strength in STRENGTHS}

    def loss(strength: float) -> float:
        likelihood = held_out[strength][np.arange(len(labels)), labels]
        return float(-(weights * np.log(likelihood + LEAST_PROBABILITY))[is_tested].sum())

    strength = min(STRENGTHS, key=loss) if is_tested.any() else DEFAULT_STRENGTH
    about = About(
        format=FORMAT,
        model_fingerprint=index.about.get("model_fingerprint", ""),
        image_size=index.about.get("image_size", ""),
        classes=examples.classes,
        strength=strength,
        trust=measure_trust(held_out[strength], videos, examples, is_tested),
    )
    return Classifier(*_fit_weights(vectors, labels, weights, strength), about)


def _fit_weights(vectors: Floats, labels: Integers, weights: Floats, strength: float) -> tuple[Floats, Floats]:
    """Return weight (num_classes, dim) and bias (num_classes,) of a logistic regression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weights are good enough then, too
        fitted = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(vectors, labels, weights)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # scikit-learn has one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight.astype(np.float32), bias.astype(np.float32)


def video_weights(videos: Integers) -> Floats:
    """Return a weight for each example, so that all labeled videos count the same, however many frames are labeled."""
    _, of_video, counts = np.unique(videos, return_inverse=True, return_counts=True)
    weights: Floats = 1 / counts[of_video]
    return weights


def assign_folds(videos: Integers, labels: Integers, seed: int) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Return the fold of each example, that of its video, and whether it is tested.

    The videos of a class, the rarest one first, are dealt to the folds that hold the fewest of this class, then of all.
    A class whose videos are all in one fold cannot be tested, because nothing is left to learn it from; nor is anything
    where this leaves one class, which would be right by being named always.
    """
    rng = np.random.default_rng(seed)
    fold_of: dict[int, int] = {}
    sizes = np.zeros(NUM_FOLDS, np.int64)
    for of_class in sorted((np.unique(videos[labels == label]) for label in np.unique(labels)), key=len):
        dealt = [fold_of[video] for video in of_class.tolist() if video in fold_of]
        of_folds = np.bincount(dealt, minlength=NUM_FOLDS) if dealt else np.zeros(NUM_FOLDS, np.int64)
        for video in rng.permutation(of_class).tolist():
            if video not in fold_of:
                fold = int(np.lexsort((rng.permutation(NUM_FOLDS), sizes, of_folds))[0])
                fold_of[video] = fold
                sizes[fold] += 1
                of_folds[fold] += 1
    folds = np.array([fold_of[video] for video in videos.tolist()])
    spread = np.array([len(np.unique(folds[labels == label])) > 1 for label in range(labels.max() + 1)])
    return folds, (spread & (spread.sum() > 1))[labels]


def cross_validate(vectors: Floats, labels: Integers, weights: Floats, folds: Integers, strength: float) -> Floats:
    """Return the probability of each class (num_examples, num_classes) by classifiers fitted to the other folds."""
    found = np.zeros((len(labels), labels.max() + 1))
    for fold in np.unique(folds):
        test, rest = folds == fold, folds != fold
        known = np.unique(labels[rest])
        if len(known) > 1:
            weight, bias = _fit_weights(vectors[rest], labels[rest], weights[rest], strength)
            found[np.ix_(test, known)] = softmax(dot_products(vectors[test], weight.T) + bias, axis=1)
        else:
            found[np.ix_(test, known)] = 1
    return found


def measure_trust(held_out: Floats, videos: Integers, examples: Examples, is_tested: npt.NDArray[np.bool_]) -> Trust:
    """Summarize the probabilities of held-out examples (num_examples, num_classes)."""
    classes, labels = examples.classes, examples.labels[is_tested]
    untested = tuple(classes[label] for label in np.unique(examples.labels[~is_tested]))
    if not len(labels):
        return Trust(
            examples=0, videos=0, accuracy=0, error=0, chance=0, by_confidence=(), untested=untested, mistakes=()
        )
    predicted, confidence = held_out[is_tested].argmax(axis=1), held_out[is_tested].max(axis=1)
    right = predicted == labels
    weights = video_weights(videos[is_tested])
    total = weights.sum()
    _, of_video = np.unique(videos[is_tested], return_inverse=True)
    rates = np.bincount(of_video, weights * right)
    by_confidence = []
    for least in CONFIDENCES:
        sure = confidence >= least
        share = weights[sure].sum()
        accuracy = _rounded((weights * right)[sure].sum() / share) if share else None
        by_confidence.append((least, _rounded(share / total), accuracy))
    wrong = Counter(
        (classes[true], classes[given]) for true, given in zip(labels[~right], predicted[~right], strict=True)
    )
    return Trust(
        examples=len(labels),
        videos=len(rates),
        accuracy=_rounded(rates.mean()),
        error=_rounded(np.std([*rates, 1, 0], ddof=1) / (len(rates) + 2) ** 0.5),
        chance=_rounded(np.bincount(labels, weights).max() / total),
        by_confidence=tuple(by_confidence),
        untested=untested,
        mistakes=tuple((*pair, count) for pair, count in wrong.most_common(MAX_MISTAKES)),
    )


def _rounded(fraction: float) -> float:
    """Return a fraction that sums of weights have not brought above 1."""
    return round(float(fraction), 9)


# --- predicting


def open_classifier(path: Path, index: FrameIndex) -> Classifier:
    """Read a classifier for the vectors of an index; raises UserError if it is damaged or of another network."""
    try:
        data = read_file(path, MAX_CLASSIFIER_BYTES)
        arrays = load(data)
        with safe_open(path, "numpy") as file:
            about = About.model_validate_json((file.metadata() or {}).get("about", ""))
        weight, bias = arrays["weight"], arrays["bias"]
        shape = (len(about.classes), weight.shape[-1])
        if about.format != FORMAT or weight.shape != shape or bias.shape != shape[:1]:
            raise ValueError(f"it has weights of shape {weight.shape} for {len(about.classes)} classes")
        if len(set(about.classes)) < len(about.classes) or any(map(UNPRINTABLE.search, about.classes)):
            raise ValueError("its classes are not different printable names")
        if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in (weight, bias)):
            raise ValueError("its weights are not finite numbers of single precision")
    except (ValueError, KeyError, IndexError, SafetensorError) as error:
        is_other = isinstance(error, ValidationError)
        why = "its metadata are not those of one" if is_other else str(error).partition("\n")[0]
        raise UserError(f"labels: {path}: is not a classifier that `cyclecontrast label` saved ({why})") from error
    of_index = tuple(index.about.get(name, "") for name in ("model_fingerprint", "image_size"))
    of_classifier = (about.model_fingerprint, about.image_size)
    if not all(of_index) or of_index != of_classifier or weight.shape[1] != index.dim:
        raise UserError(
            f"labels: {path} takes the vectors of network {_network(*of_classifier)}, but {index.path} has those of "
            f"{_network(*of_index)}; embed the footage with the same network and image size"
        )
    return Classifier(weight, bias, about)


def _network(fingerprint: str, image_size: str) -> str:
    return f"{fingerprint} at {image_size} px" if fingerprint else "an unknown one"


def _predict(classifier: Classifier, index: FrameIndex, given: Integers) -> tuple[Integers, Floats, Floats]:
    """Return the class of every frame, its confidence, and the mean probabilities of each video.

    Frames with a `given` class, which is not -1, have this one for certain.
    """
    classes, confidences = np.empty(len(index), np.int32), np.empty(len(index), np.float32)
    sums = np.zeros((len(index.video_ids), len(classifier.bias)), np.float32)
    for start, block in index.blocks_with_progress("labeling"):
        found, here = classifier.probabilities(block), slice(start, start + len(block))
        (known,) = np.nonzero(given[here] >= 0)
        found[known] = 0
        found[known, given[here][known]] = 1
        classes[here], confidences[here] = found.argmax(axis=1), found.max(axis=1)
        np.add.at(sums, index.video[here], found)
    return classes, confidences, sums / np.bincount(index.video, minlength=len(sums))[:, None]


def _write_videos(path: Path, index: FrameIndex, means: Floats, classes: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["video", "frames", "class", "confidence"])
        counts = np.bincount(index.video).tolist()
        best = zip(index.video_ids, counts, means.argmax(axis=1).tolist(), means.max(axis=1).tolist(), strict=True)
        table.writerows([video, count, classes[label], f"{mean:.4f}"] for video, count, label, mean in best)
