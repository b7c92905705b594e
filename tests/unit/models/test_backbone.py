"""Backbones have the keys, features and stages of torchvision, and random weights that a seed determines."""

import re

import pytest
import torch

from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import (
    IMAGENET_MEAN,
    TOTAL_STRIDE_8,
    freeze_stages,
    import_torchvision,
    load_timm,
    make_backbone,
    restride,
)

SMALL = "resnet10-small-w8"


def torchvision_resnet(name):
    """torchvision's own network without its classifier, with random weights."""
    import_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    network = models.get_model(name, weights=None)
    network.fc = torch.nn.Identity()
    return network


def images(side, number=3):
    """Normalized images."""
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_networks_equal_torchvision(name):
    """Keys, shapes, features and running statistics in both modes are those of torchvision."""
    theirs, ours = torchvision_resnet(name), make_backbone(name)
    weights = theirs.state_dict()
    shapes = {key: value.shape for key, value in weights.items()}
    assert {key: value.shape for key, value in ours.network.state_dict().items()} == shapes
    ours.network.load_state_dict(weights)
    assert ours.dim == (2048 if name == "resnet50" else 512)
    batch = images(64, 2)
    with torch.no_grad():
        for mode in (True, False):
            assert torch.allclose(ours.train(mode)(batch), theirs.train(mode)(batch), atol=1e-5)
    for key, value in theirs.state_dict().items():
        assert torch.allclose(ours.network.state_dict()[key], value, atol=1e-6), key


def test_feature_maps_equal_torchvision():
    """Stages 1 to 4 are layer1 to layer4 of torchvision."""
    theirs, ours = torchvision_resnet("resnet18").eval(), make_backbone("resnet18").eval()
    ours.network.load_state_dict(theirs.state_dict())
    x = images(40, 1)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    with torch.no_grad():
        for stage in (1, 2, 3, 4):
            expected = getattr(theirs, f"layer{stage}")(expected)
            assert torch.allclose(ours.feature_map(x, stage), expected, atol=1e-5)
        assert torch.allclose(ours(x), ours.feature_map(x, 4).mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "sides", "channels"),
    [
        ("resnet10", (16, 8, 4, 2), (64, 128, 256, 512)),
        ("resnet10-small", (64, 32, 16, 8), (64, 128, 256, 512)),
        ("resnet18-small-w16", (64, 32, 16, 8), (16, 32, 64, 128)),
        ("resnet50-w8", (16, 8, 4, 2), (32, 64, 128, 256)),
    ],
)
def test_stages_of_small_and_narrow_networks(name, sides, channels):
    """`-small` keeps the resolution of the stem, `-wN` sets the channels of the first stage."""
    backbone = make_backbone(name).eval()
    with torch.no_grad():
        for stage in (1, 2, 3, 4):
            side = sides[stage - 1]
            assert backbone.feature_map(images(64, 1), stage).shape == (1, channels[stage - 1], side, side)
        assert backbone(images(64, 1)).shape == (1, backbone.dim) == (1, channels[3])


def test_there_is_no_stage_five():
    """Stages outside of 1 to 4 are refused."""
    for stage in (0, 5, -1):
        with pytest.raises(ValueError, match="stages 1 to 4"):
            make_backbone(SMALL).feature_map(images(8), stage)


