"""The protocol `segmentation`: scores against plain loops, an unchanged backbone, and a task that must be learned."""

import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cyclecontrast.config import SegmentationConfig
from cyclecontrast.data.masked_images import IGNORE
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation import runner, segmentation, segmenter
from cyclecontrast.evaluation.mask_files import decode_mask, palette
from cyclecontrast.evaluation.predictions import find_records
from cyclecontrast.models.backbone import make_backbone

MODEL = "random:resnet10-small-w8"
COLORS = np.array([(90, 90, 90), (220, 40, 40), (40, 60, 220)], np.uint8)
SETTINGS = {"crop_size": 32, "stride": 2, "epochs": 2, "workers": 0, "device": "cpu", "batch_size": 4}
END_TO_END = {"head": "fcn", "frozen": False}


def draw(rng, height, width):
    """Return a picture cut into two parts, whose colors are their classes, and its mask with some ignored pixels."""
    first, second = rng.permutation(3)[:2]
    mask = np.full((height, width), first, np.uint8)
    cut = int(rng.integers(16, 28))
    mask[(slice(cut), slice(None))[:: 1 if rng.random() < 0.5 else -1]] = second
    pixels = np.clip(COLORS[mask] + rng.normal(0, 10, (height, width, 3)), 0, 255).astype(np.uint8)
    mask[:2, :5] = IGNORE
    return pixels, mask


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine pictures to train on and three to test on, each of another size."""
    root = tmp_path_factory.mktemp("masked")
    rng = np.random.default_rng(0)
    for split, num in (("train", 9), ("val", 3)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(num):
            pixels, mask = draw(rng, 44 + number, 51 - number)
            Image.fromarray(pixels).save(root / split / f"images/{number}.png")
            Image.fromarray(mask).save(root / split / f"masks/{number}.png")
    return root


def run(data, out, backbone=None, **settings):
    """Evaluate by `segmentation` into a folder of the test."""
    config = SegmentationConfig(model=MODEL, data=data, **{"out": out, **SETTINGS, **settings})
    return runner.evaluate("segmentation", config, backbone)


def table_in(out):
    """Return the only record's table below a folder of results."""
    (record,) = find_records(out, "segmentation")
    return record.table


@pytest.fixture(scope="module", params=["linear", "fcn"])
def evaluated(request, data, tmp_path_factory):
    """Evaluate a given backbone by a linear head on frozen features, and by an FCN trained end to end.

    Returns the settings, the folder, the result, the backbone and a copy of its state from before.
    """
    settings = {} if request.param == "linear" else END_TO_END
    out = tmp_path_factory.mktemp(request.param)
    backbone = make_backbone("resnet10-small-w8").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    result = run(data, out, backbone, **settings)
    return settings, out, result, backbone, before


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"epochs": 12, "learning_rate": 0.2}, 0.85),
        ({"epochs": 16, "learning_rate": 0.1, **END_TO_END}, 0.8),
    ],
)
def test_colors_are_learned(data, tmp_path, settings, least):
    """Where the color is the class, random features give a high mean IoU, and so does training them too."""
    result = run(data, tmp_path, **settings)
    assert result.metrics["mean_iou"] > least
    assert result.metrics["pixel_accuracy"] > least
    assert result.per_item["classes"] == ["0", "1", "2"]
    assert result.metrics["mean_iou"] == pytest.approx(np.mean(result.per_item["iou"]))
    assert "every pixel" not in str(result)


def plain_iou(predicted, truth, num_classes):
    """Count intersections and unions pixel by pixel."""
    both, either = [0] * num_classes, [0] * num_classes
    for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != IGNORE:
            for label in {p, t}:
                either[label] += 1
            both[t] += p == t
    return [b / e if e else None for b, e in zip(both, either, strict=True)]


