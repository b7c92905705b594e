"""File formats of other tools: safetensors, torchvision, timm, ONNX, detectron2.

Each has a function that writes a backbone, and a template of the code that loads it.
"""

import contextlib
import io
import logging
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor, nn

from cyclecontrast.config.types import RESNET, USER_PREFIX, is_user_defined
from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import Backbone, ResNet, make_backbone, pooled
from cyclecontrast.models.checkpoint import BACKBONE_FILE, save_backbone
from cyclecontrast.models.foreign_checkpoint import Renaming, renamed
from cyclecontrast.output import markdown

PLAIN_TIMM_RESNETS = ("resnet18", "resnet34", "resnet50")
"""Networks of timm with torchvision's parameter names and the same computation."""
ONNX_OPSET = 18
MAX_ONNX_BYTES = 2**31 - 2**20
"""Protocol buffers are limited to 2 GiB, which includes the graph itself."""


class Format(NamedTuple):
    """An export format.

    `default` is the output path without --out; `suffix` is the required suffix (empty: any suffix of no other format);
    `supports(backbone)` returns whether the backbone can be exported; `write(backbone, path, model)` writes it, where
    `model` is the MODEL given by the user; `modules` must be installed (extra with the name of the format).
    """

    default: str
    suffix: str
    supports: Callable[[Backbone], bool]
    write: Callable[[Backbone, Path, str], None]
    modules: tuple[str, ...] = ()


class ResNetShape(NamedTuple):
    """The architecture of a ResNet: depth, width of the stem, and whether the stem is small (3x3, no max-pool)."""

    depth: int
    width: int
    is_small: bool


def resnet_shape(backbone: Backbone) -> ResNetShape | None:
    """Return the shape of a ResNet with torchvision's parameter names (built-in or plain timm ResNets).

    Otherwise None.
    """
    name = backbone.name
    if name.startswith("timm:"):
        name = name.removeprefix("timm:").partition(".")[0]
        return ResNetShape(int(name.removeprefix("resnet")), 64, False) if name in PLAIN_TIMM_RESNETS else None
    match = RESNET.fullmatch(name)
    return ResNetShape(int(match[1]), int(match[3] or 64), match[2] is not None) if match else None


def in_torchvision(backbone: Backbone) -> bool:
    """Return whether torchvision has a class for this network."""
    shape = resnet_shape(backbone)
    return shape is not None and shape.depth != 10 and shape.width == 64 and not shape.is_small


def as_resnet(backbone: Backbone) -> ResNet | None:
    """Return the network as our ResNet class (plain ones of timm are converted); None if it is not a ResNet."""
    if isinstance(backbone.network, ResNet):
        return backbone.network
    shape = resnet_shape(backbone)
    if shape is None:
        return None
    network = make_backbone(f"resnet{shape.depth}").network.eval()
    network.load_state_dict(backbone.network.state_dict())
    assert isinstance(network, ResNet)
    return network


