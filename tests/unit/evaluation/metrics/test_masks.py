"""Scores of masks against counting by hand, pixel by pixel; mean IoU also against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from cyclecontrast.evaluation.metrics import (
    IGNORE,
    boundary,
    boundary_f,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
    pixel_confusion,
    region_similarity,
)


def pixels(mask):
    """Return the set of (row, column) of a mask."""
    return {(int(row), int(column)) for row, column in np.argwhere(mask)}


def boundary_by_hand(mask):
    """Pixels unlike their neighbor right, below or right below; the image's last row and column are repeated."""
    height, width = mask.shape
    found = set()
    for row in range(height):
        for column in range(width):
            below, right = min(row + 1, height - 1), min(column + 1, width - 1)
            others = (mask[row, right], mask[below, column], mask[below, right])
            if any(other != mask[row, column] for other in others):
                found.add((row, column))
    return found


def f_by_hand(predicted, truth, radius):
    """Match boundary pixels by the distances of all pairs."""
    ours, theirs = boundary_by_hand(predicted), boundary_by_hand(truth)
    if not ours and not theirs:
        return 1.0
    if not ours or not theirs:
        return 0.0

    def part_near(some, others):
        return sum(any(math.dist(one, other) <= radius for other in others) for one in some) / len(some)

    precision, recall = part_near(ours, theirs), part_near(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blob(seed, shape=(23, 31)):
    """A random region with a rough edge."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[0], : shape[1]]
    center = rng.uniform(0, 1, 2) * shape
    return np.hypot(y - center[0], x - center[1]) + rng.normal(0, 1.5, shape) < rng.uniform(2, 12)


def square(top, left, side, shape=(40, 50)):
    """A filled square."""
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_j_is_intersection_over_union_of_sets(seed):
    """J equals intersection over union of Python's sets of pixels."""
    one, other = blob(seed), blob(seed + 100)
    expected = len(pixels(one) & pixels(other)) / len(pixels(one) | pixels(other))
    assert region_similarity(one, other) == pytest.approx(expected, abs=1e-15)


def test_j_of_two_empty_masks_is_one():
    """Two empty masks agree; an empty and a full one do not."""
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    assert region_similarity(empty, empty) == 1.0
    assert region_similarity(full, empty) == region_similarity(empty, full) == 0.0


def test_the_boundary_is_on_the_side_of_the_origin():
    """One pixel has a boundary of four: itself, and its neighbors above, left, and above left."""
    mask = np.zeros((5, 6), bool)
    mask[2, 3] = True
    assert pixels(boundary(mask)) == {(1, 2), (1, 3), (2, 2), (2, 3)}
    mask = np.zeros((3, 3), bool)
    mask[2, 2] = True
    assert pixels(boundary(mask)) == {(1, 1), (1, 2), (2, 1)}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("radius", [1, 2, 5])
def test_f_equals_matching_all_pairs_of_boundary_pixels(seed, radius):
    """Dilation by a disk equals the distances of all pairs, at the image's edges too."""
    predicted, truth = blob(seed), blob(seed + 3)
    assert pixels(boundary(truth)) == boundary_by_hand(truth)
    assert boundary_f(predicted, truth, radius) == pytest.approx(f_by_hand(predicted, truth, radius), abs=1e-15)


def test_f_without_boundaries():
    """Neither has one: 1; only one has: 0; a mask that fills the image has none."""
    empty, full, some = np.zeros((40, 50), bool), np.ones((40, 50), bool), square(9, 9, 9)
    assert boundary_f(empty, empty) == boundary_f(full, full) == boundary_f(full, empty) == 1.0
    assert boundary_f(some, empty) == boundary_f(empty, some) == boundary_f(some, full) == 0.0
    assert boundary_f(square(0, 0, 5), square(30, 40, 5)) == 0.0


@pytest.mark.parametrize(("shape", "radius"), [((480, 854), 8), ((240, 428), 4), ((60, 60), 1), ((100, 100), 2)])
def test_the_tolerance_is_part_of_the_diagonal_rounded_up(shape, radius):
    """.008 of the diagonal is 7.84 pixels of a frame of DAVIS: a shift by 8 is forgiven, one by 9 is not."""
    truth = square(20, 20, 15, shape)
    assert boundary_f(square(20, 20 + radius, 15, shape), truth) == 1.0
    assert boundary_f(square(20, 21 + radius, 15, shape), truth) < 1.0
    assert boundary_f(square(20, 21 + radius, 15, shape), truth, radius + 1) == 1.0


def test_masks_that_cannot_be_compared_are_refused():
    """Different sizes, and object numbers in place of a mask, raise ValueError."""
    mask = square(1, 1, 3)
    for score in (region_similarity, boundary_f):
        with pytest.raises(ValueError, match="masks of"):
            score(mask, mask[1:])
        with pytest.raises(ValueError, match="uint8"):
            score(mask.astype(np.uint8), mask)


def plain_iou(predicted, truth, num_classes):
    """Count intersections and unions pixel by pixel."""
    both, either = [0] * num_classes, [0] * num_classes
    for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != IGNORE:
            for label in {p, t}:
                either[label] += 1
            both[t] += p == t
    return [b / e if e else None for b, e in zip(both, either, strict=True)]


@pytest.mark.parametrize("num_classes", [2, 5, 150])
def test_mean_iou_equals_loops_and_scikit_learn(num_classes):
    """Ignored pixels are not counted, absent classes are left out; bytes do not overflow at 150 classes."""
    rng = np.random.default_rng(num_classes)
    truth = rng.integers(0, max(2, num_classes - 2), (3, 20, 30)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, num_classes, truth.shape))
    predicted = np.where(predicted == num_classes - 1, 0, predicted).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    expected = [value for value in plain_iou(predicted, truth, num_classes) if value is not None]
    counted = truth != IGNORE
    assert mean_iou(predicted, truth, num_classes) == pytest.approx(np.mean(expected))
    assert mean_iou(predicted, truth, num_classes) == pytest.approx(
        jaccard_score(truth[counted], predicted[counted], average="macro")
    )


def test_scores_by_hand():
    """A class that is predicted but never true has IoU 0, one that is neither is left out; accuracy is by pixel."""
    truth = np.array([[0, 0, 1, 1], [0, 0, 255, 255]])
    predicted = np.array([[0, 0, 1, 2], [0, 1, 3, 0]])
    confusion = pixel_confusion(predicted, truth, 5)
    assert confusion.tolist() == [[3, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0] * 5, [0] * 5, [0] * 5]
    np.testing.assert_allclose(iou_per_class(confusion), [3 / 4, 1 / 3, 0, math.nan, math.nan])
    assert mean_iou(predicted, truth, 5) == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert pixel_accuracy(confusion) == pytest.approx(4 / 6)
    assert mean_iou(truth, truth, 2) == 1.0


def test_masks_that_cannot_be_scored_are_refused():
    """Different shapes, classes outside the range, and masks that are wholly ignored raise ValueError."""
    zeros = np.zeros((2, 2), np.uint8)
    for predicted, truth in ((zeros, zeros[:1]), (zeros + 3, zeros), (zeros, zeros + 3), (zeros, zeros + IGNORE)):
        with pytest.raises(ValueError, match=r"differ|classes 3|ignored"):
            mean_iou(predicted, truth, 3)
