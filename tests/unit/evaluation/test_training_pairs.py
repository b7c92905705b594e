"""Pairs of frames that train a tracker's head: usable frames, the draw of two of them, and their crops."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from cyclecontrast.data.tracking_sequences import Sequence
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.tracking.siamfc import RELEASE, SIAMFC, VINCE
from cyclecontrast.evaluation.tracking.training_pairs import (
    INTERPOLATIONS,
    TrainingPairs,
    ViewDraw,
    choose_pair,
    crop_view,
    draw_view,
    first_sizes,
    target_shift,
    unpack,
    usable_frames,
)


def sequence_of(folder, boxes, cover=None, name="one"):
    """Return a sequence of images that need not exist."""
    files = tuple(f"{number:04}.png" for number in range(1, len(boxes) + 1))
    cover = None if cover is None else np.array(cover)
    return Sequence(name, folder, files, np.array(boxes, float), cover)


def write_images(sequence, size=(120, 160)):
    """Write noise for each frame of a sequence."""
    sequence.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(sequence.name))
    for path in sequence.images:
        cv2.imwrite(str(path), rng.integers(0, 256, (*size, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    ("box", "height", "width", "usable"),
    [
        ((1, 1, 40, 40), 400, 800, True),
        ((1, 1, 19, 40), 400, 800, False),
        ((1, 1, 40, 19), 400, 800, False),
        ((1, 1, 20, 20), 400, 800, True),
        ((1, 1, 500, 400), 1000, 1000, True),
        ((1, 1, 501, 400), 1200, 1200, False),
        ((1, 1, 400, 200), 400, 800, True),
        ((1, 1, 401, 200), 400, 800, False),
        ((1, 1, 200, 201), 400, 800, False),
        ((1, 1, 20, 40), 400, 2000, True),
        ((1, 1, 20, 40), 400, 2001, False),
        ((1, 1, 25, 100), 400, 800, True),
        ((1, 1, 25, 101), 400, 800, False),
        ((1, 1, 100, 24), 400, 800, False),
        ((1, 1, 0, 0), 400, 800, False),
        ((-1, -1, -1, -1), 400, 800, False),
    ],
)
def test_only_targets_of_a_sane_size_and_shape_are_used(tmp_path, box, height, width, usable):
    """Sides of 20 to 500 pixels and 1 to 50 % of the image's, no side over 4 times the other."""
    assert list(usable_frames(sequence_of(tmp_path, [box]), height, width)) == ([0] if usable else [])


def test_width_is_compared_with_width(tmp_path):
    """VINCE compares it with the height: a wide target in a wide image would be lost."""
    assert len(usable_frames(sequence_of(tmp_path, [(1, 1, 300, 100)]), 400, 800)) == 1
    assert len(usable_frames(sequence_of(tmp_path, [(1, 1, 300, 100)]), 800, 400)) == 0


def test_hidden_targets_are_not_used(tmp_path):
    """The cover must be above 1, and above 30 % of the sequence's best."""
    boxes = [(1, 1, 40, 40)] * 5
    assert list(usable_frames(sequence_of(tmp_path, boxes, [8, 2, 3, 0, 7]), 400, 400)) == [0, 2, 4]
    assert list(usable_frames(sequence_of(tmp_path, boxes, [1, 2, 1, 0, 2]), 400, 400)) == [1, 4]


def test_pairs_are_in_order_and_near_each_other():
    """Two distinct frames less than 100 apart, the earlier first, spread over the whole sequence."""
    frames = np.arange(0, 3000, 7)
    pairs = [choose_pair(frames, np.random.default_rng(seed)) for seed in range(300)]
    assert all(0 < second - first < 100 and {first, second} <= set(frames.tolist()) for first, second in pairs)
    assert min(pairs)[0] < 300
    assert max(pairs)[0] > 2600


def test_two_frames_are_a_pair_at_any_distance():
    """Exactly two usable frames are taken as they are."""
    assert choose_pair(np.array([3, 903]), np.random.default_rng(0)) == (3, 903)


def test_frames_all_too_far_apart_are_paired_with_themselves():
    """After a hundred draws without a near pair, one frame serves twice."""
    first, second = choose_pair(np.array([0, 500, 1000, 1500]), np.random.default_rng(0))
    assert first == second


@pytest.fixture
def pairs(tmp_path):
    """Three sequences of 12 frames, the second of which cannot be used."""
    made = []
    for name in ("a", "bb", "ccc"):
        boxes = [(20 + number, 30, 40, 30 if name != "bb" else 5) for number in range(12)]
        made.append(sequence_of(tmp_path / name, boxes, name=name))
        write_images(made[-1])
    frames = tuple(usable_frames(sequence, 120, 160) for sequence in made)
    preset = dataclasses.replace(RELEASE, pairs_per_sequence=2)
    return TrainingPairs(tuple(made), frames, preset, seed=0, epoch=0)


