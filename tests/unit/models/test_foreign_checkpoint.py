"""Files of other projects give the network that they hold, or are refused where their keys do not tell."""

import argparse
import json
import os
import pathlib
import pickle
import re
import resource
import struct
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from cyclecontrast.cli import main
from cyclecontrast.config.types import is_model, split_model
from cyclecontrast.errors import UserError
from cyclecontrast.exporting.export import FORMATS
from cyclecontrast.models import checkpoint
from cyclecontrast.models.backbone import import_torchvision, make_backbone, make_empty_backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone, open_model, save_backbone
from tests.make_backbones import shaken

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
PLAIN = "resnet10-w8"


def weights_of(prefix="", seed=1, name=PLAIN):
    """Return a state dict of a small ResNet, with a prefix before each key."""
    return {prefix + key: value for key, value in make_backbone(name, seed).network.state_dict().items()}


def saved(folder, content):
    """Write a checkpoint with torch."""
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


def problem_of(model):
    """Return the only line that the user sees."""
    with pytest.raises(UserError) as caught:
        load_backbone(model)
    (line,) = caught.value.problems
    return line


def seed_of(backbone):
    """Return the seed that the weights were drawn with."""
    (seed,) = (seed for seed in range(5) if fingerprint(make_backbone(PLAIN, seed)) == fingerprint(backbone))
    return seed


def images():
    """Return normalized images."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def torchvision_resnet(**changes):
    """Return torchvision's ResNet with one block per stage and statistics that matter, without a classifier."""
    from torchvision.models import resnet

    torch.manual_seed(5)
    network = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], **changes)
    network.fc = nn.Identity()
    for key, value in network.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    return network.eval()


def check_features(model, network, inputs=None):
    """Check that the backbone computes what a network computes."""
    with torch.no_grad():
        expected = network(images() if inputs is None else inputs).flatten(1)
        torch.testing.assert_close(load_backbone(model)(images()), expected, **CLOSE)


import_torchvision()


# --- names of layers


def test_a_sequence_of_torchvisions_layers(tmp_path):
    """lightly's tutorials keep the layers of torchvision's ResNet in nn.Sequential, whose keys are numbers."""
    network = nn.Sequential(*list(torchvision_resnet().children())[:-1])
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    state["projection_head.layers.0.weight"] = torch.zeros(2, 2)
    check_features(saved(tmp_path, {"state_dict": state, "epoch": 3}), network)


class CifarBlock(nn.Module):
    """The block of lightly's ResNetGenerator and of the ResNets for CIFAR from which it comes."""

    def __init__(self, before, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        """Return the output of the block."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class CifarNet(nn.Module):
    """A ResNet for CIFAR, whose activations and pooling are functions."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(CifarBlock(16, 16, 1))
        self.layer2 = nn.Sequential(CifarBlock(16, 32, 2))
        self.layer3 = nn.Sequential(CifarBlock(32, 64, 2))
        self.layer4 = nn.Sequential(CifarBlock(64, 128, 2))
        self.linear = nn.Linear(128, 10)

    def forward(self, x):
        """Return the features."""
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(x))).mean((2, 3))


@pytest.mark.parametrize("is_sequence", [True, False])
def test_networks_for_cifar_that_say_shortcut(tmp_path, is_sequence):
    """lightly's own ResNets, in nn.Sequential or not, have a 3x3 stem that their names determine."""
    torch.manual_seed(3)
    network = CifarNet().eval()
    layers = nn.Sequential(*list(network.children())[:-1], nn.AdaptiveAvgPool2d(1)) if is_sequence else network
    path = saved(tmp_path, layers.state_dict())
    assert load_backbone(path).name == "resnet10-small-w16"
    check_features(path, network)


def test_swav_and_vissl(tmp_path):
    """SwAV pads before its first convolution, which sums up to torchvision's padding; VISSL nests its keys deeply."""
    network = torchvision_resnet()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    heads = ("projection_head.0.weight", "projection_head.1.running_mean", "prototypes.weight", "prototypes0.weight")
    path = saved(tmp_path, {"state_dict": state | {f"module.{key}": torch.zeros(2) for key in heads}, "epoch": 1})
    check_features(path, network)
    network.conv1.padding = (2, 2)
    check_features(path, network, F.pad(images(), (1, 1, 1, 1)))
    trunk = weights_of("_feature_blocks.")
    model = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.zeros(2, 2)}}
    content = {"classy_state_dict": {"base_model": {"model": model, "meta": {}}, "loss": {"center": torch.zeros(2)}}}
    assert seed_of(load_backbone(saved(tmp_path, content))) == 1


