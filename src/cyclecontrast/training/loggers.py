"""Loggers that copy metrics.jsonl to TensorBoard and Weights & Biases; if one fails, training continues."""

import contextlib
import importlib
import importlib.util
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.files import atomic_write, remove
from cyclecontrast.output import say
from cyclecontrast.training import run_folder
from cyclecontrast.training.progress import Row
from cyclecontrast.training.verdict import Verdict

COMPARED = ("loss", "health_same_video")
"""Metrics in TensorBoard's hyperparameter table."""
FLUSH_SECONDS = 10
FINISH_SECONDS = 300.0
"""Upload timeout at the end of a training; the rest stays on disk for `wandb sync`."""
PRIVATE = {
    **{"console": "off", "save_code": False, "disable_git": True, "disable_code": True, "disable_job_creation": True},
    **{"x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False},
    **{"finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True},
}
"""Settings of wandb that restrict logging to metrics and settings.

Nothing about the machine, the code or the console.
"""


class Logger(Protocol):
    """A logger: writes a copy of the metrics for a viewer. Its methods may raise any exception of the library."""

    place: str
    """Text to print: where the copy is, or how to view it."""

    def log(self, row: Row) -> None:
        """Add a row of metrics; a value of None was not measured."""

    def conclude(self, verdict: Verdict) -> None:
        """Add the verdict of the finished run."""

    def close(self, finished: bool) -> None:
        """Flush and close; a run that is not finished may be resumed later."""


class TensorBoard:
    """Event files in RUN/tensorboard, by PyTorch's writer."""

    def __init__(self, config: PretrainConfig) -> None:
        folder = config.out / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        summary_writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        # purge_step=0 makes a running TensorBoard discard all loaded steps.
        self._writer = summary_writer(str(folder), purge_step=0, flush_secs=FLUSH_SECONDS)
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in config.model_dump(mode="json", exclude_none=True).items()
        }
        # SummaryWriter.add_hparams would create a second run.
        hparams = importlib.import_module("torch.utils.tensorboard.summary").hparams
        for summary in hparams(settings, dict.fromkeys(COMPARED, 0.0)):
            self._writer.file_writer.add_summary(summary)
        self.place = f"tensorboard --logdir {config.out}"

    def log(self, row: Row) -> None:
        """Add each measured number under its name."""
        for name, value in row.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, row["step"])

    def conclude(self, verdict: Verdict) -> None:
        """Add the verdict as text."""
        self._writer.add_text("verdict", str(verdict))

    def close(self, finished: bool) -> None:
        """Flush and close."""
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb in RUN/wandb, offline unless the environment sets WANDB_MODE."""

    def __init__(self, config: PretrainConfig) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
        wandb: Any = importlib.import_module("wandb")
        mode, folder = os.environ.get("WANDB_MODE", "offline"), config.out / "wandb"
        run_id = self._run_id(folder / "run-id.txt")
        for old in folder.glob(f"offline-run-*-{run_id}"):
            remove(old)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cyclecontrast"),
            id=run_id,
            name=config.out.resolve().name,
            dir=str(config.out),
            config=config.model_dump(mode="json", exclude={"resume"}),
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(silent=mode != "online", **PRIVATE),
        )
        self._forget_imports(run_id)
        self._first_step = int(self._run.step)
        upload = f"; wandb sync {folder}/offline-run-* uploads it" if mode == "offline" else ""
        self.place = str(self._run.url) if mode == "online" else f"{mode}{upload}"

    def log(self, row: Row) -> None:
        """Log the measured values, except for steps that the server already has, because it would reject them."""
        if row["step"] >= self._first_step:
            self._run.log({name: value for name, value in row.items() if value is not None}, step=row["step"])

    def conclude(self, verdict: Verdict) -> None:
        """Add the verdict to the summary."""
        self._run.summary.update({"verdict": verdict.word, "reason": verdict.reason})

    def close(self, finished: bool) -> None:
        """Finish the run, marked as crashed if the training did not finish."""
        self._run.finish(exit_code=0 if finished else 1)

    @staticmethod
    def _run_id(path: Any) -> str:
        """Return the wandb id of the run; it is drawn once and stored in a file."""
        if not path.exists():
            with atomic_write(path) as aside:
                aside.write_text(secrets.token_hex(4))
        run_id: str = path.read_text().strip()
        if not run_id.isalnum():
            raise ValueError(f"{path} has no id of letters and digits; remove it")
        return run_id

    @staticmethod
    def _forget_imports(run_id: str) -> None:
        """Remove wandb's import hooks, which report the imported packages and raise after its service has stopped."""
        hooks: Any = importlib.import_module("wandb.sdk.lib.import_hooks")
        telemetry: Any = importlib.import_module("wandb.sdk.lib.telemetry")
        for module in telemetry.list_telemetry_imports():
            hooks.unregister_post_import_hook(module, run_id)


OPENERS: dict[str, Callable[[PretrainConfig], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Loggers:
    """All open loggers. A logger that fails is reported and gets no more rows."""

    def __init__(self) -> None:
        self._open: dict[str, Logger] = {}

    def open(self, name: str, config: PretrainConfig, rows: Iterable[Row]) -> None:
        """Open a logger and add the existing rows of metrics.jsonl."""
        with _reported(name):
            logger = OPENERS[name](config)
            self._open[name] = logger
            say(f"{name}: {logger.place}")
        for row in rows:
            if name in self._open:
                self._each(lambda logger, row=row: logger.log(row), [name])  # type: ignore[misc]

    def log(self, row: Row) -> None:
        """Add a row of metrics to each."""
        self._each(lambda logger: logger.log(row), list(self._open))

    def conclude(self, verdict: Verdict | None) -> None:
        """Add the verdict of the finished run to each, if health was measured."""
        if verdict is not None:
            self._each(lambda logger: logger.conclude(verdict), list(self._open))

    def close(self, finished: bool) -> None:
        """Close each."""
        self._each(lambda logger: logger.close(finished), list(self._open))

    def _each(self, act: Callable[[Logger], None], names: list[str]) -> None:
        for name in names:
            with _reported(name) as failures:
                act(self._open[name])
            if failures:
                del self._open[name]


def check_loggers(names: Iterable[str]) -> None:
    """Raise UserError, naming the extra to install, if the package of a logger is not installed."""
    missing = []
    for name in dict.fromkeys(names):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name has no origin
            missing.append(name)
    if missing:
        raise UserError(*(f"log_to: {name} is not installed; pip install 'cyclecontrast[{name}]'" for name in missing))


@contextlib.contextmanager
def open_loggers(config: PretrainConfig, is_first: bool) -> Iterator[Loggers]:
    """Open the loggers of `log_to` on rank 0, and close them when the block ends or fails.

    Each starts with the rows of metrics.jsonl, so a resumed run shows each step once.
    """
    loggers = Loggers()
    if config.log_to and is_first:
        rows = run_folder.read_metrics(config.out)
        for name in dict.fromkeys(config.log_to):
            loggers.open(name, config, rows)
    try:
        yield loggers
    except BaseException:
        loggers.close(finished=False)
        raise
    loggers.close(finished=True)


@contextlib.contextmanager
def _reported(name: str) -> Iterator[list[Exception]]:
    """Print an exception of the block as one line, and append it to the yielded list."""
    failures: list[Exception] = []
    try:
        yield failures
    except Exception as error:
        failures.append(error)
        reason = str(error).partition("\n")[0] or type(error).__name__
        say(f"{name}: logging failed ({reason}); the training continues, metrics.jsonl has every row")
