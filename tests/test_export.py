"""Exports are loaded by the printed lines of code themselves, and must compute what the backbone computes."""

import pytest
import torch

from cyclecontrast.config import ExportConfig
from cyclecontrast.errors import UserError
from cyclecontrast.export import FORMATS, export_backbone
from cyclecontrast.model.backbone import guarded_torchvision, make_backbone
from cyclecontrast.model.checkpoint import load_backbone, save_backbone


def shaken(name, seed=0):
    """A backbone whose every weight and statistic differs from its initial value."""
    backbone = make_backbone(name, seed, image_size=64).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, value in backbone.network.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.mul_(0.8 + 0.4 * noise) if "weight" in key else value.add_(0.1 * noise)
    return backbone


def pixels():
    """Three random images."""
    return torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def execute(snippet):
    """Run the printed code as a user would, and return its variables."""
    guarded_torchvision()
    variables = {}
    exec(snippet, variables)
    return variables


def features(backbone):
    """What the backbone computes for the random images."""
    with torch.no_grad():
        return backbone(backbone.normalise(pixels()))


@pytest.mark.parametrize("name", ["resnet18", "resnet10-small-w4"])
def test_safetensors_snippet(tmp_path, name):
    """The lines printed for safetensors load the same backbone: architecture, size, normalisation and features."""
    backbone = shaken(name)
    backbone.mean = (0.1, 0.2, 0.3)
    save_backbone(backbone, tmp_path)
    made = export_backbone(ExportConfig(model=str(tmp_path), out=tmp_path / "out" / "mine.safetensors"))
    loaded = execute(made.snippet)["backbone"]
    assert (loaded.name, loaded.image_size, loaded.mean) == (name, 64, (0.1, 0.2, 0.3))
    torch.testing.assert_close(features(loaded), features(backbone), atol=1e-5, rtol=0)
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["mine.json", "mine.safetensors"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_snippet(tmp_path, name):
    """The lines printed for torchvision load its own class, whose features are the backbone's."""
    backbone = shaken(name)
    save_backbone(backbone, tmp_path)
    made = export_backbone(ExportConfig(model=str(tmp_path), format="torchvision", out=tmp_path / "out.pth"))
    variables = execute(made.snippet)
    assert type(variables["model"]) is guarded_torchvision().models.ResNet
    with torch.no_grad():
        found = variables["model"](variables["normalize"](pixels().float() / 255))
    torch.testing.assert_close(found, features(backbone), atol=1e-5, rtol=1e-5)


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
    variables = execute(made.snippet)
    with torch.no_grad():
        found = variables["model"](variables["normalize"](pixels().float() / 255))
    torch.testing.assert_close(found, features(load_backbone(model)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18-small", "resnet18-w32", "resnet10", "resnet50-small-w16"])
def test_no_class_in_torchvision(tmp_path, name):
    """A backbone that torchvision has no class for is refused with the format that can hold it; nothing is written."""
    config = ExportConfig(model=f"random:{name}", format="torchvision", out=tmp_path / "out" / "x.pth")
    with pytest.raises(UserError, match=rf"{name}.* safetensors$"):
        export_backbone(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("format_name", "name"), [("safetensors", "x.safetensors"), ("torchvision", "x.pth")])
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