@pytest.mark.parametrize("key", ["net", "model_state_dict", "teacher", "encoder", "module"])
def test_any_outer_key(tmp_path, key):
    """The state dict may be under any key, with or without `module.`."""
    assert seed_of(load_backbone(saved(tmp_path, {key: weights_of("module."), "acc": 91.5, "epoch": 3}))) == 1


def test_a_file_without_a_network_lists_what_it_holds(tmp_path):
    """Where nothing can be loaded, the line lists the keys that are there."""
    line = problem_of(saved(tmp_path, {"epoch": 3, "lr": 0.1}))
    assert line.endswith("holds no state dict (a mapping of names to tensors); its entries are epoch, lr")
    line = problem_of(saved(tmp_path, {"agent": {"a": torch.zeros(2), "b": torch.zeros(2)}, "log": torch.zeros(2)}))
    assert "no ResNet found among its 3 tensors: agent (2), log; " in line


def test_dictionaries_that_hold_each_other_take_no_time(tmp_path):
    """Each dictionary of a file is read once, although it may be in many places."""
    content = {"state_dict": weights_of()}
    for _ in range(60):
        content = {"a": content, "b": content}
    assert "cannot be read" in problem_of(saved(tmp_path, content)) or "no state dict" in problem_of(
        tmp_path / "file.pth"
    )


# --- several backbones in a file


BACKBONES = {
    "DINO": ({"student.module.backbone.": 1, "teacher.backbone.": 2}, {"student": 1, "teacher": 2}, 2),
    "MoCo": ({"module.encoder_k.": 1, "module.encoder_q.": 2}, {"encoder_k": 1, "encoder_q": 2}, 2),
    "MoCo v3": (
        {"module.base_encoder.": 1, "module.momentum_encoder.": 2},
        {"base_encoder": 1, "momentum_encoder": 2},
        1,
    ),
    "lightly": ({"backbone.": 1, "backbone_momentum.": 2}, {"backbone": 1, "backbone_momentum": 2}, 1),
    "lightly DINO": (
        {"student_backbone.": 1, "teacher_backbone.": 2},
        {"student_backbone": 1, "teacher_backbone": 2},
        2,
    ),
    "solo-learn": ({"momentum_backbone.": 1, "backbone.": 2}, {"momentum_backbone": 1, "backbone": 2}, 2),
    "byol-pytorch": (
        {"net.": 1, "online_encoder.net.": 2, "target_encoder.net.": 3},
        {"net": 1, "online_encoder": 2, "target_encoder": 3},
        2,
    ),
    "timm": ({"state_dict.": 1, "state_dict_ema.": 2}, {"state_dict": 1, "state_dict_ema": 2}, 2),
    "root": ({"": 1, "momentum_encoder.": 2}, {"backbone": 1, "momentum_encoder": 2}, 1),
}


@pytest.mark.parametrize("project", BACKBONES)
def test_one_of_several_backbones(tmp_path, project):
    """The teacher, or else the online encoder, is the default; MODEL#NAME chooses another."""
    prefixes, names, default = BACKBONES[project]
    state = {key: value for prefix, seed in prefixes.items() for key, value in weights_of(prefix, seed).items()}
    path = saved(tmp_path, state)
    backbone, line = open_model(path)
    (chosen,) = (name for name, seed in names.items() if seed == default)
    assert (seed_of(backbone), backbone.source) == (default, f"{path}#{chosen}")
    assert f", from #{chosen} (not #" in line
    for name, seed in names.items():
        assert seed_of(load_backbone(f"{path}#{name}")) == seed
    line = problem_of(f"{path}#nobody")
    assert line.startswith(f"{path}: holds no backbone #nobody; choose one of ")
    assert all(f"{path}#{name}" in line for name in names)


