"""RUN on disk: resolved config, what is known of it, metrics, the best backbones. It does not know how to train."""

import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from pydantic import BaseModel

from cyclecontrast.config.seal import sealed
from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing
from cyclecontrast.model.backbone import Backbone
from cyclecontrast.model.checkpoint import save_backbone

CONFIG, ABOUT, METRICS = "config.toml", "run.json", "metrics.jsonl"


def write_config(run: Path, config: BaseModel) -> None:
    """Write config.toml, which reruns the run: `cyclecontrast pretrain --config RUN/config.toml`."""
    values = {k: v for k, v in config.model_dump(mode="json").items() if v is not None and k != "resume"}
    with replacing(run / CONFIG) as aside:
        aside.write_text(sealed(tomli_w.dumps(values)))


def write_about(run: Path, about: Mapping[str, Any]) -> None:
    """Write run.json."""
    with replacing(run / ABOUT) as aside:
        aside.write_text(json.dumps(dict(about), indent=2))


def read_about(run: Path) -> dict[str, Any]:
    """Return what run.json says; raises UserError where it is damaged."""
    try:
        about = json.loads((run / ABOUT).read_text())
        if not isinstance(about, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise UserError(f"{run / ABOUT}: is damaged ({error}); {how_to_restore(run, ABOUT)}") from error
    return about


def how_to_restore(run: Path, name: str) -> str:
    """Return what a user can do about one of the run's own files that is damaged."""
    copies = sorted(run.glob(f"checkpoints/step-*[0-9]/{name}"))
    return f"copy {copies[-1]} over it" if copies else "start a new run"


def change_about(run: Path, **changes: Any) -> None:
    """Change entries of run.json."""
    write_about(run, read_about(run) | changes)


def append_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    with (run / METRICS).open("a") as file:
        file.write(json.dumps(dict(row), allow_nan=False) + "\n")


def restore_metrics(run: Path, checkpoint: Path | None) -> None:
    """Put metrics.jsonl back to what it was at a checkpoint, or empty it, so that a resumed run has each step once."""
    with replacing(run / METRICS) as aside:
        aside.write_bytes((checkpoint / METRICS).read_bytes() if checkpoint else b"")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; a last one that is still being written does not count.

    Raises UserError that names the line where one is damaged.
    """
    path = run / METRICS
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate((line for line in lines if line.endswith("\n")), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("it names no step")
            rows.append(row)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is damaged ({error}); {how_to_restore(run, METRICS)}") from error
    return rows


def best_folder(run: Path, step: int) -> Path:
    """Return where the backbone of a step lies that was the best so far."""
    return run / "best" / f"step-{step:08d}"


def save_best(run: Path, step: int, backbone: Backbone) -> None:
    """Write the backbone that is the best so far to best/step-XXXXXXXX."""
    best_folder(run, step).mkdir(parents=True, exist_ok=True)
    save_backbone(backbone, best_folder(run, step))


def forget_bests(run: Path, oldest: int) -> None:
    """Keep the backbones that were the best at step `oldest`, where the run may be put back to, or became it since."""
    for surpassed in [best for best in _bests(run) if int(best.name[5:]) <= oldest][:-1]:
        shutil.rmtree(surpassed)


def cut_bests(run: Path, step: int) -> None:
    """Drop the backbones of steps behind `step`, which a resumed run will come to again."""
    for later in (best for best in _bests(run) if int(best.name[5:]) > step):
        shutil.rmtree(later)


def _bests(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("best/step-*") if path.name[5:].isdecimal())


def device_name(device: torch.device) -> str:
    """Return a device's name as people know it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
