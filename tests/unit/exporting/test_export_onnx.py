"""The ONNX graph, run by onnxruntime: pixels in, features and map out, at any batch and image size."""

import pytest
import torch

from cyclecontrast.config import ExportConfig
from cyclecontrast.errors import UserError
from cyclecontrast.exporting.command import export_backbone
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import save_backbone
from tests.make_backbones import execute, features, last_map, pixels, shaken

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


def close(found, expected):
    """Whether onnxruntime computes the same, to 1e-4."""
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A backbone with a normalisation of its own, and its export."""
    folder = tmp_path_factory.mktemp("onnx")
    backbone = shaken("resnet18-w8")
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    save_backbone(backbone, folder)
    return backbone, export_backbone(ExportConfig(model=str(folder), format="onnx", out=folder / "out" / "x.onnx"))


@pytest.mark.parametrize("sides", [(64, 64), (32, 32), (97, 225)], ids=str)
def test_onnx_snippet_takes_any_size(resnet, sides):
    """The printed lines run the graph on uint8 pixels of sizes it was not traced with, and agree to 1e-4."""
    backbone, made = resnet
    images = pixels(*sides)
    variables = execute(made.snippet, pixels=images.numpy())
    close(variables["features"], features(backbone, images))
    close(variables["map"], last_map(backbone, images))


def test_onnx_batch_of_one(resnet):
    """A single image is a batch too, and its features do not depend on the others."""
    backbone, made = resnet
    variables = execute(made.snippet, pixels=pixels()[:1].numpy())
    close(variables["features"], features(backbone)[:1])


def test_onnx_file_says_what_it_is(resnet):
    """One file, valid, of the opset that is printed, with named inputs, outputs and free sides."""
    _, made = resnet
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
    assert {item.key: item.value for item in model.metadata_props}["name"] == "resnet18-w8"


def test_onnx_of_another_network(tmp_path):
    """A network of timm that is no ResNet keeps its image size, and gives features alone."""
    pytest.importorskip("timm")
    backbone = shaken("timm:test_vit")
    torch.save(backbone.network.state_dict(), tmp_path / "mine.pth")
    model = f"timm:test_vit@{tmp_path / 'mine.pth'}"
    made = export_backbone(ExportConfig(model=model, format="onnx", out=tmp_path / "x.onnx"))
    size = backbone.image_size
    variables = execute(made.snippet, pixels=pixels(size, size).numpy())
    close(variables["features"], features(backbone, pixels(size, size)))
    assert "map" not in variables


def test_what_cannot_be_traced_is_told(tmp_path, monkeypatch):
    """Where the exporter fails, one line says so, and no file is left."""

    def fail(*_, **__):
        raise RuntimeError("no operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    config = ExportConfig(model="random:resnet10-small-w4", format="onnx", out=tmp_path / "x.onnx")
    with pytest.raises(UserError, match=r"cannot write resnet10-small-w4 .RuntimeError: no operator.; name another"):
        export_backbone(config)
    assert list(tmp_path.iterdir()) == []


def test_what_is_too_large_for_one_file(monkeypatch):
    """Protocol buffers end at 2 GiB: larger networks are refused beforehand."""
    from cyclecontrast.exporting import onnx_graph

    backbone = make_backbone("resnet10-small-w4")
    assert onnx_graph.ONNX.holds(backbone)
    monkeypatch.setattr(onnx_graph, "MOST_BYTES", 1000)
    assert not onnx_graph.ONNX.holds(backbone)
