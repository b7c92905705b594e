"""A backbone → a pickle with detectron2's names, which its checkpointer matches to any of its ResNet backbones."""

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyclecontrast.exporting.formats import Format, Job, Renaming, is_torchvisions, renamed, resnet_shape, weights_of
from cyclecontrast.files import replacing

NAMES: Renaming = (
    (r"^(?=conv1|bn1)", "stem."),
    (r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}"),
    (r"\bbn(\d)\b", r"conv\1.norm"),
    (r"\bdownsample\.0\b", "shortcut"),
    (r"\bdownsample\.1\b", "shortcut.norm"),
)
"""Names of torchvision and those of detectron2's ResNet, as MoCo's conversion has them too."""


def _write(job: Job) -> None:
    weights = {
        renamed(key, NAMES): value.numpy()
        for key, value in weights_of(job.backbone).items()
        if not key.endswith("num_batches_tracked")  # its frozen norms have none
    }
    content = {"model": weights, "__author__": "cyclecontrast", "matching_heuristics": True}
    with replacing(job.path) as aside:
        aside.write_bytes(_pickled(content))


def _pickled(content: dict[str, Any]) -> bytes:
    """Pickle arrays by their public constructor: NumPy 2 names its inner modules otherwise than NumPy 1 knows them."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=4)
    pickler.dispatch_table = {np.ndarray: _rebuild}
    pickler.dump(content)
    return buffer.getvalue()


def _rebuild(array: NDArray[Any]) -> tuple[type[NDArray[Any]], tuple[Any, ...]]:
    return np.ndarray, (array.shape, array.dtype.str, bytearray(array.tobytes()))


def _snippet(job: Job) -> str:
    backbone, shape = job.backbone, resnet_shape(job.backbone)
    assert shape is not None
    mean, std = ([round(255 * value, 3) for value in values] for values in (backbone.mean, backbone.std))
    basic = "" if shape.depth == 50 else "cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64\n"
    return f"""from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

cfg = get_cfg()   # or your own; what follows is what these weights need
cfg.MODEL.WEIGHTS = {str(job.path)!r}
cfg.MODEL.RESNETS.DEPTH = {shape.depth}
{basic}cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
cfg.MODEL.PIXEL_MEAN = {mean}
cfg.MODEL.PIXEL_STD = {std}
cfg.INPUT.FORMAT = "RGB"
# to fine-tune every layer, as MoCo does: cfg.MODEL.BACKBONE.FREEZE_AT = 0, cfg.MODEL.RESNETS.NORM = "SyncBN"
# images: float (batch, 3, height, width), RGB from 0 to 255, less PIXEL_MEAN, divided by PIXEL_STD
# backbone = build_backbone(cfg)
# DetectionCheckpointer(backbone).load(cfg.MODEL.WEIGHTS)
# map = backbone(images)["res4"]   # (batch, {backbone.dim // 2}, h, w)
"""


DETECTRON2 = Format("backbone.pkl", ".pkl", is_torchvisions, _write, _snippet)
