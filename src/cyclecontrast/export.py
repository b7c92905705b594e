"""A backbone → a file that other tools load, and the lines of code that load it there."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cyclecontrast.callable_module import make_callable
from cyclecontrast.config import ExportConfig
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.files import check_folder, replacing
from cyclecontrast.model.backbone import Backbone
from cyclecontrast.model.checkpoint import BACKBONE_FILE, load_backbone, save_backbone

TORCHVISION_CLASSES = ("resnet18", "resnet34", "resnet50")


@dataclass(frozen=True)
class Export:
    """A written file, and the code that loads it; its text is both."""

    path: Path
    snippet: str

    def __str__(self) -> str:
        return f"wrote {self.path}; this loads it:\n\n{self.snippet}"


class _Format(NamedTuple):
    """How a file of this format is named, which backbones it holds, how it is written and how it is loaded."""

    default: str
    holds: Callable[[Backbone], bool]
    write: Callable[[Backbone, Path], None]
    snippet: Callable[[Backbone, Path], str]


def export(model: str | Path, **settings: Any) -> Export:
    """Write a backbone for other tools; the options are those of `cyclecontrast export`."""
    return export_backbone(checked(ExportConfig, {"model": str(model), **settings}))


def export_backbone(config: ExportConfig) -> Export:
    """Write the backbone in the asked format, in one piece; raises UserError, and then nothing is written."""
    chosen = FORMATS[config.format]
    path = config.out or Path(chosen.default)
    problems: list[str] = []
    attempt(lambda: _check_output(path, config.format), problems)
    backbone = attempt(lambda: load_backbone(config.model, config.seed), problems)
    if backbone is not None and not chosen.holds(backbone):
        fitting = " or ".join(name for name, other in FORMATS.items() if other.holds(backbone))
        problems.append(f"format {config.format}: has no {backbone.name}; what can hold it: {fitting}")
    if backbone is None or problems:
        raise UserError(*problems)
    chosen.write(backbone, path)
    return Export(path, chosen.snippet(backbone, path))


def _check_output(path: Path, name: str) -> None:
    is_safetensors = path.suffix == ".safetensors"
    if is_safetensors != (name == "safetensors"):
        must = "must end in .safetensors" if name == "safetensors" else "must not end in .safetensors"
        raise UserError(f"out: {path} {must}, for files are read as what their name says")
    for existing in (path, path.with_suffix(".json")) if is_safetensors else (path,):
        if existing.exists():
            raise UserError(f"out: {existing} exists; name another file with --out, or delete it")
    check_folder(path.absolute().parent)


def _write_safetensors(backbone: Backbone, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as aside:
        save_backbone(backbone, Path(aside))
        (Path(aside) / BACKBONE_FILE).with_suffix(".json").rename(path.with_suffix(".json"))
        (Path(aside) / BACKBONE_FILE).rename(path)


def _load_safetensors(backbone: Backbone, path: Path) -> str:
    size = backbone.image_size
    return f"""import cyclecontrast

backbone = cyclecontrast.load_backbone({str(path)!r})
# pixels: uint8 (batch, 3, height, width), RGB; trained at {size} x {size}
# features = backbone(backbone.normalise(pixels))   # (batch, {backbone.dim})
"""


def _torchvision_class(backbone: Backbone) -> str:
    """Return the class that has this network; timm's plain ResNets carry the same names and compute the same."""
    return backbone.name.removeprefix("timm:").partition(".")[0]


def _write_torchvision(backbone: Backbone, path: Path) -> None:
    weights = {key: value.detach().cpu().contiguous() for key, value in backbone.network.state_dict().items()}
    with replacing(path) as aside:
        torch.save(weights, aside)


def _load_torchvision(backbone: Backbone, path: Path) -> str:
    size = backbone.image_size
    return f"""import torch
import torchvision

model = torchvision.models.{_torchvision_class(backbone)}()
weights = torch.load({str(path)!r}, weights_only=True)
missing, unknown = model.load_state_dict(weights, strict=False)
assert set(missing) == {{"fc.weight", "fc.bias"}} and not unknown
model.fc = torch.nn.Identity()   # or a classifier of your own on {backbone.dim} features
model.eval()
normalize = torchvision.transforms.Normalize({list(backbone.mean)}, {list(backbone.std)})
# images: float (batch, 3, height, width), RGB from 0 to 1; trained at {size} x {size}
# features = model(normalize(images))   # (batch, {backbone.dim})
"""


FORMATS = {
    "safetensors": _Format(BACKBONE_FILE, lambda backbone: True, _write_safetensors, _load_safetensors),
    "torchvision": _Format(
        "backbone.pth",
        lambda backbone: _torchvision_class(backbone) in TORCHVISION_CLASSES,
        _write_torchvision,
        _load_torchvision,
    ),
}

make_callable(__name__)
