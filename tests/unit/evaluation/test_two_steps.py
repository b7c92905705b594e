"""Predictions, record, score: what is left out is told of, and a stop, a second model or a lost one change no score."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from cyclecontrast.config import KnnConfig, LinearConfig
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation import Result, embeddings, evaluate, linear
from cyclecontrast.evaluation.predictions import Record, find_records, read_record
from cyclecontrast.evaluation.predictions import About, DataInfo, ModelInfo
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import save_backbone

MODEL = "random:resnet10-small-w8"
SETTINGS = {"image_size": 16, "workers": 0, "device": "cpu", "batch_size": 4}
PROTOCOLS = [
    ("knn", {"k": (2,)}),
    ("linear", {"probe": "lbfgs"}),
    ("linear", {"probe": "sgd", "epochs": 3}),
    ("finetune", {"epochs": 2}),
]
COLORS = {"blue": (200, 40, 40), "green": (40, 200, 40), "red": (40, 40, 200)}


@pytest.fixture
def data(tmp_path):
    """A frame tree of three colors: videos 0, 1 and 2 of each for training, 3 and 4 for the test, two frames each."""
    rng = np.random.default_rng(0)
    lists = {"train": [], "test": []}
    for label, (name, color) in enumerate(COLORS.items()):
        for video in range(5):
            folder = tmp_path / "data" / name / f"{video}"
            folder.mkdir(parents=True)
            for index in range(2):
                image = np.clip(color + rng.normal(0, 60, (16, 18, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{index}.png"), image)
            lists["test" if video > 2 else "train"].append(f"{name}/{video} {label}\n")
    (tmp_path / "data" / "classes.txt").write_text("0 blue\n1 green\n2 red\n")
    for split, lines in lists.items():
        (tmp_path / "data" / f"{split}.txt").write_text("".join(lines))
    return tmp_path / "data"


def run(protocol, data, out, model=MODEL, **settings):
    """Evaluate into a folder of the test."""
    return evaluate(protocol, model, data, **{"out": out, **SETTINGS, **settings})


def truncate(data, *videos, frames=(0, 1)):
    """Cut the images of these videos in half."""
    paths = [data / video / f"{frame}.png" for video in videos for frame in frames]
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])
    return paths


def content(out):
    """Return all records and results of a folder, without what names the folder."""
    records = {path.name: (Record.load(out, path.stem)) for path in (out / "records").iterdir()}
    abouts = {name: {**record.about.to_json(), "config": None} for name, record in records.items()}
    tables = {name: record.table.to_pydict() for name, record in records.items()}
    results = {path.name: (Result.load(path).metrics, Result.load(path).per_item) for path in out.glob("*.json")}
    return abouts, tables, results


@pytest.mark.parametrize("level", ["frame", "video"])
@pytest.mark.parametrize(("protocol", "settings"), PROTOCOLS)
def test_what_cannot_be_read_is_left_out_and_told_of(data, tmp_path, protocol, settings, level):
    """A frame of a test video, a whole test video and a frame in training: the rest is scored, each is named."""
    broken = truncate(data, "red/3", frames=(1,)) + truncate(data, "red/4") + truncate(data, "green/0", frames=(0,))
    result = run(protocol, data, tmp_path / "out", level=level, **settings)
    items = {"frame": (4, 4, 1), "video": (2, 2, 1)}[level]
    assert result.per_item["num_items"] == list(items)
    assert len(result.about.problems) == len(broken)
    for path in broken:
        assert sum(line.startswith(f"{path}: the image does not decode") for line in result.about.problems) == 1
        assert str(path) in str(result)
    (name,) = (tmp_path / "out" / "records").iterdir()
    ids = Record.load(tmp_path / "out", name.stem).table["id"].to_pylist()
    assert len(ids) == sum(items)
    assert ids[-1] == {"frame": "red/3/0.png", "video": "red/3"}[level]
    assert json.loads(next((tmp_path / "out").glob("*.json")).read_text())["problems"] == list(result.about.problems)


@pytest.mark.parametrize(("protocol", "settings"), PROTOCOLS)
def test_a_class_without_a_readable_training_image_is_not_learned(data, tmp_path, protocol, settings):
    """It is named, its test items count as wrong, and the other classes keep their places."""
    if protocol == "linear":
        settings = {**settings, "learning_rate": 200.0}
    truncate(data, "green/0", "green/1", "green/2")
    result = run(protocol, data, tmp_path / "out", **settings)
    assert "class green is not learned: none of its training images can be read" in str(result)
    assert result.per_item["classes"] == ["blue", "green", "red"]
    assert result.per_item["num_items"] == [4, 4, 4]
    if protocol != "finetune":
        assert result.per_item["accuracy"] == [1.0, 0.0, 1.0]


def test_a_class_without_a_readable_test_image_has_no_accuracy(data, tmp_path):
    """Neither 0 nor nan, which is no JSON: the breakdown says null, and the other classes make up the whole."""
    truncate(data, "blue/3", "blue/4")
    result = run("linear", data, tmp_path / "out")
    assert result.per_item["num_items"] == [0, 4, 4]
    assert result.per_item["accuracy"] == [None, 1.0, 1.0]
    assert result.metrics == {"top1": 1.0}
    assert Result.load(tmp_path / "out" / f"{result.about.key}.json") == result


@pytest.mark.parametrize(("protocol", "settings"), PROTOCOLS)
@pytest.mark.parametrize("videos", [range(3), range(3, 5)], ids=["train", "test"])
def test_nothing_readable_is_an_error(data, tmp_path, protocol, settings, videos):
    """A split without one readable image gives no result, and says so with the first reasons."""
    truncate(data, *(f"{color}/{video}" for color in COLORS for video in videos))
    with pytest.raises(UserError, match=r"none of the \d+ (training )?images can be read") as caught:
        run(protocol, data, tmp_path / "out", **settings)
    assert len(caught.value.problems) > 1
    assert not list((tmp_path / "out").glob("*.json"))


def test_one_class_left_to_learn_is_an_error(data, tmp_path):
    """The convex probe cannot tell apart what it has never seen."""
    truncate(data, *(f"{color}/{video}" for color in ("green", "red") for video in range(3)))
    with pytest.raises(UserError, match="only one class has training images that can be read") as caught:
        run("linear", data, tmp_path / "out")
    assert "class green is not learned" in caught.value.problems[1]


@pytest.mark.parametrize(("protocol", "settings"), PROTOCOLS)
@pytest.mark.parametrize("stop", [2, 3, 6, 8])
def test_a_stopped_evaluation_ends_as_one_that_was_not(data, tmp_path, monkeypatch, protocol, settings, stop):
    """Stopped at any batch, run again: the same record, result and reports; no part of it is left."""
    truncate(data, "red/3", "green/1", frames=(0,))
    monkeypatch.setattr(embeddings, "IMAGES_PER_PART", 4)
    run(protocol, data, tmp_path / "whole", **settings)
    stop_at_batch(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        run(protocol, data, tmp_path / "stopped", **settings)
    assert not list((tmp_path / "stopped").glob("*.json"))
    run(protocol, data, tmp_path / "stopped", **settings)
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir() if path.is_dir()) == ["records"]


def stop_at_batch(monkeypatch, number):
    """Interrupt once, when the network is given its batch of this number, of images as of views."""
    seen = []

    def normalise(self, pixels, real=embeddings.Backbone.normalise):
        seen.append(len(pixels))
        if len(seen) == number:
            raise KeyboardInterrupt
        return real(self, pixels)

    monkeypatch.setattr(embeddings.Backbone, "normalise", normalise)


def test_a_stop_after_the_last_epoch_loses_no_report(data, tmp_path, monkeypatch):
    """What could not be read while training is told of, though no image is read again."""
    truncate(data, "green/1", frames=(0,))
    settings = {"probe": "sgd", "epochs": 2}
    run("linear", data, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(linear, "ranked_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("linear", data, tmp_path / "stopped", **settings)
    monkeypatch.setattr(embeddings.Backbone, "forward", lambda *_: pytest.fail("the model was run"))
    result = run("linear", data, tmp_path / "stopped", **settings)
    assert len(result.about.problems) == 1
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


@pytest.fixture
def model(tmp_path):
    """A backbone in a file."""
    return save_backbone(make_backbone("resnet10-small-w8", 3), tmp_path / "model")


def test_a_record_outlives_its_model(data, tmp_path, model):
    """--score-only finds it by the model's name, also where settings are left open that were decided then."""
    result = run("knn", data, tmp_path / "out", model, image_size=None, k=(2,))
    model.unlink()
    assert run("knn", data, tmp_path / "out", model, image_size=None, k=(2,), score_only=True) == result
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


