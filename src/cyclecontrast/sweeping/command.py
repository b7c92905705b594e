"""The command `sweep`: trains and evaluates every row of a table with several seeds, then writes the table.

All trials (one per row and seed) are checked before the first one starts. An interrupted sweep resumes.
"""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cyclecontrast.config import PretrainConfig, SweepConfig
from cyclecontrast.data.layouts import find_layouts
from cyclecontrast.data.store import FrameStore
from cyclecontrast.distributed import World, broadcast_object, command_process_group, gather_objects
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.evaluation.protocol import find_protocol
from cyclecontrast.files import LOCK_FILE, check_folder, locked
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.hardware import num_cores, pick_device, pick_precision
from cyclecontrast.output import say
from cyclecontrast.sweeping.results import RowValues, Sweep, write_files
from cyclecontrast.sweeping.tables import QUEUE_SIZE, SIZE_TABLES, TABLES, Row, Table, rows_of
from cyclecontrast.sweeping.trials import (
    Finished,
    Trial,
    check_unchanged,
    evaluation_config,
    run_trials,
    training_settings,
)
from cyclecontrast.training.auto_settings import DataSize, Machine, auto_settings, resolve
from cyclecontrast.training.loggers import check_loggers
from cyclecontrast.training.setup import count_videos, frame_size, prepare_videos

PASSED_ON = ("preset", "backbone", "image_size", "batch_size", "epochs", "steps")
LABELS = {
    "images": "a folder with train/<class> and val/<class>, or a frame tree with train.txt and test.txt",
    "otb": "an OTB root",
    "videos": "a UCF101 or HMDB51 root",
}
"""What to name with --on, by the first kind of data of a table."""


class Plan(NamedTuple):
    """The trials (seed by seed) and the number of parallel jobs; `about` describes the data."""

    table: Table
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    jobs: int
    folder: Path
    about: str

    @property
    def key(self) -> list[tuple[str, int, str, dict[str, Any]]]:
        """The settings that must be equal in all processes; hardware and data paths may differ."""
        return [(trial.row, trial.seed, trial.data_fingerprint, trial.settings) for trial in self.trials]


def run_sweep(config: SweepConfig) -> Sweep | None:
    """Run the unfinished trials, write the table and return it. Raises UserError.

    A trial that fails is reported and the others run; where all fail, it raises UserError. The processes of torchrun
    share the trials; rank 0 writes the table and returns it, the others return None.
    """
    with command_process_group("sweep") as world, contextlib.ExitStack() as stack:
        plan = _plan_together(config, world, stack)
        finished = _run_together(plan, world)
        if world.rank:
            return None
        return _tabulate(plan, config.seeds, finished)


def _plan_together(config: SweepConfig, world: World, stack: contextlib.ExitStack) -> Plan:
    """Let rank 0 prepare the data and lock the folder before the others plan; raises UserError where plans differ."""
    plan = None
    if world.rank == 0:
        plan = make_plan(config, world.size)
        stack.enter_context(locked(plan.folder, "out"))
        for leftover in (*plan.folder.glob("*.part"), *plan.folder.glob("runs/*.part")):
            leftover.unlink()
    key = broadcast_object(plan and plan.key, world)
    plan = plan or make_plan(config, world.size, prepares=False)
    if plan.key != key:
        raise UserError("the processes have different options or data; start all with the same")
    gather_objects(None, world)  # raises before any training where a process failed
    return plan


def _run_together(plan: Plan, world: World) -> list[Finished]:
    """Run this process's share of the trials; returns those of all processes in rank 0, in the others nothing."""
    total = len(plan.trials)
    say(plan.about, f"{total} trials, {plan.jobs * world.size} at a time, in {plan.folder / 'runs'}")
    report = _make_reporter(total, plan.table)
    try:
        finished = run_trials(plan.trials[world.rank :: world.size], plan.jobs, report, world.size)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command resumes where it stopped") from interrupt
    ours, *others = gather_objects(finished, world) or [[]]
    for one in (one for rank in others for one in rank):
        report(one)
        ours.append(one)
    places = {trial.run: place for place, trial in enumerate(plan.trials)}
    return sorted(ours, key=lambda one: places[one.trial.run])


