"""The contact sheet covers the data, says what cannot be read, and the views are those of the training."""

import shutil

import numpy as np
import pytest

from cyclecontrast.data.store import FrameStore
from cyclecontrast.reporting.inputs import contact_sheet, list_inputs, view_pairs
from cyclecontrast.reporting.runs import read_run
from cyclecontrast.reporting.sprites import SpriteSheet
from cyclecontrast.training.setup import make_dataset
from tests.make_reports import decoded, write_frames, write_run


def test_a_contact_sheet_covers_all_parts_of_the_data(tmp_path):
    """One frame of each of sixty equal parts of the videos, determined by the seed."""
    ids = [f"video{number:03}" for number in range(150)]
    store = FrameStore.open(write_frames(tmp_path / "data", ids, num_frames=1))
    numbers = {}
    for seed in (0, 0, 1):
        sprites, meaning = contact_sheet(store, SpriteSheet("inputs", 16), seed)
        shown = [int(sprite.alt[5:]) for sprite in sprites]
        assert all(150 * part // 60 <= number < 150 * (part + 1) // 60 for part, number in enumerate(shown))
        assert len(shown) == 60
        assert "60 of 150 videos" in meaning
        assert numbers.setdefault(seed, shown) == shown
    assert numbers[0] != numbers[1]


def test_a_contact_sheet_says_what_is_missing(tmp_path):
    """Every video of few is shown once; an unreadable one is counted; shortest and longest videos are listed."""
    data = write_frames(tmp_path / "data", ["a", "b", "c"], num_frames=2)
    write_frames(data, ["long"], num_frames=7)
    for path in (data / "b").iterdir():
        path.write_bytes(b"damaged")
    shown = list_inputs([read_run(write_run(tmp_path / "run", data), "run")], SpriteSheet("inputs", 16), seed=0)
    assert [sprite.alt for sprite in shown["sprites"]] == ["a", "c", "long"]
    assert shown["meaning"].endswith(
        "of every video, cropped to a square: 3 of 4 videos. 1 of the frames cannot be read."
    )
    assert shown["extremes"] == [("a", "2"), ("b", "2"), ("c", "2"), ("long", "7")]
    assert dict(shown["facts"])["Frames per video"] == "2 to 7, median 2"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on twelve videos."""
    root = tmp_path_factory.mktemp("run")
    return read_run(write_run(root / "run", write_frames(root / "data", list("abcdefghijkl"))), "run")


def test_views_are_those_of_the_training(run):
    """The pairs on the page are the first samples of the run's training set."""
    dataset = make_dataset(run.config, FrameStore.open(run.config.data))
    shown = view_pairs(run)
    assert len(shown["pairs"]) == 10
    for (query, positive), position in zip(shown["pairs"], range(10), strict=True):
        for (url, _), view in zip((query, positive), dataset.sample(position).views[:2], strict=True):
            assert np.abs(decoded(url).astype(float).mean((0, 1)) - view.mean((0, 1))).max() < 6
    assert shown["meaning"].startswith("Views of two frames of one video, augmented by moco-v1")


def test_views_that_cannot_be_shown(tmp_path):
    """Without the data, or with an augmentation of the user's, a sentence says why there are no views."""
    data = write_frames(tmp_path / "data", ["a", "b"])
    own = view_pairs(read_run(write_run(tmp_path / "own", data, augmentation="own:mine"), "own"))
    gone = write_run(tmp_path / "gone", data)
    shutil.rmtree(data)
    assert (own["pairs"], view_pairs(read_run(gone, "gone"))["pairs"]) == ([], [])
    assert "own:mine" in own["problem"]
    assert f"cannot be shown: {data}" in view_pairs(read_run(gone, "gone"))["problem"]
