"""The command `pretrain`: resolve the options, create or resume the run, train, and write the final backbone."""

import contextlib
import math
import textwrap
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cyclecontrast.config import MACHINE_SETTINGS, RESOLVED_BY_AUTO, PretrainConfig
from cyclecontrast.config.types import detail, is_user_defined
from cyclecontrast.data.dataset import ViewDataset
from cyclecontrast.distributed import ALONE, all_reduce_max, barrier, check_same, process_group
from cyclecontrast.errors import UserError, explained, out_of_memory
from cyclecontrast.files import check_new_run, locked, remove
from cyclecontrast.methods import Method, unread_options
from cyclecontrast.models.backbone import Backbone, has_batchnorm
from cyclecontrast.models.checkpoint import BACKBONE_FILE, save_backbone
from cyclecontrast.models.hardware import limited_threads, package_versions, pick_device, pick_precision, rounding
from cyclecontrast.output import join_lines, quoted, say
from cyclecontrast.training import checkpoints, run_folder
from cyclecontrast.training.auto_settings import Machine, with_method
from cyclecontrast.training.loggers import open_loggers
from cyclecontrast.training.monitor import Monitor, best_backbone, compute_verdict, steps_between
from cyclecontrast.training.plan import Plan, make_plan, measure, plan_lines, steps_in_time
from cyclecontrast.training.progress import Row
from cyclecontrast.training.read_errors import ReadErrors
from cyclecontrast.training.setup import build_method, make_health_dataset, open_training, unused_options
from cyclecontrast.training.signals import stop_signals
from cyclecontrast.training.trainer import Trainer, learning_rate
from cyclecontrast.training.user_parts import NO_PARTS, UserParts, check_given
from cyclecontrast.training.verdict import Verdict, is_start_kept, last_measured, measured_on

COLUMNS = 80
DECIDING = ("device", "processor", "instructions", "threads", "precision", "processes", "augment_on", "compile")
"""Entries of run.json that, with the versions, decide the bits of a run."""


@dataclass(frozen=True)
class Run:
    """A finished training run: its folder, backbone and last metrics; `str` shows the verdict and the next commands.

    `judged_at` is a text with the step of the last health measurement if it is not the last step, and with the videos
    if none were held out. `is_continued`: it started from given weights and changed them. `str` is empty on all ranks
    but 0. `frames` is the folder or URL of the frames that it was trained on.
    """

    folder: Path
    backbone: Backbone
    metrics: Row
    verdict: Verdict | None = None
    judged_at: str = ""
    is_continued: bool = False
    is_first: bool = True
    frames: Path | str = ""

    def __str__(self) -> str:
        if not self.is_first:
            return ""
        health = [f"health{self.judged_at}: {self.verdict}"] if self.verdict is not None else []
        run, index = quoted(self.folder), quoted(self.folder / "index.parquet")
        commands = [
            f"cyclecontrast embed {run} {quoted(self.frames)} --out {index}",
            f"cyclecontrast search {index} --serve",
            f"cyclecontrast evaluate knn {run} LABELED{' --baseline start' * self.is_continued}",
        ]
        if is_user_defined(self.backbone.name):
            commands = [f"in Python load_backbone({str(self.folder)!r}, network=...), then evaluate, embed, export"]
        lines = [f"{'next:' * (not number):<6}{command}" for number, command in enumerate(commands)]
        return join_lines([*health, f"backbone: {self.folder / 'backbone.safetensors'}", *lines])


