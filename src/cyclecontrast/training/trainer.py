"""The training loop: load a batch, compute the loss, run the backward pass and the optimizer, call `after_step`."""

import contextlib
import math
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, ViewDataset
from cyclecontrast.data.device_augment import augment_on_device, on_device
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.distributed import World, all_reduce_max, all_reduce_mean, data_parallel, peer_errors
from cyclecontrast.errors import UserError
from cyclecontrast.methods.method import Losses, Method, StepInfo
from cyclecontrast.models.backbone import freeze_batchnorm, freeze_stages, layers_of
from cyclecontrast.models.encoder import Encoder
from cyclecontrast.models.hardware import pick_workers
from cyclecontrast.training import run_folder
from cyclecontrast.training.checkpoints import record_stop, save_checkpoint
from cyclecontrast.training.loggers import Loggers
from cyclecontrast.training.monitor import Monitor
from cyclecontrast.training.progress import Clock, Row, show_progress
from cyclecontrast.training.read_errors import ReadErrors
from cyclecontrast.training.signals import NAMES, Stop, end_by_signal

MAX_WEIGHT = 1e6
"""If a weight is larger, training has diverged, even if the loss is finite."""


class Trainer:
    """Trains a method with SGD, and saves and restores the state of method and optimizer."""

    def __init__(
        self, method: Method, config: PretrainConfig, num_steps: int, device: torch.device, world: World
    ) -> None:
        self.config, self.num_steps, self.device, self.world = config, num_steps, device, world
        self.method: Method = method.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            self.method.compile_encoders()
        backbones = [module.backbone for module in method.modules() if isinstance(module, Encoder)]
        if config.freeze:
            freeze_stages(backbones, config.freeze)
        if config.freeze_batchnorm:
            for backbone in backbones:
                freeze_batchnorm(backbone)
        self.optimizer = _make_optimizer(self.method, config)
        self.model: nn.Module = self.method if world.size == 1 else data_parallel(self.method)
        self._first_bad_step = torch.full((), -1, device=device)

    def fit(
        self, dataset: ViewDataset, start: int, read_errors: ReadErrors, monitor: Monitor, loggers: Loggers, stop: Stop
    ) -> Row:
        """Train from step `start` to the end; returns the last row of metrics.

        Raises UserError if the loss diverges, data cannot be read, the disk is full or another process has ended.
        After a signal, writes a checkpoint and raises KeyboardInterrupt or SystemExit.
        """
        config, clock, is_first = self.config, Clock(), self.world.rank == 0
        row: Row = (run_folder.read_metrics(config.out) or [{}])[-1] if is_first else {}
        read_errors.check(config.max_unreadable, start == self.num_steps)
        sampler = StepSampler(range(start, self.num_steps), config.batch_size, self.world.rank, self.world.size)
        workers, pin_memory = pick_workers(config.workers, self.device), self.device.type == "cuda"
        loaded = contextlib.closing(load_batches(dataset, sampler, workers, pin_memory))  # closing it ends the workers
        is_free = config.resume is None and config.steps is None
        progress = show_progress(self.num_steps, start, is_first, monitor.seconds_planned, is_free)
        with loaded as batches, progress as advance:
            for step, batch in self._synchronized_batches(clock.timed(batches), start, read_errors, stop):
                done, last = step + 1, step + 1 == self.num_steps
                is_logged = last or done % config.log_every == 0 or monitor.is_due(done)
                losses, gradient_norm = self.train_step(batch, StepInfo(step, self.num_steps, is_logged))
                read_errors.count(batch, dataset.store, done, self.world)
                if is_logged:
                    self.check_finite()
                    measured = self._row(losses, gradient_norm, done, dataset.num_videos)
                    if is_first:
                        row = measured | clock.lap() | {"replaced_frames": read_errors.replaced}
                        read_errors.warn_once()
                        with clock.paused():
                            row |= monitor.measure(done)
                            run_folder.append_metrics(config.out, row)
                            loggers.log(row)
                            monitor.update_verdict(done)
                if last or done % config.checkpoint_every == 0 or read_errors.too_many(config.max_unreadable, last):
                    self.check_finite()
                    save_checkpoint(self, read_errors, done)
                read_errors.check(config.max_unreadable, last)
                advance(monitor.last | row)
        return row

    def train_step(self, batch: Batch, info: StepInfo) -> tuple[Losses, Tensor]:
        """Run one optimizer step (Algorithm 1); returns the mean losses of the micro-batches and the gradient norm.

        Each of the `accumulate` micro-batches is contrasted with its own keys and with the queues before this step.
        """
        # for dropout: differs between processes
        torch.manual_seed(self.method.seed(info) * self.world.size + self.world.rank)
        self.optimizer.zero_grad()
        self.method.encoder.trains_backbone = info.progress >= self.config.projector_first
        parts = []
        for number, micro_batch in enumerate(batch.micro_batches(self.config.accumulate), start=1):
            with self._no_sync() if number < self.config.accumulate else contextlib.nullcontext():
                losses: Losses = self.model(self._on_device(micro_batch), info)
                with peer_errors() if self.world.size > 1 else contextlib.nullcontext():
                    (losses.total / self.config.accumulate).backward()  # type: ignore[no-untyped-call]
            parts.append(losses)
        losses = _mean_losses(parts)
        gradient_norm = self._update(info)
        self.method.after_step(info)
        is_finite = losses.total.isfinite() & gradient_norm.isfinite()
        self._first_bad_step = torch.where((self._first_bad_step < 0) & ~is_finite, info.step, self._first_bad_step)
        return losses, gradient_norm

    def check_finite(self) -> None:
        """Raise UserError if a loss or gradient was not finite, or if the weights have diverged."""
        weights = torch.stack([weight.detach().abs().max() for weight in self.method.trainable_parameters()])
        step, largest = int(self._first_bad_step), float(weights.max())
        if step >= 0:
            message = f"the loss or its gradient is not finite at step {step + 1}"
        elif not largest <= MAX_WEIGHT:
            message = f"the weights diverge, the largest is {largest:.0e}"
        else:
            return
        raise UserError(f"{message}; lower --learning-rate or set --gradient-clip")

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors needed to resume.

        Those of the method as <module>/<name>, momentum buffers as sgd/<number>.
        """
        momenta = {
            f"sgd/{number}": self.optimizer.state[parameter]["momentum_buffer"]
            for number, parameter in enumerate(self.method.trainable_parameters())
        }
        return {name.replace(".", "/", 1): value for name, value in self.method.state_dict().items()} | momenta

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state_dict`.

        Raises RuntimeError or KeyError if it belongs to another method or network. Unused queues in checkpoints of
        older versions are ignored.
        """
        named = {name.replace("/", ".", 1): value for name, value in state.items() if not name.startswith("sgd/")}
        known, queues = self.method.state_dict().keys(), ("intra_queue.", "cycle_queue.")
        self.method.load_state_dict({k: v for k, v in named.items() if k in known or not k.startswith(queues)})
        for number, parameter in enumerate(self.method.trainable_parameters()):
            self.optimizer.state[parameter]["momentum_buffer"].copy_(state[f"sgd/{number}"])

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def _on_device(self, batch: Batch) -> Batch:
        views = on_device(self.device, *batch.views)
        if batch.device_params.numel():
            views = tuple(augment_on_device(view, batch.device_params[:, i]) for i, view in enumerate(views))
        video, frames = on_device(self.device, batch.video, batch.frames)
        return batch._replace(views=views, video=video, frames=frames)

    def _update(self, info: StepInfo) -> Tensor:
        config, parameters = self.config, self.method.trainable_parameters()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if config.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.gradient_clip, norm)
        rate = learning_rate(config.learning_rate, info.progress, config.schedule, config.warmup)
        for group in self.optimizer.param_groups:
            if not group["constant_rate"]:
                group["lr"] = rate * group["factor"]
        self.optimizer.step()
        return norm

    def _synchronized_batches(
        self, batches: Iterator[Batch], start: int, read_errors: ReadErrors, stop: Stop
    ) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch). If any process received a signal or failed, save a checkpoint and stop all processes."""
        for step in count(start):
            batch, problem, may_stop = None, None, start < step < self.num_steps
            try:
                batch = None if stop.signal and may_stop else next(batches, None)
            except UserError as error:
                problem = error
            failed, stopped = all_reduce_max([int(problem is not None), stop.signal], self.world)
            if (failed or (stopped and may_stop)) and step > start:
                self.check_finite()
                save_checkpoint(self, read_errors, step)
            if stopped and may_stop:
                end_by_signal(stopped, record_stop(self.config.out, NAMES[stopped], self.world))
            if failed:
                raise problem or UserError("another process cannot read its data; see its error message")
            if batch is None:
                return
            yield step, batch

    def _row(self, losses: Losses, gradient_norm: Tensor, done: int, num_videos: int) -> Row:
        """Return a row of metrics, averaged over the processes; values that were not measured are None."""
        local = {
            "loss": losses.total,
            "intra_loss": losses.intra,
            **{f"{name}_loss": value for name, value in (losses.terms or {}).items()},
            "cycle_loss": losses.cycle,
            "intra_accuracy": losses.intra_accuracy,
            "cycle_closed": losses.cycle_closed,
        }
        numbers = all_reduce_mean([math.nan if value is None else float(value) for value in local.values()], self.world)
        row: Row = {
            "step": done,
            "epoch": done * self.config.batch_size / num_videos,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **dict(zip(local, numbers, strict=True)),
            "cycle_weight": self.method.cycle_weight(StepInfo(done - 1, self.num_steps)),
            "gradient_norm": gradient_norm.item(),
        }
        return {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}


def learning_rate(peak: float, progress: float, schedule: str, warmup: float) -> float:
    """Return the learning rate at the fraction `progress` in [0, 1) of the training.

    Linear warm-up over the fraction `warmup`, then cosine decay to zero, or a factor of 0.1 at 60 % and at 80 % of
    training (MoCo: epochs 120 and 160 of 200). Differs from the release: the cosine is updated in every step.
    """
    if progress < warmup:
        return peak * progress / warmup
    if schedule == "step":
        return peak * 0.1 ** sum(progress >= milestone for milestone in (0.6, 0.8))
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _make_optimizer(method: Method, config: PretrainConfig) -> torch.optim.SGD:
    backbone = method.encoder.backbone
    layers = [list(backbone.parameters())] if config.layer_decay == 1 else layers_of(backbone)
    rates = [config.backbone_rate * config.layer_decay**depth for depth in reversed(range(len(layers)))]
    projectors = [*method.encoder.intra_projector.parameters(), *method.encoder.cycle_projector.parameters()]
    head = list(method.head.parameters()) if method.head is not None else []
    groups = [(projectors, 1.0, False), *((layer, rate, False) for layer, rate in zip(layers, rates, strict=True))]
    if head:
        groups.append((head, 1.0, method.constant_head_rate))
    optimizer = torch.optim.SGD(
        [{"params": params, "factor": factor, "constant_rate": fixed} for params, factor, fixed in groups],
        lr=config.learning_rate,
        momentum=config.sgd_momentum,
        weight_decay=config.weight_decay,
        fused=next(method.encoder.parameters()).device.type in ("cpu", "cuda"),
    )
    for parameter in method.trainable_parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _mean_losses(parts: list[Losses]) -> Losses:
    """Return the mean of each loss over micro-batches of equal size, detached."""

    def mean(values: list[Tensor | None]) -> Tensor | None:
        found = [value.detach() for value in values if value is not None]
        return torch.stack(found).mean() if found else None

    names = parts[0].terms or {}
    terms = {name: mean([part.terms[name] for part in parts if part.terms]) for name in names}
    total, intra, cycle, accuracy, closed = (
        mean([getattr(part, name) for part in parts])
        for name in ("total", "intra", "cycle", "intra_accuracy", "cycle_closed")
    )
    return Losses(total, intra, cycle, terms, accuracy, closed)  # type: ignore[arg-type]