@pytest.mark.parametrize("name", ["resnet19", "resnet18-w0", "resnet18-w16-small", "ResNet18", "", "resnet101", "vit"])
def test_unknown_names_get_a_hint(name):
    """A name that does not exist is one line with those that do."""
    with pytest.raises(
        UserError, match=r"unknown backbone .*resnet10, resnet18, .*resnet18-small-w32.*timm:<name>"
    ) as caught:
        make_backbone(name)
    assert len(caught.value.problems) == 1
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [SMALL, "timm:test_resnet"])
def test_the_seed_names_the_weights(name):
    """Equal seeds give equal weights, others other weights, and the global random state does not change."""
    before = torch.get_rng_state()
    first, again, other = (make_backbone(name, seed).network.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    torch.manual_seed(99)
    assert all(torch.equal(first[key], value) for key, value in make_backbone(name, 1).network.state_dict().items())


def test_seeding_leaves_gpus_alone(monkeypatch):
    """The generators of GPUs are not seeded, because nothing would restore them."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded the GPUs"))
    make_backbone(SMALL, 1)


def test_random_weights_keep_the_scale():
    """Convolutions are drawn as in He et al. over the fan-out, BatchNorm starts neutral."""
    network = make_backbone("resnet18").network
    for key, value in network.state_dict().items():
        if value.ndim == 4:
            fan_out = value.shape[0] * value.shape[2] * value.shape[3]
            assert abs(value.std().item() / (2 / fan_out) ** 0.5 - 1) < 0.05, key
        elif value.ndim == 1:
            expected = 0.0 if key.endswith(("bias", "running_mean")) else 1.0
            assert (value == expected).all(), key


def test_normalize_is_that_of_imagenet():
    """Bytes become (value / 255 - mean) / std for each channel, and channels-last memory is kept."""
    backbone = make_backbone(SMALL)
    pixels = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    result = backbone.normalize(pixels)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (pixels[:, channel].double() / 255 - mean) / std
        assert torch.allclose(result[:, channel].double(), expected, atol=1e-6)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    backbone.mean, backbone.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    assert torch.allclose(backbone.normalize(pixels), pixels.float() / 127.5 - 1, atol=1e-6)


# --- timm


def test_timm_networks_are_backbones():
    """timm:resnet18 has the keys of torchvision, the normalization of ImageNet, and four stages."""
    backbone = make_backbone("timm:resnet18").eval()
    assert backbone.network.state_dict().keys() == make_backbone("resnet18").network.state_dict().keys()
    assert (backbone.dim, backbone.image_size, backbone.source) == (512, 224, "random weights")
    assert (backbone.name, backbone.mean) == ("timm:resnet18", IMAGENET_MEAN)
    with torch.no_grad():
        assert backbone(images(64, 1)).shape == (1, 512)
        shapes = [backbone.feature_map(images(64, 1), stage).shape for stage in (1, 2, 3, 4)]
    assert shapes == [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)]


def test_timm_and_ours_are_one_network():
    """With the same weights, the ResNet-18 of timm and ours give the same features and maps."""
    ours, theirs = make_backbone("resnet18").eval(), make_backbone("timm:resnet18").eval()
    theirs.network.load_state_dict(ours.network.state_dict())
    with torch.no_grad():
        assert torch.allclose(ours(images(64)), theirs(images(64)), atol=1e-5)
        assert torch.allclose(ours.feature_map(images(64), 2), theirs.feature_map(images(64), 2), atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_mambaout", "mobilenetv3_small_050"])
def test_the_dimension_is_what_comes_out(name):
    """The dimension is right for other architectures, also if layers follow the pooling."""
    backbone = make_backbone(f"timm:{name}").eval()
    with torch.no_grad():
        assert backbone(images(backbone.image_size, 1)).shape == (1, backbone.dim)


@pytest.mark.parametrize("make", [make_backbone, load_timm])
def test_unknown_timm_names_get_a_hint(make):
    """A name that timm does not know is one line with the nearest name."""
    with pytest.raises(UserError, match="timm:resnet1888: timm has no such network; did you mean resnet18") as caught:
        make("timm:resnet1888")
    assert "\n" not in str(caught.value)


def test_missing_timm_is_reported(monkeypatch):
    """Without the extra, the error says how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'cyclecontrast\[timm\]'"):
        make_backbone("timm:resnet18")


@pytest.mark.parametrize("width", [8, 16])
def test_narrow_networks_can_be_trained_at_any_size(width):
    """The backward pass of strided shortcuts with few channels in channels-last layout is right and does not crash."""
    backbone = make_backbone(f"resnet10-small-w{width}").train().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    backbone(images.to(memory_format=torch.channels_last)).square().sum().backward()
    gradient = backbone.get_parameter("network.layer2.0.downsample.0.weight").grad
    plain = make_backbone(f"resnet10-small-w{width}").train().double()
    plain(images.double()).square().sum().backward()
    expected = plain.get_parameter("network.layer2.0.downsample.0.weight").grad
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


# --- other strides of the same weights


@pytest.mark.parametrize(("size", "cells"), [(120, 15), (239, 30), (255, 32)])
@pytest.mark.parametrize("name", ["resnet18-w8", "resnet50-w8"])
def test_the_map_sizes_of_tracking(name, size, cells):
    """Exemplar and search crops give 15, 30 and 32 cells at total stride 8."""
    backbone = restride(make_backbone(name).eval(), *TOTAL_STRIDE_8)
    with torch.inference_mode():
        assert backbone.feature_map(torch.zeros(1, 3, size, size), 4).shape[-2:] == (cells, cells)


def test_a_bottleneck_network_equals_torchvisions_dilation():
    """Dilating stages 3 and 4 gives the same map as torchvision's replace_stride_with_dilation."""
    import_torchvision()
    from torchvision.models import resnet50

    backbone = make_backbone("resnet50").eval()
    reference = resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    reference.load_state_dict(backbone.network.state_dict(), strict=False)
    reference.avgpool = reference.fc = torch.nn.Identity()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = restride(backbone, *TOTAL_STRIDE_8).feature_map(images, 4)
        theirs = reference(images).view_as(ours)
    torch.testing.assert_close(ours, theirs)


def test_a_basic_block_is_dilated_in_its_first_convolution_alone():
    """In stage 4 the first block has dilation 2 and the second 4; their second convolutions have none."""
    blocks = restride(make_backbone("resnet18-w8"), *TOTAL_STRIDE_8).network.layer4
    assert [(block.conv1.dilation[0], block.conv2.dilation[0]) for block in blocks] == [(2, 1), (4, 1)]


def test_the_given_backbone_stays_as_it_is():
    """Strides change in a copy with the same weights."""
    backbone = make_backbone("resnet10-w8").eval()
    images = torch.zeros(1, 3, 64, 64)
    dense = restride(backbone, (1, 2, 1, 1))
    assert backbone.feature_map(images, 4).shape[-1] == 2
    assert dense.feature_map(images, 4).shape[-1] == 8
    assert all(
        torch.equal(a, b) for a, b in zip(backbone.state_dict().values(), dense.state_dict().values(), strict=True)
    )


def test_a_network_other_than_our_resnet_is_refused():
    """The strides of a timm network cannot be changed here."""
    with pytest.raises(UserError, match="is not a ResNet"):
        restride(make_backbone("timm:resnet10t"), *TOTAL_STRIDE_8)


@pytest.mark.parametrize("name", ["timm:resnet10t", "resnet10-small-w4"])
def test_what_a_stage_depends_on_is_frozen(name):
    """The frozen layers are those before the end of the stage, also in networks of timm."""
    backbone = make_backbone(name)
    backbone.image_size = 32
    freeze_stages([backbone], 2)
    learns = {part.split(".")[1] for part, weight in backbone.named_parameters() if weight.requires_grad}
    assert learns == {"layer3", "layer4"}
    assert not backbone.network.bn1.training
    assert backbone.network.layer3.training


# --- vision transformers


def tokens(backbone, images):
    """Return class and patch tokens after the last normalization (batch, tokens, dim), as timm gives them."""
    return backbone.network.forward_features(images)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "vit_tiny_patch16_dinov3_qkvb"])
