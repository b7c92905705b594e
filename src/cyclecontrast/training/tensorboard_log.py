"""A run's metrics for TensorBoard, in RUN/tensorboard."""

import importlib
from typing import Any

from cyclecontrast.config import PretrainConfig
from cyclecontrast.training.progress import Row
from cyclecontrast.training.verdict import Verdict

SECONDS = 10
"""After which what was logged is on the disk."""
COMPARED = ("loss", "health_same_video")
"""What the runs are compared by beside their settings."""


class TensorBoard:
    """Event files through PyTorch's writer."""

    def __init__(self, writer: Any, place: str) -> None:
        self.place = place
        self._writer = writer

    def log(self, row: Row) -> None:
        """Add each measured number under its name."""
        for name, value in row.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, row["step"])

    def conclude(self, verdict: Verdict) -> None:
        """Add the verdict as a text."""
        self._writer.add_text("verdict", str(verdict))

    def close(self, finished: bool) -> None:
        """Write what is held."""
        self._writer.close()


def open_tensorboard(config: PretrainConfig) -> TensorBoard:
    """Begin anew in the run's folder; a viewer that watches it forgets what it saw of steps from 0 on."""
    folder = config.out / "tensorboard"
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(
        str(folder), purge_step=0, flush_secs=SECONDS
    )
    settings = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in config.model_dump(mode="json", exclude_none=True).items()
    }
    # The writer's own add_hparams makes a run of its own beside this one.
    hparams = importlib.import_module("torch.utils.tensorboard.summary").hparams
    for summary in hparams(settings, dict.fromkeys(COMPARED, 0.0)):
        writer.file_writer.add_summary(summary)
    return TensorBoard(writer, f"tensorboard --logdir {config.out}")