def pretrain(config: PretrainConfig, parts: UserParts = NO_PARTS, alone: bool = False) -> Run:
    """Train a backbone on unlabeled videos, write the run to `config.out` and return it. Raises UserError.

    `parts` are the custom objects that the config refers to by name. With `alone`, this process does not join the
    process group of torchrun. After SIGINT, SIGTERM or SIGHUP a checkpoint is written, then KeyboardInterrupt or
    SystemExit is raised.
    """
    began, device = time.monotonic(), pick_device(config.device)
    with contextlib.nullcontext(ALONE) if alone else process_group(device, "pretrain") as world:
        check_given(config, parts)
        machine, requested = Machine(device.type == "cpu", world.size), config.requested()
        config = with_method(config, machine)
        unread = unused_options(config, parts)
        config, dataset, backbone = open_training(config, machine, world, parts)
        if config.minutes is not None:
            with _isolated(device):
                timing = measure(config, dataset, backbone, device, world, parts)
            steps = steps_in_time(timing, config, time.monotonic() - began, world)
            config = config.model_copy(update={"steps": steps, "minutes": None})
        config = _resolved(config, backbone, device, num_steps(config, dataset))
        is_first = world.rank == 0
        lock = locked(config.out, "out") if is_first else contextlib.nullcontext()
        with _isolated(device), lock:
            check_same(_shared_settings(config, dataset, backbone), world)
            torch.manual_seed(config.seed)
            method = build_method(config, backbone, dataset.store.num_videos, parts, world)
            trainer = Trainer(method, config, num_steps(config, dataset), device, world)
            start, read_errors = open_run(trainer, dataset, requested)
            if unread and is_first:
                say(f"not used by {config.method}: {', '.join(unread)}")
            with open_loggers(config, is_first) as loggers:
                with stop_signals() as stop, _record_stops(trainer):
                    monitor = Monitor(trainer, make_health_dataset(config, dataset), dataset, start)
                    row = trainer.fit(dataset, start, read_errors, monitor, loggers, stop)
                run = _close_run(trainer, row, read_errors, dataset.store.root)
                loggers.conclude(run.verdict)
            return run


def plan(config: PretrainConfig, parts: UserParts = NO_PARTS) -> Plan:
    """Return what `pretrain` would do, after timing a few steps; a folder of videos is prepared. Raises UserError."""
    began, device = time.monotonic(), pick_device(config.device)
    with process_group(device, "pretrain") as world:
        check_given(config, parts)
        machine = Machine(device.type == "cpu", world.size)
        config, dataset, backbone = open_training(with_method(config, machine), machine, world, parts)
        with _isolated(device):
            timing = measure(config, dataset, backbone, device, world, parts)
        steps = num_steps(config, dataset)
        if config.minutes is not None:
            steps = steps_in_time(timing, config, time.monotonic() - began, world)
        return make_plan(_resolved(config, backbone, device, steps), dataset, steps, device, timing)


@contextlib.contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """Limit the threads, and restore the state of the random generators afterwards."""
    with limited_threads(device), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def num_steps(config: PretrainConfig, dataset: ViewDataset) -> int:
    """Return the total number of optimizer steps."""
    return config.steps or max(1, math.ceil(config.epochs * dataset.num_videos / config.batch_size))


