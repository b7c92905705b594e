"""RUN on disk: resolved config, what is known of it, metrics, the best backbones. It does not know how to train."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

import tomli_w
import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from cyclecontrast.config.fields import Count, Fraction, is_url
from cyclecontrast.config.seal import sealed
from cyclecontrast.data.storage import read_regular
from cyclecontrast.errors import UserError
from cyclecontrast.files import remove, replacing
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import save_backbone

CONFIG, ABOUT, METRICS = "config.toml", "run.json", "metrics.jsonl"
MOST_BYTES = 2**31
MOST = 1e100
"""No number that was measured is larger, and larger ones would overflow in sums."""


Measured = Annotated[float, Field(ge=-MOST, le=MOST)]


class Start(TypedDict, total=False):
    """The signals before the first step."""

    health_same_video: Fraction
    health_same_video_error: Fraction
    health_queue_accuracy: Fraction
    health_cycle_closed: Fraction
    health_rank: Measured
    health_deviation: Measured
    health_alignment: Measured
    health_uniformity: Measured
    health_queue_loss: Measured


class Health(TypedDict):
    """What health was measured on, and its signals before the first step."""

    views: Count
    chance: Fraction
    at_start: Start
    held_out: NotRequired[bool]
    videos: NotRequired[int]
    cycle_chance: NotRequired[Fraction | None]
    seconds: NotRequired[float]


class About(TypedDict, total=False):
    """What run.json says where it says it."""

    versions: dict[str, str]
    device: str
    precision: str
    processes: int
    augment_on: str
    compile: bool
    data_fingerprint: str
    num_videos: int
    num_frames: int
    num_single_frame_videos: int
    num_held_out: int
    num_steps: int
    status: str
    verdict: str
    reason: str
    selected_step: int
    health: Health


def write_config(run: Path, config: BaseModel) -> None:
    """Write config.toml, which reruns the run: `cyclecontrast pretrain --config RUN/config.toml`."""
    values = {k: v for k, v in config.model_dump(mode="json").items() if v is not None and k != "resume"}
    if not is_url(values["data"]):
        values["data"] = os.path.abspath(values["data"])  # so that it is found from any folder
    with replacing(run / CONFIG) as aside:
        aside.write_text(sealed(tomli_w.dumps(values)))


def write_about(run: Path, about: Mapping[str, Any]) -> None:
    """Write run.json."""
    with replacing(run / ABOUT) as aside:
        aside.write_text(json.dumps(dict(about), indent=2))


def read_about(run: Path) -> dict[str, Any]:
    """Return what run.json says; raises UserError where it is damaged."""
    try:
        about: dict[str, Any] = json.loads(read_regular(run / ABOUT, MOST_BYTES))
        TypeAdapter(About).validate_python(about)
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(map(str, item["loc"])) or "all of it" for item in error.errors()}))
        raise UserError(f"{run / ABOUT}: is damaged (in {wrong}); {how_to_restore(run, ABOUT)}") from error
    except (OSError, ValueError, RecursionError) as error:
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
    try:
        *lines, _ = read_regular(path, MOST_BYTES).split(b"\n") if path.exists() else [b""]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {how_to_restore(run, METRICS)}") from error
    rows: list[dict[str, Any]] = []
    try:
        for line in lines:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("it names no step")
            if words := [name for name, value in row.items() if not _is_measured(value)]:
                raise ValueError(f"no number in {', '.join(words)}")
            rows.append(row)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {len(rows) + 1} is damaged ({error}); {how_to_restore(run, METRICS)}") from error
    return rows


def _is_measured(value: object) -> bool:
    return value is None or (isinstance(value, float | int) and abs(value) <= MOST)


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
        remove(surpassed)


def cut_bests(run: Path, step: int) -> None:
    """Drop the backbones of steps behind `step`, which a resumed run will come to again."""
    for later in (best for best in _bests(run) if int(best.name[5:]) > step):
        remove(later)


def _bests(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("best/step-*") if path.name[5:].isdecimal())


def device_name(device: torch.device) -> str:
    """Return a device's name as people know it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
