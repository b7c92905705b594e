"""The protocol `finetune`: training end to end equals a plain loop, and the backbone that was given stays as it is."""

import copy

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import cyclecontrast as cc
from cyclecontrast.config import FinetuneConfig
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.data.random_streams import ORDER, random_stream
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import finetune
from cyclecontrast.evaluation.embed import Loading
from cyclecontrast.evaluation.epochs import RandomPlace, RandomView
from cyclecontrast.evaluation.finetune import Finetune
from cyclecontrast.evaluation.image_batches import CenterCrop
from cyclecontrast.evaluation.linear import initial_head
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import make_backbone

MODEL = "resnet10-small-w8"
SETTINGS = {"image_size": 16, "workers": 0, "device": "cpu", "batch_size": 4, "epochs": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dark and bright frames of 5 videos for training and 3 for the test, two each: separable."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lists = {"train": [], "test": []}
    for video in range(8):
        split, label = "train" if video < 5 else "test", video % 2
        for frame in range(2):
            path = root / "frames" / f"{video}" / f"{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.clip((60, 190)[label] + rng.normal(0, 30, (16, 18, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(path), image)
        lists[split].append(f"{video} {label}\n")
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def run(data, out, **settings):
    """Evaluate into a folder of the test."""
    return cc.evaluate("finetune", f"random:{MODEL}", data, **{"out": out, **SETTINGS, **settings})


def config(data, **settings):
    """Return options for tiny images."""
    return FinetuneConfig(model="in memory", data=data, **{**SETTINGS, **settings})


def plain_training(backbone, images, settings):
    """Train as the protocol says, with loops and formulas, and return network, head and the last epoch's loss."""
    network, head = copy.deepcopy(backbone).train(), initial_head(backbone.dim, 2, settings.seed)
    groups = [
        (list(network.parameters()), settings.learning_rate),
        (list(head.parameters()), settings.head_learning_rate),
    ]
    velocity = {parameter: 0 for parameters, _ in groups for parameter in parameters}
    for epoch in range(settings.epochs):
        order = random_stream(settings.seed, epoch, 0, ORDER).permutation(len(images.train)).tolist()
        factor = 0.1 ** ((epoch >= 0.6 * settings.epochs) + (epoch >= 0.8 * settings.epochs))
        losses = []
        for start in range(0, len(order), settings.batch_size):
            positions = order[start : start + settings.batch_size]
            view = RandomView(settings.seed, epoch, settings.image_size)
            views = np.stack([view(images.train.image(position), position) for position in positions])
            pixels = (views / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
            logits = head(network(torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)))
            chosen = logits.log_softmax(dim=1)[range(len(positions)), images.train.labels[positions]]
            losses.append(-chosen.mean())
            slopes = torch.autograd.grad(losses[-1], list(velocity))
            rates = [rate for parameters, rate in groups for _ in parameters]
            with torch.no_grad():
                for parameter, slope, rate in zip(list(velocity), slopes, rates, strict=True):
                    velocity[parameter] = 0.9 * velocity[parameter] + slope + settings.weight_decay * parameter
                    parameter -= rate * factor * settings.batch_size / 256 * velocity[parameter]
    return network.eval(), head.eval(), float(torch.stack(losses).detach().mean())


def trained(data, settings, tmp_path, monkeypatch):
    """Predict, and return the predictions with the classifier that made them."""
    seen = []

    def embed_items(self, classifier, *args, real=Finetune.embed_items):
        seen.append((classifier, real(self, classifier, *args)))
        return seen[-1][1]

    monkeypatch.setattr(Finetune, "embed_items", embed_items)
    backbone, cache = make_backbone(MODEL).eval(), ResumeCache(tmp_path / "parts")
    predictions = Finetune(settings).predict(backbone, LabeledImages.open(data), cache)
    return predictions, *seen[-1]


def test_training_equals_a_plain_loop(data, tmp_path, monkeypatch):
    """Views, order, both learning rates, momentum, decay, schedule and BatchNorm in training mode, written out."""
    settings = config(data, epochs=5, learning_rate=0.3, head_learning_rate=1.2, weight_decay=0.1)
    predictions, classifier, items = trained(data, settings, tmp_path, monkeypatch)
    images = LabeledImages.open(data)
    network, head, last_loss = plain_training(make_backbone(MODEL), images, settings)
    assert predictions.details["last_loss"] == pytest.approx(last_loss, rel=1e-3)
    ours = classifier.network[0].state_dict()
    for name, expected in network.network.state_dict().items():
        np.testing.assert_allclose(ours[name].numpy(), expected.numpy(), rtol=5e-3, atol=1e-4, err_msg=name)
    pixels = np.stack([CenterCrop(16)(images.test.image(i), i) for i in range(len(images.test))])
    with torch.no_grad():
        logits = head(network(network.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2)))).numpy()
    np.testing.assert_allclose(items.vectors, logits, rtol=5e-3, atol=2e-3)
    assert predictions.table["ranked"].to_pylist() == np.argsort(-logits, axis=1).tolist()


