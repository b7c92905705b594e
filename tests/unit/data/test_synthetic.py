"""The demo's videos: reproducible, one persistent object each, held-out instances, not solvable by color."""

import dataclasses
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from cyclecontrast.data import synthetic
from cyclecontrast.data.synthetic import (
    CATEGORIES,
    FONTS,
    TEST_FONTS,
    SyntheticSpec,
    draw_instance,
    make_videos,
    render_frames,
)
from cyclecontrast.errors import UserError

SMALL = SyntheticSpec(
    num_videos=9,
    num_categories=4,
    num_train_per_category=2,
    num_test_per_category=3,
    num_frames=6,
    num_labeled_frames=3,
    size=32,
    fps=5,
)
LUMA = (0.299, 0.587, 0.114)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small set, written without worker processes."""
    return make_videos(tmp_path_factory.mktemp("synthetic") / "made", SMALL, seed=3, workers=0)


def _decode(path):
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames), rate


def _files_below(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _labels_of(labeled, split):
    lines = (labeled / f"{split}.txt").read_text().splitlines()
    return {video: int(label) for video, label in (line.split(" ") for line in lines)}


def test_worker_processes_write_the_same_bytes(made, tmp_path):
    """The set is a function of spec and seed, whoever writes it, and a second seed gives another one."""
    again = make_videos(tmp_path / "again", SMALL, seed=3, workers=2)
    other = make_videos(tmp_path / "other", SMALL, seed=4, workers=0)
    files = _files_below(made.videos.parent)
    assert files == _files_below(again.videos.parent)
    images = {name for name in files if not name.endswith(".txt")}
    others = _files_below(other.videos.parent)
    assert all(files[name] != others[name] for name in images)


def test_a_video_does_not_depend_on_how_many_there_are():
    """More videos and more labels only add to the set."""
    larger = dataclasses.replace(SMALL, num_videos=90, num_train_per_category=9)
    for split in ("pretrain", "train", "test"):
        np.testing.assert_array_equal(render_frames(SMALL, 0, split, 7), render_frames(larger, 0, split, 7))


def test_videos_decode_to_the_frames_that_were_requested(made):
    """Every file is a video of num_frames square frames at fps, close to what was rendered."""
    paths = sorted(made.videos.iterdir())
    assert [path.name for path in paths] == [f"{number:04d}.mp4" for number in range(SMALL.num_videos)]
    for number, path in enumerate(paths):
        frames, rate = _decode(path)
        assert frames.shape == (6, 32, 32, 3)
        assert rate == 5
        error = np.abs((frames - render_frames(SMALL, 3, "pretrain", number).astype(float)) @ LUMA)
        assert error.mean() < 4


def test_label_files_name_every_folder_once(made):
    """train.txt and test.txt list the folders under frames/, each with its category's label and frames."""
    splits = {split: _labels_of(made.labeled, split) for split in ("train", "test")}
    assert not splits["train"].keys() & splits["test"].keys()
    assert (len(splits["train"]), len(splits["test"])) == (8, 12)
    labels = splits["train"] | splits["test"]
    root = made.labeled / "frames"
    assert labels.keys() == {str(path.parent.relative_to(root)) for path in root.rglob("*.jpg")}
    assert all(SMALL.categories[label] == Path(video).parts[0] for video, label in labels.items())
    images = [cv2.imread(str(path)) for path in root.rglob("*.jpg")]
    assert len(images) == 60
    assert {image.shape for image in images} == {(32, 32, 3)}
    classes = (made.labeled / "classes.txt").read_text().splitlines()
    assert classes == [f"{label} {name}" for label, name in enumerate(SMALL.categories)]


def test_test_instances_are_held_out():
    """No font of the test split occurs elsewhere, and no two videos share the object's colors or the scene."""
    spec = SyntheticSpec()
    drawn = {
        split: [draw_instance(spec, 0, split, number) for number in range(200)]
        for split in ("pretrain", "train", "test")
    }
    assert {instance.font for instance in drawn["test"]} == set(TEST_FONTS)
    assert {instance.font for instance in drawn["pretrain"] + drawn["train"]} == set(FONTS)
    assert not set(FONTS) & set(TEST_FONTS)
    everything = [instance for instances in drawn.values() for instance in instances]
    assert len({instance.fill for instance in everything}) == len(everything)
    assert len({instance.scenes for instance in everything}) == len(everything)


def test_categories_are_balanced_and_hidden():
    """Each round of unlabeled videos holds every category once, in an order that the numbers do not reveal."""
    spec = SyntheticSpec()
    rounds = np.array([draw_instance(spec, 0, "pretrain", number).character for number in range(100)])
    rounds = rounds.reshape(5, 20)
    characters = sorted(list(CATEGORIES.values())[:20])
    assert all(sorted(order) == characters for order in rounds.tolist())
    assert len({tuple(order) for order in rounds.tolist()}) == 5