def test_the_record_holds_both_masks_at_the_images_own_size(evaluated, data):
    """Truth is the file's labels; scoring the masks with plain loops gives the result."""
    settings, out, result, *_ = evaluated
    rows = table_in(out).to_pylist()
    masks = [cv2.imread(str(data / f"val/masks/{number}.png"), cv2.IMREAD_UNCHANGED) for number in range(3)]
    assert [row["id"] for row in rows] == [f"val/images/{number}.png" for number in range(3)]
    truths, predictions = ([decode_mask(row[name]) for row in rows] for name in ("truth", "predicted"))
    assert all((truth == mask).all() for truth, mask in zip(truths, masks, strict=True))
    assert [prediction.shape for prediction in predictions] == [mask.shape for mask in masks]
    flat = [np.concatenate([mask.ravel() for mask in group]) for group in (predictions, truths)]
    expected = [value for value in plain_iou(*flat, 3) if value is not None]
    assert result.metrics["mean_iou"] == pytest.approx(np.mean(expected))
    assert sum(result.per_item["num_pixels"]) == sum((mask != IGNORE).sum() for mask in masks)
    assert result.about.details["epochs"] == 2
    how = "vito-like head=fcn end-to-end" if settings else "head=linear frozen"
    assert result.tag == f"segmentation {how} layout=folders crop=32 stride=2 epochs=2 batch_size=4"


def test_the_given_backbone_does_not_change(evaluated):
    """Frozen or trained end to end, a copy is used: weights, buffers, gradients and mode stay as they were."""
    *_, backbone, before = evaluated
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert backbone.training


def test_workers_do_not_change_the_record(evaluated, data, tmp_path):
    """Images that other processes load give the same record, whatever the state of the global generator."""
    settings, out, *_ = evaluated
    torch.manual_seed(2)
    run(data, tmp_path, make_backbone("resnet10-small-w8"), workers=1, **settings)
    assert table_in(tmp_path).equals(table_in(out))


def test_a_record_is_scored_again_without_the_network(evaluated, data, monkeypatch):
    """--score-only gives the same result and trains nothing."""
    settings, out, result, backbone, _ = evaluated
    monkeypatch.setattr(segmentation, "fit", None)
    again = run(data, out, backbone, score_only=True, **settings)
    assert (again.metrics, again.per_item) == (result.metrics, result.per_item)
    picture = cv2.imread(str(out / f"{result.about.key}.png"))
    assert picture.shape == (24 + 2 * 164, 3 * 164, 3)
    assert picture[:24].min() < 16
    assert picture[:24].max() == 255


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("where", ["training", "segmenting"])
def test_a_stopped_evaluation_resumes_exactly(evaluated, data, tmp_path, monkeypatch, where):
    """Stopped in the second epoch or between two parts of the test images, it resumes to the same record."""
    settings, out, *_ = evaluated
    monkeypatch.setattr(segmentation, "IMAGES_PER_PART", 2)
    name = "_batches" if where == "training" else "encode_mask"
    module = segmenter if where == "training" else segmentation
    whole, calls = getattr(module, name), []

    def stop(*args):
        calls.append(args)
        if len(calls) == {"training": 2, "segmenting": 5}[where]:
            raise StoppedError
        return whole(*args)

    monkeypatch.setattr(module, name, stop)
    with pytest.raises(StoppedError):
        run(data, tmp_path, make_backbone("resnet10-small-w8"), **settings)
    counted = []
    monkeypatch.setattr(module, name, lambda *args: counted.append(args) or whole(*args))
    run(data, tmp_path, make_backbone("resnet10-small-w8"), **settings)
    assert len(counted) == {"training": 1, "segmenting": 2}[where]
    assert table_in(tmp_path).equals(table_in(out))
    assert not (tmp_path / "unfinished").exists()


