"""A backbone → an ONNX graph from pixels to features: normalisation is inside, so that no user can forget it."""

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from cyclecontrast.errors import UserError
from cyclecontrast.exporting.formats import Format, Job, as_resnet
from cyclecontrast.files import replacing
from cyclecontrast.models.backbone import Backbone, ResNet, pooled

OPSET = 18
MOST_BYTES = 2**31 - 2**20
"""Protocol buffers end at 2 GiB, and the graph itself takes some of it."""


class _Graph(nn.Module):
    """Pixels uint8 (batch, 3, h, w) → features, and of a ResNet the map of its last stage."""

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


def _write(job: Job) -> None:
    program = _traced(job.backbone)
    about = {"name": job.backbone.name, "source": job.backbone.source, "image_size": str(job.backbone.image_size)}
    program.model.metadata_props.update(about)
    with replacing(job.path) as aside:
        program.save(aside, external_data=False)


def _traced(backbone: Backbone) -> Any:
    """Return the exporter's program; raises UserError where PyTorch has no ONNX for the network."""
    graph, size = _Graph(backbone).eval(), backbone.image_size
    is_resnet = isinstance(graph.network, ResNet)
    free = {0: "batch", 2: "height", 3: "width"} if is_resnet else {0: "batch"}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        try:
            return torch.onnx.export(
                graph,
                # Sides that differ, for equal ones could be taken for one another.
                (torch.zeros(2, 3, size, size + 32 if is_resnet else size, dtype=torch.uint8),),
                dynamo=True,
                dynamic_shapes=(free,),
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["features", "map"] if is_resnet else ["features"],
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever the network leads to
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise UserError(f"format onnx: PyTorch cannot write {backbone.name} ({reason}); name another") from error


def _snippet(job: Job) -> str:
    backbone, size = job.backbone, job.backbone.image_size
    is_resnet = as_resnet(backbone) is not None
    sides = f"height, width), RGB; trained at {size} x {size}" if is_resnet else f"{size}, {size}), RGB"
    outputs = "features, map" if is_resnet else "(features,)"
    shapes = f"(batch, {backbone.dim})" + (f" and (batch, {backbone.dim}, h, w)" if is_resnet else "")
    return f"""import onnxruntime

session = onnxruntime.InferenceSession({str(job.path)!r})   # opset {OPSET}
# pixels: uint8 array (batch, 3, {sides}; the graph normalises them itself
# {outputs} = session.run(None, {{"pixels": pixels}})   # {shapes}
"""


def _is_small_enough(backbone: Backbone) -> bool:
    return sum(value.numel() * value.element_size() for value in backbone.parameters()) < MOST_BYTES


ONNX = Format("backbone.onnx", ".onnx", _is_small_enough, _write, _snippet, ("onnx", "onnxruntime", "onnxscript"))
