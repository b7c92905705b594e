"""Exports are loaded by the printed lines of code themselves, and must compute what the backbone computes."""

import importlib.util

import pytest
import torch

from cyclecontrast.config import ExportConfig
from cyclecontrast.errors import UserError
from cyclecontrast.exporting.command import FORMATS, export_backbone
from cyclecontrast.exporting.formats import as_resnet
from cyclecontrast.models.backbone import guarded_torchvision, make_backbone
from cyclecontrast.models.checkpoint import load_backbone, save_backbone
from tests.make_backbones import execute, features, last_map, pixels, shaken


@pytest.mark.parametrize("name", ["resnet18", "resnet10-small-w4"])
def test_safetensors_snippet(tmp_path, name):
    """The lines printed for safetensors load the same backbone: architecture, size, normalisation and features."""
    backbone = shaken(name)
    backbone.mean = (0.1, 0.2, 0.3)
    save_backbone(backbone, tmp_path)
    made = export_backbone(ExportConfig(model=str(tmp_path), out=tmp_path / "out" / "mine.safetensors"))
    variables = execute(made.snippet, pixels=pixels())
    loaded = variables["backbone"]
    assert (loaded.name, loaded.image_size, loaded.mean) == (name, 64, (0.1, 0.2, 0.3))
    torch.testing.assert_close(variables["features"], features(backbone), atol=1e-5, rtol=0)
    torch.testing.assert_close(variables["map"], last_map(backbone), atol=1e-5, rtol=0)
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["mine.json", "mine.safetensors"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_snippet(tmp_path, name):
    """The lines printed for torchvision load its own class, whose features and map are the backbone's."""
    backbone = shaken(name)
    save_backbone(backbone, tmp_path)
    made = export_backbone(ExportConfig(model=str(tmp_path), format="torchvision", out=tmp_path / "out.pth"))
    variables = execute(made.snippet, images=pixels().float() / 255)
    assert type(variables["model"]) is guarded_torchvision().models.ResNet
    torch.testing.assert_close(variables["features"], features(backbone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variables["map"], last_map(backbone), atol=1e-5, rtol=1e-5)


def test_torchvision_file_is_a_plain_state_dict(tmp_path):
    """The torchvision file holds tensors by name and nothing else, without a classifier, and is a MODEL again."""
    path = tmp_path / "out.pth"
    export_backbone(ExportConfig(model="random:resnet18", format="torchvision", out=path, seed=3))
    weights = torch.load(path, weights_only=True)
    assert type(weights) is dict
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert not any(key.startswith("fc.") for key in weights)
    torch.testing.assert_close(features(load_backbone(path)), features(load_backbone("random:resnet18", 3)))


def test_plain_resnet_of_timm(tmp_path):
    """A plain ResNet of timm has torchvision's names and computes the same there."""
    pytest.importorskip("timm")
    backbone = shaken("resnet18")
    torch.save(backbone.network.state_dict(), tmp_path / "timm.pth")
    model = f"timm:resnet18@{tmp_path / 'timm.pth'}"
    made = export_backbone(ExportConfig(model=model, format="torchvision", out=tmp_path / "out.pth"))
    variables = execute(made.snippet, images=pixels().float() / 255)
    torch.testing.assert_close(variables["features"], features(load_backbone(model)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "resnet10", "resnet50"])
def test_timm_snippet(tmp_path, name):
    """The lines printed for timm make its own network with these weights: same features, same map."""
    timm = pytest.importorskip("timm")
    backbone = shaken(name)
    save_backbone(backbone, tmp_path)
    made = export_backbone(ExportConfig(model=str(tmp_path), format="timm", out=tmp_path / "out.pth"))
    variables = execute(made.snippet, images=pixels().float() / 255)
    assert type(variables["model"]) is timm.models.resnet.ResNet
    torch.testing.assert_close(variables["features"], features(backbone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variables["map"], last_map(backbone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:resnet18"])
def test_timms_own_networks_go_back_to_timm(tmp_path, name):
    """A backbone of timm is loaded by timm under its own name, with its own normalisation."""
    pytest.importorskip("timm")
    backbone = shaken(name)
    torch.save(backbone.network.state_dict(), tmp_path / "mine.pth")
    made = export_backbone(
        ExportConfig(model=f"{name}@{tmp_path / 'mine.pth'}", format="timm", out=tmp_path / "out.pth")
    )
    size = backbone.image_size
    variables = execute(made.snippet, images=pixels(size, size).float() / 255)
    expected = features(backbone, pixels(size, size))
    torch.testing.assert_close(variables["features"], expected, atol=1e-5, rtol=1e-5)
    assert ("map" in variables) == (name == "timm:resnet18")


def test_a_plain_resnet_of_timm_is_one_of_ours():
    """Formats that need the stages of a ResNet take timm's plain ones too, and no other network of timm."""
    pytest.importorskip("timm")
    backbone = shaken("timm:resnet18")
    with torch.no_grad():
        found = as_resnet(backbone)(backbone.normalise(pixels()))
    torch.testing.assert_close(found, features(backbone), atol=1e-5, rtol=0)
    assert as_resnet(make_backbone("timm:test_vit")) is None
    assert as_resnet(make_backbone("timm:resnet10t")) is None


@pytest.mark.parametrize("name", ["resnet18-small", "resnet18-w32", "resnet10", "resnet50-small-w16"])
def test_no_class_in_torchvision(tmp_path, name):
    """A backbone that torchvision has no class for is refused with the formats that hold it; nothing is written."""
    config = ExportConfig(model=f"random:{name}", format="torchvision", out=tmp_path / "out" / "x.pth")
    with pytest.raises(UserError, match=rf"{name}; what can hold it: safetensors or ") as caught:
        export_backbone(config)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("resnet34", "safetensors torchvision timm onnx detectron2 huggingface"),
        ("resnet10", "safetensors timm onnx huggingface"),
        ("resnet18-w32", "safetensors onnx huggingface"),
        ("resnet18-small", "safetensors onnx"),
        ("timm:resnet50.a1_in1k", "safetensors torchvision timm onnx detectron2 huggingface"),
        ("timm:test_vit", "safetensors timm onnx"),
    ],
)
def test_which_format_holds_what(name, formats):
    """Each format holds what the tool behind it can be told to be, and no more."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    backbone = make_backbone(name)
    assert [key for key, kind in FORMATS.items() if kind.holds(backbone)] == formats.split()


@pytest.mark.parametrize(
    ("format_name", "name"),
    [
        ("safetensors", "x.safetensors"),
        ("torchvision", "x.pth"),
        ("timm", "x.pth"),
        ("onnx", "x.onnx"),
        ("detectron2", "x.pkl"),
        ("huggingface", "x"),
    ],
)
def test_existing_file_is_kept(tmp_path, format_name, name):
    """An existing output is named and left as it is."""
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"{name} exists"):
        export_backbone(ExportConfig(model="random:resnet18", format=format_name, out=tmp_path / name))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_existing_description_is_kept(tmp_path):
    """The description beside the weights is not overwritten either."""
    (tmp_path / "x.json").write_text("precious")
    with pytest.raises(UserError, match=r"x\.json exists"):
        export_backbone(ExportConfig(model="random:resnet10-small-w4", out=tmp_path / "x.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_all_mistakes_at_once(tmp_path):
    """A wrong suffix and a wrong model are told together."""
    with pytest.raises(UserError) as caught:
        export_backbone(ExportConfig(model="random:resnet99", out=tmp_path / "x.pth"))
    assert ["must end in .safetensors" in problem for problem in caught.value.problems] == [True, False]


@pytest.mark.parametrize(
    ("format_name", "name", "problem"),
    [
        ("detectron2", "x.pth", r"must end in \.pkl"),
        ("onnx", "x", r"must end in \.onnx"),
        ("timm", "x.safetensors", r"must not end in \.safetensors"),
        ("huggingface", "x.pkl", r"must not end in \.pkl"),
    ],
)
def test_names_that_tools_would_misread(tmp_path, format_name, name, problem):
    """A name must not say another format than the file has, for tools go by it."""
    with pytest.raises(UserError, match=problem):
        export_backbone(ExportConfig(model="random:resnet18", format=format_name, out=tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    """Where a module of a format is not installed, one line says which and how to install it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserError) as caught:
        export_backbone(ExportConfig(model="random:resnet10-small-w4", format="onnx", out=tmp_path / "x.onnx"))
    (problem,) = caught.value.problems
    assert problem.endswith("onnxscript missing; pip install 'cyclecontrast[onnx]'")
    assert list(tmp_path.iterdir()) == []


def test_default_name_and_text(tmp_path, monkeypatch):
    """Without --out the file lies in the current folder, and the text names it and shows the code."""
    monkeypatch.chdir(tmp_path)
    made = export_backbone(ExportConfig(model="random:resnet10-small-w4"))
    assert (tmp_path / "backbone.safetensors").exists()
    assert "backbone.safetensors" in str(made)
    assert made.snippet in str(made)


def test_formats_are_those_of_the_option():
    """Every format that the option offers is implemented."""
    assert set(FORMATS) == set(ExportConfig.model_fields["format"].annotation.__args__)