def _tabulate(plan: Plan, num_seeds: int, finished: list[Finished]) -> Sweep:
    """Write and return the table; raises UserError where no trial succeeded."""
    problems = tuple(f"{one.trial.name}: {line}" for one in finished for line in one.problems)
    if not any(one.metrics for one in finished):
        raise UserError(*dict.fromkeys(problems))
    rows = tuple(_row_values(row, plan.table, finished) for row in plan.rows)
    sweep = Sweep(plan.table, rows, num_seeds, plan.about, problems, plan.folder)
    write_files(sweep)
    suffixes = ".md, .html, .json and .png" if plan.table.axis else ".md, .html and .json"
    say(f"table: {plan.folder / plan.table.name}{suffixes}")
    return sweep


def _row_values(row: Row, table: Table, finished: list[Finished]) -> RowValues:
    values: dict[str, dict[int, float]] = {metric.title: {} for metric in table.metrics}
    for one in sorted(finished, key=lambda one: one.trial.seed):
        for metric in table.metrics if one.trial.row == row.folder else ():
            value = metric.pick(one.metrics)
            if value is not None:
                values[metric.title][one.trial.seed] = value
    return RowValues(row, values)


def _make_reporter(total: int, table: Table) -> Callable[[Finished], None]:
    """Return a function that prints how a trial ended, and how long the others will take."""
    began, num_ended, num_trained = time.monotonic(), 0, 0

    def report(one: Finished) -> None:
        nonlocal num_ended, num_trained
        num_ended, num_trained = num_ended + 1, num_trained + (not one.was_trained)
        values = ((metric.title, metric.pick(one.metrics)) for metric in table.metrics)
        found = ", ".join(f"{title} {value:.1f}" for title, value in values if value is not None)
        seconds = (time.monotonic() - began) / num_trained * (total - num_ended) if num_trained else 0.0
        remaining = f"; about {seconds / 60:.0f} min remaining" if seconds >= 60 else ""
        how = "trained before" if one.was_trained else f"{one.seconds:.0f} s"
        say(f"[{num_ended}/{total}] {one.trial.name}: {'; '.join(one.problems) or found} ({how}){remaining}")

    return report


# --- the plan


