"""Where else a training's metrics go: copies of metrics.jsonl for viewers, without which the training goes on."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.training import run_folder
from cyclecontrast.training.progress import Row, console
from cyclecontrast.training.tensorboard_log import open_tensorboard
from cyclecontrast.training.training import Training
from cyclecontrast.training.verdict import Verdict
from cyclecontrast.training.wandb_log import open_wandb


class Logger(Protocol):
    """A viewer's copy of a run: `place` says where it is; any of its methods may fail, as libraries do."""

    place: str

    def log(self, row: Row) -> None:
        """Add a line of metrics; what is None was not measured."""

    def conclude(self, verdict: Verdict) -> None:
        """Add what the health of the finished run came to."""

    def close(self, finished: bool) -> None:
        """Write what is still held; the run may go on later where it is not finished."""


OPENERS: dict[str, Callable[[PretrainConfig], Logger]] = {"tensorboard": open_tensorboard, "wandb": open_wandb}


@dataclass
class Loggers:
    """The copies that are kept by this process; one that fails is told of and left out from there on."""

    opened: dict[str, Logger]

    def log(self, row: Row) -> None:
        """Add a line of metrics to each."""
        self._each(lambda logger: logger.log(row))

    def conclude(self, verdict: Verdict | None) -> None:
        """Add the verdict of the finished run to each, where health was measured."""
        if verdict is not None:
            self._each(lambda logger: logger.conclude(verdict))

    def close(self, finished: bool) -> None:
        """Close each."""
        self._each(lambda logger: logger.close(finished))

    def _each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list(self.opened.items()):
            with _told(name) as failed:
                act(logger)
            if failed:
                del self.opened[name]


def check_loggers(names: Iterable[str]) -> None:
    """Raise UserError that names the extra of each package that is not installed."""
    missing = [name for name in dict.fromkeys(names) if not _is_installed(name)]
    if missing:
        raise UserError(*(f"log_to: {name} is not installed; pip install 'cyclecontrast[{name}]'" for name in missing))


@contextlib.contextmanager
def open_loggers(training: Training) -> Iterator[Loggers]:
    """Open what `log_to` names and close it however the block ends; only the first process has any.

    Each begins as a copy of the lines that metrics.jsonl has: so a resumed run shows no step twice and none that it was
    put back behind, and has the steps before logging was asked for.
    """
    config, loggers = training.config, Loggers({})
    if config.log_to and training.hardware.world.rank == 0:
        rows = run_folder.read_metrics(config.out)
        for name in dict.fromkeys(config.log_to):
            _open(name, config, rows, loggers)
    try:
        yield loggers
    except BaseException:
        loggers.close(finished=False)
        raise
    loggers.close(finished=True)


def _open(name: str, config: PretrainConfig, rows: list[dict[str, Any]], loggers: Loggers) -> None:
    with _told(name):
        logger = OPENERS[name](config)
        loggers.opened[name] = logger
        console.print(f"{name}: {logger.place}")
    for row in rows:
        if name in loggers.opened:
            loggers.opened[name].log(row)


@contextlib.contextmanager
def _told(name: str) -> Iterator[list[Exception]]:
    """Tell in a line what a library fails with, whatever that is; the list that is given has it afterwards."""
    failed: list[Exception] = []
    try:
        yield failed
    except Exception as error:
        failed.append(error)
        reason = str(error).partition("\n")[0] or type(error).__name__
        console.print(f"{name}: logging failed ({reason}); the training goes on without, metrics.jsonl has every line")


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a folder of that name has no origin
