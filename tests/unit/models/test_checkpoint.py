"""Every file that MODEL may be gives the right backbone or a clear error, never random weights."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cyclecontrast.cli import main
from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import Backbone, import_torchvision, make_backbone
from cyclecontrast.models.checkpoint import BACKBONE_FILE, fingerprint, load_backbone, save_backbone
from tests.make_backbones import Flat, Net, seeded

SMALL, PLAIN = "resnet10-small-w8", "resnet10-w8"


def torchvision_resnet(name, **changes):
    """Return a network of torchvision in evaluation mode, with running statistics that matter."""
    import_torchvision()
    from torchvision import models

    torch.manual_seed(5)
    network = models.get_model(name, weights=None, **changes)
    for key, value in network.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    return network.eval()


def weights_of(name=PLAIN, seed=7, prefix=""):
    """Return a state dict of ours, with the names of torchvision."""
    return {prefix + key: value for key, value in make_backbone(name, seed).network.state_dict().items()}


def images(side=32):
    """Return normalized images."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def saved(path, content):
    """Write a checkpoint with torch."""
    torch.save(content, path)
    return path


def problems_of(model):
    """Return the lines that the user sees."""
    with pytest.raises(UserError) as caught:
        load_backbone(model)
    problems = caught.value.problems
    assert all("\n" not in line and len(line) < 600 for line in problems)
    return problems


def problem_of(model):
    """Return the only line that the user sees."""
    (line,) = problems_of(model)
    return line


def check_weights(backbone, weights):
    """Check that the backbone holds exactly these weights."""
    state = backbone.network.state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in state)
    assert not backbone.training


# --- checkpoints of others


def release_checkpoint(network):
    """Return a checkpoint as the authors' release writes it: encoders, heads, queues and the optimizer.

    To keep the file small, the heads hold one number and the second encoder has its first layers only.
    """
    state = {}
    heads = {"fc.0": (2048, 2048), "fc.2": (128, 2048), "q_cycle_fc.0": (2048, 2048), "q_cycle_fc.2": (128, 2048)}
    for encoder, add in (("encoder_q", 0.0), ("encoder_k", 1.0)):
        for key, value in network.state_dict().items():
            if key.startswith(("conv1.", "bn1.", "layer1.") if add else ("conv", "bn", "layer")):
                state[f"module.{encoder}.{key}"] = value + add if value.is_floating_point() else value
        for head, shape in heads.items():
            state[f"module.{encoder}.{head}.weight"] = torch.zeros(1).expand(shape)
            state[f"module.{encoder}.{head}.bias"] = torch.zeros(shape[0])
    state |= {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    state |= {"module.queue_cycle": torch.randn(128, 80), "module.k_cycle_fc.0.bias": torch.zeros(2048)}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.06, "params": [0]}]}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}


def test_a_release_checkpoint_gives_torchvisions_features(tmp_path):
    """The query encoder of the authors' checkpoint equals the ResNet-50 of torchvision with its weights, to 1e-4."""
    network = torchvision_resnet("resnet50")
    path = saved(tmp_path / "cycle_res50_r2v2_ep200.pth.tar", release_checkpoint(network))
    backbone = load_backbone(path)
    assert (backbone.name, backbone.dim, backbone.training, backbone.source) == (
        "resnet50",
        2048,
        False,
        f"{path}#encoder_q",
    )
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(backbone(images(64)), network(images(64)), atol=1e-4)


@pytest.mark.parametrize("head", [("fc.weight", "fc.bias"), ("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")])
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_moco_checkpoints_are_read(tmp_path, head, key):
    """Checkpoints of MoCo v1 (one layer) and v2 (two) are read, with or without an outer key."""
    state = weights_of(prefix="module.encoder_k.", seed=8) | weights_of(prefix="module.encoder_q.")
    state |= {f"module.encoder_q.{name}": torch.zeros(2) for name in head} | {"module.queue": torch.zeros(2, 3)}
    path = saved(tmp_path / "moco.pth.tar", {"epoch": 1, key: state} if key else state)
    check_weights(load_backbone(path), weights_of())


@pytest.mark.parametrize("more", [{}, {"jigsaw_linear.weight": 512, "imagenet_decoders.1.2.weight": 512}], ids=len)
def test_vince_checkpoints_are_read(tmp_path, more):
    """VINCE saves only its model: the network of torchvision with its classifier, prefixed by three names, and heads.

    The names are those of danielgordon10/vince: `VinceModel.feature_extractor` is in a wrapper that calls it `module`,
    on one GPU too, and `Backbone.model` is torchvision's.
    """
    network = torchvision_resnet("resnet18")
    state = {f"feature_extractor.module.model.{key}": value for key, value in network.state_dict().items()}
    heads = {"embedding.0.weight": 512, "embedding.2.weight": 512, **more}
    state |= {key: torch.zeros(64, width) for key, width in heads.items()}
    backbone = load_backbone(saved(tmp_path / "000256000.pt", state))
    assert backbone.name == "resnet18"
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(backbone(images(64)), network(images(64)), atol=1e-5)


