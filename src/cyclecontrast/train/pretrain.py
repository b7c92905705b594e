"""The command: data and config in, a run on disk out. One step is in training.py."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.pairs import FramePairs, load_batches
from cyclecontrast.errors import UserError
from cyclecontrast.loss.objectives import measure
from cyclecontrast.model.backbone import Backbone
from cyclecontrast.model.checkpoint import save_backbone
from cyclecontrast.model.hardware import limited_threads, pick_device, pick_precision, pick_workers
from cyclecontrast.train import run_folder
from cyclecontrast.train.distributed import join_world, leave_world
from cyclecontrast.train.health import steps_between
from cyclecontrast.train.monitor import best_backbone, open_monitor, read_verdict
from cyclecontrast.train.opening import open_training, unread_options
from cyclecontrast.train.presets import Machine
from cyclecontrast.train.progress import Clock, Row, console, progress_bar
from cyclecontrast.train.training import Hardware, StepResult, Training, make_training, restore, state_of, train_step
from cyclecontrast.train.verdict import Verdict, last_measured
from cyclecontrast.versions import package_versions

LARGEST_WEIGHT = 1e6
OF_HEALTH = ("verdict", "reason", "health")


class Run(NamedTuple):
    """A finished pretraining: its folder, its backbone, its last metrics; its text says how to go on.

    `judged_at` names the step of the verdict where the training went on behind it.
    """

    folder: Path
    backbone: Backbone
    metrics: Row
    verdict: Verdict | None = None
    judged_at: str = ""

    def __str__(self) -> str:
        health = f"health{self.judged_at}: {self.verdict}\n" if self.verdict is not None else ""
        return (
            f"{health}backbone: {self.folder / 'backbone.safetensors'}\n"
            f"next: cyclecontrast evaluate knn {self.folder} DATA, or embed, export, report"
        )


def pretrain(config: PretrainConfig) -> Run:
    """Train a backbone on videos without labels and write the run to `config.out`; raises UserError."""
    device = pick_device(config.device)
    world = join_world(device)
    unread = unread_options(config)
    config, pairs, backbone = open_training(config, Machine(device.type == "cpu", world.size), world)
    total = num_steps(config, pairs)
    settled = {
        "precision": pick_precision(config.precision, device),
        "backbone": backbone.name,
        "health_every": steps_between(config.health_every, total),
    }
    config = config.model_copy(update=settled)
    with limited_threads(device):
        hardware = Hardware(device, config.precision, world)
        training = make_training(config, backbone, total, hardware)
        start = _open_run(training, pairs)
        if unread and world.rank == 0:
            console.print(f"plays no part in {config.objective}: {', '.join(unread)}")
        try:
            row = _train(training, pairs, start)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_stop(training, "interrupted")) from None
    return _close_run(training, row)


def num_steps(config: PretrainConfig, pairs: FramePairs) -> int:
    """Return the number of updates of the whole training.

    Differs from the release: a batch may reach into the next epoch, so that no video is left out at an epoch's end.
    """
    return config.steps or max(1, math.ceil(config.epochs * pairs.num_videos / config.batch_size))


def _train(training: Training, pairs: FramePairs, start: int) -> Row:
    """Run the steps from `start` on; returns the last line of metrics. Raises UserError where the loss diverges."""
    config, (device, _, world) = training.config, training.hardware
    steps = range(start, training.num_steps)
    workers = pick_workers(config.workers, device)
    clock, monitor = Clock(), open_monitor(training, pairs, start)
    batches = clock.timed(load_batches(pairs, steps, config.batch_size, world.rank, world.size, workers))
    row: Row = (run_folder.read_metrics(config.out) or [{}])[-1] if world.rank == 0 else {}
    first_bad = torch.full((), -1, device=device)
    with progress_bar(training.num_steps, start, shown=world.rank == 0) as advance:
        for step, batch in zip(steps, batches, strict=True):
            result = train_step(training, batch, step)
            first_bad = torch.where((first_bad < 0) & ~_is_sound(result), step, first_bad)
            last = step + 1 == training.num_steps
            if last or (step + 1) % config.log_every == 0 or monitor.is_due(step + 1):
                _stop_if(first_bad, training)
                if world.rank == 0:
                    row = _metrics(training, pairs, result, step, clock)
                    with clock.paused():
                        row |= monitor.measure(step + 1)
                    run_folder.append_metrics(config.out, row)
                    monitor.conclude(step + 1)
            if last or (step + 1) % config.checkpoint_every == 0:
                _stop_if(first_bad, training)
                if world.rank == 0:
                    _save(training, step + 1)
            advance(monitor.last | row)
    return row


def _open_run(training: Training, pairs: FramePairs) -> int:
    """Make the run's folder, or put the training back to its last checkpoint; returns the steps already done."""
    config, store, (device, precision, world) = training.config, pairs.store, training.hardware
    start = 0
    before: dict[str, Any] = {}
    if config.resume is not None:
        _check_same_data(config.out, store)
        before = run_folder.read_about(config.out)
        start, state = run_folder.load_checkpoint(config.out)
        if state:
            restore(training, run_folder.unflatten(state))
    if world.rank:
        return start
    about: dict[str, Any] = {
        "versions": package_versions(),
        "device": run_folder.device_name(device),
        "precision": precision,
        "processes": world.size,
        "data_fingerprint": store.fingerprint,
        "num_videos": store.num_videos,
        "num_frames": store.num_frames,
        "num_single_frame_videos": int((np.diff(store.starts) == 1).sum()),
        "num_held_out": store.num_videos - pairs.num_videos,
        "num_steps": training.num_steps,
        "status": "running",
        **({name: before[name] for name in OF_HEALTH if name in before} if start else {}),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    run_folder.write_about(config.out, about)
    run_folder.cut_metrics(config.out, start)
    run_folder.cut_bests(config.out, start)
    run_folder.write_config(config.out, config)
    _announce(training, store, about, start)
    return start


def _check_same_data(run: Path, store: FrameStore) -> None:
    if not (run / "run.json").exists():
        raise UserError(f"resume: {run} has no run.json: it was stopped before it began; start it anew")
    begun_with = run_folder.read_about(run)["data_fingerprint"]
    if begun_with != store.fingerprint:
        raise UserError(
            f"resume: {store.root} is not the data that {run} began with (fingerprint {store.fingerprint}, "
            f"not {begun_with}); restore it, or start a new run"
        )


def _announce(training: Training, store: FrameStore, about: dict[str, Any], start: int) -> None:
    singles = about["num_single_frame_videos"]
    alone = f", {singles:,} of them with one frame, which is both query and positive" if singles else ""
    console.print(f"data: {store.num_videos:,} videos{alone}, {store.num_frames:,} frames ({store.layout})")
    if about["num_held_out"]:
        console.print(f"{about['num_held_out']:,} videos are held out, to measure health on (--holdout 0: none)")
    config = training.config
    shown = sorted(set(type(config).model_fields) - {"data", "out", "resume"})
    console.print("settings: " + " ".join(f"{name}={getattr(config, name)}" for name in shown))
    console.print(f"{training.num_steps:,} steps on {about['device']} in {about['precision']}")
    if start:
        console.print(f"going on after step {start:,}")


def _save(training: Training, done: int) -> None:
    state = run_folder.flatten(state_of(training))
    run_folder.save_checkpoint(training.config.out, done, state, training.encoder.backbone)


def _metrics(training: Training, pairs: FramePairs, result: StepResult, step: int, clock: Clock) -> Row:
    losses, rates, needs = result.losses, measure(result.inputs, training.objective), training.objective.needs
    row: Row = {
        "step": step + 1,
        "epoch": (step + 1) * training.config.batch_size / pairs.num_videos,
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "loss": losses.total.item(),
        "intra_loss": losses.intra.item(),
        **{f"{name}_loss": value.item() for name, value in losses.more},
        "cycle_loss": losses.cycle.item(),
        "cycle_weight": result.inputs.cycle_weight if needs.weighs_cycle else math.nan,
        "intra_accuracy": rates.intra_accuracy,
        "cycle_closed": rates.cycle_closed,
        "gradient_norm": result.gradient_norm.item(),
    }
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return finite | clock.lap()


def _is_sound(result: StepResult) -> Tensor:
    """Tell whether loss and gradient are finite; the gradient is the mean of all processes, so all see the same."""
    return result.losses.total.detach().isfinite() & result.gradient_norm.isfinite()


def _stop_if(first_bad: Tensor, training: Training) -> None:
    """Raise UserError where a step was not sound, or where the weights have left all reason behind a finite loss."""
    step, largest = int(first_bad), float(_largest_weight(training))
    if step >= 0:
        message = f"the loss or its gradient is not finite at step {step + 1}"
    elif not largest <= LARGEST_WEIGHT:
        message = f"the weights explode, the largest is {largest:.0e}"
    else:
        return
    raise UserError(f"{_stop(training, message)}; lower --learning-rate or set --gradient-clip")


def _largest_weight(training: Training) -> Tensor:
    return torch.stack([weight.detach().abs().max() for weight in training.learned.parameters()]).max()


def _stop(training: Training, message: str) -> str:
    """Note in run.json why the run stops, and say what is left of it."""
    run = training.config.out
    if training.hardware.world.rank == 0:
        run_folder.change_about(run, status=f"stopped: {message}")
    kept = run_folder.checkpoints(run)
    rest = f"the last good checkpoint is {kept[-1]}; --resume {run} goes on from it" if kept else "no checkpoint yet"
    return f"{message}; {rest}"


def _close_run(training: Training, row: Row) -> Run:
    config, backbone, verdict, judged_at = training.config, training.encoder.backbone.eval(), None, ""
    if training.hardware.world.rank == 0:
        backbone, verdict = best_backbone(training), read_verdict(config.out, config)
        judged = last_measured(run_folder.read_metrics(config.out))
        judged_at = f" (at step {judged:,} of {training.num_steps:,})" if judged < training.num_steps else ""
        save_backbone(backbone, config.out)
        run_folder.change_about(config.out, status="finished")
        if row.get("replaced_frames"):
            console.print(f"{row['replaced_frames']:,} frames could not be read and were replaced by their neighbors")
    leave_world()
    return Run(config.out, backbone, row, verdict, judged_at)
