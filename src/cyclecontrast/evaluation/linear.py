"""The protocol `linear`: a linear classifier on frozen features, by the paper's recipe (sgd) or a convex fit (lbfgs).

The convex fit is a multinomial logistic regression on the vectors of center crops: it needs no learning rate, and the
regularization is chosen on the training split.
Differs from the release: with sgd, the last epoch is evaluated, not the best on the test split.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn

from cyclecontrast.config import LinearConfig
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.distributed import single_process_message
from cyclecontrast.errors import UserError, some
from cyclecontrast.evaluation.classification import (
    ClassificationProtocol,
    Items,
    doubts,
    leaked,
    untested_class_notes,
    untrained_class_notes,
)
from cyclecontrast.evaluation.embed import Loading, encode, frozen
from cyclecontrast.evaluation.epochs import EpochReader, train_classifier
from cyclecontrast.evaluation.metrics import Floats, Integers, dot_products
from cyclecontrast.evaluation.predictions import Json
from cyclecontrast.evaluation.protocol import Part, Predictions
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.progress import with_progress

MAX_CONVEX = 50_000
SGD_ONLY = ("epochs", "learning_rate")
MOMENTUM = 0.9
REFERENCE_BATCH = 256
INITIAL_DEVIATION = 0.01

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
DEFAULT_C = 1e-2
NUM_FOLDS = 5
ONE_FOLD_ABOVE = 2000
TOLERANCE = 1e-4
MAX_ITERATIONS = 1000
SMALL = 2**22


class _Fitted(NamedTuple):
    """Scores of the test items (num_items, num_classes), how many items were trained on, and what to report."""

    scores: Floats
    num_train: int
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    details: Json


class Linear(ClassificationProtocol[LinearConfig]):
    """Linear classification on frozen features; probe `auto` decides by the number of images."""

    name = "linear"
    config_class = LinearConfig

    def predict(self, backbone: Backbone, data: LabeledImages, cache: ResumeCache) -> Predictions:
        """Fit the classifier and rank the classes of each test item."""
        config, probe = self.config, self._probe(data)
        notes = (f"probe: auto is {probe} for {len(data.train):,} training images",) if config.probe == "auto" else ()
        test = self.embed_items(backbone, data.test, "test", cache)
        fit = self._fit_convex if probe == "lbfgs" else self._fit_sgd
        fitted = fit(backbone, data, test, cache)
        return Predictions(
            self.ranked_table({"": fitted.scores}, test, data),
            f"linear probe={probe} level={config.level}",
            (
                *data.notes,
                *notes,
                *fitted.notes,
                *untested_class_notes(test.labels, data.classes),
                *leaked(data.train, data.test),
            ),
            fitted.problems + test.problems,
            {**fitted.details, "probe": probe, "classes": list(data.classes)},
            (fitted.num_train, len(test.labels)),
            untagged=frozenset({*SGD_ONLY, "batch_size"} if probe == "lbfgs" else ()),
        )

    def parts(self, backbone: Backbone, data: LabeledImages) -> list[Part]:
        """Return what is embedded; raises UserError for the sgd probe, which trains on images."""
        if self._probe(data) == "sgd":
            raise UserError(f"{single_process_message('linear with --probe sgd')}, or take --probe lbfgs")
        return super().parts(backbone, data)

    def _probe(self, data: LabeledImages) -> str:
        auto = "lbfgs" if len(data.train) <= MAX_CONVEX else "sgd"
        return auto if self.config.probe == "auto" else self.config.probe

    def _fit_convex(self, backbone: Backbone, data: LabeledImages, test: Items, cache: ResumeCache) -> _Fitted:
        train = self.embed_items(backbone, data.train, "train", cache)
        learned, labels = np.unique(train.labels, return_inverse=True)
        absent = untrained_class_notes(train.labels, data.classes)
        if len(learned) < 2:
            raise UserError(f"{data.root}: only one class has training images that can be read", *some(absent))
        head = fit_convex(train.vectors, labels, train.videos, self.config.seed)
        scores = np.full((len(test.vectors), len(data.classes)), -np.inf)
        scores[:, learned] = head.scores(test.vectors)
        unused = [name for name in SGD_ONLY if name in self.config.model_fields_set]
        notes = [f"{' and '.join(unused)} had no effect: probe lbfgs does not use it"] if unused else []
        details = {"c": head.c, "converged": head.converged, "validation_accuracy_by_c": head.validation}
        return _Fitted(scores, len(labels), (*notes, *head.notes, *absent), train.problems, details)

    def _fit_sgd(self, backbone: Backbone, data: LabeledImages, test: Items, cache: ResumeCache) -> _Fitted:
        """Train on random crops of single images, at level video too."""
        config, train, loading = self.config, data.train, Loading.of(self.config, backbone)
        head = initial_head(backbone.dim, len(data.classes), config.seed).to(loading.device)
        learning_rate = config.learning_rate * config.batch_size / REFERENCE_BATCH
        optimizer = torch.optim.SGD(head.parameters(), learning_rate, MOMENTUM, weight_decay=0)
        reader = EpochReader("linear", f"{len(train):,} training images", config.epochs, loading.workers, cache)
        with frozen(backbone, loading.device):
            loss = train_classifier(
                {"head": head},
                optimizer,
                # Tensors of inference mode cannot take part in a backward pass; their clones can.
                lambda batch: head(encode(backbone, batch, loading.device).clone()),
                train,
                config,
                loading.image_size,
                reader,
            )
        weight, bias = (parameter.detach().cpu().numpy() for parameter in (head.weight, head.bias))
        unread = reader.unread()
        learned, num_learned = self.readable(train, unread)
        return _Fitted(
            dot_products(test.vectors, weight.T) + bias,
            num_learned,
            doubts(loss, len(data.classes)) + untrained_class_notes(learned, data.classes),
            tuple(unread.values()),
            {"learning_rate": learning_rate, "last_loss": loss},
        )


def initial_head(dim: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a classifier with weights of N(0, 0.01) and no bias."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        head = nn.Linear(dim, num_classes)
        nn.init.normal_(head.weight, std=INITIAL_DEVIATION)
        nn.init.zeros_(head.bias)
    return head


class ConvexFit(NamedTuple):
    """A logistic regression on standardized vectors, its inverse regularization `c`, and how `c` was chosen."""

    model: Pipeline
    c: float
    converged: bool
    validation: dict[str, float]
    notes: tuple[str, ...]

    def scores(self, vectors: Floats) -> npt.NDArray[np.float64]:
        """Return the logits (num_items, num_classes)."""
        logits = self.model.decision_function(vectors.astype(np.float64))
        return np.stack([0 * logits, logits], axis=1) if logits.ndim == 1 else logits  # of two classes: one column


def fit_convex(vectors: Floats, labels: Integers, videos: Integers, seed: int) -> ConvexFit:
    """Choose C on held-out videos of the training split, then fit to all of it; labels are 0 .. num_classes - 1."""
    validation = _validate(vectors, labels, videos, seed)
    c = max(C_GRID, key=lambda c: validation[c]) if validation else DEFAULT_C
    model = make_pipeline(StandardScaler(copy=False), LogisticRegression(C=c, tol=TOLERANCE, max_iter=MAX_ITERATIONS))
    converged = _fit(model, vectors.astype(np.float64), labels)
    notes = [] if validation else [f"C={c:g} was not chosen by validation: no class has two videos"]
    if validation and c in (C_GRID[0], C_GRID[-1]):
        notes.append(f"C={c:g} is at the end of the grid; a value outside of it may be better")
    if not converged:
        notes.append(f"the fit did not converge in {MAX_ITERATIONS} iterations")
    by_c = {f"{c:g}": accuracy for c, accuracy in validation.items()}
    return ConvexFit(model, c, converged, by_c, tuple(notes))


def _validate(vectors: Floats, labels: Integers, videos: Integers, seed: int) -> dict[float, float]:
    """Return the accuracy on held-out videos for each C; empty where nothing can be held out."""
    right = dict.fromkeys(C_GRID, 0)
    total = 0
    for held_out in folds(labels, videos, seed):
        scaler = StandardScaler(copy=False)
        train = scaler.fit_transform(vectors[~held_out].astype(np.float64))
        test = scaler.transform(vectors[held_out].astype(np.float64))
        model = LogisticRegression(tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)
        for c in with_progress(C_GRID, "linear, choosing C on held-out images", len(C_GRID)):
            _fit(model.set_params(C=c), train, labels[~held_out])
            right[c] += int((model.predict(test) == labels[held_out]).sum())
        total += len(test)
    return {c: number / total for c, number in right.items()} if total else {}


def folds(labels: Integers, videos: Integers, seed: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield the mask of held-out items of each fold: stratified by class, grouped by video.

    The only video of a class is never held out. Many items give one fold, to bound the time.
    """
    fold = np.full(int(videos.max()) + 1, -1)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = rng.permutation(np.unique(videos[labels == label]))
        if len(members) > 1:
            fold[members] = np.arange(len(members)) % NUM_FOLDS
    num_folds = min(NUM_FOLDS if len(labels) <= ONE_FOLD_ABOVE else 1, int(fold.max()) + 1)
    for number in range(num_folds):
        yield fold[videos] == number


def _fit(model: LogisticRegression | Pipeline, vectors: Floats, labels: Integers) -> bool:
    """Fit, and return whether the solver converged."""
    # On small matrices, several threads are slower, ten times on a busy machine.
    limit = 1 if vectors.size < SMALL else None
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(limits=limit):
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(vectors, labels)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
