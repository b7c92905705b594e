"""The protocol `shape-bias`: what names say, decisions counted by hand, and k-NN against scikit-learn."""

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import cyclecontrast as cc
from cyclecontrast.config import ShapeBiasConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.image_batches import CenterCrop
from cyclecontrast.evaluation.linear import fit_convex
from cyclecontrast.evaluation.predictions import About, DataInfo, ModelInfo, Record
from cyclecontrast.evaluation.shape_bias import ShapeBias, Stimuli
from cyclecontrast.models.backbone import make_backbone

MODEL = "resnet10-small-w8"
SETTINGS = {"image_size": 16, "workers": 0, "device": "cpu", "batch_size": 8}
CLASSES = ("cat", "clock", "oven")


def write(path, rng, level):
    """Write a small image of noise around a level of gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.clip(level + rng.normal(0, 25, (20, 22, 3)), 0, 255).astype(np.uint8))


@pytest.fixture
def data(tmp_path):
    """Labeled images of three classes, a stimulus of each two, and some images with and without texture."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for number in range(4):
            write(tmp_path / "labeled" / "train" / name / f"{number}.jpg", rng, 50 + 70 * label)
        for part in ("textured", "untextured"):
            for number in range(2):
                write(tmp_path / "stimuli" / part / name / f"{number}.png", rng, rng.integers(200))
        for texture in CLASSES:
            write(tmp_path / "stimuli" / "cue-conflict" / name / f"{name}2-{texture}1.png", rng, rng.integers(200))
    return tmp_path


def run(data, **settings):
    """Evaluate into a folder of the test."""
    folders = {"train_data": data / "labeled", "out": data / "out"}
    return cc.evaluate("shape-bias", f"random:{MODEL}", data / "stimuli", **{**folders, **SETTINGS, **settings})


def rows_of(data):
    """Return the recorded predictions."""
    (record,) = (data / "out" / "records").glob("*.parquet")
    return pq.read_table(record).to_pylist()


def test_names_tell_shape_and_texture(data):
    """The shape comes first; stimuli without a conflict are recorded and do not count."""
    result = run(data)
    rows = [row for row in rows_of(data) if row["part"] == "conflict"]
    assert {row["id"]: (row["label"], row["texture"]) for row in rows} == {
        f"cue-conflict/{shape}/{shape}2-{texture}1.png": (CLASSES.index(shape), CLASSES.index(texture))
        for shape in CLASSES
        for texture in CLASSES
    }
    conflict = [row for row in rows if row["label"] != row["texture"]]
    shapes = sum(row["predicted"] == row["label"] for row in conflict)
    textures = sum(row["predicted"] == row["texture"] for row in conflict)
    assert result.metrics["shape_bias"] == pytest.approx(shapes / (shapes + textures))
    assert (result.about.data.num_train, result.about.data.num_test) == (12, 9 + 12)
    assert result.tag.startswith("shape-bias classifier=knn")


def test_decisions_are_counted_by_hand():
    """Two for the shape, one for the texture, one for neither, one without conflict; texture is worth half."""
    rows = [(0, 1, 0), (1, 2, 1), (2, 0, 0), (1, 0, 2), (1, 1, 1)]
    parts = [("textured", 0, -1, 0), ("textured", 1, -1, 1), ("untextured", 0, -1, 0), ("untextured", 1, -1, 2)]
    names = ("part", "label", "texture", "predicted")
    values = [*(("conflict", *row) for row in rows), *parts]
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in values])
    model, images = ModelInfo("m", "s", "f"), DataInfo("d", "f", 1, 9)
    about = About("shape-bias", "tag", {}, model, images, details={"classes": list(CLASSES)})
    task = ShapeBias(ShapeBiasConfig(model="m", data="d", train_data="t"))
    assert task.score(Record(about, table)).metrics == pytest.approx(
        {
            **{"shape_bias": 2 / 3, "shape_accuracy": 2 / 4, "texture_accuracy": 1 / 4},
            **{"textured_accuracy": 1, "untextured_accuracy": 0.5, "texture_gain": 0.5},
        }
    )
    with pytest.raises(UserError, match="no conflicting image was classified by its shape or texture"):
        task.score(Record(about, table.slice(3, 2)))


def vectors_of(split):
    """Return the backbone's vectors of the center crops of a split."""
    backbone = make_backbone(MODEL).eval()
    crops = np.stack([CenterCrop(16)(split.image(i), i) for i in range(len(split))])
    pixels = (crops / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.inference_mode():
        return backbone(torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize("classifier", ["knn", "linear"])
def test_classifiers_are_trained_on_the_labeled_images(data, classifier):
    """With one neighbor the nearest labeled image decides, as by scikit-learn; linear is the fit of `linear`."""
    run(data, classifier=classifier, k=1)
    stimuli = Stimuli.open(data / "stimuli", data / "labeled")
    predicted = [row["predicted"] for row in rows_of(data) if row["part"] == "conflict"]
    train, test = vectors_of(stimuli.train), vectors_of(stimuli.parts["conflict"])
    labels = stimuli.train.labels
    if classifier == "knn":
        expected = KNeighborsClassifier(1, metric="cosine").fit(train, labels).predict(test)
    else:
        expected = fit_convex(train, labels, np.arange(len(labels)), seed=0).scores(test).argmax(axis=1)
    assert np.mean(expected == predicted) > 0.8


def test_stimuli_alone_have_a_shape_bias(data):
    """Without the folders of texture there is no gain of it; one of both is a mistake."""
    for folder in ("textured", "untextured"):
        (data / "stimuli" / folder).rename(data / folder)
    assert set(run(data).metrics) == {"shape_bias", "shape_accuracy", "texture_accuracy"}
    (data / "textured").rename(data / "stimuli" / "textured")
    with pytest.raises(UserError, match=r"untextured: no such folder; textured and untextured belong together"):
        run(data)


def test_names_that_say_nothing_are_listed(data):
    """All mistakes in names are reported together, and nothing is written."""
    for name in ("cat.png", "cat1-dog2.png"):
        write(data / "stimuli" / name, np.random.default_rng(0), 9)
    with pytest.raises(UserError) as caught:
        run(data)
    found = "\n".join(caught.value.problems)
    assert "cat.png: is not named <shape><n>-<texture><n>" in found
    assert "cat1-dog2.png: 'dog' is not one of the classes cat, clock, oven" in found
    assert not (data / "out").exists()


def test_an_unreadable_stimulus_is_left_out(data):
    """It is named in the result, and the others are counted."""
    (data / "stimuli" / "cue-conflict" / "cat" / "cat2-oven1.png").write_bytes(b"no image")
    result = run(data)
    assert len(result.about.problems) == 1
    assert "cat2-oven1.png" in result.about.problems[0]
    assert result.about.data.num_test == 9 + 12 - 1
