"""Options → a written file or folder, and the lines of code that load it; what cannot be is told before it is begun."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from cyclecontrast.config import ExportConfig
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.exporting.detectron2_pickle import DETECTRON2
from cyclecontrast.exporting.formats import Format, Job
from cyclecontrast.exporting.huggingface_folder import HUGGINGFACE
from cyclecontrast.exporting.onnx_graph import ONNX
from cyclecontrast.exporting.own_file import SAFETENSORS
from cyclecontrast.exporting.state_dicts import TIMM, TORCHVISION
from cyclecontrast.files import check_folder
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import load_backbone

FORMATS: dict[str, Format] = {
    "safetensors": SAFETENSORS,
    "torchvision": TORCHVISION,
    "timm": TIMM,
    "onnx": ONNX,
    "detectron2": DETECTRON2,
    "huggingface": HUGGINGFACE,
}


@dataclass(frozen=True)
class Export:
    """What was written, and the code that loads it; its text is both."""

    path: Path
    snippet: str

    def __str__(self) -> str:
        return f"wrote {self.path}; this loads it:\n\n{self.snippet}"


def export_backbone(config: ExportConfig, given: Backbone | None = None) -> Export:
    """Write the backbone in the asked format, in one piece; raises UserError, and then nothing is written.

    One that is `given` is taken as it is, whatever the config names.
    """
    chosen = FORMATS[config.format]
    path = config.out or Path(chosen.default)
    problems: list[str] = []
    attempt(lambda: _check_output(path, chosen), problems)
    attempt(lambda: _check_modules(config.format, chosen), problems)
    backbone = attempt(lambda: given or load_backbone(config.model, config.seed), problems)
    if backbone is not None and not chosen.holds(backbone):
        fitting = " or ".join(name for name, other in FORMATS.items() if other.holds(backbone))
        problems.append(f"format {config.format}: has no {backbone.name}; what can hold it: {fitting}")
    if backbone is None or problems:
        raise UserError(*problems)
    job = Job(backbone, path, config.model)
    chosen.write(job)
    return Export(path, chosen.snippet(job))


def _check_output(path: Path, chosen: Format) -> None:
    foreign = {other.suffix for other in FORMATS.values() if other.suffix} - {chosen.suffix}
    if chosen.suffix and path.suffix != chosen.suffix:
        raise UserError(f"out: {path} must end in {chosen.suffix}, for files are read as what their name says")
    if path.suffix in foreign:
        raise UserError(f"out: {path} must not end in {path.suffix}, for files are read as what their name says")
    for existing in (path, path.with_suffix(".json")) if chosen is SAFETENSORS else (path,):
        if existing.exists():
            raise UserError(f"out: {existing} exists; name another with --out, or delete it")
    check_folder(path.absolute().parent)


def _check_modules(name: str, chosen: Format) -> None:
    missing = [module for module in chosen.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"format {name}: {', '.join(missing)} missing; pip install 'cyclecontrast[{name}]'")