def test_a_file_with_one_backbone_has_no_other(tmp_path):
    """#NAME in a file with one backbone is its name or an error."""
    path = saved(tmp_path, {"teacher": weights_of("module.")})
    assert seed_of(load_backbone(f"{path}#teacher")) == 1
    assert f"holds no backbone #student; choose one of {path}#teacher" in problem_of(f"{path}#student")
    own = save_backbone(make_backbone(PLAIN), tmp_path)
    assert problem_of(f"{own}#teacher") == f"{own}: holds one backbone; leave out #teacher"


def test_transformers_of_several_kinds(tmp_path):
    """A network named by timm:<name> is chosen among several in the same way."""
    student, teacher = (make_backbone("timm:test_vit", seed).network.state_dict() for seed in (1, 2))
    content = {"student": {f"module.backbone.{key}": value for key, value in student.items()}}
    content["teacher"] = {f"backbone.{key}": value for key, value in teacher.items()} | {"head.weight": torch.zeros(2)}
    path = saved(tmp_path, content)
    for spec, state in (("", teacher), ("#teacher", teacher), ("#student", student)):
        found = load_backbone(f"timm:test_vit@{path}{spec}").network.state_dict()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_positions_of_another_size_are_resampled(tmp_path):
    """A transformer's file for other images is loaded with positions resampled by timm, and the line says so."""
    timm = pytest.importorskip("timm")
    state = make_backbone("timm:test_vit", 1).network.state_dict()
    state["pos_embed"] = torch.randn(1, 1 + 6 * 6, 64, generator=torch.Generator().manual_seed(0))
    path = saved(tmp_path, {"teacher": {f"backbone.{key}": value for key, value in state.items()}})
    backbone, line = open_model(f"timm:test_vit@{path}")
    assert line == (
        f"{path}: loaded as timm:test_vit, named in MODEL, names and positions converted by timm; its features are the "
        "class token"
    )
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], (10, 10), num_prefix_tokens=1)
    assert torch.equal(backbone.network.pos_embed, expected)
    assert torch.equal(backbone.network.blocks[5].mlp.fc1.weight, state["blocks.5.mlp.fc1.weight"])


def of_dinov2(state):
    """Return weights under the names of DINOv2 with registers, where the class token has a position."""
    state = dict(state)
    position = torch.full_like(state["cls_token"], 0.5)
    state |= {"register_tokens": state.pop("reg_token"), "mask_token": torch.zeros(1, 384)}
    return state | {
        "cls_token": state["cls_token"] - 0.5,
        "pos_embed": torch.cat([position, state["pos_embed"]], dim=1),
    }


def of_dinov3(state):
    """Return weights under the names of DINOv3, where query, key and value share a bias."""
    found = {"mask_token": torch.zeros(1, 192)}
    for key, value in state.items():
        key = key.replace("gamma_", "ls").replace("reg_token", "storage_tokens")
        key = re.sub(r"(ls\d)$", r"\1.gamma", key)
        if key.endswith("q_bias"):
            rest = state[key.replace("q_bias", "v_bias")]
            found[key.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), rest])
        elif not key.endswith("v_bias"):
            found[key] = value
    return found | {"rope_embed.periods": torch.ones(16), "blocks.0.attn.qkv.bias_mask": torch.ones(576)}


@pytest.mark.parametrize(
    ("name", "rename"), [("vit_small_patch14_reg4_dinov2", of_dinov2), ("vit_tiny_patch16_dinov3_qkvb", of_dinov3)]
)
def test_files_of_dinov2_and_dinov3(tmp_path, capsys, name, rename):
    """Their authors' names are those of timm's networks."""
    if not pytest.importorskip("timm").is_model(name):
        pytest.skip("this version of timm lacks it")
    expected = make_backbone(f"timm:{name}", 1).network.state_dict()
    path = saved(tmp_path, rename(expected))
    backbone, line = open_model(f"timm:{name}@{path}")
    assert "names and positions converted by timm" in line
    assert "ignored" not in line
    for key, value in backbone.network.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "change",
    [
        {"pos_embed": torch.zeros(1, 2, 2000)},
        {"patch_embed.proj.weight": torch.zeros(64, 3, 99, 99)},
        {"pos_embed": torch.zeros(1, 1, 64).expand(1, 10**6, 64)},
        {"cls_token": torch.zeros(1, 1, 32), "register_tokens": torch.zeros(1, 4, 64)},
    ],
)
def test_other_shapes_are_not_converted(tmp_path, monkeypatch, change):
    """Only the number of positions may differ, so that resampling takes no more memory than the network."""
    fail = lambda *_: pytest.fail("was converted")  # noqa: E731
    monkeypatch.setattr(pytest.importorskip("timm").models.vision_transformer, "checkpoint_filter_fn", fail)
    state = make_backbone("timm:test_vit").network.state_dict() | change
    with pytest.raises(UserError, match=f"key.* \\({next(iter(change))} "):
        load_backbone(f"timm:test_vit@{saved(tmp_path, state)}")


