"""Crops around a target: where they lie, what they show, and what they are beyond the image."""

import cv2
import numpy as np
import pytest

from cyclecontrast.evaluation.tracking.crops import Target, crop_squares
from cyclecontrast.evaluation.tracking.presets import RELEASE, SIAMFC, VINCE
from cyclecontrast.evaluation.tracking.training_views import (
    INTERPOLATIONS,
    ViewDraw,
    draw_view,
    exemplar_view,
    search_view,
    target_shift,
)


def draw_image(height=60, width=80, seed=0):
    """Draw noise that is smooth enough to be compared after resampling."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def bilinear(image, y, x):
    """Interpolate between the four pixels around a point, those at the border repeated."""
    height, width = image.shape[:2]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    rows = [image[row, left] * (1 - x + left) + image[row, right] * (x - left) for row in (top, bottom)]
    return rows[0] * (1 - y + top) + rows[1] * (y - top)


def slow_crop(image, y, x, side, size):
    """Crop pixel by pixel in double precision: protocols.md §a, "Crop"."""
    image = image.astype(float)
    side = max(side, 2.0)
    top, left, bottom, right = (round(value) for value in (y - side / 2, x - side / 2, y + side / 2, x + side / 2))
    inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if 0 in inside.shape:
        return np.zeros((size, size, 3))
    height, width = (
        max(1, round(size * part / whole))
        for part, whole in zip(inside.shape, (bottom - top, right - left), strict=False)
    )
    skip_y, skip_x = int(max(0.0, -top * size / (bottom - top))), int(max(0.0, -left * size / (right - left)))
    crop = np.empty((size, size, 3))
    for row in range(size):
        for column in range(size):
            in_y = (row - skip_y + 0.5) * inside.shape[0] / height - 0.5
            in_x = (column - skip_x + 0.5) * inside.shape[1] / width - 0.5
            is_inside = 0 <= row - skip_y < height and 0 <= column - skip_x < width
            crop[row, column] = bilinear(inside, in_y, in_x) if is_inside else image.mean(axis=(0, 1))
    return crop


@pytest.mark.parametrize(
    ("y", "x", "side"),
    [
        (30, 40, 32),
        (30.2, 40.7, 23.4),
        (30.5, 40.5, 25),
        (5, 40, 37.3),
        (58, 78.9, 41),
        (30, -9, 50.2),
        (30, 40, 200),
        (30, 40, 0.1),
        (-30, 40, 20),
        (30, 110.5, 61),
        (30, 120.6, 61),
    ],
)
def test_a_crop_equals_a_plain_loop(y, x, side):
    """Inside, partly and wholly outside: the pixels are those of the description, one level apart at most."""
    image = draw_image()
    made = crop_squares(image, y, x, [side], 24)[0]
    assert np.abs(made - slow_crop(image, y, x, side, 24)).max() <= 1.01


def test_several_crops_are_those_made_alone():
    """Crops of one call do not mix: one inside, one that sticks out, one outside is black."""
    image = draw_image()
    sides = [10.0, 70.0, 3.0]
    together = crop_squares(image, 4, 40, sides, 16)
    assert all((crop_squares(image, 4, 40, sides[:2], 16)[place] == together[place]).all() for place in (0, 1))
    assert all((crop_squares(image, 4, 40, [sides[place]], 16)[0] == together[place]).all() for place in (0, 1, 2))
    assert (together[1][0] == np.rint(image.mean(axis=(0, 1)))).all()
    assert not crop_squares(image, -50, 40, sides, 16)[0].any()


def test_a_crop_of_its_own_size_is_the_image_itself():
    """An even side around a half is cut without resampling."""
    image = draw_image()
    assert (crop_squares(image, 30, 40, [20], 20)[0] == image[20:40, 30:50]).all()


def test_a_target_is_one_based_outside_and_zero_based_inside():
    """The first pixel is 1 in boxes; there and back gives the same box; context and sides are SiamFC's."""
    target = Target.of(np.array([1.0, 1, 3, 5]))
    assert target == (2, 1, 5, 3)
    box = np.array([10.5, 20.25, 33, 17])
    np.testing.assert_allclose(Target.of(box).box(), box)
    assert Target.of(np.array([0.0, 0, 10, 30])).exemplar_side() == pytest.approx((30 * 50) ** 0.5)
    assert 255 / RELEASE.exemplar_size == 2.125