def test_a_wrong_bit_of_a_record_is_told(data, tmp_path, model):
    """Predictions, and what decides how they are scored, are as they were written, or one line says so."""
    run("knn", data, tmp_path / "out", model, k=(2,))
    (path,) = (tmp_path / "out" / "records").glob("*.parquet")
    content = path.read_bytes()
    record, told = read_record(path), 0
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        problems = []
        read = attempt(lambda: read_record(path), problems)
        assert read == record or problems[0].startswith(f"{path}: the record cannot be read (")
        told += bool(problems)
    assert told > 100


@pytest.mark.parametrize("change", [{"k": (3,)}, {"level": "video"}, {"image_size": 24}, {"model": "other"}, "data"])
def test_no_record_stands_in_for_another(data, tmp_path, model, change):
    """Other settings, another model and other data are not scored from what is there, with the model gone."""
    run("knn", data, tmp_path / "out", model, k=(2,))
    model.unlink()
    if change == "data":
        (data / "test.txt").write_text("red/3 2\n")
        change = {}
    settings = {"model": model, "k": (2,), **change}
    with pytest.raises(UserError, match=r"is not there, and of its records of knn .* no record fits"):
        run("knn", data, tmp_path / "out", **settings, score_only=True)


def test_two_models_of_one_name_are_not_mixed_up(data, tmp_path, model):
    """A file that was trained on and overwritten has results of its own, and neither is taken for the other's."""
    first = run("knn", data, tmp_path / "out", model, k=(2,))
    save_backbone(make_backbone("resnet10-small-w8", 4), tmp_path / "model")
    with pytest.raises(UserError, match="run it once without --score-only"):
        run("knn", data, tmp_path / "out", model, k=(2,), score_only=True)
    second = run("knn", data, tmp_path / "out", model, k=(2,))
    assert first.about.key != second.about.key
    assert first.about.model.fingerprint != second.about.model.fingerprint
    assert len(find_records(tmp_path / "out", "knn")) == 2
    assert run("knn", data, tmp_path / "out", model, k=(2,), score_only=True) == second
    model.unlink()
    with pytest.raises(UserError, match="2 records fit"):
        run("knn", data, tmp_path / "out", model, k=(2,), score_only=True)