def test_commands_take_the_name_of_a_backbone(tmp_path, capsys):
    """MODEL#NAME works on the command line, and a file that is not there is one line."""
    path = saved(tmp_path, {"student": weights_of(), "teacher": weights_of(seed=2)})
    out = tmp_path / "out.safetensors"
    assert main(["export", f"{path}#student", "--out", str(out)]) == 0
    assert seed_of(load_backbone(out)) == 1
    assert main(["export", f"{PLAIN}@{path}s#student", "--out", str(out)]) == 2
    assert f"error: model {PLAIN}@{path}s#student: no such file or folder; name " in capsys.readouterr().err


def test_names_of_models(tmp_path, monkeypatch):
    """A MODEL is split into network, path and encoder, unless a file has that very name."""
    monkeypatch.chdir(tmp_path)
    for name in ("file.pth", "odd#name.pth", "resnet18@file.pth"):
        (tmp_path / name).touch()
    assert split_model("timm:vit@a/b.pth#teacher") == ("timm:vit", "a/b.pth", "teacher")
    assert split_model("resnet18-small@file.pth") == ("resnet18-small", "file.pth", "")
    assert split_model("me@home/file.pth") == ("", "me@home/file.pth", "")
    assert split_model("odd#name.pth") == ("", "odd#name.pth", "")
    assert split_model("odd#name.pth#student") == ("", "odd#name.pth", "student")
    assert split_model("resnet18@file.pth") == ("", "resnet18@file.pth", "")
    assert all(map(is_model, ("file.pth#x", "resnet50@file.pth#x", "timm:any", "random:resnet18", "odd#name.pth")))
    assert not any(map(is_model, ("no.pth#x", "resnet50@no.pth", "timm:any@no.pth", "resnet18")))


# --- which network


def test_a_variant_of_a_resnet_without_arch_gets_the_way_to_name_it(tmp_path):
    """The file of a resnet50d says nothing of its name: the error ends with the spelling that loads it."""
    import timm

    path = saved(tmp_path, {"state_dict": timm.create_model("resnet50d").state_dict()})
    with pytest.raises(UserError) as caught:
        open_model(path)
    assert caught.value.problems[-1].endswith(f"name it, for example timm:resnet50d@{path}")
    assert load_backbone(f"timm:resnet50d@{path}").name == "timm:resnet50d"


def test_the_arch_of_a_file_decides(tmp_path):
    """A network of timm with the keys of a plain ResNet is built as what it is, by the `arch` of its file."""
    import timm

    backbone = shaken("timm:resnetblur18")
    network = timm.create_model("resnetblur18", num_classes=0).eval()
    network.load_state_dict(backbone.network.state_dict())
    path = saved(tmp_path, {"arch": "resnetblur18", "state_dict": network.state_dict()})
    backbone, line = open_model(path)
    assert (backbone.name, line) == ("timm:resnetblur18", f"{path}: loaded as timm:resnetblur18, by its arch")
    check_features(path, network)
    path = saved(tmp_path, {"args": argparse.Namespace(model="resnetblur18"), "state_dict": network.state_dict()})
    assert load_backbone(path).name == "timm:resnetblur18"
    assert load_backbone(f"resnet18@{path}").name == "resnet18"


