"""The command: data and config in, a run on disk out. One step is in training.py."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.pairs import FramePairs, load_batches
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.files import check_folder
from cyclecontrast.loss.objectives import measure
from cyclecontrast.model.backbone import Backbone, make_backbone
from cyclecontrast.model.checkpoint import load_backbone, save_backbone
from cyclecontrast.model.hardware import limited_threads, pick_device, pick_precision, pick_workers
from cyclecontrast.train import run_folder
from cyclecontrast.train.distributed import first_process_first, join_world, leave_world
from cyclecontrast.train.open_data import make_pairs, open_frames, size_of
from cyclecontrast.train.presets import resolve
from cyclecontrast.train.progress import Clock, Row, console, progress_bar
from cyclecontrast.train.training import Hardware, StepResult, Training, make_training, restore, state_of, train_step
from cyclecontrast.versions import package_versions


class Run(NamedTuple):
    """A finished pretraining: its folder, its backbone, its last metrics; its text says how to go on."""

    folder: Path
    backbone: Backbone
    metrics: Row

    def __str__(self) -> str:
        return (
            f"backbone: {self.folder / 'backbone.safetensors'}\n"
            f"next: cyclecontrast evaluate knn {self.folder} DATA, or embed, export, report"
        )


def pretrain(config: PretrainConfig) -> Run:
    """Train a backbone on videos without labels and write the run to `config.out`; raises UserError."""
    device = pick_device(config.device)
    world = join_world(device)
    with first_process_first(world):
        if world.rank == 0:
            _check(config)
        store = open_frames(config)
    config = resolve(config, size_of(store), device.type == "cpu")
    if config.batch_size % world.size:
        raise UserError(f"batch_size: {config.batch_size} cannot be shared by {world.size} processes")
    pairs = make_pairs(config, store)
    hardware = Hardware(device, pick_precision(config.precision, device), world)
    with limited_threads(device):
        training = make_training(config, _make_backbone(config), num_steps(config, store), hardware)
        start = _open_run(training, store)
        row = _train(training, pairs, start)
    return _close_run(training, row)


def num_steps(config: PretrainConfig, store: FrameStore) -> int:
    """Return the number of updates of the whole training."""
    return config.steps or max(1, math.ceil(config.epochs * store.num_videos / config.batch_size))


def _train(training: Training, pairs: FramePairs, start: int) -> Row:
    """Run the steps from `start` on; returns the last line of metrics. Raises UserError where the loss diverges."""
    config, (device, _, world) = training.config, training.hardware
    steps = range(start, training.num_steps)
    workers = pick_workers(config.workers, device)
    clock = Clock()
    batches = clock.timed(load_batches(pairs, steps, config.batch_size, world.rank, world.size, workers))
    row: Row = (run_folder.read_metrics(config.out) or [{}])[-1]
    first_bad = torch.full((), -1, device=device)
    with progress_bar(training.num_steps, start, shown=world.rank == 0) as advance:
        for step, batch in zip(steps, batches, strict=True):
            result = train_step(training, batch, step)
            first_bad = torch.where((first_bad < 0) & ~result.losses.total.detach().isfinite(), step, first_bad)
            last = step + 1 == training.num_steps
            if last or (step + 1) % config.log_every == 0:
                _stop_if(first_bad, config.out)
                row = _metrics(training, pairs.store, result, step, clock)
                if world.rank == 0:
                    run_folder.append_metrics(config.out, row)
            if last or (step + 1) % config.checkpoint_every == 0:
                _stop_if(first_bad, config.out)
                if world.rank == 0:
                    _save(training, step + 1)
            advance(row)
    return row


def _check(config: PretrainConfig) -> None:
    """Raise UserError with all that can be known to be wrong before the data is read and anything is written."""
    problems: list[str] = []
    attempt(lambda: _check_output(config), problems)
    if not config.data.exists():
        problems.append(f"data: {config.data}: no such folder; name a folder of videos or frames")
    if config.init is not None:
        attempt(lambda: load_backbone(config.init or ""), problems)
    elif "backbone" in config.model_fields_set:
        attempt(lambda: make_backbone(config.backbone), problems)
    if problems:
        raise UserError(*problems)


def _check_output(config: PretrainConfig) -> None:
    out = config.out
    if config.resume is None and out.is_dir() and any(path.name != "frames" for path in out.iterdir()):
        raise UserError(f"out: {out} is not empty; name another folder, or go on with --resume {out}")
    check_folder(out)


def _make_backbone(config: PretrainConfig) -> Backbone:
    backbone = make_backbone(config.backbone, config.seed) if config.init is None else load_backbone(config.init)
    backbone.image_size = config.image_size
    backbone.source = f"cyclecontrast {config.objective}, preset {config.preset}, seed {config.seed}"
    return backbone


def _open_run(training: Training, store: FrameStore) -> int:
    """Make the run's folder, or put the training back to its last checkpoint; returns the steps already done."""
    config, (device, precision, world) = training.config, training.hardware
    start = 0
    if config.resume is not None:
        _check_same_data(config.out, store)
        start, state = run_folder.load_checkpoint(config.out)
        if state:
            restore(training, run_folder.unflatten(state))
    if world.rank:
        return start
    about = {
        "versions": package_versions(),
        "device": run_folder.device_name(device),
        "precision": precision,
        "processes": world.size,
        "data_fingerprint": store.fingerprint,
        "num_videos": store.num_videos,
        "num_frames": store.num_frames,
        "num_single_frame_videos": int((np.diff(store.starts) == 1).sum()),
        "num_steps": training.num_steps,
        "status": "running",
    }
    config.out.mkdir(parents=True, exist_ok=True)
    run_folder.cut_metrics(config.out, start)
    run_folder.write_config(config.out, config)
    run_folder.write_about(config.out, about)
    _announce(training, store, about, start)
    return start