def test_torchvision_weights_with_classifier_are_read(tmp_path):
    """A plain state dict of torchvision gives its penultimate features, without the classifier."""
    network = torchvision_resnet("resnet18", num_classes=7)
    backbone = load_backbone(saved(tmp_path / "resnet18.pth", network.state_dict()))
    assert backbone.name == "resnet18"
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(backbone(images(64)), network(images(64)), atol=1e-5)


def test_timm_and_ddp_weights_are_read(tmp_path):
    """A ResNet of timm has the same keys; `module.` before them, old files and safetensors do not matter."""
    weights = make_backbone("timm:resnet18", 3).network.state_dict()
    check_weights(load_backbone(saved(tmp_path / "timm.pth", weights | {"fc.weight": torch.zeros(3, 512)})), weights)
    ddp = {f"module.{key}": value for key, value in weights_of().items()}
    check_weights(load_backbone(saved(tmp_path / "ddp.pth", {"state_dict": ddp})), weights_of())
    torch.save(weights_of(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    check_weights(load_backbone(tmp_path / "old.pth"), weights_of())
    save_file(weights_of(), tmp_path / "plain.safetensors")
    check_weights(load_backbone(str(tmp_path / "plain.safetensors")), weights_of())


def test_half_precision_becomes_fp32(tmp_path):
    """Weights stored in 16 bits are used in 32."""
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights_of().items()}
    backbone = load_backbone(saved(tmp_path / "half.pth", half))
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["resnet10", "resnet18-w16", "resnet34-w8", "resnet50-w8"])
def test_the_network_is_read_off_its_weights(tmp_path, name):
    """Depth, stem and width follow from the shapes."""
    backbone = load_backbone(saved(tmp_path / "weights.pth", weights_of(name)))
    assert backbone.name == name
    check_weights(backbone, weights_of(name))


def test_weights_for_a_named_timm_network(tmp_path):
    """timm:<name>@<file> fills a network that the keys alone do not determine; a wrong name is an error."""
    weights = make_backbone("timm:test_vit", 3).network.state_dict()
    path = saved(tmp_path / "vit.pth", {"model": weights})
    assert "no ResNet found" in problem_of(path)
    assert f"timm:<name>@{path}" in problem_of(path)
    backbone = load_backbone(f"timm:test_vit@{path}")
    assert backbone.source == str(path)
    check_weights(backbone, weights)
    assert "missing for timm:test_vit2" in problems_of(f"timm:test_vit2@{path}")[0]
    assert "no such file" in problem_of(f"timm:test_vit@{path}.absent")


def test_random_backbones_are_drawn_by_the_seed():
    """random:<name> is reproducible, seeded, and in evaluation mode."""
    check_weights(load_backbone(f"random:{PLAIN}", seed=7), weights_of())
    assert fingerprint(load_backbone(f"random:{SMALL}", 7)) == fingerprint(load_backbone(f"random:{SMALL}", 7))
    assert fingerprint(load_backbone(f"random:{SMALL}", 7)) != fingerprint(load_backbone(f"random:{SMALL}", 8))
    assert load_backbone(f"random:{SMALL}").source == "random weights"
    assert load_backbone("random:timm:test_resnet").name == "timm:test_resnet"
    assert "unknown backbone" in problem_of("random:resnet7")


# --- wrong weights


def test_missing_keys_are_named(tmp_path):
    """A file that lacks keys is an error with the first few of them."""
    weights = weights_of()
    gone = ["bn1.weight", "conv1.weight", "layer2.0.bn2.bias", "layer3.0.conv1.weight", "layer4.0.bn2.running_var"]
    for number in (1, 5):
        kept = {key: value for key, value in weights.items() if key not in gone[:number]}
        line = problems_of(saved(tmp_path / "part.pth", kept))[0]
        assert f"{number} key" in line
        assert "bn1.weight" in line
        assert "missing" in line
    assert line.count(",") >= 3


def test_missing_counters_do_not_matter(tmp_path):
    """Old files lack num_batches_tracked, which no feature depends on."""
    weights = {key: value for key, value in weights_of().items() if "num_batches" not in key}
    assert load_backbone(saved(tmp_path / "old.pth", weights)).name == PLAIN


