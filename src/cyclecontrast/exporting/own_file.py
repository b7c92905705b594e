"""A backbone → a safetensors file that describes itself, with the same description as .json beside it."""

import tempfile
from pathlib import Path

from cyclecontrast.config.types import USER_PREFIX, is_user_defined
from cyclecontrast.exporting.formats import Format, Job
from cyclecontrast.models.checkpoint import BACKBONE_FILE, save_backbone


def _write(job: Job) -> None:
    path = job.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as aside:
        save_backbone(job.backbone, Path(aside))
        (Path(aside) / BACKBONE_FILE).with_suffix(".json").rename(path.with_suffix(".json"))
        (Path(aside) / BACKBONE_FILE).rename(path)


def _snippet(job: Job) -> str:
    size, network = job.backbone.image_size, ""
    if is_user_defined(job.backbone.name):
        network = f", network={job.backbone.name.removeprefix(USER_PREFIX)}()"
    lines = f"""import cyclecontrast

backbone = cyclecontrast.load_backbone({str(job.path)!r}{network})
# pixels: uint8 (batch, 3, height, width), RGB; trained at {size} x {size}
# features = backbone(backbone.normalise(pixels))   # (batch, {job.backbone.dim})
"""
    of_stages = "# map = backbone.feature_map(backbone.normalise(pixels), 4)   # of stage 4, or 1 to 3"
    return lines if network else f"{lines}{of_stages}: (batch, channels, h, w)\n"


SAFETENSORS = Format(BACKBONE_FILE, ".safetensors", lambda backbone: True, _write, _snippet)
