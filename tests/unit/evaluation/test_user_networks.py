"""A Backbone object takes the place of the name of a model, also with a user's network."""

import functools

import cv2
import numpy as np
import pytest

import cyclecontrast as cc
from cyclecontrast.models.checkpoint import fingerprint
from tests.make_backbones import Flat, Net, seeded

OPTIONS = {"image_size": 16, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Six images of either of two classes for training and testing."""
    root, rng = tmp_path_factory.mktemp("labeled"), np.random.default_rng(0)
    for split in ("train", "val"):
        for label, low in (("dark", 0), ("bright", 150)):
            (root / split / label).mkdir(parents=True)
            for index in range(6):
                image = rng.integers(low, low + 100, (20, 20, 3), np.uint8)
                cv2.imwrite(str(root / split / label / f"{index}.png"), image)
    return root


def test_a_backbone_takes_the_place_of_a_name(stripes, labeled, tmp_path):
    """Embedding, evaluating and exporting a Backbone gives the same as its name; other objects are refused."""
    name, backbone = "random:resnet10-small-w8", cc.load_backbone("random:resnet10-small-w8")
    by_name = cc.evaluate("knn", name, labeled, out=tmp_path / "one", k=(1,), **OPTIONS)
    by_object = cc.evaluate("knn", backbone, labeled, out=tmp_path / "two", k=(1,), **OPTIONS)
    assert by_name.metrics == by_object.metrics
    again = cc.evaluate("knn", backbone, labeled, out=tmp_path / "two", k=(1,), score_only=True, **OPTIONS)
    assert again.metrics == by_object.metrics
    for model, file in ((name, "name.npz"), (backbone, "object.npz")):
        cc.embed(model, stripes, out=tmp_path / file, **OPTIONS)
    first, second = (np.load(tmp_path / file) for file in ("name.npz", "object.npz"))
    assert np.array_equal(first["vector"], second["vector"])
    cc.export(backbone, out=tmp_path / "x.safetensors")
    assert fingerprint(cc.load_backbone(tmp_path / "x.safetensors")) == fingerprint(backbone)
    for use in (cc.embed, cc.export, functools.partial(cc.evaluate, "knn")):
        with pytest.raises(cc.UserError, match=r"^model: a Net is neither a path or name nor a Backbone; wrap your"):
            use(Net(), data=labeled)
    with pytest.raises(cc.UserError, match="protocol all needs the name of a model"):
        cc.evaluate("all", backbone, data_root=tmp_path)


def test_maps_are_evaluated_like_their_means(labeled, tmp_path):
    """A network that returns maps and one that returns their means are fine-tuned and probed to the same numbers."""
    found = {}
    for name, make_network in (("map", Net), ("flat", Flat)):
        backbone = cc.Backbone(seeded(make_network), f"own:{name}", 6, 16)
        options = {"out": tmp_path / name, "batch_size": 4, **OPTIONS}
        tuned = cc.evaluate("finetune", backbone, labeled, epochs=2, **options)
        probed = cc.evaluate("linear", backbone, labeled, probe="lbfgs", **options)
        found[name] = tuned.metrics | probed.metrics | {"loss": tuned.about.details["last_loss"]}
    assert found["map"] == pytest.approx(found["flat"], rel=1e-4)
