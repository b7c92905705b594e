"""The command: data and config in, a run on disk out. One step is in training.py."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cyclecontrast.config import PrepareConfig, PretrainConfig
from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.pairs import Batch, FramePairs, load_batches
from cyclecontrast.errors import UserError
from cyclecontrast.loss.objectives import OBJECTIVES, measure
from cyclecontrast.model.backbone import Backbone, make_backbone
from cyclecontrast.model.checkpoint import load_backbone, save_backbone
from cyclecontrast.model.hardware import pick_device, pick_precision, pick_workers
from cyclecontrast.train import run_folder
from cyclecontrast.train.distributed import join_world, leave_world
from cyclecontrast.train.presets import DataSize, resolve
from cyclecontrast.train.training import Hardware, StepResult, Training, make_training, restore, state_of, train_step

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Run(NamedTuple):
    """A finished pretraining: its folder, its backbone, and the last line of its metrics."""

    folder: Path
    backbone: Backbone
    metrics: dict[str, Any]


@dataclass
class Clock:
    """Where the time went since the last line of metrics, and how many frames could not be read."""

    images: int = 0
    waited: float = 0.0
    replaced: int = 0
    since: float = 0.0


def pretrain(config: PretrainConfig) -> Run:
    """Train a backbone on videos without labels and write the run to `config.out`; raises UserError."""
    if config.resume is None:
        _check_output(config.out)
    device = pick_device(config.device)
    store = open_frames(config)
    config = resolve(config, _size_of(store), device.type == "cpu")
    pairs = _make_pairs(config, store)
    hardware = Hardware(device, pick_precision(config.precision, device), join_world(device))
    training = make_training(config, _make_backbone(config), num_steps(config, store), hardware)
    start = _open_run(training, store)
    last = train(training, pairs, start)
    return _close_run(training, last)


def open_frames(config: PretrainConfig) -> FrameStore:
    """Open the frames of `config.data`; a folder of videos is first prepared into the run's `frames`."""
    from cyclecontrast.data.prepare import prepare
    from cyclecontrast.data.video import find_videos

    prepared = (config.data / "store.json").exists()
    if prepared or not config.data.is_dir() or not any(True for _ in find_videos(config.data)):
        return FrameStore.open(config.data)
    frames = config.out / "frames"
    summary = prepare(PrepareConfig(videos=config.data, out=frames, workers=config.workers))
    console.print(f"{summary}\nframes are in {frames}; name that folder as DATA to train on them again")
    return FrameStore.open(frames)


def num_steps(config: PretrainConfig, store: FrameStore) -> int:
    """Return the number of updates of the whole training."""
    return config.steps or max(1, math.ceil(config.epochs * store.num_videos / config.batch_size))


def train(training: Training, pairs: FramePairs, start: int) -> dict[str, Any]:
    """Run the steps from `start` on; returns the last line of metrics. Raises UserError where the loss diverges."""
    config, world = training.config, training.hardware.world
    steps = range(start, training.num_steps)
    workers = pick_workers(config.workers)
    batches = load_batches(pairs, steps, config.batch_size, world.rank, world.size, workers)
    clock = Clock(since=time.perf_counter())
    row: dict[str, Any] = (run_folder.read_metrics(config.out) or [{}])[-1]
    first_bad = torch.full((), -1, device=training.hardware.device)
    with _progress(training.num_steps, start, shown=world.rank == 0) as advance:
        for step, batch in zip(steps, _timed(batches, clock), strict=True):
            result = train_step(training, batch, step)
            bad = ~torch.isfinite(result.losses.total.detach()) & (first_bad < 0)
            first_bad = torch.where(bad, step, first_bad)
            done = step + 1
            if done % config.log_every == 0 or done == training.num_steps:
                _stop_if(first_bad, config.out)
                row = _metrics(training, pairs.store, result, step, clock)
                if world.rank == 0:
                    run_folder.append_metrics(config.out, row)
            if world.rank == 0 and (done % config.checkpoint_every == 0 or done == training.num_steps):
                _stop_if(first_bad, config.out)
                state = run_folder.flatten(state_of(training))
                run_folder.save_checkpoint(config.out, done, state, training.encoder.backbone)
            advance(row)
    return row


def _check_output(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(path.name != "frames" for path in out.iterdir())):
        raise UserError(f"out: {out} exists and is not empty; name another folder, or go on with --resume {out}")


def _size_of(store: FrameStore) -> DataSize:
    some = np.linspace(0, store.num_videos - 1, min(32, store.num_videos)).astype(int)
    sides = [min(store.image(int(video), 0).shape[:2]) for video in some]
    return DataSize(store.num_videos, store.num_frames, int(np.median(sides)))


