"""The printed code loads each file with the tool's own class, which computes what the backbone computes.

detectron2 cannot be installed here: its documented names, shapes and forward pass are written down again instead.
"""

import io
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cyclecontrast.config import ExportConfig
from cyclecontrast.config.types import USER_PREFIX
from cyclecontrast.errors import UserError
from cyclecontrast.exporting import formats
from cyclecontrast.exporting.export import export_backbone
from cyclecontrast.exporting.formats import ONNX, as_resnet
from cyclecontrast.models.backbone import Backbone, import_torchvision, make_backbone
from cyclecontrast.models.checkpoint import load_backbone, save_backbone
from tests.make_backbones import execute, features, last_map, pixels, shaken

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def export(folder, backbone, format_name, name):
    """Export a backbone and return what the command returns."""
    save_backbone(backbone, folder)
    return export_backbone(ExportConfig(model=str(folder), format=format_name, out=folder / "out" / name))


def test_safetensors(tmp_path):
    """The printed code loads the same backbone: architecture, image size, normalization and features."""
    backbone = shaken("resnet10-small-w4")
    backbone.mean = (0.1, 0.2, 0.3)
    made = export(tmp_path, backbone, "safetensors", "mine.safetensors")
    variables = execute(made.snippet, pixels=pixels())
    loaded = variables["backbone"]
    assert (loaded.name, loaded.image_size, loaded.mean) == ("resnet10-small-w4", 64, (0.1, 0.2, 0.3))
    torch.testing.assert_close(variables["features"], features(backbone), **CLOSE)
    torch.testing.assert_close(variables["map"], last_map(backbone), **CLOSE)
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["mine.json", "mine.safetensors"]


def test_torchvision(tmp_path):
    """The printed code loads torchvision's class, whose features and map are the backbone's."""
    backbone = shaken("resnet18")
    made = export(tmp_path, backbone, "torchvision", "out.pth")
    variables = execute(made.snippet, images=pixels().float() / 255)
    assert type(variables["model"]) is import_torchvision().models.ResNet
    torch.testing.assert_close(variables["features"], features(backbone), **CLOSE)
    torch.testing.assert_close(variables["map"], last_map(backbone), **CLOSE)


def test_a_torchvision_file_is_a_plain_state_dict(tmp_path):
    """The file holds tensors by name and nothing else, has no classifier, and can be given as MODEL again."""
    path = tmp_path / "out.pth"
    export_backbone(ExportConfig(model="random:resnet18", format="torchvision", out=path, seed=3))
    weights = torch.load(path, weights_only=True)
    assert type(weights) is dict
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert not any(key.startswith("fc.") for key in weights)
    torch.testing.assert_close(features(load_backbone(path)), features(load_backbone("random:resnet18", 3)))


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_timm(tmp_path, name):
    """The printed code makes timm's network with these weights: same features, same map."""
    timm = pytest.importorskip("timm")
    backbone = shaken(name, image_size=32)
    made = export(tmp_path, backbone, "timm", "out.pth")
    images = pixels(32, 32)
    variables = execute(made.snippet, images=images.float() / 255)
    assert type(variables["model"]) is timm.models.resnet.ResNet
    torch.testing.assert_close(variables["features"], features(backbone, images), **CLOSE)
    torch.testing.assert_close(variables["map"], last_map(backbone, images), **CLOSE)


@pytest.mark.parametrize(("name", "format_name"), [("timm:test_vit", "timm"), ("timm:resnet18", "torchvision")])
def test_networks_of_timm(tmp_path, name, format_name):
    """A backbone of timm is exported to timm under its own name, and a plain ResNet of timm to torchvision too."""
    pytest.importorskip("timm")
    backbone = shaken(name)
    torch.save(backbone.network.state_dict(), tmp_path / "mine.pth")
    config = ExportConfig(model=f"{name}@{tmp_path / 'mine.pth'}", format=format_name, out=tmp_path / "out.pth")
    made, size = export_backbone(config), backbone.image_size
    variables = execute(made.snippet, images=pixels(size, size).float() / 255)
    torch.testing.assert_close(variables["features"], features(backbone, pixels(size, size)), **CLOSE)
    assert ("map" in variables) == (name == "timm:resnet18")


def test_the_pooling_of_a_network_of_timm_is_named(tmp_path):
    """The code that loads it says which features the backbone has, and gives the same."""
    pytest.importorskip("timm")
    backbone = make_backbone("timm:test_vit+avg", 3).eval()
    made = export(tmp_path, backbone, "timm", "out.pth")
    assert "# timm:test_vit+avg: its features are pooled by 'avg'" in made.snippet
    size = backbone.image_size
    variables = execute(made.snippet, images=pixels(size, size).float() / 255)
    torch.testing.assert_close(variables["features"], features(backbone, pixels(size, size)), **CLOSE)


