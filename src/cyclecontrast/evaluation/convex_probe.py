"""Multinomial logistic regression on fixed vectors: convex, so that no learning rate can be wrong.

The strength of regularisation is chosen within the training split; the test split is not seen here at all.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from cyclecontrast.evaluation.metrics import Floats, Integers

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
DEFAULT_C = 1e-2
NUM_FOLDS = 5
ONE_FOLD_ABOVE = 2000
TOLERANCE = 1e-4
MAX_ITERATIONS = 1000
SMALL = 2**22

Mask = npt.NDArray[np.bool_]


class Standard(NamedTuple):
    """Mean and standard deviation of each dimension (dim,), of the training vectors alone."""

    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]

    @staticmethod
    def of(vectors: Floats) -> "Standard":
        """Measure vectors (num_items, dim); a dimension that does not vary is left as it is."""
        deviation = vectors.std(axis=0, dtype=np.float64)
        constant = deviation <= 1e-6 * np.abs(vectors).max(axis=0, initial=0)
        return Standard(vectors.mean(axis=0, dtype=np.float64), np.where(constant, 1, deviation))

    def __call__(self, vectors: Floats) -> npt.NDArray[np.float64]:
        """Return the vectors standardised."""
        return (vectors - self.mean) / self.deviation


class ConvexHead(NamedTuple):
    """A fitted classifier, its inverse regularisation `c`, and whether the solver reached its tolerance."""

    standard: Standard
    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    c: float
    converged: bool
    validation: dict[str, float]
    notes: tuple[str, ...]

    def scores(self, vectors: Floats) -> npt.NDArray[np.float64]:
        """Return the logits (num_items, num_classes)."""
        return self.standard(vectors) @ self.weight.T + self.bias

    def details(self) -> dict[str, Any]:
        """Return what a result says of the fit."""
        return {"c": self.c, "converged": self.converged, "validation_accuracy_by_c": self.validation}


class _Fit(NamedTuple):
    model: LogisticRegression
    converged: bool


def fit(vectors: Floats, labels: Integers, videos: Integers, seed: int) -> ConvexHead:
    """Choose C on held-out videos of the training split, then fit to all of it; labels are 0 .. num_classes - 1."""
    validation = _validate(vectors, labels, videos, seed)
    c = max(GRID, key=lambda c: validation[c]) if validation else DEFAULT_C
    standard = Standard.of(vectors)
    fitted = _fit(LogisticRegression(C=c, tol=TOLERANCE, max_iter=MAX_ITERATIONS), standard(vectors), labels)
    weight, bias = _per_class(fitted.model)
    by_c = {f"{c:g}": accuracy for c, accuracy in validation.items()}
    notes = _notes(c, bool(validation), fitted.converged)
    return ConvexHead(standard, weight, bias, c, fitted.converged, by_c, notes)


def folds(labels: Integers, videos: Integers, seed: int) -> Iterator[Mask]:
    """Yield which items are held out: each class's videos are dealt out in turn, and a video is never cut.

    The one video of a class is never held out. Few items give all folds, many the first, which has every class.
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


def _validate(vectors: Floats, labels: Integers, videos: Integers, seed: int) -> dict[float, float]:
    right = dict.fromkeys(GRID, 0)
    total = 0
    for held_out in folds(labels, videos, seed):
        standard = Standard.of(vectors[~held_out])
        train, test = standard(vectors[~held_out]), standard(vectors[held_out])
        model = LogisticRegression(tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)
        for c in GRID:
            _fit(model.set_params(C=c), train, labels[~held_out])
            right[c] += int((model.predict(test) == labels[held_out]).sum())
        total += len(test)
    return {c: number / total for c, number in right.items()} if total else {}


def _fit(model: LogisticRegression, vectors: Floats, labels: Integers) -> _Fit:
    # On a small matrix several threads wait for each other, ten times as long on a busy machine.
    limit = 1 if vectors.size < SMALL else None
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(limits=limit):
        warnings.simplefilter("always")
        model.fit(vectors, labels)
    late = [warning for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    for warning in caught:
        if warning not in late:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return _Fit(model, not late)


def _per_class(model: LogisticRegression) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return weight and bias with a row per class, of which scikit-learn keeps one where there are two classes."""
    weight, bias = model.coef_, model.intercept_
    return (weight, bias) if len(weight) > 1 else (np.concatenate([0 * weight, weight]), np.r_[0 * bias, bias])


def _notes(c: float, validated: bool, converged: bool) -> tuple[str, ...]:
    notes = [] if validated else [f"C={c:g} was not chosen by validation: no class has two videos"]
    if validated and c in (GRID[0], GRID[-1]):
        notes.append(f"C={c:g} is the end of the grid; a better one may lie beyond")
    if not converged:
        notes.append(f"the fit did not converge in {MAX_ITERATIONS} iterations")
    return tuple(notes)