def test_positions_are_interpolated_to_the_images(name):
    """At another size the features equal those of timm's network for this size, with positions resampled by timm."""
    timm = pytest.importorskip("timm")
    if not timm.is_model(name):
        pytest.skip("this version of timm lacks it")
    backbone = make_backbone(f"timm:{name}").eval()
    weights = backbone.network.state_dict()
    if "pos_embed" in weights:
        prefix = weights["pos_embed"].shape[1] - (backbone.image_size // 16) ** 2
        weights["pos_embed"] = timm.layers.resample_abs_pos_embed(
            weights["pos_embed"], (6, 6), num_prefix_tokens=prefix
        )
    expected = timm.create_model(name, num_classes=0, img_size=96).eval()
    expected.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images(96, 2)), expected(images(96, 2)))


def test_features_are_the_class_token_or_the_mean_of_patches():
    """timm chooses by default; +token or +avg is part of the name, and refused where it has no meaning."""
    backbones = [make_backbone(f"timm:test_vit{pooling}").eval() for pooling in ("", "+token", "+avg")]
    assert [backbone.name for backbone in backbones] == ["timm:test_vit", "timm:test_vit+token", "timm:test_vit+avg"]
    with torch.no_grad():
        default, first, mean = (backbone(images(64, 2)) for backbone in backbones)
        all_tokens = tokens(backbones[0], images(64, 2))
    torch.testing.assert_close(default, all_tokens[:, 0])
    assert torch.equal(first, default)
    torch.testing.assert_close(mean, all_tokens[:, 1:].mean(dim=1))
    assert backbones[2].dim == 64
    for name, problem in {
        "timm:test_vit+max": "the features are named +token or +avg, not +max",
        "timm:resnet18+avg": "resnet18 has no patch tokens; leave out +avg",
        "timm:test_vit2+token": "test_vit2 has no class tokens; leave out +token",
    }.items():
        with pytest.raises(UserError) as caught:
            make_backbone(name)
        assert problem in str(caught.value)