def test_conversion_of_timm_resnets():
    """Plain ResNets of timm convert to our ResNet class with the same features; other networks of timm do not."""
    pytest.importorskip("timm")
    backbone = shaken("timm:resnet18")
    with torch.no_grad():
        found = as_resnet(backbone)(backbone.normalize(pixels()))
    torch.testing.assert_close(found, features(backbone), **CLOSE)
    assert as_resnet(make_backbone("timm:test_vit")) is None
    assert as_resnet(make_backbone("timm:resnet10t")) is None


@pytest.fixture(scope="module")
def onnx():
    """The onnx package; skips if a package of the extra is missing."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    return pytest.importorskip("onnx", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def onnx_resnet(onnx, tmp_path_factory):
    """A ResNet with its own normalization, and its ONNX export."""
    backbone = shaken("resnet10-w8")
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    return backbone, export(tmp_path_factory.mktemp("onnx"), backbone, "onnx", "x.onnx")


@pytest.mark.parametrize(("number", "sides"), [(3, (64, 64)), (1, (64, 64)), (3, (32, 32)), (3, (97, 225))], ids=str)
def test_onnx(onnx_resnet, number, sides):
    """The printed code runs the graph on uint8 pixels of any batch and image size and gives the backbone's output."""
    backbone, made = onnx_resnet
    images = pixels(*sides)[:number]
    variables = execute(made.snippet, pixels=images.numpy())
    torch.testing.assert_close(torch.from_numpy(variables["features"]), features(backbone, images), **CLOSE)
    torch.testing.assert_close(torch.from_numpy(variables["map"]), last_map(backbone, images), **CLOSE)


def test_onnx_file(onnx, onnx_resnet):
    """The export is one valid file with the printed opset, named inputs and outputs, and dynamic sizes."""
    _, made = onnx_resnet
    assert [path.name for path in made.path.parent.iterdir()] == ["x.onnx"]
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    (opset,) = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    assert f"opset {opset}" in made.snippet
    (given,) = model.graph.input
    assert (given.name, given.type.tensor_type.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    sides = given.type.tensor_type.shape.dim
    assert [side.dim_param or side.dim_value for side in sides] == ["batch", 3, "height", "width"]
    assert [output.name for output in model.graph.output] == ["features", "map"]
    assert {item.key: item.value for item in model.metadata_props}["name"] == "resnet10-w8"


def test_onnx_of_another_network(onnx, tmp_path):
    """A network that is not a ResNet has a fixed image size and only features."""
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), f"{USER_PREFIX}Small", 8, 32).eval()
    made = export_backbone(ExportConfig(model=f"{USER_PREFIX}Small", format="onnx", out=tmp_path / "x.onnx"), backbone)
    variables = execute(made.snippet, pixels=pixels(32, 32).numpy())
    expected = features(backbone, pixels(32, 32))
    torch.testing.assert_close(torch.from_numpy(variables["features"]), expected, **CLOSE)
    assert "map" not in variables


def test_onnx_of_a_vision_transformer(onnx, tmp_path):
    """The graph has the positions interpolated to the images."""
    backbone = shaken("timm:test_vit")
    backbone.network.blocks, backbone.image_size = backbone.network.blocks[:1], 48  # one block, to save time
    made = export_backbone(ExportConfig(model="x", format="onnx", out=tmp_path / "x.onnx"), backbone)
    found = execute(made.snippet, pixels=pixels(48, 48).numpy())["features"]
    torch.testing.assert_close(torch.from_numpy(found), features(backbone, pixels(48, 48)), **CLOSE)