def test_a_second_model_does_not_go_on_with_what_the_first_left(data, tmp_path, model, monkeypatch):
    """Parts of a stopped evaluation belong to the weights that made them, not to their file's name."""
    with monkeypatch.context() as patch:
        stop_at_batch(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run("linear", data, tmp_path / "out", model, probe="lbfgs")
    save_backbone(make_backbone("resnet10-small-w8", 4), tmp_path / "model")
    result = run("linear", data, tmp_path / "out", model, probe="lbfgs")
    assert result.per_item == run("linear", data, tmp_path / "fresh", model, probe="lbfgs").per_item
    assert len(list((tmp_path / "out" / "unfinished").iterdir())) == 1


def about(config, scoring=(), model="1" * 16, data="2" * 16):
    """Return the origin of a result with these settings."""
    info = DataInfo(str(config.data), data, 1, 1)
    return About("knn", "", config.model_dump(mode="json"), ModelInfo("m", "s", model), info, scoring=scoring)


def test_keys_name_what_changes_the_numbers_and_nothing_else():
    """Settings, model and data do, wherever they lie; workers, device and folders do not; scoring keeps the record."""
    config = KnnConfig(model="m", data="d")
    plain = about(config)
    for change in ({"model": "n"}, {"data": "e"}, {"out": "o"}, {"workers": 3}, {"device": "cpu"}, {"classes": "c"}):
        assert about(KnnConfig(**{"model": "m", "data": "d", **change})).key == plain.key, change
    for change in ({"k": (1,)}, {"seed": 1}, {"level": "video"}, {"image_size": 32}, {"batch_size": 1}):
        other = about(config.model_copy(update=change))
        assert other.key != plain.key
        assert other.record_key != plain.record_key
    for changed in (about(config, model="3" * 16), about(config, data="3" * 16)):
        assert changed.key != plain.key
    scored, again = (about(config.model_copy(update={"k": k}), scoring=("k",)) for k in ((1,), (2,)))
    assert scored.key != again.key
    assert scored.record_key == again.record_key != scored.key


def test_settings_of_scoring_may_change_with_the_record(data, tmp_path, monkeypatch):
    """One record, two results of two keys; --score-only needs no more than the record."""
    monkeypatch.setattr(LinearConfig, "scoring", frozenset({"learning_rate"}))
    first = run("linear", data, tmp_path / "out")
    second = run("linear", data, tmp_path / "out", learning_rate=1.0, score_only=True)
    assert second.about.config["learning_rate"] == 1.0
    assert dataclasses.replace(second.about, config=first.about.config) == first.about
    assert len(list((tmp_path / "out").glob("*.json"))) == 2
    assert len(list((tmp_path / "out" / "records").iterdir())) == 1
