"""The command `export`: which format supports which backbone, and what is refused before anything is written."""

import importlib.util
import os

import pytest

from cyclecontrast.config import ExportConfig
from cyclecontrast.errors import UserError
from cyclecontrast.exporting.export import FORMATS, export_backbone
from cyclecontrast.models.backbone import Backbone, make_backbone
from cyclecontrast.models.checkpoint import fingerprint
from tests.make_backbones import Net, seeded


@pytest.mark.parametrize("name", ["resnet18-small", "resnet18-w32", "resnet10", "resnet50-small-w16"])
def test_an_unsupported_backbone_is_refused(tmp_path, name):
    """A backbone that torchvision has no class for is refused with the formats that support it; nothing is written."""
    config = ExportConfig(model=f"random:{name}", format="torchvision", out=tmp_path / "out" / "x.pth")
    with pytest.raises(UserError, match=rf"does not support {name}; use safetensors or ") as caught:
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
        ("timm:resnet18.a1_in1k", "safetensors torchvision timm onnx detectron2 huggingface"),
        ("timm:test_vit", "safetensors timm onnx"),
    ],
)
def test_supported_formats(name, formats):
    """Each format supports exactly the networks that its tool can build."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    backbone = make_backbone(name)
    assert [key for key, kind in FORMATS.items() if kind.supports(backbone)] == formats.split()


OUTPUTS = [("safetensors", "x.safetensors"), ("torchvision", "x.pth"), ("detectron2", "x.pkl"), ("huggingface", "x")]


@pytest.mark.parametrize(("format_name", "name"), OUTPUTS)
def test_an_existing_file_is_kept(tmp_path, format_name, name):
    """An existing output is reported and not overwritten."""
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"{name} already exists"):
        export_backbone(ExportConfig(model="random:resnet18", format=format_name, out=tmp_path / name))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_an_existing_description_is_kept(tmp_path):
    """The description beside a safetensors file is not overwritten either."""
    (tmp_path / "x.json").write_text("precious")
    with pytest.raises(UserError, match=r"x\.json already exists"):
        export_backbone(ExportConfig(model="random:resnet10-small-w4", out=tmp_path / "x.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(("format_name", "name"), OUTPUTS)
def test_an_export_can_be_repeated(tmp_path, monkeypatch, format_name, name):
    """An export that was killed after writing all files or the first, or that another repeats, succeeds again.

    The files are the same, name no host or process, and have the permissions of every new file.
    """
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
    backbone = make_backbone("resnet18")
    config = ExportConfig(model="random:resnet18", format=format_name, out=tmp_path / name)
    export_backbone(config, backbone)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert all(str(os.getpid()).encode() not in content for content in files.values())
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in files} == {(tmp_path / "new").stat().st_mode}
    (tmp_path / "new").unlink()
    export_backbone(config, backbone)
    if format_name == "safetensors":
        (tmp_path / name).unlink()
        export_backbone(config, backbone)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_all_mistakes_are_reported_at_once(tmp_path):
    """A wrong suffix and an unknown model are reported together."""
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
def test_misleading_suffixes_are_refused(tmp_path, format_name, name, problem):
    """The suffix must not belong to another format, because tools go by it."""
    with pytest.raises(UserError, match=problem):
        export_backbone(ExportConfig(model="random:resnet10-small-w4", format=format_name, out=tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_reported(tmp_path, monkeypatch):
    """If a module that a format needs is not installed, one line says which one and how to install it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserError) as caught:
        export_backbone(ExportConfig(model="random:resnet10-small-w4", format="onnx", out=tmp_path / "x.onnx"))
    (problem,) = caught.value.problems
    assert problem.endswith("onnxscript not installed; pip install 'cyclecontrast[onnx]'")
    assert list(tmp_path.iterdir()) == []


def test_default_name_and_text(tmp_path, monkeypatch):
    """Without --out the file is in the current folder; the text of the result names it and shows the code."""
    monkeypatch.chdir(tmp_path)
    made = export_backbone(ExportConfig(model="random:resnet10-small-w4"))
    assert (tmp_path / "backbone.safetensors").exists()
    assert "backbone.safetensors" in str(made)
    assert made.snippet in str(made)


def test_every_format_of_the_option_is_implemented():
    """The choices of --format and the implemented formats are the same."""
    assert set(FORMATS) == set(ExportConfig.model_fields["format"].annotation.__args__)


def test_a_users_network_is_exported_as_its_weights(tmp_path):
    """Formats of tools that know ResNets refuse it with those that support it; its own file loads as printed."""
    backbone = Backbone(seeded(Net).eval(), "own:Net", 6, 16)
    for name, file in (("torchvision", "x.pth"), ("timm", "x.pth"), ("detectron2", "x.pkl")):
        with pytest.raises(UserError, match=r"does not support own:Net; use safetensors or onnx"):
            export_backbone(ExportConfig(model="own:Net", format=name, out=tmp_path / file), backbone)
    made = export_backbone(ExportConfig(model="own:Net", out=tmp_path / "x.safetensors"), backbone)
    variables = {"Net": Net}
    exec(made.snippet, variables)
    assert fingerprint(variables["backbone"]) == fingerprint(backbone)
