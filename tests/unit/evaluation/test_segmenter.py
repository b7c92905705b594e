"""The network of `segmentation`: dense maps, heads, random crops, and what is trained."""

import numpy as np
import pytest
import torch

from cyclecontrast.config import SegmentationConfig
from cyclecontrast.data.masked_images import IGNORE
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import Loading
from cyclecontrast.evaluation.segmenter import (
    RandomCrop,
    fit,
    make_head,
    make_segmenter,
    pixel_loss,
    split_batches,
)
from cyclecontrast.models.backbone import make_backbone

CPU = torch.device("cpu")


def segmenter_of(backbone, stride, crop_size):
    """Return a segmenter with a linear head of three classes."""
    config = SegmentationConfig(model="in memory", data=".", stride=stride, crop_size=crop_size)
    return make_segmenter(backbone, 3, config, CPU)


def test_ignored_pixels_have_no_gradient():
    """The loss is the mean cross-entropy of the other pixels; a batch without any gives 0, not nan."""
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
    """Every epoch has other crops of every image, and the same ones when it is run again."""
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 4), np.uint8)
    crops = {key: RandomCrop(*key[:2], 24, True, (9, 9, 9))(image, key[2]).tobytes() for key in np.ndindex(2, 2, 2)}
    assert len(set(crops.values())) == 8
    assert RandomCrop(1, 0, 24, True, (9, 9, 9))(image, 1).tobytes() == crops[1, 0, 1]


def test_labels_move_with_their_pixels():
    """After scaling, cutting and mirroring a pixel's label is that of its color, and the padding is ignored."""
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
    assert seen == set(range(0, 24, 2))  # labels are never interpolated
    assert 0 < padded < 60
    assert 10 < mirrored < 50
    assert min(scales) <= 14
    assert max(scales) == 40


def test_crops_are_not_mirrored_with_no_flip():
    """A class may depend on its side: --no-flip keeps left on the left."""
    image = np.zeros((20, 20, 4), np.uint8)
    image[..., 3] = np.arange(20)
    for epoch in range(20):
        labels = RandomCrop(0, epoch, 8, False, (0, 0, 0))(image, 0)[4, :, 3]
        assert (np.diff(labels.astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet10-w8", 32), ("resnet10-w8", 16), ("resnet50-w8", 8), ("resnet10-small-w8", 2), ("timm:test_vit", 16)],
)
def test_maps_have_the_set_stride(name, stride):
    """An image of any size gives one cell per stride, rounded up; pixels get scores at the image's own size."""
    backbone = make_backbone(name)
    segmenter = segmenter_of(backbone, stride, 64)
    pixels = torch.zeros(1, 3, 70, 101, dtype=torch.uint8)
    with torch.inference_mode():
        assert segmenter.maps(pixels).shape == (1, backbone.dim, -(-70 // stride), -(-101 // stride))
        assert segmenter.eval()(pixels).shape == (1, 3, 70, 101)


def test_an_impossible_map_is_an_error():
    """A stride that the network does not have, or a single cell per crop, is one line with the possible strides."""
    with pytest.raises(UserError, match="no feature map of stride 4; it has 32, 16, 8"):
        segmenter_of(make_backbone("resnet10-w8"), 4, 64)
    with pytest.raises(UserError, match="no feature map of stride 16; it has 8, 4, 2"):
        segmenter_of(make_backbone("resnet10-small-w8"), 16, 64)
    with pytest.raises(UserError, match="crop_size: 60 is less than two cells of stride 32; use 64 or more"):
        segmenter_of(make_backbone("resnet10-w8"), 32, 60)


def test_networks_of_timm_keep_their_own_stride():
    """A convolutional one and a transformer have one stride; one that takes a single image size is refused."""
    network = make_backbone("timm:resnet10t")
    segmenter = segmenter_of(network, 32, 64)
    copied = {id(tensor) for tensor in segmenter.backbone.parameters()}
    assert not copied & {id(tensor) for tensor in network.parameters()}
    with pytest.raises(UserError, match=r"feature map of 2x3 cells where stride 8 needs 8x9; use another stride"):
        segmenter_of(network, 8, 64)
    with pytest.raises(UserError, match="needs a network that takes images of any size"):
        segmenter_of(make_backbone("timm:cait_xxs24_224"), 16, 64)
    with pytest.raises(UserError, match="stride: timm:test_vit has a feature map of stride 16; set --stride 16"):
        segmenter_of(make_backbone("timm:test_vit"), 8, 64)


def test_the_heads_are_linear_and_fcn():
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


def test_a_last_batch_of_one_image_is_dropped_unless_it_is_the_only_one():
    """The batch statistics of one image would end the epoch."""
    assert split_batches(range(5), 2) == [range(0, 2), range(2, 4)]
    assert split_batches(range(4), 2) == [range(0, 2), range(2, 4)]
    assert split_batches(range(1), 2) == [range(1)]


class Noise:
    """Images of noise with labels 0 to 2."""

    def __len__(self):
        return 4

    def image(self, position):
        """Return RGB and label (40, 40, 4)."""
        rng = np.random.default_rng(position)
        return np.dstack([rng.integers(0, 255, (40, 40, 3)), rng.integers(0, 3, (40, 40))]).astype(np.uint8)


class NoCache:
    """A resume cache that stores nothing."""

    def save_state(self, name, state):
        """Ignore the state."""

    def load_state(self, name):
        """Return None."""


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_means_that_only_the_head_is_trained(frozen):
    """No parameter or buffer of the backbone changes while the head is trained; end to end they all do."""
    config = SegmentationConfig(model="in memory", data=".", crop_size=32, stride=2, batch_size=2, frozen=frozen)
    segmenter = make_segmenter(make_backbone("resnet10-small-w8"), 3, config, CPU)
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    fit(segmenter, Noise(), range(4), 1, config, Loading(32, 2, 0, CPU), NoCache())
    same = {key.partition(".")[0]: set() for key in before}
    for key, value in segmenter.state_dict().items():
        same[key.partition(".")[0]].add(torch.equal(value, before[key]))
    assert same == {"head": {False}, "backbone": {frozen}}
