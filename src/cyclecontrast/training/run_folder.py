"""The files of a run: the resolved config, run.json, metrics, the best backbones, the monitored cycles."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load, save

from cyclecontrast.config import PretrainConfig
from cyclecontrast.config.types import is_model, is_named, is_url, must_be_downloaded, read_toml
from cyclecontrast.errors import UserError
from cyclecontrast.files import atomic_write, remove
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone, save_backbone
from cyclecontrast.output import quoted
from cyclecontrast.training.health import Cycles

CONFIG, ABOUT, METRICS = "config.toml", "run.json", "metrics.jsonl"


def write_config(run: Path, config: BaseModel) -> None:
    """Write config.toml, with which the run can be repeated: `cyclecontrast pretrain --config RUN/config.toml`."""
    values = {k: v for k, v in config.model_dump(mode="json").items() if v is not None and k not in ("resume", "plan")}
    if not is_url(values["data"]):
        values["data"] = os.path.abspath(values["data"])  # valid in any working directory
    with atomic_write(run / CONFIG) as aside:
        aside.write_text(tomli_w.dumps(values), "utf-8")


def write_about(run: Path, about: Mapping[str, Any]) -> None:
    """Write run.json."""
    with atomic_write(run / ABOUT) as aside:
        aside.write_text(json.dumps(dict(about), indent=2))


def read_about(run: Path) -> dict[str, Any]:
    """Return the content of run.json; raises UserError if it does not parse."""
    try:
        about = json.loads((run / ABOUT).read_bytes())
        if not isinstance(about, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{run / ABOUT}: is damaged ({error}); {how_to_restore(run, ABOUT)}") from error
    return about


def change_about(run: Path, **changes: Any) -> None:
    """Change entries of run.json."""
    write_about(run, read_about(run) | changes)


def about_start(config: PretrainConfig, backbone: Backbone) -> dict[str, Any]:
    """Return the entry of run.json by which `load_start` finds the weights of `init`, loaded as this backbone."""
    if config.init is None:
        return {}
    return {"start": {"model": config.init, "fingerprint": fingerprint(backbone)}}


def load_start(run: Path, download: bool = False) -> tuple[str, Backbone]:
    """Load the weights that a run started from (`init`), and return their MODEL too.

    Raises UserError if there are none, if they are gone or have changed since, or if they must be downloaded without
    `download`.
    """
    if not (run / ABOUT).is_file() or not (run / CONFIG).is_file():
        raise UserError(f"{run}: is not a run, so it has no start to compare with; name the folder of a run")
    try:
        config = read_toml(run / CONFIG)
    except (OSError, ValueError) as error:
        raise UserError(f"{run / CONFIG}: cannot be read ({error}); {how_to_restore(run, CONFIG)}") from error
    about: dict[str, str] = read_about(run).get("start") or {}  # missing in older runs
    model = about.get("model") or config.get("init")
    if model is None:
        raise UserError(f"{run}: started from random weights (no --init), so it has no start to compare with")
    if is_named(model) and model != config.get("init"):  # the run may be somebody else's
        raise UserError(f"{run / ABOUT}: its start {model} is not the init of {run / CONFIG}; restore both files")
    if must_be_downloaded(model) and not download:
        allow = f"cyclecontrast report {quoted(run)} --download"
        raise UserError(f"{model} may have to be downloaded; to allow it: {allow}")
    if not is_model(model):
        raise UserError(f"{model}: no such file or folder, but {run} started from it; restore it")
    start = load_backbone(model, config.get("seed", 0))
    if about.get("fingerprint", fingerprint(start)) != fingerprint(start):
        raise UserError(f"{model}: has changed since {run} started from it; restore the weights of that time")
    return model, start


def how_to_restore(run: Path, name: str) -> str:
    """Return advice on how to fix a damaged file of a run."""
    copies = sorted(run.glob(f"checkpoints/step-*[0-9]/{name}"))
    return f"copy {copies[-1]} over it" if copies else "start a new run"


def append_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    with (run / METRICS).open("a") as file:
        file.write(json.dumps(dict(row), allow_nan=False) + "\n")


def restore_metrics(run: Path, checkpoint: Path | None) -> None:
    """Restore metrics.jsonl from a checkpoint, or empty it, so that a resumed run has each step once."""
    with atomic_write(run / METRICS) as aside:
        aside.write_bytes((checkpoint / METRICS).read_bytes() if checkpoint else b"")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the complete rows of metrics.jsonl, without a last row that is still being written.

    Raises UserError if a line does not parse, and names the line.
    """
    path, rows = run / METRICS, list[dict[str, Any]]()
    try:
        *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for line in lines:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("it has no step")
            rows.append(row)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {len(rows) + 1} is damaged ({error}); {how_to_restore(run, METRICS)}") from error
    return rows


def best_folder(run: Path, step: int) -> Path:
    """Return the folder of the best backbone of a step."""
    return run / "best" / f"step-{step:08d}"


def save_best(run: Path, step: int, backbone: Backbone) -> None:
    """Write the best backbone so far to best/step-XXXXXXXX."""
    best_folder(run, step).mkdir(parents=True, exist_ok=True)
    save_backbone(backbone, best_folder(run, step))


def prune_best_backbones(run: Path, oldest: int) -> None:
    """Remove best backbones that no checkpoint from step `oldest` on needs; the start (step 0) may always be needed."""
    for surpassed in [best for best in _steps(run, "best/step-*") if _step_of(best) <= oldest][:-1]:
        if _step_of(surpassed):
            remove(surpassed)


def write_cycles(run: Path, step: int, cycles: Cycles) -> None:
    """Write the vectors of the monitored cycles to cycles/step-XXXXXXXX.safetensors."""
    with atomic_write(run / "cycles" / f"step-{step:08d}.safetensors") as aside:
        aside.write_bytes(save({name: value.cpu().contiguous() for name, value in vars(cycles).items()}))


def read_cycles(run: Path) -> dict[int, Cycles]:
    """Return the cycles that `write_cycles` wrote, by step; raises UserError if a file is damaged."""
    found = {}
    for path in _steps(run, "cycles/step-*.safetensors"):
        try:
            found[_step_of(path)] = Cycles(**load(path.read_bytes()))
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(f"{path}: is damaged ({error}); remove it, and the report omits its step") from error
    return found


def remove_best_and_cycles_after(run: Path, step: int) -> None:
    """Remove best backbones and cycles saved after `step`; the resumed run writes them again."""
    for path in (*_steps(run, "best/step-*"), *_steps(run, "cycles/step-*.safetensors")):
        if _step_of(path) > step:
            remove(path)


def device_name(device: torch.device) -> str:
    """Return the name of the device's hardware."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _steps(run: Path, pattern: str) -> list[Path]:
    return sorted(path for path in run.glob(pattern) if path.stem[5:].isdecimal())


def _step_of(path: Path) -> int:
    return int(path.stem[5:])