def test_damaged_images_are_left_out_and_reported(data, tmp_path):
    """One image is absent, one truncated, one mask truncated, one label outside: the result covers the rest."""
    root = tmp_path / "damaged"
    for path in sorted(data.rglob("*.png")):
        target = root / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (root / "train/images/0.png").unlink()
    for name in ("train/images/1.png", "train/masks/2.png", "val/masks/0.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    Image.fromarray(np.full((45, 50), 7, np.uint8)).save(root / "val/masks/1.png")
    result = run(root, tmp_path / "out", num_classes=3, epochs=1)
    assert [row["id"] for row in table_in(tmp_path / "out").to_pylist()] == ["val/images/2.png"]
    text = "\n".join(result.about.problems)
    for name in ("masks/0.png", "images/1.png", "masks/2.png", "val/masks/0.png", "masks/1.png: holds the label 7"):
        assert name in text
    assert len(result.about.problems) == 5
    assert (result.about.data.num_train, result.about.data.num_test) == (6, 1)
    (root / "val/masks/2.png").write_bytes(b"")
    with pytest.raises(UserError, match="reading test: none of the 3 images can be used"):
        run(root, tmp_path / "out2", num_classes=3)
    assert not list((tmp_path / "out2").glob("*.json"))


def test_masks_that_are_wholly_ignored_cannot_be_scored(data, tmp_path):
    """A mean of nothing is an error."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "images").symlink_to(data / split / "images")
    (tmp_path / "train/masks").symlink_to(data / "train/masks")
    (tmp_path / "val/masks").mkdir()
    for number in range(3):
        mask = np.full((44 + number, 51 - number), IGNORE, np.uint8)
        Image.fromarray(mask).save(tmp_path / f"val/masks/{number}.png")
    with pytest.raises(UserError, match="every pixel of the test masks is ignored"):
        run(tmp_path, tmp_path / "out", epochs=1)


def test_a_single_predicted_class_is_noted(data, tmp_path, monkeypatch):
    """A head that has learned nothing may still score well where one class prevails: a note says so."""

    def always_one(self, pixels):
        return torch.eye(3)[1].view(1, 3, 1, 1).expand(1, 3, *pixels.shape[-2:])

    monkeypatch.setattr(segmenter.Segmenter, "forward", always_one)
    assert "all pixels are predicted as 1; train longer" in str(run(data, tmp_path, epochs=1))


def test_a_learning_rate_that_is_too_high_is_reported(data, tmp_path):
    """A loss above chance level is noted, one that is not finite is an error."""
    notes = str(run(data, tmp_path / "a", learning_rate=500.0, epochs=1))
    assert "try another learning_rate" in notes
    with pytest.raises(UserError, match="lower learning_rate"):
        run(data, tmp_path / "b", learning_rate=1e38, **END_TO_END)


def test_broken_weights_are_named(data, tmp_path):
    """A backbone that gives nan is an error of one line, before any training."""
    backbone = make_backbone("resnet10-small-w8")
    torch.nn.init.constant_(backbone.network.conv1.weight, math.nan)
    with pytest.raises(UserError, match="its weights are invalid"):
        run(data, tmp_path, backbone)


def test_the_recipe_is_that_of_vito(data):
    """Crop 512, scale 0.5 to 2, flip, batch 16, 45 epochs and 60 for ADE20K."""
    defaults = SegmentationConfig(model=MODEL, data=data)
    assert (defaults.crop_size, defaults.batch_size, defaults.flip, defaults.epochs) == (512, 16, True, None)
    assert (segmentation.OTHER_EPOCHS, segmentation.EPOCHS) == (45, {"ade20k": 60})
    assert (segmenter.MOMENTUM, segmenter.SCALES) == (0.9, (0.5, 2.0))
    with pytest.raises(UserError, match="stride: must be 2, 4, 8, 14, 16 or 32"):
        checked(SegmentationConfig, {"model": MODEL, "data": data, "stride": "7"})
    assert checked(SegmentationConfig, {"model": MODEL, "data": data, "stride": "16"}).stride == 16


def test_the_colors_are_those_of_voc():
    """VOC's palette begins with black, dark red, green and yellow; ignored pixels are white."""
    colors = palette()
    assert colors[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colors[20].tolist() == [0, 64, 128]
    assert colors[IGNORE].tolist() == [255, 255, 255]
    assert len(np.unique(colors, axis=0)) == 256


def test_real_figures_are_separated_from_their_background(shared, tmp_path):
    """A linear head on random features finds the figures of ETH-80 better than predicting background."""
    source = shared / "video_frames" / "eth80"
    (tmp_path / "eth").mkdir()
    for name in ("frames", "masks"):
        (tmp_path / "eth" / name).symlink_to(source / name)
    (tmp_path / "eth/train.txt").write_text("pear/pear01 0\ncow/cow01 1\n")
    (tmp_path / "eth/test.txt").write_text("pear/pear03 0\ncow/cow03 1\n")
    settings = {"crop_size": 64, "stride": 8, "learning_rate": 0.2, "epochs": 2, "batch_size": 8}
    result = run(tmp_path / "eth", tmp_path / "out", **settings)
    background = result.per_item["num_pixels"][0] / sum(result.per_item["num_pixels"])
    assert result.per_item["classes"] == ["background", "pear", "cow"]
    assert result.metrics["mean_iou"] > background / 3 + 0.1