def render(template: str, backbone: Backbone, **values: Any) -> str:
    """Return the rendered template `templates/<template>` for a backbone.

    In Markdown every value is escaped, except those that are `Markup`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cyclecontrast.exporting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_to_markdown if template.endswith(".md") else None,
    )
    environment.filters["basename"] = lambda path: Path(path).name
    size = f"{backbone.image_size} x {backbone.image_size}"
    return environment.get_template(template).render(backbone=backbone, size=size, **values)


def _to_markdown(value: Any) -> str:
    return value if isinstance(value, Markup) else markdown(str(value))


def snippet(name: str, backbone: Backbone, path: Path) -> str:
    """Return the code that loads a backbone in the format of this name."""
    return render(
        f"{name}.txt",
        backbone,
        file=repr(str(path)),
        resnet=resnet_shape(backbone),
        user_class=backbone.name.removeprefix(USER_PREFIX) if is_user_defined(backbone.name) else "",
        opset=ONNX_OPSET,
    )


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    """Return the parameters and statistics by name, contiguous and on the CPU."""
    return {key: value.detach().cpu().contiguous() for key, value in backbone.network.state_dict().items()}


def _write_safetensors(backbone: Backbone, path: Path, _: str) -> None:
    weights = save_backbone(backbone, path.parent)
    weights.with_suffix(".json").rename(path.with_suffix(".json"))
    weights.rename(path)


def _write_state_dict(backbone: Backbone, path: Path, _: str) -> None:
    buffer = io.BytesIO()  # writing to a file, PyTorch would hide that the disk is full
    torch.save(weights_of(backbone), buffer)
    path.write_bytes(buffer.getbuffer())


def _in_timm(backbone: Backbone) -> bool:
    """Return whether timm can build this network: its own ones, and ResNets with the standard stem of 64 channels."""
    shape = resnet_shape(backbone)
    return backbone.name.startswith("timm:") or (shape is not None and shape.width == 64 and not shape.is_small)


class _PixelsToFeatures(nn.Module):
    """Pixels uint8 (batch, 3, h, w) → features, and for a ResNet also the map of its last stage.

    Normalization is part of the graph, so that users cannot forget it.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = as_resnet(backbone) or backbone.network
        self.mean = nn.Buffer(torch.tensor(backbone.mean).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(backbone.std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        images = (pixels.float() / 255 - self.mean) / self.std
        if isinstance(self.network, ResNet):
            map_ = self.network.stage(images, 4)
            return self.network.avgpool(map_).flatten(1), map_
        return (pooled(self.network(images)),)


def _write_onnx(backbone: Backbone, path: Path, _: str) -> None:
    program = _onnx_program(backbone)
    program.model.metadata_props.update(
        {"name": backbone.name, "source": backbone.source, "image_size": str(backbone.image_size)}
    )
    program.save(path, external_data=False)


def _onnx_program(backbone: Backbone) -> Any:
    """Return the exporter's program. Raises UserError if PyTorch cannot express the network in ONNX."""
    graph, size = _PixelsToFeatures(backbone).eval(), backbone.image_size
    is_resnet = isinstance(graph.network, ResNet)
    dynamic = {0: "batch", 2: "height", 3: "width"} if is_resnet else {0: "batch"}
    # Height and width differ, because the exporter could take equal sides for one dimension.
    pixels = torch.zeros(2, 3, size, size + 32 if is_resnet else size, dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # ignore the exporter's own warnings
        disabled = logging.root.manager.disable
        logging.disable(max(disabled, logging.WARNING))
        try:
            return torch.onnx.export(
                graph,
                (pixels,),
                dynamo=True,
                dynamic_shapes=(dynamic,),
                opset_version=ONNX_OPSET,
                input_names=["pixels"],
                output_names=["features", "map"] if is_resnet else ["features"],
                verbose=False,
            )
        except Exception as error:  # tracing a network can raise anything
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise UserError(
                f"format onnx: PyTorch cannot export {backbone.name} ({reason}); choose another format"
            ) from error
        finally:
            logging.disable(disabled)


def _fits_onnx(backbone: Backbone) -> bool:
    return sum(value.numel() * value.element_size() for value in backbone.parameters()) < MAX_ONNX_BYTES


DETECTRON2_NAMES: Renaming = (
    (r"^(?=conv1|bn1)", "stem."),
    (r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}"),
    (r"\bbn(\d)\b", r"conv\1.norm"),
    (r"\bdownsample\.0\b", "shortcut"),
    (r"\bdownsample\.1\b", "shortcut.norm"),
)


def _write_detectron2(backbone: Backbone, path: Path, _: str) -> None:
    weights = {
        renamed(key, DETECTRON2_NAMES): value.numpy()
        for key, value in weights_of(backbone).items()
        if not key.endswith("num_batches_tracked")  # detectron2's frozen batch norm has none
    }
    content = {"model": weights, "__author__": "cyclecontrast", "matching_heuristics": True}
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=4)
    # Pickle arrays through their public constructor, because NumPy 1 cannot import the private modules that NumPy 2
    # uses.
    pickler.dispatch_table = {np.ndarray: _rebuild_array}
    pickler.dump(content)
    path.write_bytes(buffer.getvalue())


def _rebuild_array(array: NDArray[Any]) -> tuple[type[NDArray[Any]], tuple[Any, ...]]:
    return np.ndarray, (array.shape, array.dtype.str, bytearray(array.tobytes()))


SAFETENSORS = Format(BACKBONE_FILE, ".safetensors", lambda backbone: True, _write_safetensors)
TORCHVISION = Format("backbone.pth", "", in_torchvision, _write_state_dict)
TIMM = Format("backbone.pth", "", _in_timm, _write_state_dict)
ONNX = Format("backbone.onnx", ".onnx", _fits_onnx, _write_onnx, ("onnx", "onnxruntime", "onnxscript"))
DETECTRON2 = Format("backbone.pkl", ".pkl", in_torchvision, _write_detectron2)
