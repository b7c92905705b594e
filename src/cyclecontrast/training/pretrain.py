"""The command: data and config in, a run on disk out. One step is in train_step.py."""

import contextlib
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.config.fields import is_own
from cyclecontrast.data.pairs import Batch, FramePairs, load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.files import locked
from cyclecontrast.loss.objectives import measure
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import save_backbone
from cyclecontrast.models.hardware import limited_threads, pick_device, pick_precision, pick_workers
from cyclecontrast.training import run_folder
from cyclecontrast.training.distributed import ALONE, World, average, joined_world, largest_of_each, meet
from cyclecontrast.training.health import steps_between
from cyclecontrast.training.loggers import Loggers, open_loggers
from cyclecontrast.training.monitor import best_backbone, open_monitor, read_verdict
from cyclecontrast.training.opening import open_training, unread_options
from cyclecontrast.training.own import NOTHING_OWN, Own, check_given
from cyclecontrast.training.presets import Machine
from cyclecontrast.training.progress import Clock, Row, console, progress_bar
from cyclecontrast.training.run import Begun, keep, note_stop, open_run, stops_noted
from cyclecontrast.training.soundness import Soundness
from cyclecontrast.training.stopping import NAMES, Stop, await_batch_to_tell_of_workers, end, stop_signals
from cyclecontrast.training.train_step import StepResult, train_step
from cyclecontrast.training.training import Hardware, Training, make_training
from cyclecontrast.training.unreadable import Unreadable, to_say
from cyclecontrast.training.verdict import Verdict, last_measured


class Run(NamedTuple):
    """A finished pretraining: its folder, its backbone, its last metrics; its text says how to go on.

    `judged_at` names the step of the verdict where the training went on behind it. Of several processes the first
    alone tells.
    """

    folder: Path
    backbone: Backbone
    metrics: Row
    verdict: Verdict | None = None
    judged_at: str = ""
    tells: bool = True

    def __str__(self) -> str:
        if not self.tells:
            return ""
        health = f"health{self.judged_at}: {self.verdict}\n" if self.verdict is not None else ""
        way = f"cyclecontrast evaluate knn {self.folder} DATA, or embed, export, report"
        if is_own(self.backbone.name):
            way = f"in Python load_backbone({str(self.folder)!r}, network=...), then evaluate, embed, export"
        return f"{health}backbone: {self.folder / 'backbone.safetensors'}\nnext: {way}"


def pretrain(config: PretrainConfig, own: Own = NOTHING_OWN) -> Run:
    """Train a backbone on videos without labels and write the run to `config.out`; raises UserError.

    `own` has what the config names as the user's own. After SIGINT, SIGTERM or SIGHUP a checkpoint is written
    first; then KeyboardInterrupt or SystemExit is raised.
    """
    with joined_world(pick_device(config.device)) as world:
        return _pretrain(world, config, own)


def pretrain_alone(config: PretrainConfig) -> Run:
    """As `pretrain`, in this process alone, whatever others torchrun has started beside it."""
    return _pretrain(ALONE, config)


def _pretrain(world: World, config: PretrainConfig, own: Own = NOTHING_OWN) -> Run:
    """Train in these processes together; raises UserError."""
    device = pick_device(config.device)
    check_given(config, own)
    unread = unread_options(config, own)
    config, pairs, backbone = open_training(config, Machine(device.type == "cpu", world.size), world, own)
    total = num_steps(config, pairs)
    settled = {
        "precision": pick_precision(config.precision, device),
        "backbone": backbone.name,
        "health_every": steps_between(config.health_every, total),
    }
    config = config.model_copy(update=settled)
    with limited_threads(device), locked(config.out, "out") if world.rank == 0 else contextlib.nullcontext():
        hardware = Hardware(device, config.precision, world)
        training = make_training(config, backbone, total, hardware, own)
        begun = open_run(training, pairs)
        if unread and world.rank == 0:
            console.print(f"plays no part in {config.method}: {', '.join(unread)}")
        with open_loggers(training) as loggers:
            with stop_signals() as stop:
                row = _train(training, pairs, begun, loggers, stop)
            run = _close_run(training, row, begun.unreadable)
            loggers.conclude(run.verdict)
        return run


def num_steps(config: PretrainConfig, pairs: FramePairs) -> int:
    """Return the number of updates of the whole training.

    Differs from the release: a batch may reach into the next epoch, so that no video is left out at an epoch's end.
    """
    return config.steps or max(1, math.ceil(config.epochs * pairs.num_videos / config.batch_size))


