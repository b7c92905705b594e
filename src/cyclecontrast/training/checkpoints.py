"""The checkpoints of a run: each a folder that is whole or absent, and holds everything that resuming needs.

Beside the state of the training lie copies of the run's own files as they were then, and the checksums of all.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cyclecontrast.data.storage import read_regular
from cyclecontrast.errors import UserError
from cyclecontrast.files import remove, sync
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import BACKBONE_FILE, save_backbone
from cyclecontrast.training.run_folder import ABOUT, CONFIG, METRICS
from cyclecontrast.training.unreadable import UNREADABLE

STATE, CHECKSUMS = "state.safetensors", "checksums.json"
COPIED = (METRICS, ABOUT, CONFIG, UNREADABLE)
NEEDED = {STATE, BACKBONE_FILE, *COPIED}
MOST_BYTES = 2**20
KEEP = 2


class Found(NamedTuple):
    """The newest whole checkpoint, None where the run has none, and what is wrong with those after it."""

    folder: Path | None
    damages: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The number of steps done."""
        return 0 if self.folder is None else int(self.folder.name[5:])


def save_checkpoint(run: Path, step: int, state: Mapping[str, Tensor], backbone: Backbone) -> Path:
    """Write checkpoints/step-XXXXXXXX aside and rename it; the newest two stay. Raises UserError where that fails.

    One that is there already stays: it holds the same, for a run is a function of its settings and steps.
    """
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
    """Return the finished checkpoints, oldest first; a link or a file of such a name is none."""
    found = (path for path in run.glob("checkpoints/step-*") if path.name[5:].isdecimal())
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def find_whole(run: Path) -> Found:
    """Return the newest checkpoint with every byte as written; raises UserError where there are damaged ones only."""
    damages: list[str] = []
    for folder in reversed(checkpoints(run)):
        damage = _damage(folder)
        if not damage:
            return Found(folder, tuple(damages))
        damages.append(f"{folder}: is damaged ({damage})")
    if damages:
        raise UserError(*(f"{damage}; no checkpoint is whole: start a new run" for damage in damages))
    return Found(None)


def load_state(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the state of the training by part; a part without any tensor comes back as soon as it is asked for."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in load_file(folder / STATE).items():
        part, _, key = name.partition("/")
        parts[part][key] = value
    return parts


def flatten(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join named state dicts into one, keys as `part/key`."""
    return {f"{part}/{key}": value for part, state in parts.items() for key, value in state.items()}


def drop_behind(run: Path, step: int) -> None:
    """Remove what is half-written, what is older than kept, and what is behind `step`: it is damaged, or was taken."""
    for path in [path for path in checkpoints(run) if int(path.name[5:]) > step]:
        remove(path)
    for path in (*checkpoints(run)[:-KEEP], *run.glob("checkpoints/*.part")):
        remove(path)


def _damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint, nothing where it is whole."""
    try:
        checksums: dict[str, str] = json.loads(read_regular(folder / CHECKSUMS, MOST_BYTES))
        changed = [name for name, checksum in checksums.items() if _checksum(folder / name) != checksum]
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror or error}"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return f"{CHECKSUMS}: {error}"
    if absent := NEEDED - checksums.keys():
        return f"{CHECKSUMS}: names no {', '.join(sorted(absent))}"
    return f"{', '.join(changed)}: not as written" if changed else ""


def _checksum(path: Path) -> str:
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