def make_plan(config: SweepConfig, num_processes: int = 1, prepares: bool = True) -> Plan:
    """Check all that can be known, prepare videos, and return what to do; raises UserError.

    `num_processes` share the machine, each with as many jobs; one of them `prepares` for all.
    """
    table, folder = TABLES[config.table], config.out or Path("sweeps") / config.table
    trial = checked(PretrainConfig, {"data": config.data, "out": folder, "workers": config.workers})
    _check(config, table, folder)
    data = folder / "frames" if count_videos(trial) else config.data
    if data != config.data and prepares:
        prepare_videos(trial)
    store, device = FrameStore.open(data), pick_device(config.device)
    is_cpu = device.type == "cpu"
    size, machine = frame_size(store), Machine(is_cpu)
    settings = {name: getattr(config, name) for name in PASSED_ON if getattr(config, name) is not None}
    settings = ({} if config.small else {"preset": "paper"}) | settings | {"flip": config.flip}
    queue_size = auto_settings(settings, size, machine)["cycle_queue_size"] if config.small else None
    rows = rows_of(config.table, queue_size)
    jobs = config.jobs or (max(1, num_cores() // 2 // num_processes) if is_cpu else 1)
    hardware, evaluations = _hardware(config, jobs * num_processes, is_cpu), _evaluations(config, table)
    base = Trial("", 0, folder / "runs", data, store.fingerprint, settings, hardware, evaluations)
    open_trials = (base.of(row.folder, seed, row.settings) for seed in range(config.seeds) for row in rows)
    problems: list[str] = []
    patch = make_backbone(config.backbone).patch if config.backbone else 1
    resolved = [attempt(partial(_resolved, trial, size, machine, device, patch), problems) for trial in open_trials]
    trials = tuple(trial for trial in resolved if trial is not None)
    attempt(lambda: list(map(check_unchanged, trials)), problems)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return Plan(table, rows, trials, jobs, folder, _about(config, store, trials[0].pretraining, queue_size, base.run))


def _check(config: SweepConfig, table: Table, folder: Path) -> None:
    problems: list[str] = []
    attempt(lambda: _check_folder(folder), problems)
    attempt(lambda: _check_labels(config, table, folder), problems)
    attempt(lambda: pick_device(config.device), problems)
    attempt(lambda: check_loggers(config.log_to), problems)
    if config.backbone is not None:
        attempt(partial(make_backbone, config.backbone, 0), problems)
    if problems:
        raise UserError(*problems)


def _check_folder(folder: Path) -> None:
    """Raise UserError where the folder is not empty and no sweep started it."""
    check_folder(folder)
    inside = (*folder.glob("*"), *folder.glob("runs/*"))
    is_sweep = any(path.match("runs/*-seed*.json") for path in inside)
    known = (LOCK_FILE, "frames", "runs")
    if not is_sweep and any(path.name not in known and path.suffix not in (".part", ".log") for path in inside):
        raise UserError(f"out: {folder} is not empty and not a sweep; name a new folder")


def _check_labels(config: SweepConfig, table: Table, folder: Path) -> None:
    """Raise UserError where there are no labels that the table's protocols can read."""
    on = config.on or config.data
    if not on.is_dir():
        raise UserError(f"on: {on}: no such folder")
    if not {layout.kind for layout in find_layouts(on, depth=0)} & set(table.kinds):
        raise UserError(f"on: {on}: has no labels for {table.name}; name with --on {LABELS[table.kinds[0]]}")
    for protocol, settings in _evaluations(config, table):
        find_protocol(protocol)(evaluation_config(protocol, settings, folder, 0)).open()


def _resolved(trial: Trial, data: DataSize, machine: Machine, device: torch.device, patch: int) -> Trial:
    """Return the trial with all `auto` settings resolved, so that they are equal for all seeds of a row."""
    config = resolve(trial.pretraining, data, machine, patch=patch)
    precision = pick_precision(config.precision, device)
    return trial._replace(settings=training_settings(config.model_copy(update={"precision": precision})))


def _hardware(config: SweepConfig, at_once: int, is_cpu: bool) -> dict[str, Any]:
    """Return the hardware settings, which do not change the results; parallel trials share the cores."""
    cores = num_cores() // at_once
    shared = None if at_once == 1 else max(1, cores // 4 if is_cpu else cores)
    workers = shared if config.workers is None else config.workers
    return {"device": config.device, "log_to": config.log_to} | ({} if workers is None else {"workers": workers})


def _evaluations(config: SweepConfig, table: Table) -> tuple[tuple[str, dict[str, Any]], ...]:
    shared: dict[str, Any] = {"data": config.on or config.data, "device": config.device}
    shared |= {} if config.workers is None else {"workers": config.workers}
    of_protocol: dict[str, dict[str, Any]] = {
        "tracking": {"train": config.train, "train_data": config.train_data},
        "action": {"flip": config.flip},
    }
    return tuple(
        (protocol, {**shared, **settings, **of_protocol.get(protocol, {})}) for protocol, settings in table.evaluations
    )


def _about(config: SweepConfig, store: FrameStore, resolved: PretrainConfig, queue_size: int | None, runs: Path) -> str:
    length = f"{resolved.steps:,} steps of" if resolved.steps else f"{resolved.epochs:,} epochs in batches of"
    lines = [
        f"Pretrained on {config.data} ({store.num_videos:,} videos, {store.num_frames:,} frames), "
        f"{resolved.backbone} at {resolved.image_size} px, {length} {resolved.batch_size} videos, "
        f"preset {resolved.preset}; evaluated on {config.on or config.data}."
    ]
    if queue_size is not None and config.table in SIZE_TABLES:
        lines.append(f"Sizes are scaled from the paper's queue of {QUEUE_SIZE:,} keys to {queue_size:,}.")
    elif not config.small and resolved.cycle_queue_size > store.num_frames:
        lines.append(
            f"The queue of {resolved.cycle_queue_size:,} keys is longer than the {store.num_frames:,} frames; "
            "--small scales it."
        )
    seeds = (path.name.rpartition("-seed")[2] for path in runs.glob("*-seed*"))
    if any(seed.isdecimal() and int(seed) >= config.seeds for seed in seeds):
        lines.append(f"Seeds: {', '.join(map(str, range(config.seeds)))}; more are in the folder.")
    return " ".join(lines)