def test_other_networks_are_refused(tmp_path):
    """More blocks, unknown layers, other shapes and a deep stem are errors that name the keys."""
    weights = weights_of("resnet50-w4")
    block = {key.removeprefix("layer3.5."): value for key, value in weights.items() if key.startswith("layer3.5.")}
    deep = weights | {f"layer3.{i}.{key}": value for i in range(6, 23) for key, value in block.items()}
    assert "(3, 4, 23, 3) blocks" in problem_of(saved(tmp_path / "resnet101.pth", deep))
    attention = weights_of() | {"layer1.0.attention.weight": torch.zeros(3)}
    lines = problems_of(saved(tmp_path / "extra.pth", attention))
    assert "1 key (layer1.0.attention.weight) unknown" in lines[0]
    assert lines[1].startswith("if it is a variant of a ResNet, name it")
    wide = weights_of() | {"layer4.0.conv2.weight": torch.zeros(8, 8, 3, 3)}
    line = problem_of(saved(tmp_path / "wide.pth", wide))
    assert "layer4.0.conv2.weight (8, 8, 3, 3), not (64, 64, 3, 3)" in line
    stem = {
        key.replace("conv1.weight", "conv1.0.weight") if key == "conv1.weight" else key: value
        for key, value in weights_of().items()
    }
    assert any("conv1.weight) missing" in line for line in problems_of(saved(tmp_path / "stem.pth", stem)))


@pytest.mark.parametrize("shape", [(), (8,), (0, 3, 3, 3), (8, 3)])
def test_odd_stems_are_refused(tmp_path, shape):
    """A first layer that is not a convolution is an error, not a traceback."""
    path = saved(tmp_path / "odd.pth", weights_of() | {"conv1.weight": torch.zeros(shape)})
    assert str(path) in problems_of(path)[0] or "unknown" in problems_of(path)[0]


def test_several_backbones_are_not_guessed_between(tmp_path):
    """A file with two networks is an error that names both."""
    line = problem_of(saved(tmp_path / "two.pth", weights_of(prefix="left.") | weights_of(prefix="right.")))
    assert f"several backbones; choose one of {tmp_path / 'two.pth'}#left, {tmp_path / 'two.pth'}#right" in line


# --- files that hold no weights


class Code:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_checkpoint_cannot_run_code(tmp_path, kind):
    """A file that would run a command does not, and is reported in one line."""
    content = {"state_dict": weights_of(), "extra": Code(f"touch {tmp_path / 'ran'}")}
    path = tmp_path / "evil.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    line = problem_of(path)
    assert "contains more than weights (" in line
    assert "could run code" in line
    assert not (tmp_path / "ran").exists()


def damaged_files(folder):
    """Yield files that hold no weights, by what is wrong with them."""
    whole = saved(folder / "whole.pth", weights_of()).read_bytes()
    torch.save(weights_of(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    yield "garbage.pth", np.random.default_rng(0).bytes(5000)
    yield "text.pth", b"hello world\n" * 30
    yield "page.pth", b"<html>404 not found</html>"
    yield "empty.pth", b""
    yield "cut.pth", whole[: len(whole) // 2]
    yield "cut_old.pth", (folder / "legacy.pth").read_bytes()[:5000]
    yield "new_pickle.pth", pickle.dumps({"state_dict": {"a": 1}})
    yield "garbage.safetensors", np.random.default_rng(0).bytes(5000)
    yield "empty.safetensors", b""
    yield "torch.safetensors", whole
    yield "header.safetensors", struct.pack("<Q", 2**40) + b"{}"


def test_damaged_files_are_reported(tmp_path):
    """Garbage, empty, cut and foreign files are one line each, which does not claim that they run code."""
    for name, content in damaged_files(tmp_path):
        path = tmp_path / name
        path.write_bytes(content)
        line = problem_of(path)
        assert line.startswith(f"{path}: cannot be read as a file of weights; it is damaged or has another format (")
        assert "torch.load" not in line
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as file:
        file.writestr("notes.txt", "no weights")
    assert "cannot be read as a file of weights" in problem_of(tmp_path / "zip.pth")


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 1}, {}, torch.zeros(3), {"state_dict": {"a": 1}}, 7])
def test_files_without_a_state_dict_are_reported(tmp_path, content):
    """A file that loads but maps no names to tensors is reported in one line."""
    assert "holds no state dict" in problem_of(saved(tmp_path / "other.pth", content))