@pytest.mark.parametrize("arch", ["resnet10", "ResNet-10", "tv_resnet10", "resnet10.a1_in1k", "resnet10w2"])
def test_the_arch_of_a_plain_resnet(tmp_path, arch):
    """Usual spellings of a plain ResNet are understood."""
    backbone, line = open_model(saved(tmp_path, {"arch": arch, "state_dict": weights_of()}))
    assert (backbone.name, seed_of(backbone)) == (PLAIN, 1)
    assert "by its arch and keys" in line


def test_an_arch_that_does_not_fit_is_refused(tmp_path):
    """An unknown arch, or one that contradicts the weights, is refused unless the network is named."""
    path = saved(tmp_path, {"arch": "resnet", "state_dict": weights_of()})
    assert "its arch is 'resnet', which is neither" in problem_of(path)
    assert seed_of(load_backbone(f"{PLAIN}@{path}")) == 1
    path = saved(tmp_path, {"arch": "resnet50", "state_dict": weights_of()})
    assert f"its weights are those of {PLAIN}, but it says 'resnet50'" in problem_of(path)


def test_stems_of_3x3_are_refused_unless_named(tmp_path):
    """Keys do not tell stride, padding and max-pool of a 3x3 stem; a name does, also for solo-learn's padding of 2."""
    network = torchvision_resnet()
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 2, bias=False), nn.Identity()
    path = saved(tmp_path, {"state_dict": {f"backbone.{key}": v for key, v in network.state_dict().items()}})
    line = problem_of(path)
    assert "looks like resnet10-small, but its keys do not tell stride, padding and max-pool of its 3x3 stem" in line
    check_features(f"resnet10-small-pad2@{path}", network)
    network.conv1.padding = (1, 1)
    check_features(f"resnet10-small@{path}", network)
    backbone = load_backbone(f"resnet10-small-pad2@{path}")
    assert load_backbone(save_backbone(backbone, tmp_path)).name == "resnet10-small-pad2"


def test_a_sequence_without_max_pool_is_refused_unless_named(tmp_path):
    """Three layers before the first stage in nn.Sequential are a stem without max-pool, whose stride is unknown."""
    network = torchvision_resnet()
    layers = [layer for layer in network.children() if not isinstance(layer, nn.MaxPool2d)]
    assert "do not tell whether its stem has a max-pool" in problem_of(
        saved(tmp_path, nn.Sequential(*layers[:-1]).state_dict())
    )


def test_segmentation_networks_are_refused_unless_named(tmp_path):
    """The backbone of a segmentation network may be dilated, which its keys do not tell."""
    state = weights_of("backbone.") | {"classifier.0.convs.0.0.weight": torch.zeros(2, 2, 1, 1)}
    path = saved(tmp_path, state)
    assert "do not tell whether its stages are dilated" in problem_of(path)
    assert seed_of(load_backbone(f"{PLAIN}@{path}")) == 1
    assert seed_of(load_backbone(saved(tmp_path, weights_of() | {"classifier.weight": torch.zeros(2, 2)}))) == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_weights_that_are_no_floats_are_refused(tmp_path, dtype):
    """Integers and booleans are no weights of a ResNet."""
    path = saved(tmp_path, weights_of() | {"layer1.0.conv1.weight": torch.ones(8, 8, 3, 3, dtype=dtype)})
    assert "without floating-point numbers" in problem_of(path)


def test_further_keys_of_timm_networks_are_refused(tmp_path):
    """A file with more layers than the named network of timm has is not that network."""
    weights = make_backbone("timm:test_resnet").network.state_dict()
    path = saved(tmp_path, weights | {"layer1.0.se.fc1.weight": torch.zeros(2), "fc.weight": torch.zeros(2)})
    assert "1 key (layer1.0.se.fc1.weight) unknown to timm:test_resnet" in problem_of(f"timm:test_resnet@{path}")


def test_what_was_recognized_is_reported_once(tmp_path, capsys):
    """One line on stderr says the network and what was ignored; our own files need none."""
    path = saved(tmp_path, weights_of("module.encoder_q.") | {"module.encoder_q.fc.weight": torch.zeros(2)})
    load_backbone(path)
    load_backbone(path)
    load_backbone(save_backbone(make_backbone(PLAIN), tmp_path))
    assert capsys.readouterr().err == (
        f"{path}: loaded as {PLAIN}, by its keys (strides and dilation as in torchvision); "
        "ignored: module.encoder_q.fc\n"
    )