def open_run(trainer: Trainer, dataset: ViewDataset, requested: Collection[str] = ()) -> tuple[int, ReadErrors]:
    """Create the run folder, or restore the trainer from the latest intact checkpoint.

    Returns the number of completed steps and the read errors so far. `requested` are the options that the user set.

    Raises UserError if the run is damaged, or if the processes do not see the same folder.
    """
    config, world, run = trainer.config, trainer.world, trainer.config.out
    before: dict[str, Any] = {}
    if config.resume is None:
        check_new_run(run)
    elif (run / run_folder.ABOUT).exists() or checkpoints.checkpoints(run):
        before = run_folder.read_about(run)
    checkpoint, damages = checkpoints.find_intact(run)
    start = checkpoints.step_of(checkpoint)
    if checkpoint is None and before.get("status") == "finished":
        raise UserError(f"resume: {run} is finished, and its checkpoints no longer exist; start a new run")
    if all_reduce_max([start if world.rank == 0 else 0], world) != [start]:
        raise UserError(
            f"out: {run} is not the same folder as on process 0; use a folder on a file system that all processes share"
        )
    if trainer.num_steps < start:
        raise UserError(f"steps: {run} has done {start:,} steps; set as many or more, or start a new run")
    read_errors, begins = ReadErrors(), dict[str, Any]()
    if checkpoint is None:
        begins = run_folder.about_start(config, trainer.method.encoder.backbone)
        begun_with, found = ((about.get("start") or {}).get("fingerprint") for about in (before, begins))
        if begun_with not in (None, found):
            raise UserError(
                f"resume: {config.init} is not the start that {run} began with (fingerprint {found}, not "
                f"{begun_with}); restore it, or start a new run"
            )
    else:
        try:
            trainer.load_state_dict(checkpoints.load_state(checkpoint))
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"resume: {checkpoint} is of another network or method ({reason})") from error
        read_errors = ReadErrors.read(checkpoint)
    barrier(world)  # no process may remove files before all have read the checkpoint
    if world.rank == 0:
        about = _about(trainer, dataset) | begins
        if checkpoint is not None:  # later measurements will be repeated
            kept = run_folder.read_about(checkpoint)
            about |= {name: kept[name] for name in ("verdict", "reason", "health", "start") if name in kept}
        if start < trainer.num_steps and (run / BACKBONE_FILE).exists():
            # Before anything says that the run has more steps; the weights last, so that a kill in between is repeated.
            for name in ("report.html", "backbone.json", BACKBONE_FILE):
                remove(run / name)
        for leftover in run.glob("*.part"):
            remove(leftover)
        run_folder.write_config(run, config)
        run_folder.write_about(run, about)
        run_folder.restore_metrics(run, checkpoint)
        read_errors.write(run)
        run_folder.remove_best_and_cycles_after(run, start)
        checkpoints.remove_checkpoints_after(run, start)
        say(*plan_lines(config, dataset, trainer.num_steps, trainer.device))
        if _start_has_seen(config, about):
            say("the start (--init) was trained on some of the held-out videos")
        say(*_settings_table(config, trainer.method, requested))
        if config.resume is not None:
            _announce_resumed(before, about, damages, start)
        if before.get("num_steps", trainer.num_steps) != trainer.num_steps:
            rate = learning_rate(config.learning_rate, start / trainer.num_steps, config.schedule, config.warmup)
            how = "extended" if trainer.num_steps > before["num_steps"] else "shortened"
            say(
                f"{how} from {before['num_steps']:,} to {trainer.num_steps:,} steps: from here on, the schedules of "
                f"learning rate, momentum and losses are those of {trainer.num_steps:,} steps; the learning rate is "
                f"now {rate:.2g}"
            )
    return start, read_errors


def _resolved(config: PretrainConfig, backbone: Backbone, device: torch.device, steps: int) -> PretrainConfig:
    return config.model_copy(
        update={
            "precision": pick_precision(config.precision, device),
            "backbone": backbone.name,
            "health_every": steps_between(config.health_every, steps),
        }
    )


def _shared_settings(config: PretrainConfig, dataset: ViewDataset, backbone: Backbone) -> dict[str, Any]:
    """Return the settings that must be equal in all processes of a training."""
    num_weights = sum(value.numel() for value in backbone.state_dict().values())
    settings = config.model_dump(mode="json", exclude=set(MACHINE_SETTINGS))
    return settings | {"data": dataset.store.fingerprint, "number of weights of the backbone": num_weights}


def _about(trainer: Trainer, dataset: ViewDataset) -> dict[str, Any]:
    """Return the initial content of run.json."""
    config, store = trainer.config, dataset.store
    return {
        "versions": package_versions(),
        "device": run_folder.device_name(trainer.device),
        **rounding(trainer.device),
        "precision": config.precision,
        "processes": trainer.world.size,
        "augment_on": config.augment_on,
        "compile": config.compile,
        "data_fingerprint": store.fingerprint,
        "num_videos": store.num_videos,
        "num_frames": store.num_frames,
        "num_single_frame_videos": int((np.diff(store.starts) == 1).sum()),
        "num_held_out": store.num_videos - dataset.num_videos,
        "num_steps": trainer.num_steps,
        "status": "running",
    }


def _start_has_seen(config: PretrainConfig, about: dict[str, Any]) -> bool:
    """Return whether the run starts from one that held out fewer of the same videos."""
    earlier: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # there is no run.json, or a damaged one
        earlier = run_folder.read_about(Path(config.init)) if config.init is not None else {}
    held_out = earlier.get("num_held_out", math.inf)
    return earlier.get("data_fingerprint") == about["data_fingerprint"] and bool(held_out < about["num_held_out"])