def test_absent_files_and_empty_folders_are_reported(tmp_path):
    """An absent model and a folder without a backbone are errors that say what can be named."""
    assert "no such file or folder" in problem_of(tmp_path / "absent.pth")
    assert "random:<backbone>" in problem_of("resnet18")
    assert f"contains no {BACKBONE_FILE}" in problem_of(tmp_path)


# --- our own files


@pytest.mark.parametrize("name", ["resnet18-small-w16", "resnet10", "timm:resnet18", "timm:test_vit"])
def test_a_saved_backbone_comes_back_to_the_bit(tmp_path, name):
    """Weights, statistics, normalization, image size, name, source and fingerprint survive saving and loading."""
    backbone = make_backbone(name, 3).train()
    backbone.network.to(memory_format=torch.channels_last)
    backbone.image_size, backbone.source = 96, "a test, ünï"
    backbone.mean, backbone.std = (0.1, 1 / 3, 0.3), (0.7, 0.8, 1e-9)
    path = save_backbone(backbone, tmp_path)
    assert path == tmp_path / BACKBONE_FILE
    for model in (path, tmp_path):
        copy = load_backbone(model)
        check_weights(copy, backbone.network.state_dict())
        assert (copy.name, copy.dim, copy.image_size) == (name, backbone.dim, 96)
        assert (copy.mean, copy.std) == (backbone.mean, backbone.std)
        assert "a test, ünï" in copy.source
        assert fingerprint(copy) == fingerprint(backbone)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone.json", "backbone.safetensors"]


def test_the_description_lies_beside_the_weights(tmp_path):
    """backbone.json is the description in the file, for people."""
    backbone = make_backbone(SMALL)
    path = save_backbone(backbone, tmp_path)
    about = json.loads((tmp_path / "backbone.json").read_text())
    assert about == {
        "format": "cyclecontrast-backbone",
        "name": SMALL,
        "dim": 64,
        "image_size": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "source": "random weights",
        "fingerprint": fingerprint(backbone),
        "sha256": about["sha256"],
    }
    assert load_file(path).keys() == backbone.network.state_dict().keys()


def test_a_run_gives_its_final_or_its_newest_backbone(tmp_path):
    """A run folder stands for its final backbone, and before the end for that of the last checkpoint."""
    for step in (2, 10, 9):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        save_backbone(make_backbone(SMALL, seed=step), folder)
    assert fingerprint(load_backbone(tmp_path)) == fingerprint(make_backbone(SMALL, 10))
    save_backbone(make_backbone(SMALL, 11), tmp_path)
    assert fingerprint(load_backbone(tmp_path)) == fingerprint(make_backbone(SMALL, 11))


def described(path, name="resnet10-small-w8", text=None, **changes):
    """Write a file of small weights with a description that may be wrong."""
    about = {"format": "cyclecontrast-backbone", "name": name, "dim": 64, "image_size": 32, "source": "test"}
    about |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]} | changes
    about = {key: value for key, value in about.items() if value is not None}
    save_file(weights_of(SMALL), path, {"about": json.dumps(about) if text is None else text})
    return path


def test_the_name_in_a_file_must_fit_its_weights(tmp_path):
    """A file that calls its ResNet-10 a ResNet-50 is refused with the keys and shapes that do not fit."""
    path = tmp_path / "lie.safetensors"
    problems = problems_of(described(path, "resnet50"))
    assert any("missing for resnet50" in line for line in problems)
    assert any("another shape than resnet50 has" in line for line in problems)
    assert "conv1.weight (8, 3, 3, 3), not (16, 3, 3, 3)" in problem_of(described(path, "resnet10-small-w16"))
    assert f"{path}: unknown backbone 'resnet7'" in problem_of(described(path, "resnet7"))
    assert load_backbone(described(path)).image_size == 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "has the format 'other'"),
        ({"text": "{broken"}, "description is damaged"),
        ({"text": "[]"}, "description is damaged"),
        ({"text": "null"}, "description is damaged"),
        ({"text": ""}, "description is damaged"),
        ({"mean": None}, "description is damaged (mean"),
        ({"mean": [0.5, 0.5]}, "description is damaged (mean"),
        ({"std": [0.5, 0.0, 0.5]}, "description is damaged (std"),
        ({"std": "abc"}, "description is damaged (std"),
        ({"image_size": -3}, "description is damaged (image_size"),
        ({"surprise": 1}, "description is damaged (surprise"),
    ],
)
def test_damaged_descriptions_are_reported(tmp_path, changes, words):
    """A description that is broken, impossible or of another format is reported in one line."""
    assert words in problem_of(described(tmp_path / "odd.safetensors", **changes))


