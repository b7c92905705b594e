"""RUN on disk: resolved config, metrics, checkpoints, the exported backbone. It knows nothing of how to train."""

import json
import platform
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing, sync
from cyclecontrast.model.backbone import Backbone
from cyclecontrast.model.checkpoint import save_backbone

STATE_FILE = "state.safetensors"
KEEP = 2


def write_config(run: Path, config: BaseModel) -> None:
    """Write config.toml, which reruns the run: `cyclecontrast pretrain --config RUN/config.toml`."""
    values = {k: v for k, v in config.model_dump(mode="json").items() if v is not None and k != "resume"}
    with replacing(run / "config.toml") as aside:
        aside.write_text(tomli_w.dumps(values))


def write_about(run: Path, about: Mapping[str, Any]) -> None:
    """Write run.json."""
    with replacing(run / "run.json") as aside:
        aside.write_text(json.dumps(dict(about), indent=2))


def read_about(run: Path) -> dict[str, Any]:
    """Return what run.json says; raises UserError where it is damaged."""
    try:
        about: dict[str, Any] = json.loads((run / "run.json").read_text())
    except ValueError as error:
        raise UserError(f"{run / 'run.json'}: is damaged ({error}); restore it, or start a new run") from error
    return about


def change_about(run: Path, **changes: Any) -> None:
    """Change entries of run.json."""
    write_about(run, read_about(run) | changes)


def append_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(dict(row), allow_nan=False) + "\n")


def cut_metrics(run: Path, step: int) -> None:
    """Drop the lines behind `step`, and a half-written one, so that a resumed run has each step once."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with replacing(path) as aside:
        aside.write_text("".join(kept))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; a last one that is still being written does not count."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def save_checkpoint(run: Path, step: int, state: dict[str, Tensor], backbone: Backbone) -> Path:
    """Write checkpoints/step-XXXXXXXX aside and rename it; the newest two stay."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, aside / STATE_FILE)
    except SafetensorError as error:
        shutil.rmtree(aside)
        raise UserError(f"{folder} cannot be written ({error}); the checkpoint before it is whole") from error
    sync(aside / STATE_FILE)
    save_backbone(backbone, aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    sync(folder.parent)
    for old in checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)
    _forget_bests(run)
    return folder


def checkpoints(run: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    return _steps(run, "checkpoints")


def best_folder(run: Path, step: int) -> Path:
    """Return where the backbone of a step lies that was the best so far."""
    return run / "best" / f"step-{step:08d}"


def save_best(run: Path, step: int, backbone: Backbone) -> None:
    """Write the backbone that is the best so far to best/step-XXXXXXXX."""
    best_folder(run, step).mkdir(parents=True, exist_ok=True)
    save_backbone(backbone, best_folder(run, step))


def _forget_bests(run: Path) -> None:
    """Keep the backbones that were the best when a checkpoint that is still there was written, or became it since."""
    oldest = checkpoints(run)[0].name
    for surpassed in [best for best in _steps(run, "best") if best.name <= oldest][:-1]:
        shutil.rmtree(surpassed)


def cut_bests(run: Path, step: int) -> None:
    """Drop the backbones of steps behind `step`, which a resumed run will come to again."""
    for later in (best for best in _steps(run, "best") if int(best.name[5:]) > step):
        shutil.rmtree(later)


def _steps(run: Path, folder: str) -> list[Path]:
    return sorted(path for path in run.glob(f"{folder}/step-*") if path.name[5:].isdecimal())


def load_checkpoint(run: Path) -> tuple[int, dict[str, Tensor]]:
    """Return the step and the state of the newest checkpoint, step 0 without one; raises UserError."""
    found = checkpoints(run)
    if not found:
        return 0, {}
    try:
        return int(found[-1].name[5:]), load_file(found[-1] / STATE_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{found[-1]} is damaged ({error}); delete it to resume from the one before") from error


def flatten(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join named state dicts into one, keys as `part/key`."""
    return {f"{part}/{key}": value for part, state in parts.items() for key, value in state.items()}


def unflatten(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Undo `flatten`; a part without any tensor comes back as soon as it is asked for."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in state.items():
        part, _, key = name.partition("/")
        parts[part][key] = value
    return parts


def device_name(device: torch.device) -> str:
    """Return a device's name as people know it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
