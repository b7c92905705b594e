"""The protocol `knn` end to end: from image files to accuracies counted by hand."""

from collections import Counter

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import cyclecontrast as cc
from cyclecontrast.config import KnnConfig
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation.image_batches import CenterCrop
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.sweeping.tables import TABLES
from tests.unit.evaluation.test_classification import make_colors

MODEL = "random:resnet10-small-w8"
SETTINGS = {"image_size": 16, "workers": 0, "device": "cpu", "batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A frame tree of three colors: nine videos for training and six for the test, two noisy frames each."""
    return make_colors(tmp_path_factory.mktemp("knn") / "data")


def run(data, tmp_path, model=MODEL, **settings):
    """Evaluate by `knn` into a folder of the test."""
    return cc.evaluate("knn", model, data, **{"out": tmp_path / "out", "k": (3,), **SETTINGS, **settings})


def vectors_of(data, split):
    """Label and vectors of each video of a split, frame by frame and by hand."""
    backbone = make_backbone("resnet10-small-w8", 0).eval()
    for line in (data / f"{split}.txt").read_text().splitlines():
        video, label = line.split()
        crops = [cv2.imread(str(path))[..., ::-1] for path in sorted((data / video).iterdir())]
        crops = [cv2.resize(crop, (20, 18), interpolation=cv2.INTER_LINEAR)[1:17, 2:18] for crop in crops]
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        with torch.no_grad():
            yield int(label), backbone(backbone.normalize(pixels)).numpy().astype(float)


def unit(x):
    """Scale to length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(data, level, k):
    """Top-1 of weighted voting, with loops over items."""
    items = {}
    for split in ("train", "test"):
        videos = list(vectors_of(data, split))
        if level == "frame":
            items[split] = [(label, unit(vector)) for label, vectors in videos for vector in vectors]
        else:
            items[split] = [(label, unit(vectors.mean(axis=0))) for label, vectors in videos]
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
    assert result.about.data[2:] == ((18, 12) if level == "frame" else (9, 6))


def test_a_broken_link_is_a_problem_and_other_files_are_a_note(tmp_path):
    """The evaluation goes on without the image that is not there, and says what else it left out."""
    for split in ("train", "val"):
        for name, value in (("cat", 40), ("dog", 200)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                cv2.imwrite(str(folder / f"{number}.png"), np.full((16, 16, 3), value, np.uint8))
    (tmp_path / "data/train/cat/2.png").symlink_to("nowhere")
    (tmp_path / "data/val/dog/raw.heic").touch()
    result = run(tmp_path / "data", tmp_path, k=(1,))
    (problem,) = result.about.problems
    assert "train/cat/2.png" in problem
    assert "left out: 1 file without the suffix of an image, such as val/dog/raw.heic" in result.about.notes
    assert result.metrics["top1_k1"] == 1


def top5_by_hand(vectors, labels, queries, query_labels, k):
    """Top-5 as DINO's and solo-learn's code count it: of the classes of the k nearest alone."""
    right = 0
    for query, label in zip(unit(queries), query_labels, strict=True):
        nearest = sorted(range(len(labels)), key=lambda i: -(query @ unit(vectors[i])))[:k]
        votes = Counter()
        for i in nearest:
            votes[labels[i]] += np.exp(query @ unit(vectors[i]) / 0.07)
        right += label in [label for label, _ in votes.most_common(5)]
    return right / len(query_labels)


def test_top_5_counts_only_classes_with_votes(tmp_path):
    """At k = 1 it is top-1, whatever the numbers of the classes; at larger k it is that of a loop over votes."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 3), ("val", 4)):
        for number in range(8):
            (folder := tmp_path / "data" / split / f"class{number}").mkdir(parents=True)
            for image in range(num):
                cv2.imwrite(str(folder / f"{image}.png"), rng.integers(0, 256, (16, 16, 3), np.uint8))
    result = run(tmp_path / "data", tmp_path, k=(1, 3, 9))
    assert result.metrics["top5_k1"] == result.metrics["top1_k1"]
    backbone = make_backbone("resnet10-small-w8", 0).eval()
    data = LabeledImages.open(tmp_path / "data")
    items = []
    for split in (data.train, data.test):
        crops = [CenterCrop(16)(split.image(i), i) for i in range(len(split))]
        with torch.no_grad():
            vectors = backbone(backbone.normalize(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)))
        items += [vectors.numpy().astype(float), split.labels.tolist()]
    expected = {f"top5_k{k}": pytest.approx(top5_by_hand(*items, k)) for k in (1, 3, 9)}
    assert {name: result.metrics[name] for name in expected} == expected


def test_the_first_k_is_the_one_that_tables_show(data, tmp_path):
    """Metrics keep the order of --k, of which `evaluate all`, reports and sweeps show the first; by default 20."""
    assert list(run(data, tmp_path, k=(7, 1, 3)).metrics) == ["top1_k7", "top1_k1", "top1_k3"]
    assert KnnConfig(model=MODEL, data=data).k[0] == TABLES["table4"].evaluations[0][1]["k"][0] == 20


def test_more_neighbors_than_items_are_clipped_and_noted(data, tmp_path):
    """k beyond the gallery becomes the gallery, once."""
    result = run(data, tmp_path, k=(10, 100, 200))
    assert list(result.metrics) == ["top1_k10", "top1_k18"]
    assert "k=100, 200 are more than the 18 training items: 18 used" in result.about.notes
    assert "k=19 is more than the 18 training items: 18 used" in str(run(data, tmp_path, k=(19, 3)))


def test_the_recipe_is_the_one_of_the_protocol(data):
    """k of 20, which tables show, 10, 100 and 200, votes of exp(s / 0.07); no k at all is refused."""
    defaults = KnnConfig(model=MODEL, data=data)
    assert (defaults.k, defaults.temperature) == ((20, 10, 100, 200), 0.07)
    with pytest.raises(UserError, match="k: give one number or more"):
        checked(KnnConfig, {"model": MODEL, "data": ".", "k": ()})


def test_the_same_seed_gives_the_same_record_and_the_backbone_stays_as_it_is(data, tmp_path):
    """Record and names of files are equal; no parameter and no BatchNorm buffer changes."""
    backbone = make_backbone("resnet10-small-w8").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    first, second = (run(data, tmp_path / name, backbone) for name in "ab")
    assert first.metrics == second.metrics
    one, other = (pq.read_table(next((tmp_path / name / "out" / "records").iterdir())) for name in "ab")
    assert one.equals(other)
    assert [p.name for p in (tmp_path / "a/out").iterdir()] == [p.name for p in (tmp_path / "b/out").iterdir()]
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(module.training for module in backbone.modules())