@pytest.mark.parametrize("place", [0.1, 0.5, 1])
def test_one_wrong_bit_among_the_weights_is_reported(tmp_path, place):
    """A backbone with one wrong bit is refused."""
    path = save_backbone(make_backbone(SMALL, 3), tmp_path)
    assert fingerprint(load_backbone(path)) == fingerprint(make_backbone(SMALL, 3))
    content = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]
    content[start + int(place * (len(content) - start - 1))] ^= 1
    path.write_bytes(content)
    assert "is corrupted: the weights do not match the stored fingerprint" in problem_of(path)


def test_every_wrong_bit_of_a_description_is_reported(tmp_path):
    """A description with one wrong bit is refused."""
    path = save_backbone(make_backbone("resnet10-small-w1"), tmp_path)
    content = path.read_bytes()
    start, end = content.index(b'"__metadata__"'), content.index(b"source")
    for place in range(start, end):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(UserError):
            load_backbone(path)


# --- networks of the user


def test_a_file_of_a_users_network_needs_it(tmp_path, capsys):
    """Without the network, with another one, or with one too many, loading ends in lines that name the keys."""
    path = save_backbone(Backbone(seeded(Net), "own:Net", 6), tmp_path)
    loaded = load_backbone(tmp_path, network=Net())
    assert torch.equal(loaded.network.layers[0].weight, seeded(Net).layers[0].weight)
    assert re.search(r"weights of own:Net, .*load_backbone\(.*, network=\.\.\.\)$", problem_of(tmp_path))
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: holds the weights of own:Net")
    with pytest.raises(UserError) as error:
        load_backbone(tmp_path, network=nn.Sequential(nn.Conv2d(3, 6, 3)))
    missing, unknown = error.value.problems
    assert "2 keys (0.weight, 0.bias) missing" in missing
    assert "7 keys (layers.0.bias, layers.0.weight, layers.1.bias, ...) unknown" in unknown
    untouched = Net(5)
    before = untouched.layers[0].weight.clone()
    with pytest.raises(UserError, match=r"layers.0.weight \(6, 3, 3, 3\), not \(5, 3, 3, 3\)"):
        load_backbone(tmp_path, network=untouched)
    assert torch.equal(untouched.layers[0].weight, before)
    for model in ("random:resnet10-small-w8", save_backbone(make_backbone(SMALL), tmp_path / "ours")):
        with pytest.raises(UserError, match=r"^network: .*; (remove it|leave it out)$"):
            load_backbone(model, network=Net())


def test_a_map_of_a_users_network_is_that_of_the_last_stage():
    """A network that returns maps has the map of stage 4, one that returns vectors has none."""
    images = torch.randn(2, 3, 16, 16)
    backbone = Backbone(seeded(Net).eval(), "own:Net", 6)
    assert torch.equal(backbone.feature_map(images, 4), backbone.network(images))
    torch.testing.assert_close(backbone(images), backbone.network(images).mean(dim=(2, 3)))
    with pytest.raises(UserError, match="stage 3"):
        backbone.feature_map(images, 3)
    with pytest.raises(UserError, match="vectors"):
        Backbone(seeded(Flat).eval(), "own:Flat", 6).feature_map(images, 4)


# --- fingerprints


def test_the_same_backbone_is_the_same_file(tmp_path):
    """Another process, with another hash seed, writes the same bytes."""
    program = (
        "import sys; from pathlib import Path; from cyclecontrast.models.backbone import make_backbone\n"
        "from cyclecontrast.models.checkpoint import save_backbone\n"
        "save_backbone(make_backbone('resnet10-small-w1', 3), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "other")], check=True)
    save_backbone(make_backbone("resnet10-small-w1", 3), tmp_path / "here")
    assert len({(tmp_path / name / BACKBONE_FILE).read_bytes() for name in ("here", "other")}) == 1


def test_the_fingerprint_sees_the_smallest_change():
    """One weight that differs in the last place, another normalization, or another name changes the fingerprint."""
    backbone = make_backbone(SMALL, 1)
    seen = {fingerprint(backbone)}
    assert fingerprint(make_backbone(SMALL, 1).eval()) in seen
    weight = backbone.network.conv1.weight.data
    weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(10.0))
    seen.add(fingerprint(backbone))
    backbone.mean = (0.5, 0.5, 0.5)
    seen.add(fingerprint(backbone))
    backbone.name = "other"
    seen.add(fingerprint(backbone))
    backbone.network.bn1.running_var[0] += 1
    seen.add(fingerprint(backbone))
    assert len(seen) == 5
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in seen)
