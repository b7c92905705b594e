"""The protocol `segmentation`: scores against oracles, the backbone left alone, and a task that must be learned."""

import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

from cyclecontrast.config import SegmentationConfig
from cyclecontrast.data.mask_layouts import IGNORE
from cyclecontrast.data.masked_images import MaskedImages
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation import evaluate, two_steps
from cyclecontrast.evaluation.mask_files import decode_mask
from cyclecontrast.evaluation.metrics import iou_per_class, mean_iou, pixel_accuracy, pixel_confusion
from cyclecontrast.evaluation.record import find_records
from cyclecontrast.evaluation.segmentation import protocol, training
from cyclecontrast.evaluation.segmentation.crops import RandomCrop
from cyclecontrast.evaluation.segmentation.dense import enlarge, make_dense
from cyclecontrast.evaluation.segmentation.heads import make_head
from cyclecontrast.evaluation.segmentation.picture import palette
from cyclecontrast.evaluation.segmentation.training import pixel_loss, split_batches
from cyclecontrast.models.backbone import make_backbone

MODEL = "random:resnet10-small-w8"
COLORS = np.array([(90, 90, 90), (220, 40, 40), (40, 60, 220)], np.uint8)
SETTINGS = {"crop_size": 32, "stride": 2, "epochs": 2, "workers": 0, "device": "cpu", "batch_size": 4}
CPU = torch.device("cpu")


def draw(rng, height, width):
    """Return a picture cut into two parts, whose colours are their classes, and its mask with some pixels ignored."""
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


def run(data, out, **settings):
    """Evaluate by `segmentation` into a folder of the test."""
    return evaluate("segmentation", MODEL, data, **{"out": out, **SETTINGS, **settings})


def the_table(out):
    """Return the only record's table below a folder of results."""
    (record,) = find_records(out, "segmentation")
    return record.table


def plain_iou(predicted, truth, num_classes):
    """Count intersections and unions pixel by pixel."""
    both, either = [0] * num_classes, [0] * num_classes
    for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != IGNORE:
            for label in {p, t}:
                either[label] += 1
            both[t] += p == t
    return [b / e if e else None for b, e in zip(both, either, strict=True)]


@pytest.mark.parametrize("num_classes", [2, 5, 150])
def test_mean_iou_equals_loops_and_scikit_learn(num_classes):
    """Ignored pixels count for nothing, absent classes are left out; bytes do not overflow at 150 classes."""
    rng = np.random.default_rng(num_classes)
    truth = rng.integers(0, max(2, num_classes - 2), (3, 20, 30)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, num_classes, truth.shape))
    predicted = np.where(predicted == num_classes - 1, 0, predicted).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    expected = [value for value in plain_iou(predicted, truth, num_classes) if value is not None]
    counted = truth != IGNORE
    assert mean_iou(predicted, truth, num_classes) == pytest.approx(np.mean(expected))
    assert mean_iou(predicted, truth, num_classes) == pytest.approx(
        jaccard_score(truth[counted], predicted[counted], average="macro")
    )


def test_scores_by_hand():
    """A class predicted but never true counts as 0, one that is neither is left out, and accuracy is by pixel."""
    truth = np.array([[0, 0, 1, 1], [0, 0, 255, 255]])
    predicted = np.array([[0, 0, 1, 2], [0, 1, 3, 0]])
    confusion = pixel_confusion(predicted, truth, 5)
    assert confusion.tolist() == [[3, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0] * 5, [0] * 5, [0] * 5]
    np.testing.assert_allclose(iou_per_class(confusion), [3 / 4, 1 / 3, 0, math.nan, math.nan])
    assert mean_iou(predicted, truth, 5) == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert pixel_accuracy(confusion) == pytest.approx(4 / 6)
    assert mean_iou(truth, truth, 2) == 1.0