def test_keys_cannot_control_the_terminal(tmp_path, capsys):
    """Control characters in keys are escaped."""
    load_backbone(saved(tmp_path, {"model": weights_of(), "more\x1b[2J\n": {"a": torch.zeros(2)}}))
    line = capsys.readouterr().err
    assert line.endswith("; ignored: more\\x1b[2J\\n\n")


# --- memory


def test_a_network_larger_than_its_file_is_not_built(tmp_path, monkeypatch):
    """A small file that names a network of a billion weights is refused before these take memory."""
    about = {"format": "cyclecontrast-backbone", "name": "timm:vit_giant_patch14_224", "dim": 64, "image_size": 32}
    about |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "source": "test"}
    save_file(weights_of(), tmp_path / "lie.safetensors", {"about": json.dumps(about)})
    monkeypatch.setattr(checkpoint, "make_backbone", lambda *_: pytest.fail("was built"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for model in (tmp_path / "lie.safetensors", f"timm:vit_giant_patch14_224@{saved(tmp_path, weights_of())}"):
        with pytest.raises(UserError, match="missing for timm:vit_giant_patch14_224"):
            load_backbone(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; the weights are 4 GB


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:resnet10t", "resnet50-small-pad2-w4"])
def test_empty_networks_have_the_same_keys(name):
    """A network without memory has the keys and shapes of the real one."""
    empty, real = make_empty_backbone(name), make_backbone(name)
    assert all(value.is_meta for value in empty.parameters())
    shapes = [{key: value.shape for key, value in made.network.state_dict().items()} for made in (empty, real)]
    assert shapes[0] == shapes[1]
    assert (empty.dim, empty.image_size, empty.mean) == (real.dim, real.image_size, real.mean)


# --- what is beside the weights


def everything_beside():
    """Return what full checkpoints hold beside weights."""
    options = {"lr": np.float64(0.1), "out": pathlib.PosixPath("/home/me"), "data": pathlib.PurePosixPath("a")}
    numbers = {"best": np.float32(3), "epoch": np.int64(3), "flag": np.bool_(True)}
    return {"args": argparse.Namespace(arch="resnet10", **options), **numbers, "out": pathlib.Path("run")}


def test_options_numbers_and_paths_beside_the_weights(tmp_path):
    """Namespaces, NumPy scalars and paths do not hinder loading, and the arch is read among the options."""
    backbone, line = open_model(saved(tmp_path, {"model": weights_of(), **everything_beside()}))
    assert seed_of(backbone) == 1
    assert "by its arch and keys" in line


def test_the_dictionaries_of_lightning(tmp_path, monkeypatch):
    """The options that Lightning saves are a dictionary of its own class."""
    module = type(os)("pytorch_lightning.utilities.parsing")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.utilities"):
        monkeypatch.setitem(sys.modules, name, type(os)(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    hyper = module.AttributeDict(backbone="resnet10", lr=0.1)
    assert "by its arch" in open_model(saved(tmp_path, {"state_dict": weights_of(), "hyper_parameters": hyper}))[1]


@pytest.mark.parametrize("value", [np.zeros(2), print, os.system, np.random.default_rng(0), pathlib.Path.unlink])
def test_anything_else_beside_the_weights_is_refused(tmp_path, value):
    """Functions and other objects are refused by their names, wherever they are."""
    line = problem_of(saved(tmp_path, {"model": weights_of(), "args": argparse.Namespace(value=value)}))
    assert "contains more than weights (" in line


# --- our own exports


@pytest.mark.parametrize("format_name", ["huggingface", "detectron2", "torchvision", "timm"])
def test_our_own_exports_are_models(tmp_path, format_name):
    """What export writes can be named as MODEL; weights, and for transformers size and normalization, come back."""
    backbone = shaken(PLAIN, image_size=96)
    backbone.mean = (0.1, 0.2, 0.3)
    out = tmp_path / ("out.pkl" if format_name == "detectron2" else "out")
    FORMATS[format_name].write(backbone, out, str(tmp_path))
    loaded = load_backbone(out)
    assert loaded.name == PLAIN
    state = {k: v for k, v in backbone.network.state_dict().items() if "num_batches" not in k}
    assert all(torch.equal(loaded.network.state_dict()[key], value) for key, value in state.items())
    if format_name == "huggingface":
        assert (loaded.image_size, loaded.mean) == (96, (0.1, 0.2, 0.3))


def test_a_model_of_transformers_that_computes_otherwise_is_refused(tmp_path):
    """config.json beside the weights says what their keys do not tell; a damaged one is reported."""
    out = tmp_path / "out"
    FORMATS["huggingface"].write(shaken(PLAIN), out, str(tmp_path))
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(
        text.replace('"downsample_in_bottleneck": false', '"downsample_in_bottleneck": true')
    )
    problem = "describes another network than the ResNet of torchvision; name it: <backbone>@"
    assert problem_of(out) == f"{out / 'config.json'}: {problem}{out / 'model.safetensors'}"
    assert load_backbone(f"{PLAIN}@{out}").name == PLAIN
    (out / "config.json").write_text("[" * 100_000)
    assert "cannot be read" in problem_of(out)
    (out / "config.json").write_text(text)
    (out / "preprocessor_config.json").write_text('{"crop_size": {"height": 8192, "width": 8192}}')
    assert "cannot be read" in problem_of(out)
    assert load_file(out / "model.safetensors")


def test_a_model_of_timm_from_the_hub(tmp_path):
    """config.json names the network of timm whose weights lie beside it."""
    weights = make_backbone("timm:test_resnet", 1).network.state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet", "pretrained_cfg": {"classifier": "fc"}}')
    backbone, line = open_model(tmp_path)
    assert (backbone.name, "by its arch" in line) == ("timm:test_resnet", True)
    assert torch.equal(backbone.network.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])


class Code:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def pickles(folder):
    """Yield pickles that are no export, by what is wrong with them."""
    yield "code", pickle.dumps({"__author__": "cyclecontrast", "model": Code(f"touch {folder / 'ran'}")}, 4)
    yield "code of protocol 2", pickle.dumps(Code(f"touch {folder / 'ran'}"), 2)
    yield "other author", pickle.dumps({"__author__": "MOCO", "model": {}}, 4)
    yield "array", pickle.dumps({"__author__": "cyclecontrast", "model": {"a": np.zeros(3)}}, 4)
    yield "no dictionary", pickle.dumps([1, 2], 4)
    yield "empty", b""
    yield "huge memo", b"\x80\x04r" + struct.pack("<I", 2**31) + b"."
    yield "huge bytes", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"."
    huge = pickle.dumps(("a", bytearray(3)), 4)
    yield "huge bytearray", huge.replace(b"C\x03\0\0\0", b"J\xff\xff\xff\x7f")


def test_pickles_that_are_no_export_are_refused(tmp_path):
    """A pickle is read only if export wrote it; others are one line, run nothing and take no memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in pickles(tmp_path):
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(content)
        assert problem_of(path).startswith(f"{path}: ")
    assert not (tmp_path / "ran").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize("is_archive", [True, False])
def test_the_suffix_of_a_pytorch_file_does_not_matter(tmp_path, is_archive):
    """A file that torch.save wrote is read as such, also if it ends in .pkl."""
    torch.save({"net": weights_of()}, tmp_path / "model.pkl", _use_new_zipfile_serialization=is_archive)
    assert seed_of(load_backbone(tmp_path / "model.pkl")) == 1


def test_damaged_exports_for_detectron2_are_reported(tmp_path):
    """An export that is cut or changed is one line."""
    out = tmp_path / "out.pkl"
    FORMATS["detectron2"].write(make_backbone(PLAIN, 1), out, "")
    assert seed_of(load_backbone(out)) == 1
    whole = out.read_bytes()
    for content in (whole[:5000], whole.replace(b"<f4", b"|O8"), whole.replace(b"\x4b\x40", b"\x4b\x41")):
        out.write_bytes(content)
        assert problem_of(out).startswith(f"{out}: cannot be read as a file of weights; ")