@pytest.mark.parametrize("font", FONTS + TEST_FONTS)
def test_every_font_has_every_character(font):
    """Each category is drawn as a shape of its own: none is blank, clipped or the box of a missing character."""
    instance = draw_instance(SyntheticSpec(), 0, "train", 0)
    masks = [
        synthetic._mask(instance._replace(character=character, font=font), stroke=3)
        for character in CATEGORIES.values()
    ]
    assert len({mask.tobytes() for mask in masks}) == len(CATEGORIES)
    for mask in masks:
        assert mask.max() == 255
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()


def test_cuts_change_the_scene_but_not_the_object():
    """Within a scene the frames share their colors; across a cut the colors hardly identify the video."""
    spec = dataclasses.replace(SyntheticSpec(), num_frames=8)
    videos = np.stack([render_frames(spec, 0, "pretrain", number) for number in range(40)])
    hues = [_hues(videos[:, index]) for index in (0, 1, 7)]
    within, across = hues[0] @ hues[1].T, hues[0] @ hues[2].T
    others = across[~np.eye(40, dtype=bool)].mean()
    assert np.diag(within).mean() > 1.5 * others
    assert np.diag(across).mean() < 0.75 * np.diag(within).mean()
    changes = np.abs(videos[:, 0].astype(float) - videos[:, 7]).mean(axis=(1, 2, 3))
    assert changes.min() > 8


def test_the_object_is_seen():
    """Object and scene differ in brightness in each video, and the object fills its part of the frame."""
    shot = synthetic.Shot(0, 0, 0.9, 0, 0, 0, 0, 1, 1, 0, 0)
    for number in range(30):
        rng = np.random.default_rng(number)
        instance = draw_instance(SyntheticSpec(), 0, "pretrain", number)
        glyph = synthetic._glyph(rng, instance)
        opaque = np.zeros((192, 192, 3), np.float32)
        frame = synthetic._frame(glyph[..., [3, 3, 3, 3]], opaque, shot, (1.0, 1.0, 1.0), 48)[..., 0] > 128
        extent = max(np.ptp(np.flatnonzero(frame.any(axis=axis))) + 1 for axis in (0, 1))
        assert 0.8 * 48 <= extent <= 0.95 * 48
        lumas = [np.dot(color, LUMA) for color in instance.fill[1:]]
        grounds = [np.dot(color, LUMA) for scene in instance.scenes for paint in scene[:2] for color in paint[1:]]
        assert min(lumas) > max(grounds) + 0.15 or max(lumas) < min(grounds) - 0.15


@pytest.mark.long
def test_thumbnails_and_colors_do_not_solve_it():
    """Nearest neighbors of raw 16×16 pixels or of color histograms name few of 20 categories (chance 5 %)."""
    spec = dataclasses.replace(SyntheticSpec(), num_frames=2)
    train, train_labels = _labeled(spec, "train")
    test, test_labels = _labeled(spec, "test")
    for features, most in ((_thumbnails, 0.2), (_colors, 0.15)):
        knn = KNeighborsClassifier(5, metric="cosine").fit(features(train), train_labels)
        assert knn.score(features(test), test_labels) < most


def test_a_folder_in_use_is_left_alone(tmp_path):
    """Files of the user are never mixed with the set."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="in use"):
        make_videos(tmp_path, SMALL, seed=0, workers=0)
    assert _files_below(tmp_path) == {"mine.txt": b"mine"}


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    """The folder appears whole or not at all."""
    written = []

    def stop(path, frames, fps):
        written.append(path)
        path.touch()
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_encode", stop)
    with pytest.raises(KeyboardInterrupt):
        make_videos(tmp_path / "made", SMALL, seed=0, workers=0)
    assert len(written) == 3
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled(tmp_path):
    """A folder that the user has made for it is taken as it is."""
    (tmp_path / "made").mkdir()
    made = make_videos(tmp_path / "made", SMALL, seed=0, workers=0)
    assert len(list(made.videos.iterdir())) == SMALL.num_videos


def _labeled(spec, split):
    frames = np.concatenate([render_frames(spec, 0, split, number) for number in range(120)])
    labels = [draw_instance(spec, 0, split, number).character for number in range(120)]
    return frames, np.repeat(labels, spec.num_frames)


def _thumbnails(frames):
    small = [cv2.resize(frame, (16, 16), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(small).reshape(len(frames), -1).astype(float)


def _colors(frames):
    bins = frames.reshape(len(frames), -1, 3) // 43 @ (36, 6, 1)
    return np.sqrt([np.bincount(row, minlength=216) for row in bins])


def _hues(frames):
    """Histograms of chromaticity, which the strength of the light does not change."""
    pixels = frames.reshape(len(frames), -1, 3).astype(float) + 1
    bins = (8 * pixels[..., :2] / pixels.sum(axis=2, keepdims=True)).astype(int) @ (8, 1)
    counts = np.sqrt([np.bincount(row, minlength=72) for row in bins])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)