def test_what_cannot_be_scored_is_refused():
    """Other shapes, classes outside the range, and nothing that counts."""
    zeros = np.zeros((2, 2), np.uint8)
    for predicted, truth in ((zeros, zeros[:1]), (zeros + 3, zeros), (zeros, zeros + 3), (zeros, zeros + IGNORE)):
        with pytest.raises(ValueError, match=r"differ|classes 3|ignored"):
            mean_iou(predicted, truth, 3)


def test_ignored_pixels_have_no_gradient():
    """The loss is the mean cross-entropy of the others; a batch without any gives 0, not nan."""
    scores = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    labels[0, :2] = IGNORE
    loss = pixel_loss(scores, labels)
    loss.backward()
    counted = labels != IGNORE
    log_p = scores.detach().double().log_softmax(dim=1)
    expected = -np.mean([log_p[b, labels[b, y, x], y, x].item() for b, y, x in counted.nonzero().tolist()])
    assert loss.item() == pytest.approx(expected)
    assert (scores.grad.abs().sum(dim=1) > 0).equal(counted)
    nothing = pixel_loss(scores, torch.full_like(labels, IGNORE))
    assert nothing.item() == 0


def test_crops_are_a_function_of_seed_epoch_and_position():
    """Every epoch sees other crops of every image, and the same ones whenever it is run."""
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 4), np.uint8)
    crops = {key: RandomCrop(*key[:2], 24, True, (9, 9, 9))(image, key[2]).tobytes() for key in np.ndindex(2, 2, 2)}
    assert len(set(crops.values())) == 8
    assert RandomCrop(1, 0, 24, True, (9, 9, 9))(image, 1).tobytes() == crops[1, 0, 1]


def test_labels_travel_with_their_pixels():
    """After scaling, cutting and mirroring a pixel's label is that of its colour, and the padding is ignored."""
    mask = np.kron(2 * np.arange(12).reshape(3, 4), np.ones((8, 8))).astype(np.uint8)
    image = np.dstack([np.repeat(mask[..., None] * 10, 3, axis=2), mask])
    seen, padded, mirrored, scales = set(), 0, 0, set()
    for epoch in range(60):
        crop = RandomCrop(0, epoch, 40, True, (250, 251, 252))(image, 0)
        colors, labels = crop[..., :3].astype(int), crop[..., 3].astype(int)
        outside = labels == IGNORE
        assert (colors[outside] == (250, 251, 252)).all()
        away = np.abs(colors[..., 0] - labels * 10)[~outside]
        assert np.median(away) == 0
        assert away.max() <= 110
        padded += outside.any()
        seen |= set(labels[~outside].tolist())
        inside = labels[: (~outside).any(axis=1).sum()]
        mirrored += inside[0, 0] == IGNORE or inside[0, 0] > inside[0, inside[0] != IGNORE][-1]
        scales.add(int((~outside).any(axis=1).sum()))
    assert seen == set(range(0, 24, 2))  # labels that lie between two others are none
    assert 0 < padded < 60
    assert 10 < mirrored < 50
    assert min(scales) <= 14
    assert max(scales) == 40