def _check_same_data(run: Path, store: FrameStore) -> None:
    begun_with = json.loads((run / "run.json").read_text())["data_fingerprint"]
    if begun_with != store.fingerprint:
        raise UserError(
            f"resume: {store.root} is not the data that {run} began with (fingerprint {store.fingerprint}, "
            f"not {begun_with}); restore it, or start a new run"
        )


def _announce(training: Training, store: FrameStore, about: dict[str, Any], start: int) -> None:
    singles = about["num_single_frame_videos"]
    alone = f", {singles:,} of them with one frame, which is both query and positive" if singles else ""
    console.print(f"data: {store.num_videos:,} videos{alone}, {store.num_frames:,} frames ({store.layout})")
    config = training.config
    shown = sorted(set(type(config).model_fields) - {"data", "out", "resume"})
    console.print("settings: " + " ".join(f"{name}={getattr(config, name)}" for name in shown))
    console.print(f"{training.num_steps:,} steps on {about['device']} in {about['precision']}")
    if start:
        console.print(f"going on after step {start:,}")


def _save(training: Training, done: int) -> None:
    state = run_folder.flatten(state_of(training))
    run_folder.save_checkpoint(training.config.out, done, state, training.encoder.backbone)


def _metrics(training: Training, store: FrameStore, result: StepResult, step: int, clock: Clock) -> Row:
    losses, rates = result.losses, measure(result.inputs, training.objective)
    row = {
        "step": step + 1,
        "epoch": (step + 1) * training.config.batch_size / store.num_videos,
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "loss": losses.total.item(),
        "intra_loss": losses.intra.item(),
        "cycle_loss": losses.cycle.item(),
        "cycle_weight": result.inputs.cycle_weight,
        "intra_accuracy": rates.intra_accuracy,
        "cycle_closed": rates.cycle_closed,
        "gradient_norm": result.gradient_norm.item(),
    }
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return finite | clock.lap()


def _stop_if(first_bad: Tensor, run: Path) -> None:
    step = int(first_bad)
    if step < 0:
        return
    kept = run_folder.checkpoints(run)
    rest = f"the last good checkpoint is {kept[-1]}" if kept else "there was no checkpoint yet"
    run_folder.change_about(run, status=f"stopped: the loss is not finite at step {step + 1}")
    raise UserError(f"the loss is not finite at step {step + 1}; {rest}; lower --learning-rate or set --gradient-clip")


def _close_run(training: Training, row: Row) -> Run:
    config, backbone = training.config, training.encoder.backbone.eval()
    if training.hardware.world.rank == 0:
        save_backbone(backbone, config.out)
        run_folder.change_about(config.out, status="finished")
        if row["replaced_frames"]:
            console.print(f"{row['replaced_frames']:,} frames could not be read and were replaced by their neighbors")
    leave_world()
    return Run(config.out, backbone, row)
