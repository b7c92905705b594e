"""The pickle for detectron2, which cannot be installed here: its documented names, shapes and blocks are the oracle."""

import io
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cyclecontrast.config import ExportConfig
from cyclecontrast.exporting.command import export_backbone
from cyclecontrast.models.checkpoint import save_backbone
from tests.make_backbones import execute, features, pixels, shaken

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
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
    """Reads what every NumPy can: arrays by their public name, nothing by an inner module's."""

    def find_class(self, module, name):
        """Return one of the two names that may occur."""
        return {("numpy", "ndarray"): np.ndarray, ("builtins", "bytearray"): bytearray}[module, name]


class Node(types.SimpleNamespace):
    """A part of detectron2's config, which takes no key that it does not know."""

    def __setattr__(self, key, value):
        assert f"{self.place}{key}" in DOCUMENTED
        self.all[f"{self.place}{key}"] = value


def fake_config():
    """The part of detectron2's config that the snippet sets."""
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
    """Modules of detectron2's names, with a config alone."""
    parts = {"checkpoint": "DetectionCheckpointer", "config": "get_cfg", "modeling": "build_backbone"}
    monkeypatch.setitem(sys.modules, "detectron2", types.ModuleType("detectron2"))
    for module, name in parts.items():
        made = types.ModuleType(f"detectron2.{module}")
        setattr(made, name, fake_config)
        monkeypatch.setitem(sys.modules, f"detectron2.{module}", made)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_names_shapes_and_features(tmp_path, detectron2, name):
    """The file has MoCo's keys, detectron2's names and shapes, and weights that compute the same features there."""
    backbone = shaken(name)
    save_backbone(backbone, tmp_path)
    made = export_backbone(ExportConfig(model=str(tmp_path), format="detectron2", out=tmp_path / "x.pkl"))
    content = Portable(io.BytesIO(made.path.read_bytes())).load()
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    weights = content["model"]
    assert {key: value.shape for key, value in weights.items()} == documented(name)
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}
    assert all(value.flags.writeable for value in weights.values())
    values = execute(made.snippet)["cfg"].all
    images = pixels().double()
    mean, std = (torch.tensor(values[f"MODEL.PIXEL_{key}"]).view(3, 1, 1).double() for key in ("MEAN", "STD"))
    found = computed(weights, (images - mean) / std, name)
    torch.testing.assert_close(found.float(), features(backbone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 64), ("resnet50", None)])
def test_the_config_that_it_needs(tmp_path, detectron2, name, channels):
    """The printed lines say RGB, the means of 0 to 255, the depth, and for basic blocks the channels of res2."""
    made = export_backbone(ExportConfig(model=f"random:{name}", format="detectron2", out=tmp_path / "x.pkl"))
    values = execute(made.snippet)["cfg"].all
    assert values["MODEL.WEIGHTS"] == str(tmp_path / "x.pkl")
    assert values["INPUT.FORMAT"] == "RGB"
    assert values["MODEL.PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert values["MODEL.PIXEL_STD"] == [58.395, 57.12, 57.375]
    assert values["MODEL.RESNETS.DEPTH"] == int(name[6:])
    assert values["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert values.get("MODEL.RESNETS.RES2_OUT_CHANNELS") == channels