def _train(training: Training, pairs: FramePairs, begun: Begun, loggers: Loggers, stop: Stop) -> Row:
    """Run the steps that are left; returns the last line of metrics.

    Raises UserError where the loss diverges, data cannot be read, the disk is full or another process is gone.
    """
    config, (device, _, world), (start, unreadable) = training.config, training.hardware, begun
    steps = range(start, training.num_steps)
    workers = pick_workers(config.workers, device)
    clock, sound = Clock(), Soundness(torch.full((), -1, device=device))
    row: Row = (run_folder.read_metrics(config.out) or [{}])[-1] if world.rank == 0 else {}
    with stops_noted(training):
        unreadable.check(config.most_unreadable, start == training.num_steps)
        monitor = open_monitor(training, pairs, start)
        batches = clock.timed(load_batches(pairs, steps, config.batch_size, world.rank, world.size, workers))
        await_batch_to_tell_of_workers()
        with progress_bar(training.num_steps, start, shown=world.rank == 0) as advance:
            agreed = _kept_where_they_end(batches, training, pairs.store, begun, sound, stop)
            for step, (batch, longest) in zip(steps, agreed, strict=True):
                result = train_step(training, batch, step)
                sound.note(result, step)
                unreadable.note(batch, pairs.store, step + 1, world, longest)
                last = step + 1 == training.num_steps
                too_much = unreadable.is_too_much(config.most_unreadable, last)
                if last or (step + 1) % config.log_every == 0 or monitor.is_due(step + 1):
                    sound.check(training)
                    measured = _metrics(training, pairs, result, step, clock)
                    if world.rank == 0:
                        row = measured
                        row["replaced_frames"] = unreadable.replaced
                        unreadable.warn_once()
                        with clock.paused():
                            row |= monitor.measure(step + 1)
                            run_folder.append_metrics(config.out, row)
                            loggers.log(row)
                        monitor.conclude(step + 1)
                if last or too_much or (step + 1) % config.checkpoint_every == 0:
                    sound.check(training)
                    keep(training, unreadable, step + 1)
                unreadable.check(config.most_unreadable, last)
                advance(monitor.last | row)
    return row


def _kept_where_they_end(
    batches: Iterator[Batch], training: Training, store: FrameStore, begun: Begun, sound: Soundness, stop: Stop
) -> Iterator[tuple[Batch, int]]:
    """Yield the batches, and the length of the longest that a process has to say of its own.

    Where a signal came, or a process cannot have its batch, keep what was trained until then before all end. All that
    the processes must agree on is one message a step.
    """
    world = training.hardware.world
    for done in count(begun.start):
        batch, problem, may_stop = None, None, begun.start < done < training.num_steps
        try:
            batch = None if stop.signal and may_stop else next(batches, None)
        except UserError as error:
            problem = error
        own = (int(problem is not None), stop.signal, len(to_say(batch, store)) if batch is not None else 0)
        failed, stopped, longest = largest_of_each(own, world)
        if failed or (stopped and may_stop):
            sound.check(training)
            if done > begun.start:
                keep(training, begun.unreadable, done)
        if stopped and may_stop:
            end(stopped, note_stop(training, NAMES[stopped]))
        if failed:
            raise problem or UserError("another process cannot read its data; what it says tells why")
        if batch is None:
            return
        yield batch, longest


def _metrics(training: Training, pairs: FramePairs, result: StepResult, step: int, clock: Clock) -> Row:
    """Return a line of metrics; what differs between processes is their mean, as in one process."""
    losses, rates, needs = result.losses, measure(result.inputs, training.objective), training.objective.needs
    own: Row = {
        "loss": losses.total.item(),
        "intra_loss": losses.intra.item(),
        **{f"{name}_loss": value.item() for name, value in losses.more},
        "cycle_loss": losses.cycle.item(),
        "intra_accuracy": rates.intra_accuracy,
        "cycle_closed": rates.cycle_closed,
    }
    row: Row = {
        "step": step + 1,
        "epoch": (step + 1) * training.config.batch_size / pairs.num_videos,
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        **dict(zip(own, average(list(own.values()), training.hardware.world), strict=True)),
        "cycle_weight": result.inputs.cycle_weight if needs.weighs_cycle else math.nan,
        "gradient_norm": result.gradient_norm.item(),
    }
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return finite | clock.lap()


def _close_run(training: Training, row: Row, unreadable: Unreadable) -> Run:
    config, backbone, verdict, judged_at = training.config, training.encoder.backbone.eval(), None, ""
    if training.hardware.world.rank == 0:
        backbone, verdict = best_backbone(training), read_verdict(config.out, config)
        judged = last_measured(run_folder.read_metrics(config.out))
        judged_at = f" (at step {judged:,} of {training.num_steps:,})" if judged < training.num_steps else ""
        save_backbone(backbone, config.out)
        run_folder.change_about(config.out, status="finished")
        unreadable.report(config.out)
    meet(training.hardware.world)
    return Run(config.out, backbone, row, verdict, judged_at, training.hardware.world.rank == 0)
