"""What all protocols of classification share: unreadable images are left out, classes keep their places."""

import shutil

import cv2
import numpy as np
import pytest

import cyclecontrast as cc
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import embed
from cyclecontrast.evaluation.classification import breakdown, untested_class_notes
from cyclecontrast.evaluation.predictions import Record, find_records

MODEL = "random:resnet10-small-w8"
SETTINGS = {"image_size": 16, "workers": 0, "device": "cpu", "batch_size": 4}
PROTOCOLS = {
    "knn": {"k": (2,)},
    "lbfgs": {"probe": "lbfgs"},
    "sgd": {"probe": "sgd", "epochs": 3},
    "finetune": {"epochs": 2},
}
COLORS = {"blue": (200, 40, 40), "green": (40, 200, 40), "red": (40, 40, 200)}


@pytest.fixture
def data(tmp_path):
    """A frame tree of three colors: videos 0, 1 and 2 of each for training, 3 and 4 for the test, two frames each."""
    return make_colors(tmp_path / "data")


def make_colors(root):
    """Write the frames and the lists."""
    rng = np.random.default_rng(0)
    lists = {"train": [], "test": []}
    for label, (name, color) in enumerate(COLORS.items()):
        for video in range(5):
            folder = root / name / f"{video}"
            folder.mkdir(parents=True)
            for index in range(2):
                image = np.clip(color + rng.normal(0, 60, (16, 18, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{index}.png"), image)
            lists["test" if video > 2 else "train"].append(f"{name}/{video} {label}\n")
    (root / "classes.txt").write_text("0 blue\n1 green\n2 red\n")
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def run(name, data, out, **settings):
    """Evaluate by one of PROTOCOLS into a folder of the test."""
    protocol = "linear" if name in ("lbfgs", "sgd") else name
    return cc.evaluate(protocol, MODEL, data, **{"out": out, **SETTINGS, **PROTOCOLS[name], **settings})


def truncate(data, *videos, frames=(0, 1)):
    """Cut the images of these videos in half."""
    paths = [data / video / f"{frame}.png" for video in videos for frame in frames]
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])
    return paths


@pytest.mark.parametrize("level", ["frame", "video"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_unreadable_images_are_left_out_and_reported(data, tmp_path, name, level):
    """A frame of a test video, a whole test video and a frame in training: the rest is scored and counted."""
    broken = truncate(data, "red/3", frames=(1,)) + truncate(data, "red/4") + truncate(data, "green/0", frames=(0,))
    result = run(name, data, tmp_path / "out", level=level)
    items = {"frame": [4, 4, 1], "video": [2, 2, 1]}[level]
    assert result.per_item["num_items"] == items
    assert result.about.data[2:] == ((17, 9) if level == "frame" else (9, 5))
    assert len(result.about.problems) == len(broken)
    for path in broken:
        assert sum(line.startswith(f"{path}: the image does not decode") for line in result.about.problems) == 1
    (record,) = find_records(tmp_path / "out", result.protocol)
    ids = record.table["id"].to_pylist()
    assert len(ids) == sum(items)
    assert ids[-1] == {"frame": "red/3/0.png", "video": "red/3"}[level]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_class_without_a_readable_training_image_is_not_learned(data, tmp_path, name):
    """It is named, its test items count as wrong, and the other classes keep their places."""
    truncate(data, "green/0", "green/1", "green/2")
    result = run(name, data, tmp_path / "out", **({"learning_rate": 200.0} if name == "sgd" else {}))
    assert "class green was not trained: all of its training images are unreadable" in str(result)
    assert result.per_item["classes"] == ["blue", "green", "red"]
    assert result.per_item["num_items"] == [4, 4, 4]
    if name != "finetune":
        assert result.per_item["accuracy"] == [1.0, 0.0, 1.0]


def test_a_class_without_a_readable_test_image_has_no_accuracy(data, tmp_path):
    """Neither 0 nor nan, which JSON does not have: the breakdown says null, and a note names the class."""
    truncate(data, "blue/3", "blue/4")
    result = run("knn", data, tmp_path / "out", k=(1,))
    assert result.per_item["num_items"] == [0, 4, 4]
    assert result.per_item["accuracy"][0] is None
    assert "not tested, because all of their test images are unreadable: blue" in result.about.notes


def test_many_classes_that_are_not_tested_fill_one_line():
    """The first ten are named, the others counted."""
    (line,) = untested_class_notes(np.array([0]), [f"c{number}" for number in range(14)])
    assert line.endswith("c1, c2, c3, c4, c5, c6, c7, c8, c9, c10 and 3 more")
    assert untested_class_notes(np.array([1, 0]), ["a", "b"]) == ()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_training_files_in_the_test_are_a_note(data, tmp_path, name):
    """Under whatever name they are there twice; what has the same size or the same end alone is not counted."""
    clean = run(name, data, tmp_path / "clean")
    assert not any("training files" in note for note in clean.about.notes)
    test = next(line.split()[0] for line in (data / "test.txt").read_text().splitlines())
    train = next(line.split()[0] for line in (data / "train.txt").read_text().splitlines())
    ours, theirs = (sorted((data / video).iterdir()) for video in (test, train))
    shutil.copy(theirs[1], ours[0])
    note = next(note for note in run(name, data, tmp_path / "out").about.notes if "training files" in note)
    assert note == f"1 of the 12 test files are also training files ({ours[0]} is {theirs[1]}): the result is biased"


@pytest.mark.parametrize("videos", [range(3), range(3, 5)], ids=["train", "test"])
@pytest.mark.parametrize("name", ["knn", "sgd"])
def test_a_split_without_a_readable_image_is_an_error(data, tmp_path, name, videos):
    """Whether it is embedded or trained on: there is no result, and the first reasons follow."""
    truncate(data, *(f"{color}/{video}" for color in COLORS for video in videos))
    with pytest.raises(UserError, match=r"none of the \d+ (training )?images can be read") as caught:
        run(name, data, tmp_path / "out")
    assert len(caught.value.problems) > 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.json"))


def test_one_class_is_an_error(data, tmp_path):
    """A score of 100 % would say nothing."""
    for split in ("train", "test"):
        lines = (data / f"{split}.txt").read_text().splitlines()
        (data / f"{split}.txt").write_text("\n".join(line for line in lines if line.endswith(" 1")))
    (data / "classes.txt").unlink()
    with pytest.raises(UserError, match="holds one class, 1"):
        run("knn", data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "stop"), [("knn", 3), ("lbfgs", 8), ("sgd", 7), ("finetune", 8)])
def test_a_stopped_evaluation_ends_as_one_that_was_not(data, tmp_path, monkeypatch, name, stop):
    """Stopped at a batch of train, of the test or of an epoch, and run again: the same record, result and reports."""
    truncate(data, "red/3", "green/1", frames=(0,))
    monkeypatch.setattr(embed, "IMAGES_PER_PART", 4)
    whole = run(name, data, tmp_path / "whole")
    batches = []

    def normalize(self, pixels, real=embed.Backbone.normalize):
        batches.append(len(pixels))
        if len(batches) == stop:
            raise KeyboardInterrupt
        return real(self, pixels)

    monkeypatch.setattr(embed.Backbone, "normalize", normalize)
    with pytest.raises(KeyboardInterrupt):
        run(name, data, tmp_path / "stopped")
    again = run(name, data, tmp_path / "stopped")
    assert (again.metrics, again.per_item, again.about.problems, again.about.details) == (
        *(whole.metrics, whole.per_item, whole.about.problems, whole.about.details),
    )
    first, second = (find_records(tmp_path / folder, whole.protocol)[0] for folder in ("whole", "stopped"))
    assert first.table.equals(second.table)


def test_top_5_is_given_where_there_are_more_classes(tmp_path):
    """With six classes top-5 says something; it is never below top-1."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "data" / ("train", "val")[number % 2] / f"class{number // 2}" / "1.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (16, 16, 3), np.uint8))
    result = run("knn", tmp_path / "data", tmp_path / "out", k=(6,))
    assert list(result.metrics) == ["top1_k6", "top5_k6"]
    assert result.metrics["top5_k6"] >= result.metrics["top1_k6"]


def test_the_breakdown_adds_up(data, tmp_path):
    """Confusion counts every test item once; its diagonal is the accuracy, per class and in all, as in the record."""
    result = run("knn", data, tmp_path / "out")
    confusion = np.array(result.per_item["confusion"])
    assert confusion.sum() == 12
    assert confusion.trace() / 12 == pytest.approx(result.metrics[result.per_item["of"]])
    assert result.per_item["accuracy"] == pytest.approx((confusion.diagonal() / confusion.sum(axis=1)).tolist())
    table = Record.load(next((tmp_path / "out" / "records").iterdir())).table
    assert table.column_names == ["id", "label", "ranked_k2"]
    ranked, labels = table["ranked_k2"].to_pylist(), table["label"].to_pylist()
    assert all(len(set(row) - {-1}) == len([place for place in row if place >= 0]) <= 2 for row in ranked)
    assert breakdown("top1_k2", np.array(ranked)[:, 0], np.array(labels), list(COLORS)) == result.per_item