def test_a_sequence_without_two_usable_frames_is_replaced(pairs):
    """Positions cycle through the sequences; a random other one replaces a sequence that cannot be used."""
    assert len(pairs) == 6
    assert [pairs.choose(position)[0] for position in (0, 2, 3, 5)] == [0, 2, 0, 2]
    replacements = {dataclasses.replace(pairs, epoch=epoch).choose(1)[0] for epoch in range(20)}
    assert replacements == {0, 2}


def test_a_pair_is_a_function_of_seed_epoch_and_position(pairs):
    """Equal seed, epoch and position give equal pixels; a change of one of them gives others."""
    variants = [pairs, dataclasses.replace(pairs, epoch=1), dataclasses.replace(pairs, seed=1)]
    images = [variant.image(position).tobytes() for variant in variants for position in (0, 3)]
    assert len(set(images)) == 6
    assert dataclasses.replace(pairs).image(3).tobytes() == images[1]


@pytest.mark.parametrize("preset", [RELEASE, VINCE])
def test_a_pair_unpacks_into_its_two_crops(pairs, preset):
    """The exemplar and the search crop come back from the one array that holds both."""
    packed = dataclasses.replace(pairs, preset=preset).image(0)
    exemplar, search = unpack(torch.from_numpy(packed).movedim(-1, 0)[None], preset)
    assert exemplar.shape == (1, 3, preset.exemplar_size, preset.exemplar_size)
    assert search.shape == (1, 3, preset.train_size, preset.train_size)
    assert float(exemplar.float().std()) > 5
    assert not packed[preset.exemplar_size :, preset.train_size :].any()


def test_unreadable_images_are_named(pairs):
    """A missing image is an error with its name; `first_sizes` returns a line for each missing first image."""
    pairs.sequences[0].images[0].unlink()
    for path in pairs.sequences[2].images:
        path.unlink()
    found = first_sizes(pairs.sequences, 2)
    assert found["sizes"].tolist() == [[0, 0], [120, 160], [0, 0]]
    assert [line.split(":")[0] for line in found["problems"]] == [
        str(pairs.sequences[number].images[0]) for number in (0, 2)
    ]
    with pytest.raises(UserError, match="ccc"):
        pairs.image(2)


def smooth_noise(height=60, width=80):
    """Return noise that is smooth enough to be resampled."""
    small = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("preset", [RELEASE, SIAMFC, VINCE])
def test_views_have_the_sizes_of_the_preset_wherever_the_target_lies(preset):
    """Every stretch and every place of the target give full crops."""
    image = smooth_noise(90, 120)
    for number in range(20):
        rng = np.random.default_rng(number)
        box = np.array([*rng.uniform(-20, 100, 2), *rng.uniform(20, 60, 2)])
        draws = draw_view(rng, preset, 0.33), draw_view(rng, preset, 0.05)
        for draw, size in zip(draws, (preset.train_size, preset.exemplar_size), strict=True):
            assert crop_view(image, box, draw, preset, size).shape == (size, size, 3)


@pytest.mark.parametrize("size", [242, 243, 246, 247, 248, 255, 267, 268])
def test_every_stretch_of_the_release_gives_a_whole_crop(size):
    """255 pixels stretched by -5 % to 5 % give the middle 247 and then 239 pixels, padded where needed."""
    draw = ViewDraw(size / 255, cv2.INTER_LINEAR, 8, 8)
    assert crop_view(smooth_noise(), np.array([30.0, 20, 20, 20]), draw, RELEASE, 239).shape == (239, 239, 3)


BOX = np.array([146.0, 106, 31, 31])
"""Around the pixel at y 120, x 160, the first being 0."""


def spot_at(y, x, height=240, width=320):
    """Draw a dark image with one bright spot."""
    image = np.zeros((height, width, 3), np.uint8)
    cv2.circle(image, (x, y), 4, (255, 255, 255), -1)
    return image


def middle_of(image):
    """Return the center of brightness as y, x from the middle of the image."""
    weights = image[..., 0].astype(float)
    places = np.arange(len(image)) - (len(image) - 1) / 2
    return np.array([(weights.sum(axis=1) * places).sum(), (weights.sum(axis=0) * places).sum()]) / weights.sum()


@pytest.mark.parametrize("number", range(8))
def test_the_target_is_in_the_search_crop_at_its_label(number):
    """Shifted, stretched and mirrored crops of VINCE show the target where `target_shift` puts the positives."""
    draw = draw_view(np.random.default_rng(number), VINCE, 0.33)
    crop = crop_view(spot_at(120, 160), BOX, draw, VINCE, 247)
    # The corners of the crop are rounded to whole pixels, of which each is two of the crop.
    np.testing.assert_allclose(middle_of(crop), target_shift(draw, VINCE), atol=2.5)
    assert np.abs(target_shift(draw, VINCE)).max() <= 0.33 * 247


def test_crops_of_the_release_move_by_four_pixels_at_most():
    """The random crop of 239 from 247 moves the target, whose label stays in the middle."""
    for top, left in ((0, 8), (8, 0), (4, 4)):
        draw = ViewDraw(1.0, cv2.INTER_LINEAR, top, left)
        found = middle_of(crop_view(spot_at(120, 160), BOX, draw, RELEASE, 239))
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