def test_stages_of_a_transformer_are_quarters_of_its_blocks():
    """Of six blocks, stages end after the 1st, 3rd, 4th and 6th; maps are patch tokens, the last normalized."""
    backbone, outputs = make_backbone("timm:test_vit").eval(), []
    for block in backbone.network.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    wide = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = tokens(backbone, wide)
        expected = [outputs[index] for index in (0, 2, 3)] + [last]
        for stage, value in enumerate(expected, start=1):
            found = backbone.feature_map(wide, stage)
            assert found.shape == (2, 64, 3, 5)
            torch.testing.assert_close(found.flatten(2).transpose(1, 2), value[:, 1:])


def test_the_first_blocks_of_a_transformer_are_frozen():
    """With them the patches, positions and class token; not the blocks behind and the last normalization."""
    backbone = make_backbone("timm:test_vit")
    backbone.image_size = 48
    freeze_stages([backbone], 2)
    learning = (name for name, weight in backbone.named_parameters() if weight.requires_grad)
    learns = {re.match(r"network\.((blocks\.)?\w+)", name)[1] for name in learning}
    assert learns == {"blocks.3", "blocks.4", "blocks.5", "norm"}
    assert not backbone.network.blocks[0].norm1.training
    assert backbone.network.blocks[3].norm1.training


@pytest.mark.parametrize(
    ("size", "words"), [(40, "set --image-size 32 or 48"), (12, "set --image-size 16"), (48, None)]
)
def test_sizes_that_the_patches_do_not_divide_are_refused(size, words):
    """The line names the nearest sizes that fit; ResNets take any size, CaiT only its own."""
    make_backbone("resnet10-w8").check_size(size)
    with pytest.raises(UserError, match=rf"timm:cait_xxs24_224 does not take images of {size} px \(.*224.*\); set"):
        make_backbone("timm:cait_xxs24_224").check_size(size)
    backbone = make_backbone("timm:test_vit")
    if words is None:
        backbone.check_size(size)
    else:
        with pytest.raises(UserError, match=f"is a multiple of 16, not {size}; {words}$"):
            backbone.check_size(size)
