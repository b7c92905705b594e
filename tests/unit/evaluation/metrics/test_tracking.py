"""Overlap, distance and curves of boxes, against plain loops and numbers worked out by hand."""

import math

import numpy as np
import pytest

from cyclecontrast.evaluation.metrics import (
    center_errors,
    official_center_errors,
    official_overlaps,
    overlaps,
    precision_curve,
    success_curve,
)


def random_boxes(seed, num=200):
    """Return boxes, some of which overlap and some not."""
    random = np.random.default_rng(seed)
    return np.hstack([random.uniform(-20, 60, (num, 2)), random.uniform(1, 50, (num, 2))]).round(3)


def overlap_by_hand(first, second):
    """Return intersection over union of two boxes."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def test_overlaps_are_intersection_over_union():
    """Each frame's overlap is that of its two areas."""
    predicted, truth = random_boxes(0), random_boxes(1)
    expected = [overlap_by_hand(a, b) for a, b in zip(predicted.tolist(), truth.tolist(), strict=True)]
    assert np.count_nonzero(expected) > 20
    np.testing.assert_allclose(overlaps(predicted, truth), expected, atol=1e-12)


def test_overlaps_inside_of_an_image_move_the_corner_then_cut_the_size():
    """A box that begins left of the image keeps its width from the edge on: the toolkit's own arithmetic."""
    predicted, truth = np.array([[-10.0, 5, 20, 10]]), np.array([[0.0, 5, 20, 10]])
    assert overlaps(predicted, truth)[0] == pytest.approx(1 / 3)
    assert overlaps(predicted, truth, np.array([[100, 100]]))[0] == pytest.approx(1)
    beyond = np.array([[90.0, 5, 40, 10]])
    assert overlaps(beyond, np.array([[90.0, 5, 10, 10]]), np.array([[100, 100]]))[0] == pytest.approx(1)


def test_official_overlaps_count_whole_pixels():
    """Pixels counted one by one give the same overlap as the authors' arithmetic."""
    first, second = [3, 4, 6, 5], [5, 2, 7, 4]
    pixels = [
        {(x, y) for x in range(box[0], box[0] + box[2]) for y in range(box[1], box[1] + box[3])}
        for box in (first, second)
    ]
    expected = len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])
    assert 0 < expected < 1
    found = official_overlaps(np.array([first], float), np.array([second], float))
    np.testing.assert_allclose(found, [expected], atol=1e-12)


@pytest.mark.parametrize("place", range(4))
def test_official_frames_without_a_positive_box_fail_success_and_hit_precision(place):
    """Where x, y, w or h of the truth is 0 or less, overlap and distance are -1."""
    truth = np.array([[10.0, 10, 20, 20]] * 3)
    truth[1, place], truth[2, place] = 0, -1
    predicted = np.array([[500.0, 500, 20, 20]] * 3)
    assert official_overlaps(predicted, truth).tolist() == [0, -1, -1]
    errors = official_center_errors(predicted, truth)
    assert errors[1:].tolist() == [-1, -1]
    assert errors[0] > 50
    assert precision_curve(errors)[0] == pytest.approx(2 / 3)
    assert success_curve(official_overlaps(truth, truth))[0] == pytest.approx(1 / 3)


def test_toolkit_does_not_treat_frames_without_a_positive_box():
    """The GOT-10k toolkit measures the distance to a box at 0,0 as to any other."""
    predicted, truth = np.array([[0.0, 3, 5, 5]]), np.array([[0.0, 0, 5, 5]])
    assert center_errors(predicted, truth).tolist() == [3]
    assert overlaps(predicted, truth)[0] == pytest.approx(10 / 40)


def test_center_errors_are_between_centers_of_pixels():
    """A center is x + (w - 1) / 2; the distance is Euclidean."""
    predicted, truth = random_boxes(2), random_boxes(3)
    expected = [
        math.dist(*((box[0] + (box[2] - 1) / 2, box[1] + (box[3] - 1) / 2) for box in pair))
        for pair in zip(predicted.tolist(), truth.tolist(), strict=True)
    ]
    np.testing.assert_allclose(center_errors(predicted, truth), expected, atol=1e-12)
    assert official_center_errors(predicted[:1] + 100, truth[:1] + 100)[0] == round(expected[0], 4)


def test_success_curve_is_strict_and_evenly_spaced():
    """An overlap counts at the thresholds below it, and not at its own."""
    values = np.array([0.0, 0.5, 0.52, 1.0])
    expected = [sum(value > step / 20 for value in values.tolist()) / 4 for step in range(21)]
    assert success_curve(values).tolist() == expected
    assert success_curve(values)[10] == 0.5
    assert success_curve(values, 101)[52] == 0.25


@pytest.mark.parametrize(("num_bins", "expected"), [(21, 20 / 21), (101, 100 / 101)])
def test_a_perfect_tracker_does_not_score_1(num_bins, expected):
    """No overlap is above the last threshold (protocols.md §a: .95238 with 21 bins)."""
    truth = random_boxes(4)
    assert success_curve(overlaps(truth, truth), num_bins).mean() == pytest.approx(expected, abs=1e-12)
    assert precision_curve(center_errors(truth, truth)).tolist() == [1] * 51


@pytest.mark.parametrize(("offset", "expected"), [(20, 1), (20.5, 0), (21, 0)])
def test_precision_is_within_20_pixels(offset, expected):
    """A distance of 20 pixels is a hit at the threshold of 20, one of 21 is not."""
    truth = random_boxes(5)
    curve = precision_curve(center_errors(truth + np.array([offset, 0, 0, 0]), truth).round(6))
    assert curve.shape == (51,)
    assert curve[20] == expected
