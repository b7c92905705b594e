"""The protocol `shape-bias`: whether a backbone sees the shape or the texture of images where the two conflict.

A stimulus (Geirhos et al. 2019) has the shape of one class and the texture of another, both in its name:
`cat1-clock2.png`. A classifier on frozen features is trained on labeled images of the classes. A decision for the shape
or the texture counts, one for a third class does not: shape bias = shape decisions / (shape + texture decisions).
Images of the same classes in `textured/<class>` and `untextured/<class>` tell what accuracy texture is worth.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from cyclecontrast.config import ShapeBiasConfig
from cyclecontrast.data.folders import LeftOut, images_below
from cyclecontrast.data.labeled_images import Numbers, Split, class_folders, fingerprint_of, make_split
from cyclecontrast.data.storage import raise_problems
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.classification import breakdown, leaked, untrained_class_notes
from cyclecontrast.evaluation.embed import Loading, embed_images, image_parts
from cyclecontrast.evaluation.linear import fit_convex
from cyclecontrast.evaluation.metrics import Floats, nearest_neighbors, reduced_k_notes, unit_vectors, vote
from cyclecontrast.evaluation.predictions import DataInfo, Record
from cyclecontrast.evaluation.protocol import Part, Predictions, Protocol, Score
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import Backbone

STIMULUS = re.compile(r"([^\W\d]+)\d*-([^\W\d]+)\d*")
CONFLICT, TEXTURED, UNTEXTURED = "conflict", "textured", "untextured"
NO_TEXTURE = -1
Classifier = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Stimuli:
    """Images to classify by part: `conflict`, whose labels are their shapes, and maybe `textured` and `untextured`.

    `textures` has the class of the texture of each image of `conflict`.
    """

    root: Path
    classes: tuple[str, ...]
    train: Split
    parts: dict[str, Split]
    textures: Numbers
    notes: tuple[str, ...]

    @staticmethod
    def open(root: Path, train_data: Path) -> "Stimuli":
        """Read the names of all images; raises UserError with all that is wrong."""
        for folder in (root, train_data):
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder")
        problems: list[str] = []
        left_out = LeftOut(root)
        top = "train" if (train_data / "train").is_dir() else ""
        classes = tuple(sorted(class_folders(train_data / top)))
        train = _of_classes(train_data, top, classes, problems, LeftOut(train_data))
        conflict = list(_conflicting(root, classes, problems, left_out))
        parts = {CONFLICT: make_split(root, [(name, shape, [name]) for name, shape, _ in conflict])}
        for part, other in ((TEXTURED, UNTEXTURED), (UNTEXTURED, TEXTURED)):
            if (root / part).is_dir():
                parts[part] = _of_classes(root, part, classes, problems, left_out)
            elif (root / other).is_dir():
                problems.append(f"{root / part}: no such folder; {TEXTURED} and {UNTEXTURED} belong together")
        raise_problems(problems)
        textures = np.array([texture for *_, texture in conflict], np.int64)
        if not (textures != parts[CONFLICT].labels).any():
            raise UserError(f"{root}: holds no image <shape><n>-<texture><n> whose shape and texture differ")
        return Stimuli(root, classes, train, parts, textures, left_out.notes)


def _of_classes(root: Path, top: str, classes: Sequence[str], problems: list[str], left_out: LeftOut) -> Split:
    """Return the images in the folders of these classes in `top`."""
    videos = []
    for label, name in enumerate(classes):
        folder = PurePosixPath(top, name).as_posix()
        found = list(images_below(root, folder, left_out))
        videos += [(image, label, [image]) for image in found]
        if not found:
            problems.append(f"{root / folder}: holds no images")
    if len(classes) < 2:
        problems.append(f"{root / top}: holds {len(classes)} folders of classes; a classifier needs two")
    return make_split(root, videos)


def _conflicting(
    root: Path, classes: Sequence[str], problems: list[str], left_out: LeftOut
) -> Iterator[tuple[str, int, int]]:
    """Yield each stimulus as its path below the root, its shape and its texture."""
    for name in images_below(root, "", left_out):
        path = PurePosixPath(name)
        if path.parts[0] in (TEXTURED, UNTEXTURED):
            continue
        match = STIMULUS.fullmatch(path.stem)
        if match is None:
            problems.append(f"{root / name}: is not named <shape><n>-<texture><n>")
        elif unknown := [word for word in match.groups() if word not in classes]:
            problems.append(f"{root / name}: {unknown[0]!r} is not one of the classes {', '.join(classes)}")
        else:
            yield name, classes.index(match[1]), classes.index(match[2])


class ShapeBias(Protocol[ShapeBiasConfig, Stimuli]):
    """Shape bias of a classifier on frozen features."""

    name = "shape-bias"
    config_class = ShapeBiasConfig

    def open(self) -> Stimuli:
        """Read the names of all images; raises UserError."""
        return Stimuli.open(self.config.data, self.config.train_data)

    def describe(self, data: Stimuli) -> DataInfo:
        """Return which images are classified, and how many."""
        number = sum(map(len, data.parts.values()))
        content = fingerprint_of(data.classes, data.train, *data.parts.values())
        return DataInfo(str(data.root), content, len(data.train), number)

    def predict(self, backbone: Backbone, data: Stimuli, cache: ResumeCache) -> Predictions:
        """Train the classifier on the labeled images, and classify all parts."""
        config, loading = self.config, Loading.of(self.config, backbone)
        train = embed_images(backbone, data.train, loading, "embedding train", cache)
        labels = data.train.labels[train.positions]
        classify, notes = self._classifier(train.vectors, labels, len(data.classes))
        tables, problems = [], [*train.problems]
        for part, split in data.parts.items():
            items = embed_images(backbone, split, loading, f"embedding {part}", cache)
            textures = data.textures if part == CONFLICT else np.full(len(split), NO_TEXTURE)
            columns = {
                "id": split.names.take(pa.array(items.positions)),
                "part": pa.array([part] * len(items.positions)),
                "label": split.labels[items.positions],
                "texture": textures[items.positions],
                "predicted": classify(items.vectors).argmax(axis=1),
            }
            tables.append(pa.table(columns))
            problems += items.problems
        table = pa.concat_tables(tables)
        return Predictions(
            table,
            f"shape-bias classifier={config.classifier}",
            (
                *data.notes,
                *notes,
                *untrained_class_notes(labels, data.classes),
                *leaked(data.train, data.parts[CONFLICT]),
            ),
            problems,
            {"classes": list(data.classes)},
            (len(labels), len(table)),
            untagged=frozenset(() if config.classifier == "knn" else ("k", "temperature")),
        )

    def parts(self, backbone: Backbone, data: Stimuli) -> list[Part]:
        """Return the embedding of all images as parts."""
        splits, loading = {"train": data.train} | data.parts, Loading.of(self.config, backbone)
        return [
            part
            for name, split in splits.items()
            for part in image_parts(backbone, split, loading, f"embedding {name}")
        ]

    def score(self, record: Record) -> Score:
        """Score the conflicting stimuli by shape and texture, and the accuracy with and without texture."""
        columns = {name: record.table[name].to_numpy() for name in ("part", "label", "texture", "predicted")}
        right = columns["predicted"] == columns["label"]
        conflict = (columns["part"] == CONFLICT) & (columns["label"] != columns["texture"])
        by_shape, by_texture = right[conflict], (columns["predicted"] == columns["texture"])[conflict]
        if not (decisions := int((by_shape | by_texture).sum())):
            raise UserError("no conflicting image was classified by its shape or texture, so there is no shape bias")
        metrics = {
            "shape_bias": float(by_shape.sum() / decisions),
            "shape_accuracy": float(by_shape.mean()),
            "texture_accuracy": float(by_texture.mean()),
        }
        accuracies = {part: right[columns["part"] == part] for part in (TEXTURED, UNTEXTURED)}
        if all(len(values) for values in accuracies.values()):
            metrics |= {f"{part}_accuracy": float(values.mean()) for part, values in accuracies.items()}
            metrics["texture_gain"] = metrics[f"{TEXTURED}_accuracy"] - metrics[f"{UNTEXTURED}_accuracy"]
        shown = columns["predicted"][conflict], columns["label"][conflict]
        return Score(metrics, breakdown("shape_accuracy", *shown, record.about.details["classes"]))

    def _classifier(self, train: Floats, labels: Numbers, num_classes: int) -> tuple[Classifier, tuple[str, ...]]:
        """Return a function that scores the classes of vectors (num_items, num_classes), and notes on its training."""
        config = self.config
        if config.classifier == "knn":
            gallery, k = unit_vectors(train), min(config.k, len(labels))

            def votes(vectors: Floats) -> Floats:
                neighbors = nearest_neighbors(gallery, unit_vectors(vectors), k)
                return vote(neighbors, labels, k, config.temperature, num_classes)

            return votes, tuple(reduced_k_notes([config.k], len(labels), "training"))
        learned, places = np.unique(labels, return_inverse=True)
        if len(learned) < 2:
            raise UserError(f"train_data: {config.train_data}: only one class has images that can be read")
        head = fit_convex(train, places, np.arange(len(labels)), config.seed)

        def logits(vectors: Floats) -> Floats:
            scores = np.full((len(vectors), num_classes), -np.inf)
            scores[:, learned] = head.scores(vectors)
            return scores

        return logits, head.notes
