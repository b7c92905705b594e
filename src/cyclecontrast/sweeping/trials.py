"""Trials of a sweep: training and evaluation of one row with one seed. Finished work on disk is reused."""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits

from cyclecontrast.config import CHANGEABLE_ON_RESUME, PROTOCOL_CONFIGS, EvaluateConfig, PretrainConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation.runner import evaluate_alone
from cyclecontrast.files import atomic_write
from cyclecontrast.models.hardware import num_cores
from cyclecontrast.training.pretrain import pretrain
from cyclecontrast.training.run_folder import ABOUT, CONFIG, read_about

Settings = dict[str, Any]
Metrics = dict[str, dict[str, float]]
"""Metrics as fractions, by protocol."""

KILLED = (
    "its process was killed (is the memory full?) or could not start (in a script, call sweep below "
    '`if __name__ == "__main__":`); --jobs 1 runs without processes'
)
FAILURES = (UserError, OSError, RuntimeError, MemoryError)
"""Exceptions that fail only the current trial: wrong settings, full disk, out of memory."""


class Trial(NamedTuple):
    """A training and its evaluations (protocol, settings). `hardware` are settings that do not change the result.

    The trials of a plan have all settings, none is `auto`. `data_fingerprint` identifies the frames at `data`.
    """

    row: str
    seed: int
    run: Path
    data: Path
    data_fingerprint: str
    settings: Settings
    hardware: Settings
    evaluations: tuple[tuple[str, Settings], ...] = ()

    def of(self, row: str, seed: int, settings: Settings) -> "Trial":
        """Return the trial of a row and a seed; `run` of this one is the folder of all runs."""
        run = self.run / f"{row}-seed{seed}"
        return self._replace(row=row, seed=seed, run=run, settings={**self.settings, **settings, "seed": seed})

    @property
    def name(self) -> str:
        """Such as `full, seed 0`."""
        return f"{self.row}, seed {self.seed}"

    @property
    def note(self) -> Path:
        """Marker file next to the run folder: it exists if a sweep started the run."""
        return self.run.with_name(f"{self.run.name}.json")

    @property
    def pretraining(self) -> PretrainConfig:
        """The options of the training; raises UserError."""
        return checked(PretrainConfig, {"data": self.data, "out": self.run, **self.settings, **self.hardware})


class Finished(NamedTuple):
    """A trial with its metrics, or with its problems.

    `was_trained` is True if an earlier command had finished its training.
    """

    trial: Trial
    metrics: Metrics
    problems: tuple[str, ...]
    was_trained: bool
    seconds: float


def training_settings(config: PretrainConfig) -> Settings:
    """Return the options that decide what is trained, as plain values; without epochs where steps are set."""
    overridden = set() if config.steps is None else {"epochs"}
    return config.model_dump(mode="json", exclude={*CHANGEABLE_ON_RESUME, "out", *overridden})


def evaluation_config(protocol: str, settings: Settings, model: Path, seed: int) -> EvaluateConfig:
    """Return the options of an evaluation of one run; raises UserError."""
    return checked(
        PROTOCOL_CONFIGS[protocol], {**settings, "model": str(model), "out": model / "results", "seed": seed}
    )


def check_unchanged(trial: Trial) -> None:
    """Raise UserError where the run's folder has other settings or data, is damaged, or is not from a sweep.

    The run's config.toml says what it was started with, also where a sweep of another version started it.
    """
    if not trial.note.exists():
        if trial.run.exists():
            raise UserError(f"out: {trial.run} was not made by a sweep; name another folder with --out")
        return
    if not (trial.run / CONFIG).exists():
        return
    about = read_about(trial.run) if (trial.run / ABOUT).exists() else {}
    started = {**training_settings(_resuming(trial)), "data": about.get("data_fingerprint", trial.data_fingerprint)}
    requested = {**trial.settings, "data": trial.data_fingerprint}
    pairs = ((name, started.get(name), requested.get(name)) for name in sorted({*started, *requested}))
    changed = [
        f"{name} {'unset' if old is None else old}, not {'unset' if new is None else new}"
        for name, old, new in pairs
        if old != new
    ]
    if changed:
        raise UserError(f"out: {trial.run} was started with {', '.join(changed)}; name another folder with --out")


def is_trained(trial: Trial) -> bool:
    """Whether the training has finished; raises UserError where run.json is damaged."""
    return (trial.run / ABOUT).exists() and read_about(trial.run).get("status") == "finished"


def run_trial(trial: Trial) -> Metrics:
    """Train and evaluate what is not done yet; raises UserError."""
    check_unchanged(trial)
    with atomic_write(trial.note) as aside:
        aside.write_text(json.dumps({"data": trial.data_fingerprint}))
    if not is_trained(trial):
        is_started = (trial.run / CONFIG).exists()
        if not is_started:  # it may have been stopped before its first step
            shutil.rmtree(trial.run, ignore_errors=True)
        pretrain(_resuming(trial) if is_started else trial.pretraining, alone=True)
    found = {}
    for protocol, settings in trial.evaluations:
        config = evaluation_config(protocol, settings, trial.run, trial.seed)
        found[protocol] = evaluate_alone(protocol, config, reuse=True).metrics
    return found


def _resuming(trial: Trial) -> PretrainConfig:
    """Return the options that resume the run with the settings it was started with."""
    return checked(PretrainConfig, {"resume": trial.run, "data": trial.data, **trial.hardware})


def run_trials(
    trials: Sequence[Trial], jobs: int, report: Callable[[Finished], None], num_processes: int = 1
) -> list[Finished]:
    """Run all trials in order, `jobs` at a time; `report` is called as each ends. A failure does not stop the others.

    `num_processes` of torchrun share this machine. Unless only one trial runs at a time, each gets a process of its
    own, whose stderr goes to a log beside the run.
    """
    at_once, finished = jobs * num_processes, list[Finished]()
    if at_once == 1:
        for trial in trials:
            finished.append(_attempt(trial, run_trial))
            report(finished[-1])
        return finished
    executor = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([executor.submit(_attempt, trial, _run_in_process, at_once) for trial in trials]):
            finished.append(future.result())
            report(finished[-1])
    except SystemExit:  # SIGTERM, which the trainings get too, so that they write a checkpoint
        executor.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
    return finished


def _attempt(trial: Trial, run: Callable[..., Metrics], *arguments: int) -> Finished:
    began = time.monotonic()
    was_trained = False
    metrics: Metrics = {}
    problems: tuple[str, ...] = ()
    try:
        was_trained = is_trained(trial)
        metrics = run(trial, *arguments)
    except FAILURES as error:
        problems = error.problems if isinstance(error, UserError) else (f"{type(error).__name__}: {error}",)
    return Finished(trial, metrics, problems, was_trained, time.monotonic() - began)


def _run_in_process(trial: Trial, at_once: int) -> Metrics:
    """Run a trial in its own process and return its metrics; if the process is killed, only this trial fails."""
    log = trial.run.with_name(f"{trial.run.name}.log")
    num_threads = max(1, num_cores() // at_once)
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_init_process, initargs=(num_threads, log)) as pool:
        try:
            return pool.submit(run_trial, trial).result()
        except BrokenProcessPool:
            raise UserError(KILLED) from None
        except SystemExit:
            raise UserError("its process was terminated; the same command resumes it") from None


def _init_process(num_threads: int, log: Path) -> None:
    """Use a share of the cores, write stderr to a log, and end when the parent is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    threadpool_limits(num_threads)
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())


def _end_with_parent() -> None:
    """Exit when the parent process ends, so that no orphan keeps training while the command is run again."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
