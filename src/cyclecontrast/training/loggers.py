"""Copies of metrics.jsonl for viewers, TensorBoard and Weights & Biases; a training never depends on them."""

import contextlib
import importlib
import importlib.util
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.files import remove, replacing
from cyclecontrast.training import run_folder
from cyclecontrast.training.progress import Row, console
from cyclecontrast.training.verdict import Verdict

COMPARED = ("loss", "health_same_video")
"""Metrics that TensorBoard shows beside the settings."""
FLUSH_SECONDS = 10
FINISH_SECONDS = 300.0
"""A finished training waits so long for an upload; the rest stays on disk for `wandb sync`."""
PRIVATE = {
    **{"console": "off", "save_code": False, "disable_git": True, "disable_code": True, "disable_job_creation": True},
    **{"x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False},
    **{"finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True},
}
"""Settings of wandb: metrics and settings alone, nothing of the machine, the code or the output."""


class Logger(Protocol):
    """A viewer's copy of a run; any of its methods may fail, as libraries do."""

    place: str
    """Where the copy is, and how to view it."""

    def log(self, row: Row) -> None:
        """Add a row of metrics; None was not measured."""

    def conclude(self, verdict: Verdict) -> None:
        """Add the verdict of the finished run."""

    def close(self, finished: bool) -> None:
        """Write what is still held; the run may be resumed later where it is not finished."""


class TensorBoard:
    """Event files in RUN/tensorboard, by PyTorch's writer."""

    def __init__(self, config: PretrainConfig) -> None:
        folder = config.out / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        summary_writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        # purge_step: a viewer that watches the folder forgets what it saw of steps from 0 on.
        self._writer = summary_writer(str(folder), purge_step=0, flush_secs=FLUSH_SECONDS)
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in config.model_dump(mode="json", exclude_none=True).items()
        }
        # The writer's own add_hparams would make a second run beside this one.
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
        """Write what is held."""
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
        """Add what was measured, except steps that the server has: it takes none twice."""
        if row["step"] >= self._first_step:
            self._run.log({name: value for name, value in row.items() if value is not None}, step=row["step"])

    def conclude(self, verdict: Verdict) -> None:
        """Add the verdict to the summary."""
        self._run.summary.update({"verdict": verdict.word, "reason": verdict.reason})

    def close(self, finished: bool) -> None:
        """End it, as crashed where the training did not finish."""
        self._run.finish(exit_code=0 if finished else 1)

    @staticmethod
    def _run_id(path: Any) -> str:
        """Return the id of the run at Weights & Biases, drawn once and kept in a file."""
        if not path.exists():
            with replacing(path) as aside:
                aside.write_text(secrets.token_hex(4))
        run_id: str = path.read_text().strip()
        if not run_id.isalnum():
            raise ValueError(f"{path} has no id of letters and digits; remove it")
        return run_id

    @staticmethod
    def _forget_imports(run_id: str) -> None:
        """Remove wandb's import hooks: they report which packages are used, and fail once its service has ended."""
        hooks: Any = importlib.import_module("wandb.sdk.lib.import_hooks")
        telemetry: Any = importlib.import_module("wandb.sdk.lib.telemetry")
        for module in telemetry.list_telemetry_imports():
            hooks.unregister_post_import_hook(module, run_id)


OPENERS: dict[str, Callable[[PretrainConfig], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Loggers:
    """The open copies; one that fails is reported in a line and closed to further rows."""

    def __init__(self) -> None:
        self._open: dict[str, Logger] = {}

    def open(self, name: str, config: PretrainConfig, rows: Iterable[Row]) -> None:
        """Start a copy with the rows that metrics.jsonl has."""
        with _reported(name):
            logger = OPENERS[name](config)
            self._open[name] = logger
            console.print(f"{name}: {logger.place}")
        for row in rows:
            if name in self._open:
                self._each(lambda logger, row=row: logger.log(row), [name])  # type: ignore[misc]

    def log(self, row: Row) -> None:
        """Add a row of metrics to each."""
        self._each(lambda logger: logger.log(row), list(self._open))

    def conclude(self, verdict: Verdict | None) -> None:
        """Add the verdict of the finished run to each, where health was measured."""
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
    """Raise UserError that names the extra of each package that is not installed."""
    missing = []
    for name in dict.fromkeys(names):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name has no origin
            missing.append(name)
    if missing:
        raise UserError(*(f"log_to: {name} is not installed; pip install 'cyclecontrast[{name}]'" for name in missing))


@contextlib.contextmanager
def open_loggers(config: PretrainConfig, is_first: bool) -> Iterator[Loggers]:
    """Open what `log_to` names, in the first process only, and close it however the block ends.

    Each starts as a copy of metrics.jsonl, so a resumed run shows no step twice, and earlier steps too.
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
    """Report what a library fails with in a line; the yielded list has it afterwards."""
    failures: list[Exception] = []
    try:
        yield failures
    except Exception as error:
        failures.append(error)
        reason = str(error).partition("\n")[0] or type(error).__name__
        console.print(f"{name}: logging failed ({reason}); the training continues, metrics.jsonl has every row")
