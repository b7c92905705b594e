"""The protocol `knn` end to end, and what all protocols promise: records, keys, repeatable and frozen."""

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cyclecontrast.config import KnnConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation import Result, evaluate, knn, two_steps
from cyclecontrast.evaluation.classification import breakdown, not_tested
from cyclecontrast.evaluation.predictions import Record, results_folder
from cyclecontrast.models.backbone import Backbone, make_backbone
from cyclecontrast.models.checkpoint import save_backbone

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
MODEL = "random:resnet10-small-w8"
SETTINGS = {"image_size": 16, "workers": 0, "device": "cpu", "batch_size": 8}
COLORS = {"blue": (200, 40, 40), "green": (40, 200, 40), "red": (40, 40, 200)}


@pytest.fixture
def data(tmp_path):
    """A frame tree of three colors, four videos each, of which the last is for the test; a frame has noise."""
    rng = np.random.default_rng(0)
    lists = {"train": [], "test": []}
    for label, (name, color) in enumerate(COLORS.items()):
        for video in range(4):
            folder = tmp_path / "data" / name / f"{video}"
            folder.mkdir(parents=True)
            for index in range(2 + video % 2):
                image = np.clip(color + rng.normal(0, 60, (16, 18, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{index}.png"), image)
            lists["test" if video == 3 else "train"].append(f"{name}/{video} {label}\n")
    for split, lines in lists.items():
        (tmp_path / "data" / f"{split}.txt").write_text("".join(lines))
    return tmp_path / "data"


def run(data, tmp_path, model=MODEL, **settings):
    """Evaluate by `knn` into a folder of the test."""
    return evaluate("knn", model, data, **{"out": tmp_path / "out", "k": (3,), **SETTINGS, **settings})


def vectors_of(data, split):
    """Vectors and labels of a split, frame by frame and by hand: {video: (label, vectors)}."""
    backbone = make_backbone("resnet10-small-w8", 0).eval()
    found = {}
    for line in (data / f"{split}.txt").read_text().splitlines():
        video, label = line.split()
        crops = [cv2.imread(str(path))[..., ::-1] for path in sorted((data / video).iterdir())]
        crops = [cv2.resize(crop, (20, 18), interpolation=cv2.INTER_LINEAR)[1:17, 2:18] for crop in crops]
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        with torch.no_grad():
            found[video] = int(label), backbone(backbone.normalise(pixels)).numpy().astype(float)
    return found


def unit(x):
    """Scale to length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(data, level, k):
    """Top-1 of weighted voting, with loops over items."""
    items = {}
    for split in ("train", "test"):
        videos = vectors_of(data, split).values()
        if level == "frame":
            items[split] = [(label, unit(vector)) for label, vectors in videos for vector in vectors]
        else:
            items[split] = [(label, unit(unit(vectors).mean(axis=0))) for label, vectors in videos]
    right = 0
    for label, query in items["test"]:
        nearest = sorted(((query @ vector, other) for other, vector in items["train"]), reverse=True)[:k]
        votes = [sum(np.exp(s / 0.07) for s, other in nearest if other == c) for c in range(3)]
        right += int(np.argmax(votes)) == label
    return right / len(items["test"])


@pytest.mark.parametrize("level", ["frame", "video"])
def test_accuracy_equals_one_computed_by_hand(data, tmp_path, level):
    """From image files to the number, at both levels and at several k."""
    result = run(data, tmp_path, level=level, k=(1, 3, 7))
    assert result.metrics == {f"top1_k{k}": pytest.approx(by_hand(data, level, k)) for k in (1, 3, 7)}
    assert result.tag == f"knn level={level} image_size=16"
    assert (result.about.data.num_train, result.about.data.num_test) == ((21, 9) if level == "frame" else (9, 3))


def test_the_breakdown_adds_up(data, tmp_path):
    """Confusion counts every test item once; its diagonal is the accuracy of the first k, per class and in all."""
    result = run(data, tmp_path)
    confusion = np.array(result.per_item["confusion"])
    assert result.per_item["classes"] == ["0", "1", "2"]
    assert confusion.sum() == 9
    assert confusion.trace() / 9 == pytest.approx(result.metrics[result.per_item["of"]])
    assert result.per_item["accuracy"] == pytest.approx((confusion.diagonal() / confusion.sum(axis=1)).tolist())


def test_more_neighbors_than_items_are_clipped_and_said_so(data, tmp_path):
    """k beyond the gallery becomes the gallery, once, and the result says it."""
    result = run(data, tmp_path, k=(10, 100, 200))
    assert list(result.metrics) == ["top1_k10", "top1_k21"]
    assert "k=100 is more than the 21 training items: 21 used" in result.about.notes
    assert "k=200 is more than the 21 training items: 21 used" in str(result)


@pytest.mark.parametrize(
    ("level", "protocol", "settings", "expected"),
    [
        ("frame", "knn", {"k": (3,)}, (20, 6)),
        ("video", "knn", {"k": (3,)}, (9, 2)),
        ("frame", "linear", {}, (20, 6)),
        ("video", "linear", {}, (9, 2)),
        ("frame", "linear", {"probe": "sgd", "epochs": 1}, (20, 6)),
        ("frame", "finetune", {"epochs": 1}, (20, 6)),
        ("video", "finetune", {"epochs": 1}, (9, 2)),
    ],
)
def test_a_result_counts_what_took_part(data, tmp_path, level, protocol, settings, expected):
    """A frame of train and a whole test video are broken: neither is counted, and the class without a test is named."""
    for path in (data / "red" / "0" / "0.png", *(data / "blue" / "3").iterdir()):
        path.write_bytes(b"broken")
    result = evaluate(protocol, MODEL, data, **{"out": tmp_path / "out", "level": level, **SETTINGS, **settings})
    assert (result.about.data.num_train, result.about.data.num_test) == expected
    assert "not tested, for none of their test images can be read: 0" in result.about.notes


def test_many_classes_that_are_not_tested_fill_one_line():
    """The first ten are named, the others counted."""
    (line,) = not_tested(np.array([0]), [f"c{number}" for number in range(14)])
    assert line.endswith("c1, c2, c3, c4, c5, c6, c7, c8, c9, c10 and 3 more")
    assert not_tested(np.array([1, 0]), ["a", "b"]) == ()


def test_no_k_is_refused():
    """There would be nothing to vote."""
    with pytest.raises(UserError, match="k: name one number or more"):
        checked(KnnConfig, {"model": MODEL, "data": ".", "k": ()})


def test_top_5_is_given_where_there_are_more_classes(tmp_path):
    """With six classes top-5 says something; it is never below top-1."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "data" / ("train", "val")[number % 2] / f"class{number // 2}" / "1.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (16, 16, 3), np.uint8))
    result = run(tmp_path / "data", tmp_path, k=(6,))
    assert list(result.metrics) == ["top1_k6", "top5_k6"]
    assert result.metrics["top5_k6"] >= result.metrics["top1_k6"]


def test_the_same_seed_gives_the_same_bits(data, tmp_path):
    """Result and record are equal byte for byte, apart from where they lie."""
    first, second = (run(data, tmp_path / name) for name in "ab")
    assert first.metrics == second.metrics
    one, other = (pq.read_table(next((tmp_path / name / "out" / "records").iterdir())) for name in "ab")
    assert one.equals(other)
    assert [p.name for p in (tmp_path / "a/out").iterdir()] == [p.name for p in (tmp_path / "b/out").iterdir()]


def test_frozen_means_frozen(data, tmp_path):
    """No parameter and no BatchNorm buffer changes by one bit."""
    backbone = make_backbone("resnet10-small-w8").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    config = KnnConfig(model="in memory", data=data, out=tmp_path / "out", k=(3,), **SETTINGS)
    two_steps.evaluate(backbone, knn.open_data(config), config)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_records_are_scored_again_without_running_the_model(data, tmp_path, monkeypatch):
    """--score-only gives the same result from the record, and the network is not called."""
    result = run(data, tmp_path)
    monkeypatch.setattr(Backbone, "forward", lambda *_: pytest.fail("the model was run"))
    again = run(data, tmp_path, score_only=True, workers=1)
    assert again == result


def test_a_record_names_each_item_and_its_classes(data, tmp_path):
    """Whoever doubts a score can look up what was predicted for which frame."""
    result = run(data, tmp_path)
    table = Record.load(tmp_path / "out", result.about.key).table
    assert table.column_names == ["id", "label", "ranked_k3"]
    assert table["id"].to_pylist()[:2] == ["blue/3/0.png", "blue/3/1.png"]
    ranked = table["ranked_k3"].to_pylist()
    assert all(sorted(row) == [0, 1, 2] for row in ranked)
    top1 = np.mean([row[0] == label for row, label in zip(ranked, table["label"].to_pylist(), strict=True)])
    assert top1 == pytest.approx(result.metrics["top1_k3"])


@pytest.mark.parametrize("change", [{"seed": 1}, {"k": (4,)}, {"level": "video"}, {"image_size": 24}, "data"])
def test_no_score_is_reported_for_another_model_data_or_setting(data, tmp_path, change):
    """Each has a key of its own, so that --score-only cannot find the record of another."""
    first = run(data, tmp_path)
    if change == "data":
        lines = (data / "test.txt").read_text().splitlines()
        (data / "test.txt").write_text("\n".join(lines[:-1]))
        change = {}
    with pytest.raises(UserError, match="run it once without --score-only"):
        run(data, tmp_path, score_only=True, **change)
    second = run(data, tmp_path, **change)
    assert first.about.key != second.about.key
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def test_a_damaged_record_is_an_error(data, tmp_path):
    """A record cut short, or one renamed to another's key, is not scored."""
    key, other = (run(data, tmp_path, k=(k,)).about.key for k in (3, 4))
    records = tmp_path / "out" / "records"
    (records / f"{key}.parquet").write_bytes((records / f"{other}.parquet").read_bytes())
    with pytest.raises(UserError, match=f"is the record of {other}"):
        run(data, tmp_path, score_only=True)
    (records / f"{key}.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        run(data, tmp_path, score_only=True)


def test_a_result_is_read_back_as_it_was_written(data, tmp_path):
    """The file holds metrics, settings, fingerprints and versions, and loads to an equal result."""
    result = run(data, tmp_path)
    path = tmp_path / "out" / f"{result.about.key}.json"
    assert Result.load(path) == result
    content = json.loads(path.read_text())
    assert content["metrics"] == result.metrics
    assert content["versions"].keys() >= {"python", "torch", "cyclecontrast"}
    assert content["config"]["k"] == [3]
    assert {len(content[name]["fingerprint"]) for name in ("model", "data")} == {16}
    for text in ("{}", json.dumps(content | {"metrics": {"top1": float("nan")}})):
        path.write_text(text)
        with pytest.raises(UserError, match="is no result"):
            Result.load(path)


def test_results_of_a_run_lie_in_the_run(data, tmp_path, monkeypatch):
    """Without --out they go to <run>/results, and for anything else to ./results."""
    (tmp_path / "run").mkdir()
    save_backbone(make_backbone("resnet10-small-w8", 3), tmp_path / "run")
    result = run(data, tmp_path, model=tmp_path / "run", out=None)
    assert Result.load(tmp_path / "run" / "results" / f"{result.about.key}.json") == result
    assert results_folder(KnnConfig(model=MODEL, data=data)) == Path("results")


def test_all_mistakes_are_told_at_once_and_nothing_is_made(data, tmp_path):
    """A wrong model and wrong data in one error; then an output that is a file; no folder appears."""
    with pytest.raises(UserError) as caught:
        run(tmp_path / "absent", tmp_path, model="random:nothing")
    assert len(caught.value.problems) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run(data, tmp_path, out=tmp_path / "file" / "deep")
    with pytest.raises(UserError, match="did you mean knn"):
        evaluate("kn", MODEL, data)
    with pytest.raises(UserError, match="neighbors is no option"):
        run(data, tmp_path, neighbors=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file"]


def test_one_class_is_nothing_to_tell_apart(data, tmp_path):
    """Every neighbor would be right: a score of 100 % that says nothing is not given."""
    for split in ("train", "test"):
        lines = (data / f"{split}.txt").read_text().splitlines()
        (data / f"{split}.txt").write_text("\n".join(line for line in lines if line.endswith(" 1")))
    with pytest.raises(UserError, match="holds one class, 1"):
        run(data, tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_recipe_is_the_one_of_the_protocol(data):
    """protocols.md §b: k of 10, 20, 100 and 200, votes of exp(s / 0.07)."""
    defaults = KnnConfig(model=MODEL, data=data)
    assert (defaults.k, defaults.temperature) == ((10, 20, 100, 200), 0.07)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_tracks_are_told_apart_better_than_by_chance(tmp_path):
    """Even random features know more of GTSRB than 1 in 43, at the level of videos."""
    settings = {"image_size": 32, "level": "video", "k": (10,), "batch_size": 128, "workers": 1}
    result = run(SHARED / "video_frames" / "gtsrb", tmp_path, **settings)
    assert result.metrics["top1_k10"] > 3 / 43
    assert result.about.data[2:] == (285, 271)


def test_classes_that_there_are_not_are_an_error():
    """Numbers of classes beyond the names, as in a record that was changed, are told, not counted."""
    for predicted, labels in (([0, 2], [0, 1]), ([0, 1], [0, 255]), ([0, 1], [-1, 0])):
        with pytest.raises(UserError, match="classes that its data do not have"):
            breakdown("top1", np.array(predicted), np.array(labels), ["a", "b"])
