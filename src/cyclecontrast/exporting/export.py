"""The command `export`: write a backbone in the format of another tool and print the code that loads it."""

import errno
import filecmp
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from cyclecontrast.config import ExportConfig
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.exporting.formats import DETECTRON2, ONNX, SAFETENSORS, TIMM, TORCHVISION, Format, snippet
from cyclecontrast.exporting.huggingface import HUGGINGFACE
from cyclecontrast.files import check_folder, sync, temporary_beside
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.output import join_lines

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
    """The file or folder that was written, and the code that loads it."""

    path: Path
    snippet: str

    def __str__(self) -> str:
        return join_lines([f"wrote {self.path}; load it with:", "", *self.snippet.split("\n")])


def export_backbone(config: ExportConfig, given: Backbone | None = None) -> Export:
    """Write a backbone in the requested format: `given`, or the one that `config.model` names.

    Raises UserError with all problems; nothing is written then.
    """
    chosen = FORMATS[config.format]
    path = config.out or Path(chosen.default)
    problems: list[str] = []
    attempt(lambda: _check_output(path, chosen), problems)
    if missing := [module for module in chosen.modules if importlib.util.find_spec(module) is None]:
        problems.append(
            f"format {config.format}: {', '.join(missing)} not installed; pip install 'cyclecontrast[{config.format}]'"
        )
    backbone = attempt(lambda: given or load_backbone(config.model, config.seed), problems)
    if backbone is not None and not chosen.supports(backbone):
        possible = " or ".join(name for name, other in FORMATS.items() if other.supports(backbone))
        problems.append(f"format {config.format}: does not support {backbone.name}; use {possible}")
    if backbone is None or problems:
        raise UserError(*problems)
    with temporary_beside(path) as folder:
        folder.mkdir()
        chosen.write(backbone, folder / path.name, config.model)
        written = sorted(folder.iterdir())  # the description before the weights
        for made in written:
            _check_absent(made, path.with_name(made.name))
        for made in written:
            _move(made, path.with_name(made.name))
    sync(path.parent)
    return Export(path, snippet(config.format, backbone, path))


def _check_output(path: Path, chosen: Format) -> None:
    """Raise UserError if the suffix does not match the format, or if the folder cannot be written to."""
    others = {other.suffix for other in FORMATS.values() if other.suffix} - {chosen.suffix}
    if chosen.suffix and path.suffix != chosen.suffix:
        raise UserError(f"out: {path} must end in {chosen.suffix}")
    if path.suffix in others:
        raise UserError(f"out: {path} must not end in {path.suffix}, the suffix of another format")
    if path.name in ("", ".."):
        raise UserError(f"out: {path} already exists; choose another path with --out")
    check_folder(path.absolute().parent)


def _check_absent(made: Path, path: Path) -> None:
    """Raise UserError if `path` exists, unless an export that was killed or ran at the same time wrote the same."""
    if path.exists() and not _is_same(made, path):
        raise UserError(f"out: {path} already exists; choose another path with --out, or delete it")


def _move(made: Path, path: Path) -> None:
    for file in (made, *made.rglob("*")):
        sync(file)
    try:
        made.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _check_absent(made, path)


def _is_same(made: Path, path: Path) -> bool:
    """Whether two files, or two folders of files, have the same content."""
    if made.is_file() or not path.is_dir():
        return made.is_file() and path.is_file() and filecmp.cmp(made, path, shallow=False)
    names = sorted(os.listdir(made))
    return names == sorted(os.listdir(path)) and filecmp.cmpfiles(made, path, names, shallow=False)[0] == names