def _make_pairs(config: PretrainConfig, store: FrameStore) -> FramePairs:
    objective = OBJECTIVES[config.objective]
    if not objective.same_frame and store.layout == "flat folder of images":
        raise UserError(
            f"{config.data}: a flat folder of images, each its own video: only --objective intra-image can learn "
            "from it; put the frames of each video into a folder of their own"
        )
    recipe = RECIPES[config.augmentation]._replace(min_crop=config.min_crop, flip=config.flip)
    return FramePairs(store, recipe, config.image_size, config.seed, objective.same_frame, config.distinct_frames)


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
        start, state = run_folder.load_checkpoint(config.out)
        if state:
            restore(training, run_folder.unflatten(state))
        run_folder.cut_metrics(config.out, start)
    if world.rank:
        return start
    singles = int((np.diff(store.starts) == 1).sum())
    about = {
        "versions": run_folder.package_versions(),
        "device": run_folder.device_name(device),
        "precision": precision,
        "processes": world.size,
        "data_fingerprint": store.fingerprint,
        "num_videos": store.num_videos,
        "num_frames": store.num_frames,
        "num_single_frame_videos": singles,
        "num_steps": training.num_steps,
        "status": "running",
    }
    config.out.mkdir(parents=True, exist_ok=True)
    run_folder.write_config(config.out, config)
    run_folder.write_about(config.out, about)
    _announce(training, store, singles, start)
    return start


def _announce(training: Training, store: FrameStore, singles: int, start: int) -> None:
    config, (device, precision, _) = training.config, training.hardware
    alone = f", {singles:,} of them with one frame, which is both query and positive" if singles else ""
    console.print(f"data: {store.num_videos:,} videos, {store.num_frames:,} frames{alone} ({store.layout})")
    shown = sorted(set(type(config).model_fields) - {"data", "out", "resume"})
    console.print("settings: " + " ".join(f"{name}={getattr(config, name)}" for name in shown))
    console.print(f"{training.num_steps:,} steps on {run_folder.device_name(device)} in {precision}")
    if start:
        console.print(f"going on after step {start:,}")


def _close_run(training: Training, last: dict[str, Any]) -> Run:
    config = training.config
    backbone = training.encoder.backbone.eval()
    if training.hardware.world.rank == 0:
        save_backbone(backbone, config.out)
        run_folder.change_about(config.out, status="finished")
        console.print(f"backbone: {config.out / 'backbone.safetensors'}")
    leave_world()
    return Run(config.out, backbone, last)


def _timed(batches: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        clock.waited += time.perf_counter() - began
        clock.images += 2 * len(batch.video)
        clock.replaced += batch.replaced
        yield batch


def _metrics(
    training: Training, store: FrameStore, result: StepResult, step: int, clock: Clock
) -> dict[str, Any]:
    losses, rates = result.losses, measure(result.inputs, training.objective)
    now = time.perf_counter()
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
        "images_per_second": clock.images * training.hardware.world.size / (now - clock.since),
        "data_wait": clock.waited / (now - clock.since),
        "replaced_frames": clock.replaced,
    }
    clock.images, clock.waited, clock.since = 0, 0.0, now
    return row


def _stop_if(first_bad: Tensor, run: Path) -> None:
    if (step := int(first_bad)) < 0:
        return
    kept = run_folder.checkpoints(run)
    rest = f"the last good checkpoint is {kept[-1]}" if kept else "there was no checkpoint yet"
    raise UserError(f"the loss is not finite at step {step + 1}; {rest}; lower --learning-rate or set --gradient-clip")


@contextlib.contextmanager
def _progress(total: int, done: int, shown: bool) -> Iterator[Any]:
    """Yield a function that takes the last metrics and moves the bar by one step."""
    columns = (
        TextColumn("pretrain"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task("pretrain", total=total, completed=done, told="")
        yield lambda row: progress.update(task, advance=1, told=_tell(row))


def _tell(row: dict[str, Any]) -> str:
    if "step" not in row:
        return ""
    told = f"loss {row['loss']:.2f} intra {row['intra_loss']:.2f} "
    if row["cycle_loss"] is not None and row["cycle_loss"] == row["cycle_loss"]:
        told += f"cycle {row['cycle_loss']:.2f} closed {row['cycle_closed']:.0%} "
    return told + f"{row['images_per_second']:.0f} images/s data_wait {row['data_wait']:.0%}"