def test_a_video_is_the_mean_of_its_frames_softmax(data, tmp_path, monkeypatch):
    """Not of logits, in which one frame that is sure of itself outvotes the others; the tag says so."""
    predictions, classifier, items = trained(data, config(data, level="video"), tmp_path, monkeypatch)
    images = LabeledImages.open(data).test
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([CenterCrop(16)(images.image(i), i) for i in range(6)])).permute(0, 3, 1, 2)
        logits = classifier.eval().network[0](classifier.normalize(pixels)).double().numpy()
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(items.vectors, softmax.reshape(3, 2, 2).mean(axis=1), rtol=1e-5)
    assert predictions.tag == "finetune level=video mean=softmax"
    assert predictions.table["id"].to_pylist() == ["5", "6", "7"]


@pytest.mark.parametrize("level", ["frame", "video"])
def test_it_learns_what_is_separable(data, tmp_path, level):
    """Dark and bright are distinguished without an error at both levels; the breakdown is that of all protocols."""
    result = run(data, tmp_path, level=level, epochs=15, head_learning_rate=3.0)
    assert result.metrics == {"top1": 1.0}
    assert result.per_item["accuracy"] == [1.0, 1.0]
    assert result.per_item["confusion"] == ([[2, 0], [0, 4]] if level == "frame" else [[1, 0], [0, 2]])
    assert result.tag.startswith(f"finetune level={level}")


def test_the_same_seed_gives_the_same_bits_and_the_backbone_stays_as_it_is(data, tmp_path, monkeypatch):
    """With any number of workers; no parameter, buffer, gradient or mode of the one that was given changes."""
    backbone = make_backbone(MODEL).train().requires_grad_(False)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    results = []
    for workers in (0, 2):
        torch.manual_seed(workers)
        settings = {**SETTINGS, "workers": workers, "out": tmp_path / str(workers)}
        result = cc.evaluate("finetune", backbone, data, **settings)
        results.append((result.metrics, result.per_item, result.about.details, result.about.key))
    assert results[0] == results[1]
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    assert all(module.training for module in backbone.modules())
    assert backbone.dim == make_backbone(MODEL).dim


def test_all_layers_are_trained(data, tmp_path, monkeypatch):
    """Every parameter moves and every BatchNorm learns, also of a backbone that was held fixed before."""
    backbone = make_backbone(MODEL).requires_grad_(False)
    monkeypatch.setattr(
        finetune, "make_classifier", lambda _, *rest, real=finetune.make_classifier: real(backbone, *rest)
    )
    _, classifier, _ = trained(data, config(data), tmp_path, monkeypatch)
    before = backbone.network.state_dict()
    for name, value in classifier.network[0].state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_a_last_batch_of_one_is_left_out(tmp_path):
    """BatchNorm over one image of one pixel has no variance: five images in batches of four must not end the run."""
    rng = np.random.default_rng(0)
    for name in ("train/a/1", "train/a/2", "train/a/3", "train/b/1", "train/b/2", "val/a/1", "val/b/1"):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (8, 8, 3), np.uint8))
    alone = make_backbone(MODEL).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        alone(torch.zeros(1, 3, 8, 8))
    assert run(tmp_path / "data", tmp_path / "out", image_size=8).about.data.num_train == 5
    for name in ("a/1", "a/2", "a/3", "b/1"):
        (tmp_path / "data" / "train" / f"{name}.png").write_bytes(b"")
    with pytest.raises(UserError, match="no batch has enough readable training images"):
        run(tmp_path / "data", tmp_path / "out", image_size=8)


def test_batches_of_one_are_refused(data, tmp_path):
    """All of them would be left out."""
    with pytest.raises(UserError, match="batch_size: input should be greater than or equal to 2"):
        run(data, tmp_path, batch_size=1)


def test_a_training_that_explodes_is_an_error(data, tmp_path):
    """No accuracy is reported for weights of nan; the line says what to change."""
    with pytest.raises(UserError, match="lower learning_rate"):
        run(data, tmp_path, learning_rate=1e30)
    assert not list(tmp_path.glob("*.json"))