def test_crops_are_not_mirrored_where_that_is_switched_off():
    """A class may depend on its side: --no-flip keeps left on the left."""
    image = np.zeros((20, 20, 4), np.uint8)
    image[..., 3] = np.arange(20)
    for epoch in range(20):
        labels = RandomCrop(0, epoch, 8, False, (0, 0, 0))(image, 0)[4, :, 3]
        assert (np.diff(labels.astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("name", "stride"), [("resnet10-w8", 32), ("resnet10-w8", 16), ("resnet50-w8", 8), ("resnet10-small-w8", 2)]
)
def test_maps_have_the_stride_that_was_asked_for(name, stride):
    """An image of any size gives one cell per stride, rounded up; pixels get scores at the image's own size."""
    backbone = make_backbone(name)
    dense = make_dense(backbone, stride, 64, CPU)
    assert dense.channels == backbone.dim
    with torch.inference_mode():
        maps = dense.maps(torch.zeros(1, 3, 70, 101, dtype=torch.uint8))
    assert maps.shape == (1, backbone.dim, -(-70 // stride), -(-101 // stride))
    assert enlarge(maps, stride, 70, 101).shape[-2:] == (70, 101)


def test_a_map_that_does_not_serve_is_an_error():
    """Coarser or denser than asked, or a single cell per crop: one line that says which strides there are."""
    with pytest.raises(UserError, match="no feature map of stride 4; it has 32, 16, 8"):
        make_dense(make_backbone("resnet10-w8"), 4, 64, CPU)
    with pytest.raises(UserError, match="no feature map of stride 16; it has 8, 4, 2"):
        make_dense(make_backbone("resnet10-small-w8"), 16, 64, CPU)
    with pytest.raises(UserError, match="crop_size: 60 is less than two cells of stride 32; name 64 or more"):
        make_dense(make_backbone("resnet10-w8"), 32, 60, CPU)


def test_networks_of_timm_serve_at_their_own_stride():
    """A convolutional one gives its own stride; one that takes a single size of image is refused."""
    network = make_backbone("timm:resnet10t")
    dense = make_dense(network, 32, 64, CPU)
    assert dense.stride == 32
    assert not {id(tensor) for tensor in dense.backbone.parameters()} & {id(tensor) for tensor in network.parameters()}
    with pytest.raises(UserError, match=r"feature map of 2x3 cells where stride 8 needs 8x9; name another stride"):
        make_dense(network, 8, 64, CPU)
    with pytest.raises(UserError, match="needs a network that takes images of any size"):
        make_dense(make_backbone("timm:vit_tiny_patch16_224"), 16, 64, CPU)


def test_the_heads_are_what_they_are_called():
    """`linear` is linear in its features; `fcn` is two 3x3 convolutions, dropout 0.1 and a classifier."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 16, 5, 5, generator=generator)
    linear = make_head("linear", 16, 3, 0)
    linear(a * 7 + 2)
    linear.eval()
    with torch.inference_mode():
        torch.testing.assert_close(linear(a) + linear(b), linear(a + b) + linear(0 * a))
        torch.testing.assert_close(linear(a)[..., :1, :1], linear(a[..., :1, :1]))
    kinds = [type(layer).__name__ for layer in make_head("fcn", 16, 3, 0)]
    assert kinds == [*["Conv2d", "BatchNorm2d", "ReLU"] * 2, "Dropout", "Conv2d"]
    fcn = make_head("fcn", 16, 3, 0).eval()
    assert (fcn[0].kernel_size, fcn[0].out_channels, fcn[6].p) == ((3, 3), 4, 0.1)
    assert fcn(a).shape == (1, 3, 5, 5)
    assert fcn[0].weight.equal(make_head("fcn", 16, 3, 0)[0].weight)


def test_a_last_batch_of_one_image_is_dropped_unless_it_is_all():
    """Statistics of one image would end the epoch; with a single image there is nothing else."""
    assert split_batches(range(5), 2) == [range(0, 2), range(2, 4)]
    assert split_batches(range(4), 2) == [range(0, 2), range(2, 4)]
    assert split_batches(range(1), 2) == [range(1)]


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "linear", "frozen": True, "epochs": 12, "learning_rate": 0.2},
        {"head": "fcn", "frozen": False, "epochs": 16, "learning_rate": 0.1},
    ],
)
def test_colors_are_learned(data, tmp_path, settings):
    """Where the colour is the class, random features suffice for a mean IoU above 0.9; training the rest does too."""
    result = run(data, tmp_path, **settings)
    assert result.metrics["mean_iou"] > 0.9
    assert result.metrics["pixel_accuracy"] > 0.95
    assert result.per_item["classes"] == ["0", "1", "2"]
    assert result.metrics["mean_iou"] == pytest.approx(np.mean(result.per_item["iou"]))


def test_the_record_holds_both_masks_at_the_images_own_size(data, tmp_path):
    """Truth is the file's labels; scoring them again with plain loops gives the result."""
    result = run(data, tmp_path)
    rows = the_table(tmp_path).to_pylist()
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
    assert result.tag == "segmentation head=linear frozen layout=folders crop=32 stride=2 epochs=2 batch_size=4"


@pytest.mark.parametrize("frozen", [True, False])
def test_the_callers_backbone_does_not_change_by_one_bit(data, tmp_path, frozen):
    """Frozen or trained end to end, work is done on a copy; any number of workers gives the same record."""
    backbone = make_backbone("resnet10-small-w8").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    tables = []
    for workers in (0, 2):
        values = {**SETTINGS, "workers": workers, "out": tmp_path / str(workers), "head": "fcn", "frozen": frozen}
        config = SegmentationConfig(model="in memory", data=data, **values)
        torch.manual_seed(workers)
        two_steps.evaluate(backbone, MaskedImages.open(data), config)
        tables.append(the_table(tmp_path / str(workers)))
    assert tables[0].equals(tables[1])
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert backbone.training


def test_frozen_means_that_only_the_head_learns(data):
    """Not one parameter nor buffer of the copy moves while its head is trained; end to end they all do."""
    for frozen in (True, False):
        config = SegmentationConfig(model=MODEL, data=data, **SETTINGS, frozen=frozen)
        segmenter = training.make_segmenter(make_backbone("resnet10-small-w8"), 3, config, CPU)
        before = {key: value.clone() for key, value in segmenter.dense.backbone.state_dict().items()}
        images = MaskedImages.open(data)
        training.fit(segmenter, images.train, range(9), 1, config, training.Hardware(CPU, 0), NothingKept())
        after = segmenter.dense.backbone.state_dict()
        assert {torch.equal(value, before[key]) for key, value in after.items()} == {frozen}


class NothingKept:
    """Parts of a stopped evaluation, of which there are none."""

    def save_state(self, name, state):
        """Forget it."""

    def load_state(self, name):
        """Find none."""


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("where", ["training", "segmenting"])
def test_a_stopped_evaluation_ends_as_if_it_had_not_been(data, tmp_path, monkeypatch, where, frozen):
    """Killed in the second epoch or between two parts of the test images, it goes on to the same record."""
    monkeypatch.setattr(protocol, "IMAGES_PER_PART", 2)
    settings = {"head": "fcn", "frozen": frozen}
    run(data, tmp_path / "whole", **settings)
    name = "_batches" if where == "training" else "encode_mask"
    module = training if where == "training" else protocol
    whole, calls = getattr(module, name), []

    def stop(*args):
        calls.append(args)
        if len(calls) == {"training": 2, "segmenting": 5}[where]:
            raise StoppedError
        return whole(*args)

    monkeypatch.setattr(module, name, stop)
    with pytest.raises(StoppedError):
        run(data, tmp_path / "stopped", **settings)
    calls[:] = [()] * 9
    counted = []
    monkeypatch.setattr(module, name, lambda *args: counted.append(args) or whole(*args))
    run(data, tmp_path / "stopped", **settings)
    assert len(counted) == {"training": 1, "segmenting": 2}[where]
    assert the_table(tmp_path / "stopped").equals(the_table(tmp_path / "whole"))
    assert not (tmp_path / "stopped/unfinished").exists()


def test_a_record_is_scored_again_without_the_network(data, tmp_path, monkeypatch):
    """--score-only gives the same result and trains nothing."""
    result = run(data, tmp_path)
    monkeypatch.setattr(training, "fit", None)
    monkeypatch.setattr(protocol, "fit", None)
    again = run(data, tmp_path, score_only=True)
    assert (again.metrics, again.per_item) == (result.metrics, result.per_item)
    picture = cv2.imread(str(next(tmp_path.glob("*.png"))))
    assert picture.shape == (24 + 2 * 164, 3 * 164, 3)
    assert picture[:24].min() < 16
    assert picture[:24].max() == 255


def test_damaged_images_are_left_out_and_told(data, tmp_path):
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
    result = run(root, tmp_path / "out", num_classes=3)
    assert [row["id"] for row in the_table(tmp_path / "out").to_pylist()] == ["val/images/2.png"]
    text = "\n".join(result.about.problems)
    for name in ("masks/0.png", "images/1.png", "masks/2.png", "val/masks/0.png", "masks/1.png: holds the label 7"):
        assert name in text
    assert len(result.about.problems) == 5
    assert (result.about.data.num_train, result.about.data.num_test) == (6, 1)
    (root / "val/masks/2.png").write_bytes(b"")
    with pytest.raises(UserError, match="reading test: none of the 3 images can be used"):
        run(root, tmp_path / "out2", num_classes=3)
    assert not list((tmp_path / "out2").glob("*.json"))


def test_masks_without_a_pixel_that_counts_cannot_be_scored(data, tmp_path):
    """No mean of nothing is reported."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "images").symlink_to(data / split / "images")
    (tmp_path / "train/masks").symlink_to(data / "train/masks")
    (tmp_path / "val/masks").mkdir()
    for number in range(3):
        mask = np.full((44 + number, 51 - number), IGNORE, np.uint8)
        Image.fromarray(mask).save(tmp_path / f"val/masks/{number}.png")
    with pytest.raises(UserError, match="every pixel of the test masks is to be ignored"):
        run(tmp_path, tmp_path / "out", epochs=1)


def test_a_single_class_everywhere_is_told(data, tmp_path, monkeypatch):
    """A head that has learned nothing may still look fair where one class prevails: the result says so."""
    assert "every pixel" not in str(run(data, tmp_path / "a", epochs=8, learning_rate=0.1))

    def always_one(self, pixels):
        return torch.eye(3)[1].view(1, 3, 1, 1).expand(1, 3, *pixels.shape[-2:])

    monkeypatch.setattr(training.Segmenter, "scores", always_one)
    assert "every pixel is predicted as 1; train longer" in str(run(data, tmp_path / "b", epochs=1))


def test_a_learning_rate_that_is_too_high_shows(data, tmp_path):
    """A loss worse than guessing is noted, one that is not finite is an error."""
    assert "worse than guessing" in str(run(data, tmp_path / "a", learning_rate=500.0, epochs=1))
    with pytest.raises(UserError, match="lower learning_rate"):
        run(data, tmp_path / "b", learning_rate=1e38, head="fcn", frozen=False)


def test_broken_weights_are_named(data, tmp_path):
    """A backbone that gives nan is an error of one line, before any training."""
    backbone = make_backbone("resnet10-small-w8")
    torch.nn.init.constant_(backbone.network.conv1.weight, math.nan)
    config = SegmentationConfig(model="in memory", data=data, out=tmp_path, **SETTINGS)
    with pytest.raises(UserError, match="its weights are broken"):
        two_steps.evaluate(backbone, MaskedImages.open(data), config)


def test_the_recipe_is_the_protocols(data):
    """protocols.md §g: crop 512, scale 0.5 to 2, flip, batch 16, 45 epochs and 60 for ADE20K; 21 classes, 150."""
    defaults = SegmentationConfig(model=MODEL, data=data)
    assert (defaults.crop_size, defaults.batch_size, defaults.flip, defaults.epochs) == (512, 16, True, None)
    assert (protocol.OTHER_EPOCHS, protocol.EPOCHS) == (45, {"ade20k": 60})
    assert training.MOMENTUM == 0.9
    assert RandomCrop.__call__.__globals__["SCALES"] == (0.5, 2.0)
    with pytest.raises(UserError, match="stride: must be 2, 4, 8, 16 or 32"):
        checked(SegmentationConfig, {"model": MODEL, "data": data, "stride": "7"})
    assert checked(SegmentationConfig, {"model": MODEL, "data": data, "stride": "16"}).stride == 16


def test_the_colors_are_those_of_voc():
    """Black, dark red, green and yellow begin VOC's palette; what is ignored is white."""
    colors = palette()
    assert colors[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colors[20].tolist() == [0, 64, 128]
    assert colors[IGNORE].tolist() == [255, 255, 255]
    assert len(np.unique(colors, axis=0)) == 256


def test_real_figures_are_told_from_their_background(shared, tmp_path):
    """A linear head on random features finds the figures of ETH-80 better than guessing background does."""
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