def test_a_network_that_onnx_cannot_express(onnx, tmp_path, monkeypatch):
    """If the exporter fails, one line says so and no file is written."""

    def fail(*_, **__):
        raise RuntimeError("no operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    config = ExportConfig(model="random:resnet10-small-w4", format="onnx", out=tmp_path / "x.onnx")
    with pytest.raises(UserError, match=r"cannot export resnet10-small-w4 .RuntimeError: no operator."):
        export_backbone(config)
    assert list(tmp_path.iterdir()) == []


def test_onnx_files_are_limited_to_2_gib(monkeypatch):
    """A network with more weights than a protocol buffer can hold is refused beforehand."""
    backbone = make_backbone("resnet10-small-w4")
    assert ONNX.supports(backbone)
    monkeypatch.setattr(formats, "MAX_ONNX_BYTES", 1000)
    assert not ONNX.supports(backbone)


BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
DOCUMENTED = {
    "MODEL.WEIGHTS",
    "MODEL.RESNETS.DEPTH",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "INPUT.FORMAT",
}


def documented(name):
    """Names and shapes of detectron2's ResNet (modeling/backbone/resnet.py): stem, res2 to res5, shortcuts, norms."""
    shapes = {}

    def add(place, out, inner, size):
        shapes[f"{place}.weight"] = (out, inner, size, size)
        shapes.update({f"{place}.norm.{key}": (out,) for key in ("weight", "bias", "running_mean", "running_var")})

    add("stem.conv1", 64, 3, 7)
    is_bottleneck = name == "resnet50"
    inner = 64
    for stage, blocks in enumerate(BLOCKS[name], start=2):
        middle = 64 * 2 ** (stage - 2)
        out = 4 * middle if is_bottleneck else middle
        for block in range(blocks):
            place = f"res{stage}.{block}"
            if inner != out:
                add(f"{place}.shortcut", out, inner, 1)
            if is_bottleneck:
                add(f"{place}.conv1", middle, inner, 1)
                add(f"{place}.conv2", middle, middle, 3)
                add(f"{place}.conv3", out, middle, 1)
            else:
                add(f"{place}.conv1", middle, inner, 3)
                add(f"{place}.conv2", out, middle, 3)
            inner = out
    return shapes


def computed(weights, images, name):
    """Detectron2's forward pass with STRIDE_IN_1X1 False, written from its documentation, in float64."""

    def conv(x, place, stride=1):
        weight = torch.from_numpy(weights[f"{place}.weight"]).double()
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(torch.from_numpy(weights[f"{place}.norm.{key}"]).double() for key in keys))

    x = F.max_pool2d(F.relu(conv(images, "stem.conv1", 2)), 3, 2, 1)
    for stage, blocks in enumerate(BLOCKS[name], start=2):
        for block in range(blocks):
            place, stride = f"res{stage}.{block}", 2 if block == 0 and stage > 2 else 1
            short = conv(x, f"{place}.shortcut", stride) if f"{place}.shortcut.weight" in weights else x
            if name == "resnet50":
                x = F.relu(conv(F.relu(conv(x, f"{place}.conv1")), f"{place}.conv2", stride))
                x = F.relu(conv(x, f"{place}.conv3") + short)
            else:
                x = F.relu(conv(F.relu(conv(x, f"{place}.conv1", stride)), f"{place}.conv2") + short)
    return x.mean((2, 3))


class Portable(pickle.Unpickler):
    """Reads only what every NumPy version can: arrays by their public name."""

    def find_class(self, module, name):
        """Return one of the two names that may occur; another one is a KeyError."""
        return {("numpy", "ndarray"): np.ndarray, ("builtins", "bytearray"): bytearray}[module, name]


class Node(types.SimpleNamespace):
    """A part of detectron2's config, which refuses unknown keys."""

    def __setattr__(self, key, value):
        assert f"{self.place}{key}" in DOCUMENTED
        self.all[f"{self.place}{key}"] = value


def fake_config():
    """The part of detectron2's config that the printed code sets."""
    values = {}
    resnets = Node.__new__(Node)
    model, given, root = Node.__new__(Node), Node.__new__(Node), Node.__new__(Node)
    resnets.__dict__.update(place="MODEL.RESNETS.", all=values)
    model.__dict__.update(place="MODEL.", all=values, RESNETS=resnets)
    given.__dict__.update(place="INPUT.", all=values)
    root.__dict__.update(place="", all=values, MODEL=model, INPUT=given)
    return root


@pytest.fixture
def detectron2(monkeypatch):
    """Modules with detectron2's names that have only a config."""
    parts = {"checkpoint": "DetectionCheckpointer", "config": "get_cfg", "modeling": "build_backbone"}
    monkeypatch.setitem(sys.modules, "detectron2", types.ModuleType("detectron2"))
    for module, name in parts.items():
        made = types.ModuleType(f"detectron2.{module}")
        setattr(made, name, fake_config)
        monkeypatch.setitem(sys.modules, f"detectron2.{module}", made)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 64), ("resnet50", None)])
def test_detectron2(tmp_path, detectron2, name, channels):
    """The file has detectron2's names, shapes and features; the printed settings match the backbone."""
    backbone = shaken(name)
    made = export(tmp_path, backbone, "detectron2", "x.pkl")
    content = Portable(io.BytesIO(made.path.read_bytes())).load()
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    weights = content["model"]
    assert {key: value.shape for key, value in weights.items()} == documented(name)
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}
    assert all(value.flags.writeable for value in weights.values())
    values = execute(made.snippet)["cfg"].all
    assert values["MODEL.WEIGHTS"] == str(made.path)
    assert values["INPUT.FORMAT"] == "RGB"
    assert values["MODEL.PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert values["MODEL.PIXEL_STD"] == [58.395, 57.12, 57.375]
    assert values["MODEL.RESNETS.DEPTH"] == int(name[6:])
    assert values["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert values.get("MODEL.RESNETS.RES2_OUT_CHANNELS") == channels
    images = pixels(32, 32).double()
    mean, std = (torch.tensor(values[f"MODEL.PIXEL_{key}"]).view(3, 1, 1).double() for key in ("MEAN", "STD"))
    found = computed(weights, (images - mean) / std, name)
    torch.testing.assert_close(found.float(), features(backbone, pixels(32, 32)), **CLOSE)