@pytest.mark.parametrize("preset", [RELEASE, SIAMFC, VINCE])
def test_views_have_the_sizes_of_the_preset_wherever_the_target_lies(preset):
    """Any stretch, also one that leaves too few pixels, and any place of the target give full crops."""
    image = draw_image(90, 120)
    for number in range(40):
        rng = np.random.default_rng(number)
        box = np.array([*rng.uniform(-20, 100, 2), *rng.uniform(20, 60, 2)])
        draws = draw_view(rng, preset, 0.33), draw_view(rng, preset, 0.05)
        assert search_view(image, box, draws[0], preset).shape == (preset.train_size, preset.train_size, 3)
        assert exemplar_view(image, box, draws[1], preset).shape == (preset.exemplar_size, preset.exemplar_size, 3)


@pytest.mark.parametrize("size", [242, 243, 246, 247, 248, 255, 267, 268])
def test_every_stretch_of_the_release_gives_a_whole_crop(size):
    """From 255 stretched by -5 % to 5 %, the middle 247 and then 239 pixels are there, padded or not."""
    draw = ViewDraw(size / 255, cv2.INTER_LINEAR, 8, 8)
    assert search_view(draw_image(), np.array([30.0, 20, 20, 20]), draw, RELEASE).shape == (239, 239, 3)


BOX = np.array([146.0, 106, 31, 31])
"""Around the pixel at y 120, x 160, the first being 0."""


def spot_at(y, x, height=240, width=320):
    """Draw a dark image with one bright spot."""
    image = np.zeros((height, width, 3), np.uint8)
    cv2.circle(image, (x, y), 4, (255, 255, 255), -1)
    return image


def middle_of(image):
    """Return the centre of brightness as y, x from the middle of the image."""
    weights = image[..., 0].astype(float)
    places = np.arange(len(image)) - (len(image) - 1) / 2
    return np.array([(weights.sum(axis=1) * places).sum(), (weights.sum(axis=0) * places).sum()]) / weights.sum()


@pytest.mark.parametrize("number", range(8))
def test_the_target_lies_in_the_search_crop_where_its_label_says(number):
    """Shifted, stretched and mirrored crops of VINCE show the target where `target_shift` puts the positives."""
    draw = draw_view(np.random.default_rng(number), VINCE, 0.33)
    crop = search_view(spot_at(120, 160), BOX, draw, VINCE)
    # The corners of the crop are rounded to whole pixels, of which each is two of the crop.
    np.testing.assert_allclose(middle_of(crop), target_shift(draw, VINCE), atol=2.5)
    assert np.abs(target_shift(draw, VINCE)).max() <= 0.33 * 247


def test_crops_of_the_release_move_by_four_pixels_at_most():
    """The random crop of 239 from 247 moves the target, whose label stays in the middle."""
    for top, left in ((0, 8), (8, 0), (4, 4)):
        draw = ViewDraw(1.0, cv2.INTER_LINEAR, top, left)
        found = middle_of(search_view(spot_at(120, 160), BOX, draw, RELEASE))
        np.testing.assert_allclose(found, [4 - top, 4 - left], atol=1.5)
        assert target_shift(draw, RELEASE) == (0, 0)


def test_draws_cover_what_the_release_draws():
    """Stretches of ±5 %, all five interpolations, all nine offsets; flips of half of VINCE's and none of the others."""
    draws = [draw_view(np.random.default_rng(number), RELEASE, 0.0) for number in range(400)]
    stretches = [draw.stretch for draw in draws]
    assert 0.95 <= min(stretches) < 0.96 < 1.04 < max(stretches) <= 1.05
    assert {draw.interpolation for draw in draws} == set(INTERPOLATIONS)
    assert {draw.top for draw in draws} == {draw.left for draw in draws} == set(range(9))
    assert not any(draw.flip or draw.dy or draw.dx for draw in draws)
    vince = [draw_view(np.random.default_rng(number), VINCE, 0.33) for number in range(400)]
    assert 0.4 < np.mean([draw.flip for draw in vince]) < 0.6
    # A Laplace distribution of scale b has the mean deviation b, here 0.25 x 0.33.
    assert np.mean([abs(draw.dx) for draw in vince]) == pytest.approx(0.25 * 0.33, rel=0.15)
