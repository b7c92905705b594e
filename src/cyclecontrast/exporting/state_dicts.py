"""A backbone → tensors by name and nothing else, as torchvision's and timm's own classes load them."""

import torch

from cyclecontrast.exporting.formats import Format, Job, is_torchvisions, resnet_shape, weights_of
from cyclecontrast.files import replacing
from cyclecontrast.models.backbone import Backbone

DEFAULT = "backbone.pth"


def _write(job: Job) -> None:
    with replacing(job.path) as aside:
        torch.save(weights_of(job.backbone), aside)


def _load_torchvision(job: Job) -> str:
    backbone, shape = job.backbone, resnet_shape(job.backbone)
    assert shape is not None
    return f"""import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

model = torchvision.models.resnet{shape.depth}()
weights = torch.load({str(job.path)!r}, weights_only=True)
missing, unknown = model.load_state_dict(weights, strict=False)
assert set(missing) == {{"fc.weight", "fc.bias"}} and not unknown
model.fc = torch.nn.Identity()   # or a classifier of your own on {backbone.dim} features
model.eval()
{_normalize(backbone)}
# features = model(normalize(images))   # (batch, {backbone.dim})
# map = create_feature_extractor(model, ["layer4"])(normalize(images))["layer4"]   # (batch, {backbone.dim}, h, w)
"""


def _is_timms(backbone: Backbone) -> bool:
    """Whether timm's classes can be this network: their stem is the standard one, of 64 channels."""
    shape = resnet_shape(backbone)
    return backbone.name.startswith("timm:") or (shape is not None and shape.width == 64 and not shape.is_small)


def _load_timm(job: Job) -> str:
    backbone = job.backbone
    name, arguments = backbone.name.removeprefix("timm:"), "num_classes=0"
    if name == "resnet10":
        name, arguments = "resnet18", f"{arguments}, layers=(1, 1, 1, 1)"
    lines = f"""import timm
import torchvision

model = timm.create_model({name!r}, {arguments}, checkpoint_path={str(job.path)!r})
model.eval()
{_normalize(backbone)}
# features = model(normalize(images))   # (batch, {backbone.dim})
"""
    if resnet_shape(backbone) is None:
        return lines
    return f"{lines}# map = model.forward_features(normalize(images))   # (batch, {backbone.dim}, h, w)\n"


def _normalize(backbone: Backbone) -> str:
    size = backbone.image_size
    return f"""normalize = torchvision.transforms.Normalize({list(backbone.mean)}, {list(backbone.std)})
# images: float (batch, 3, height, width), RGB from 0 to 1; trained at {size} x {size}"""


TORCHVISION = Format(DEFAULT, "", is_torchvisions, _write, _load_torchvision)
TIMM = Format(DEFAULT, "", _is_timms, _write, _load_timm)