def _settings_table(config: PretrainConfig, method: Method, requested: Collection[str]) -> list[str]:
    """Return the settings that were chosen for this run, in groups; not those of other methods, and no folders."""
    chosen = RESOLVED_BY_AUTO | set(requested) | {"method", "positives", "views", "init", "teacher"}
    chosen -= unread_options(type(method)) | {"data", "out", "resume", "minutes"}
    chosen -= {name for name in chosen if getattr(config, name) is None}
    if "epochs" not in requested:  # the plan says how often each video is drawn
        chosen -= {"epochs"}
    if config.init is None:
        chosen -= {"freeze_batchnorm", "projector_first"}
    else:
        chosen |= {"flip"}  # it may be that of the start
    if not has_batchnorm(method.encoder.backbone):
        chosen -= {"freeze_batchnorm"}
    groups: dict[str, list[str]] = {}
    for name, field in type(config).model_fields.items():
        if name in chosen:
            value = getattr(config, name)
            value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
            value = ",".join(value) if isinstance(value, tuple) else value
            groups.setdefault(detail(field, "group"), []).append(f"{name}={value}{'*' * (name in requested)}")
    stars = "* set by you; " if requested else ""
    lines = [f"settings ({stars}all are in {config.out / 'config.toml'}):"]
    for group, words in groups.items():
        text = textwrap.fill(" ".join(words), COLUMNS - 16, break_long_words=False, break_on_hyphens=False)
        first, *others = text.split("\n")
        lines += [f"  {group:<14}{first}", *(f"{' ' * 16}{other}" for other in others)]
    return lines


def _announce_resumed(before: dict[str, Any], about: dict[str, Any], damages: list[str], start: int) -> None:
    for damage in damages:
        say(f"{damage}: using the previous checkpoint")
    say(f"resuming after step {start:,}" if start else "no checkpoint: restarting from the first step")
    changed = [
        f"{name} was {before[name]}, now {about[name]}"
        for name in (*DECIDING, "versions")
        if name in before and name in about and before[name] != about[name]
    ]
    if changed:
        say(f"warning: from here on, results are not bit-identical to an uninterrupted run: {'; '.join(changed)}")


@contextlib.contextmanager
def _record_stops(trainer: Trainer) -> Iterator[None]:
    """On an error, write the reason to run.json and raise UserError that names the checkpoint to resume from."""
    stopped = partial(checkpoints.record_stop, trainer.config.out, world=trainer.world)
    try:
        yield
    except UserError as error:
        raise UserError(stopped("; ".join(error.problems))) from error
    except torch.OutOfMemoryError as error:
        message = f"{out_of_memory(error)}; start a new run with a smaller batch"
        raise UserError(stopped(message)) from error
    except OSError as error:
        raise UserError(stopped(explained(error, trainer.config.out))) from error
    except Exception as error:
        stopped(f"failed: {type(error).__name__}: {error}")
        raise


def _close_run(trainer: Trainer, row: Row, read_errors: ReadErrors, frames: Path | str) -> Run:
    """Write the final backbone and the status of run.json."""
    config, run, backbone = trainer.config, trainer.config.out, trainer.method.encoder.backbone.eval()
    verdict, judged_at, is_first = None, "", trainer.world.rank == 0
    if is_first:
        backbone, verdict = best_backbone(trainer), compute_verdict(config)
        judged = last_measured(run_folder.read_metrics(run))
        health = run_folder.read_about(run).get("health", {"held_out": True})
        remarks = [f"at step {judged:,} of {trainer.num_steps:,}"] * (judged < trainer.num_steps)
        remarks += [] if health["held_out"] else [f"on {measured_on(health)}, none is held out"]
        judged_at = f" ({'; '.join(remarks)})" if remarks else ""
        save_backbone(backbone, run)
        run_folder.change_about(run, status="finished")
        read_errors.report(run)
    barrier(trainer.world)
    is_continued = config.init is not None and not is_start_kept(run_folder.read_about(run))
    return Run(run, backbone, row, verdict, judged_at, is_continued, is_first, frames)