def test_the_new_layer_starts_from_small_weights():
    """As that of the linear probe does, and anew for each seed."""
    heads = [initial_head(make_backbone(MODEL).dim, 300, seed) for seed in (0, 0, 1)]
    assert isinstance(heads[0], nn.Linear)
    assert float(heads[0].weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)


# --- the preset gbcu


@pytest.fixture(scope="module")
def ultrasound(tmp_path_factory):
    """Images of three classes in the layout of GBCU: lists of `file,label`, images in imgs/."""
    root = tmp_path_factory.mktemp("gbcu")
    (root / "imgs").mkdir()
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 9)):
        lines = []
        for image in range(number):
            name, label = f"im {split} {image:05}.jpg", image % 3
            pixels = np.clip(40 + 80 * label + rng.normal(0, 60, (20, 26, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / "imgs" / name), pixels)
            lines.append(f"{name},{label}")
        (root / f"{split}.txt").write_text("\n".join(lines))
    return root


def test_gbcu_metrics_are_counted_by_hand(ultrasound, tmp_path):
    """Malignant against the rest, and all three classes, from the recorded predictions."""
    result = run(ultrasound, tmp_path, preset="gbcu", epochs=3)
    assert result.tag.startswith("finetune preset=gbcu level=frame")
    assert (result.about.data.num_train, result.about.data.num_test) == (12, 9)
    (record,) = (tmp_path / "records").glob("*.parquet")
    rows = pq.read_table(record).to_pylist()
    assert [row["label"] for row in rows] == [0, 1, 2] * 3
    pairs = [(row["label"] == 2, row["ranked"][0] == 2) for row in rows]
    assert result.metrics == pytest.approx(
        {
            "accuracy": sum(truth == said for truth, said in pairs) / 9,
            "specificity": sum(not said for truth, said in pairs if not truth) / 6,
            "sensitivity": sum(said for truth, said in pairs if truth) / 3,
            "top1": sum(row["label"] == row["ranked"][0] for row in rows) / 9,
        }
    )


def test_gbcu_trains_by_its_recipe(ultrasound, tmp_path, monkeypatch):
    """Head, rates, decay and schedule are those of the release; PyTorch's scheduler gives the same factors."""
    settings = FinetuneConfig(model="in memory", data=ultrasound, preset="gbcu")
    assert (settings.epochs, settings.batch_size, settings.image_size, settings.weight_decay) == (30, 64, 224, 5e-4)
    assert settings.learning_rate * 64 / 256 == settings.head_learning_rate * 64 / 256 == pytest.approx(0.003)
    assert settings.unusual() == {}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.003)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-6)
    factors = []
    for _ in range(30):
        factors.append(scheduler.get_last_lr()[0] / 0.003)
        optimizer.step()
        scheduler.step()
    assert [*map(finetune.cosine_decay(0.003), range(30))] == pytest.approx(factors)
    settings = config(ultrasound, preset="gbcu", epochs=1)
    seen = []
    monkeypatch.setattr(Finetune, "embed_items", lambda _, classifier, *rest: seen.append(classifier))
    with pytest.raises(AttributeError):  # there are no embedded items
        Finetune(settings).predict(make_backbone(MODEL), LabeledImages.open(ultrasound), ResumeCache(tmp_path / "c"))
    shapes = [(type(layer), getattr(layer, "out_features", None)) for layer in seen[0].network[1]]
    assert shapes == [(nn.Linear, 256), (nn.ReLU, None), (nn.Dropout, None), (nn.Linear, 3)]
    assert seen[0].network[1][2].p == 0.4


def test_gbcu_crops_without_flip(ultrasound, tmp_path):
    """Training crops are squares of the short side at any place, test crops those in the middle."""
    ramp = np.arange(30, dtype=np.uint8)[None, :, None].repeat(10, axis=0).repeat(3, axis=2)
    starts = set()
    for epoch in range(40):
        crop = RandomPlace(0, epoch, 10)(ramp, 3)
        starts.add(int(crop[0, 0, 0]))
        assert np.array_equal(crop, ramp[:, crop[0, 0, 0] : crop[0, 0, 0] + 10])
    assert len(starts) > 10
    assert Loading.of(config(ultrasound, preset="gbcu"), make_backbone(MODEL)).margin == 1
    assert np.array_equal(CenterCrop(10, margin=1)(ramp, 0), ramp[:, 10:20])


def test_gbcu_needs_three_classes(data, tmp_path):
    """Which class is malignant is its place among three."""
    with pytest.raises(UserError, match="has 2 classes, but preset gbcu needs three: normal, benign and malignant"):
        run(data, tmp_path, preset="gbcu")
