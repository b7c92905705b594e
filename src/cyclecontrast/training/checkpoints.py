"""The checkpoints of a run: folders that are written atomically and contain everything that resuming needs.

A checkpoint contains the trainer's state dict, copies of the run's files at that step, and checksums of all files.
"""

import contextlib
import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cyclecontrast.distributed import World, barrier
from cyclecontrast.errors import UserError
from cyclecontrast.files import remove, sync
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import BACKBONE_FILE, save_backbone
from cyclecontrast.output import quoted
from cyclecontrast.training.read_errors import READ_ERRORS, ReadErrors
from cyclecontrast.training.run_folder import ABOUT, CONFIG, METRICS, change_about, prune_best_backbones

if TYPE_CHECKING:
    from cyclecontrast.training.trainer import Trainer

STATE, CHECKSUMS = "state.safetensors", "checksums.json"
COPIED = (METRICS, ABOUT, CONFIG, READ_ERRORS)
KEEP = 2


def record_stop(run: Path, message: str, world: World) -> str:
    """Write the reason of a stop to run.json if possible; returns it with a hint on how to resume."""
    if world.rank == 0:
        with contextlib.suppress(OSError, UserError):
            change_about(run, status=f"stopped: {message}")
    if not (run / CONFIG).exists():
        return f"{message}; {run} no longer exists, so nothing was written; if you moved it, --resume it there"
    kept = checkpoints(run)
    hint = (
        f"the last good checkpoint is {kept[-1]}; --resume {quoted(run)} continues from it"
        if kept
        else "no checkpoint yet"
    )
    return f"{message}; {hint}"


def save_checkpoint(trainer: "Trainer", read_errors: ReadErrors, step: int) -> None:
    """Write a checkpoint on rank 0 after `step` steps; the other ranks wait. Keeps the latest two.

    Raises UserError if it cannot be written.
    """
    run = trainer.config.out
    if trainer.world.rank == 0:
        if not (run / CONFIG).exists():  # the folder was moved; writing would create a new one
            raise UserError(f"{run}: no checkpoint can be written, because the folder of the run was moved or deleted")
        read_errors.write(run)
        backbone = copy.copy(trainer.method.encoder.backbone)
        if step < trainer.num_steps:
            backbone.source += f", unfinished: step {step:,} of {trainer.num_steps:,}"
        write_checkpoint(run, step, trainer.state_dict(), backbone)
        prune_best_backbones(run, step_of(checkpoints(run)[0]))
    barrier(trainer.world)


def write_checkpoint(run: Path, step: int, state: dict[str, Tensor], backbone: Backbone) -> Path:
    """Atomically write checkpoints/step-XXXXXXXX, unless it exists, and remove old checkpoints; returns its path."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    if folder.exists():
        return folder
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, aside / STATE)
        save_backbone(backbone, aside)
        for name in COPIED:
            shutil.copyfile(run / name, aside / name)
        shutil.copymode(aside / CONFIG, aside / STATE)  # safetensors makes it readable by its owner only
        checksums = {path.name: _checksum(path) for path in sorted(aside.iterdir())}
        (aside / CHECKSUMS).write_text(json.dumps(checksums, indent=2))
        for path in (*aside.iterdir(), aside):
            sync(path)
        aside.rename(folder)
        sync(folder.parent)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: cannot be written ({reason})") from error
    for old in checkpoints(run)[:-KEEP]:
        remove(old)
    return folder


def checkpoints(run: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    return sorted(path for path in run.glob("checkpoints/step-*") if path.name[5:].isdecimal() and path.is_dir())


def step_of(checkpoint: Path | None) -> int:
    """Return the number of steps done at a checkpoint, 0 without one."""
    return 0 if checkpoint is None else int(checkpoint.name[5:])


def find_intact(run: Path) -> tuple[Path | None, list[str]]:
    """Return the latest intact checkpoint (None without one), and a message for each later checkpoint that is damaged.

    Raises UserError if all are damaged.
    """
    damages: list[str] = []
    for folder in reversed(checkpoints(run)):
        damage = _damage(folder)
        if not damage:
            return folder, damages
        damages.append(f"{folder}: is damaged ({damage})")
    if damages:
        raise UserError(*(f"{damage}; no checkpoint is intact: start a new run" for damage in damages))
    return None, []


def load_state(folder: Path) -> dict[str, Tensor]:
    """Return the state of the trainer."""
    return load_file(folder / STATE)


def remove_checkpoints_after(run: Path, step: int) -> None:
    """Remove unfinished checkpoints, those after `step`, and all but the latest two."""
    for path in [path for path in checkpoints(run) if step_of(path) > step]:
        remove(path)
    for path in (*checkpoints(run)[:-KEEP], *run.glob("checkpoints/*.part")):
        remove(path)


def _damage(folder: Path) -> str:
    """Return why a checkpoint is damaged, an empty string if it is intact."""
    try:
        checksums: dict[str, str] = json.loads((folder / CHECKSUMS).read_bytes())
        changed = [name for name, checksum in checksums.items() if _checksum(folder / name) != checksum]
    except PermissionError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions") from error
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror or error}"
    except (ValueError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS}: {error}"
    if missing := {STATE, BACKBONE_FILE, *COPIED} - checksums.keys():
        return f"{CHECKSUMS}: does not name {', '.join(sorted(missing))}"
    return f"{', '.join(changed)}: checksum mismatch" if changed else ""


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
