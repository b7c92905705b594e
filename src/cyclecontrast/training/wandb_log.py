"""A run's metrics for Weights & Biases, in RUN/wandb; a network is asked only where the environment says so."""

import importlib
import os
import re
import secrets
from pathlib import Path
from typing import Any

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.storage import read_regular
from cyclecontrast.files import remove, replacing
from cyclecontrast.training.progress import Row
from cyclecontrast.training.verdict import Verdict

ID = "run-id.txt"
WELL_FORMED = re.compile(rb"[0-9a-z]{1,64}")
"""What an identity may be: it becomes part of a pattern whose matches are removed, and the file may be anybody's."""
LONGEST_ID = 256
LONGEST_END = 300.0
"""Seconds that a finished training waits for an upload; what is left stays on the disk for `wandb sync`."""
QUIET = {
    **{"console": "off", "save_code": False, "disable_git": True, "disable_code": True, "disable_job_creation": True},
    **{"x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False},
    **{"finish_timeout": LONGEST_END, "finish_timeout_raises": True},
}
"""Metrics and settings alone: nothing of the machine, the code or what is printed."""


class WeightsAndBiases:
    """A run of wandb's."""

    def __init__(self, run: Any, place: str) -> None:
        self.place = place
        self._run = run
        self._first = int(run.step)

    def log(self, row: Row) -> None:
        """Add what was measured; a step that the server has is left as it is, for it takes none twice."""
        if row["step"] >= self._first:
            self._run.log({name: value for name, value in row.items() if value is not None}, step=row["step"])

    def conclude(self, verdict: Verdict) -> None:
        """Add the verdict to the summary."""
        self._run.summary.update({"verdict": verdict.word, "reason": verdict.reason})

    def close(self, finished: bool) -> None:
        """End it, as crashed where the training did not come to its end."""
        self._run.finish(exit_code=0 if finished else 1)


def open_wandb(config: PretrainConfig) -> WeightsAndBiases:
    """Begin the run's copy anew, or go on with the one on the server, under the identity that the run's folder keeps.

    Offline, unless the environment sets WANDB_MODE.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
    wandb: Any = importlib.import_module("wandb")
    mode = os.environ.get("WANDB_MODE", "offline")
    identity = _identity(config.out / "wandb")
    for old in (config.out / "wandb").glob(f"offline-run-*-{identity}"):
        remove(old)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "cyclecontrast"),
        id=identity,
        name=config.out.resolve().name,
        dir=str(config.out),
        config=config.model_dump(mode="json", exclude={"resume"}),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=wandb.Settings(silent=mode != "online", **QUIET),
    )
    _forget_imports(identity)
    way = f"; wandb sync {config.out / 'wandb'}/offline-run-* uploads it" if mode == "offline" else ""
    return WeightsAndBiases(run, str(run.url) if mode == "online" else f"{mode}{way}")


def _forget_imports(identity: str) -> None:
    """Take its hooks out of imports: they tell which packages are used, and fail where the service of wandb is gone.

    An import that comes later would fail with them.
    """
    hooks: Any = importlib.import_module("wandb.sdk.lib.import_hooks")
    telemetry: Any = importlib.import_module("wandb.sdk.lib.telemetry")
    for module in telemetry.list_telemetry_imports():
        hooks.unregister_post_import_hook(module, identity)


def _identity(folder: Path) -> str:
    """Return what the run is called at Weights & Biases, made up where its folder keeps no well-formed name."""
    path = folder / ID
    if path.exists():
        kept = read_regular(path, LONGEST_ID).strip()
        if WELL_FORMED.fullmatch(kept):
            return kept.decode()
    with replacing(path) as aside:
        aside.write_text(secrets.token_hex(4))
    return path.read_text()
