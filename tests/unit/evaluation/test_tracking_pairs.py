"""Pairs of frames that train a tracker's head: the frames that may be used, and which two are drawn."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from cyclecontrast.data.tracking_sequences import Sequence
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.tracking.pairs import TrainingPairs, choose_pair, first_sizes, unpack, usable_frames
from cyclecontrast.evaluation.tracking.presets import RELEASE, VINCE


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
    """Sides of 20 to 500 pixels and 1 to 50 % of the image's, no side over 4 times the other (protocols.md §a)."""
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
    return TrainingPairs(tuple(made), frames, 2, RELEASE, seed=0, epoch=0)


def test_a_sequence_without_two_usable_frames_is_replaced(pairs):
    """Positions go round the sequences; another one, drawn anew, stands in for what cannot be used."""
    assert len(pairs) == 6
    assert [pairs.choose(position)[0] for position in (0, 2, 3, 5)] == [0, 2, 0, 2]
    stand_ins = {dataclasses.replace(pairs, epoch=epoch).choose(1)[0] for epoch in range(20)}
    assert stand_ins == {0, 2}


def test_a_pair_is_a_function_of_seed_epoch_and_position(pairs):
    """The same three give the same pixels; another of any gives others."""
    variants = [pairs, dataclasses.replace(pairs, epoch=1), dataclasses.replace(pairs, seed=1)]
    images = [variant.image(position).tobytes() for variant in variants for position in (0, 3)]
    assert len(set(images)) == 6
    assert dataclasses.replace(pairs).image(3).tobytes() == images[1]


@pytest.mark.parametrize("preset", [RELEASE, VINCE])
def test_a_pair_unpacks_into_its_two_crops(pairs, preset):
    """The exemplar and the search crop come back whole from the one array they travel in."""
    packed = dataclasses.replace(pairs, preset=preset).image(0)
    exemplar, search = unpack(torch.from_numpy(packed).movedim(-1, 0)[None], preset)
    assert exemplar.shape == (1, 3, preset.exemplar_size, preset.exemplar_size)
    assert search.shape == (1, 3, preset.train_size, preset.train_size)
    assert float(exemplar.float().std()) > 5
    assert not packed[preset.exemplar_size :, preset.train_size :].any()


def test_what_cannot_be_read_is_named(pairs):
    """A missing image is an error that names it; its first images give sizes, or a line on each that is missing."""
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
