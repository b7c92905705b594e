"""Measures health during training; writes the verdict, the monitored cycles and the best backbone."""

import copy
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cyclecontrast.config import PretrainConfig
from cyclecontrast.config.types import is_user_defined
from cyclecontrast.data.dataset import Batch, ViewDataset
from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.output import say
from cyclecontrast.training import run_folder
from cyclecontrast.training.health import (
    Cycles,
    Signals,
    chance_level,
    cycle_chance_level,
    gains,
    health_views,
    measure_health,
    measure_neighbors,
    neighbor_frames,
)
from cyclecontrast.training.verdict import Verdict, VerdictInputs, best_step, chosen_step, judge

if TYPE_CHECKING:
    from cyclecontrast.training.trainer import Trainer

NUM_MEASUREMENTS, MIN_STEPS = 20, 25
NEIGHBORS_EVERY = 5
"""Neighbors across videos are a part of every fifth measurement of health, and of the first and the last."""
MAX_CYCLES_KEPT = 24
"""Maximum number of measurements with saved cycles, in addition to the first and the last."""


def steps_between(health_every: int | None, num_steps: int) -> int:
    """Return the steps between measurements: `health_every` if set (0: never), otherwise about 20 in total."""
    return max(MIN_STEPS, math.ceil(num_steps / NUM_MEASUREMENTS)) if health_every is None else health_every


class Monitor:
    """Measures health on rank 0 if `health_every` is not 0; `last` has the latest signals.

    `seconds_planned` is the time in seconds that the measurements of the remaining steps will take, as far as known.
    """

    def __init__(self, trainer: "Trainer", dataset: ViewDataset, trained: ViewDataset, start: int) -> None:
        """Draw the monitored views and training frames; if training has not started, measure the initial network."""
        self._trainer, self._config = trainer, trainer.config
        self._watched: Batch | None = None
        self._cycles: Cycles | None = None
        self._by_video: Mapping[str, list[float | None]] = {}
        self._seconds, self.seconds_planned, self._reported = 0.0, 0.0, ""
        self.last: Signals = {}
        self._num_frames: Tensor | None = None
        self._pairs: set[str] = set()
        if trainer.world.rank or not self._config.health_every:
            return
        self._watched, self._frames = health_views(dataset), neighbor_frames(trained)
        out, video, store = self._config.out, self._watched.video, dataset.store
        if self._config.init is not None:
            self._num_frames = torch.tensor([store.frames_in(int(number)) for number in video])
        if (before := run_folder.read_about(out).get("health")) is not None:
            self._pairs = set(before.get("mutual_pairs", "").split())  # missing in older runs
            self.seconds_planned = before.get("seconds", 0.0) / max(1, start) * (trainer.num_steps - start)
            return
        at_start: Signals = {}
        if start == 0:
            at_start = self.measure(0)
            self.seconds_planned = self._seconds * trainer.num_steps / self._config.health_every
            self._keep_cycles(0)
            if self._config.init is not None and self._config.select == "health":
                run_folder.save_best(out, 0, trainer.method.encoder.backbone)
        health: dict[str, Any] = {
            "held_out": self._config.holdout > 0,
            "videos": len(torch.unique(video)),
            "views": 2 * len(video),
            "chance": chance_level(video),
            "cycle_chance": cycle_chance_level(video),
            "seconds": 0.0,
            "at_start": at_start,
            "mutual_pairs": " ".join(sorted(self._pairs)),
        }
        if self._config.init is not None:
            health["by_video_at_start"] = dict(self._by_video)
        run_folder.change_about(out, health=health)

    def is_due(self, done: int) -> bool:
        """Whether health is measured after `done` steps; the same in all processes."""
        every = self._config.health_every
        return bool(every) and (done % (every or 1) == 0 or done == self._trainer.num_steps)

    def measure(self, done: int) -> Signals:
        """Return the signals after `done` steps, an empty dict if no measurement is due."""
        if self._watched is None or not self.is_due(done):
            return {}
        began, config = time.perf_counter(), self._config
        self.last, self._cycles, self._by_video = measure_health(
            self._trainer.method, self._watched, config.temperature, config.mask_own_video, self._num_frames
        )
        if done % (NEIGHBORS_EVERY * (config.health_every or 1)) == 0 or done == self._trainer.num_steps:
            signals, self._pairs = measure_neighbors(self._trainer.method, *self._frames, self._pairs)
            self.last |= signals
        if done and config.init is not None:
            health = run_folder.read_about(config.out).get("health", {})
            self.last |= gains(self._by_video, health.get("by_video_at_start", {}))
        self._seconds += time.perf_counter() - began
        return self.last

    def update_verdict(self, done: int) -> None:
        """Update the verdict in run.json, print it if it is a new alarm, save the cycles and the best backbone."""
        if self._watched is None or not self.is_due(done):
            return
        config = self._config
        self._keep_cycles(done)
        verdict = compute_verdict(config)
        if verdict is not None:
            health = run_folder.read_about(config.out)["health"]
            health["seconds"] = health.get("seconds", 0.0) + self._seconds
            health["mutual_pairs"] = " ".join(sorted(self._pairs))
            run_folder.change_about(config.out, verdict=verdict.word, reason=verdict.reason, health=health)
            self._seconds = 0.0
            if verdict.is_alarm and verdict.word != self._reported and done < self._trainer.num_steps:
                say(f"step {done:,}: {verdict}")
            self._reported = verdict.word
        rows, known = run_folder.read_metrics(config.out), _read_known(config)
        if config.select == "health" and best_step(rows if known is None else known.with_start(rows)) == done:
            run_folder.save_best(config.out, done, self._trainer.method.encoder.backbone)

    def _keep_cycles(self, done: int) -> None:
        """Save the latest cycles for the report, but not of every measurement if there are many."""
        every, num_steps = self._config.health_every or 1, self._trainer.num_steps
        stride = -(-num_steps // (every * MAX_CYCLES_KEPT)) * every
        if self._cycles is not None and (done % stride == 0 or done == num_steps):
            run_folder.write_cycles(self._config.out, done, self._cycles)


def compute_verdict(config: PretrainConfig) -> Verdict | None:
    """Return the verdict computed from the run's files; None if health was not measured."""
    known = _read_known(config)
    return None if known is None else judge(run_folder.read_metrics(config.out), known)


def best_backbone(trainer: "Trainer") -> Backbone:
    """Return the final backbone: the last one, or, if `select` is health, an earlier one that is clearly better."""
    config, last = trainer.config, trainer.method.encoder.backbone
    last.eval()
    known = _read_known(config)
    if config.select != "health" or known is None:
        return last
    step, best = chosen_step(run_folder.read_metrics(config.out), known), last
    if step < trainer.num_steps:
        try:
            network = copy.deepcopy(last.network) if is_user_defined(last.name) else None
            best = load_backbone(run_folder.best_folder(config.out, step), network=network).to(trainer.device)
            which = "the best same-video retrieval" if step else "its start, because training made it worse"
            best.source = f"{last.source}, step {step:,} of {trainer.num_steps:,}, {which}"
        except UserError as error:
            say(f"--select health chose step {step:,}, whose backbone is lost ({error}); using the last")
            step = trainer.num_steps
    run_folder.change_about(config.out, selected_step=step)
    kept = "the start was kept, because training made it worse"
    say(f"final backbone: {f'step {step:,} of {trainer.num_steps:,}' if step else kept} (--select health)")
    return best


def _read_known(config: PretrainConfig) -> VerdictInputs | None:
    health: dict[str, Any] | None = run_folder.read_about(config.out).get("health")
    if health is None:
        return None
    of_queue = config.queue_size, config.temperature
    return VerdictInputs(health["views"], health["chance"], health["at_start"], *of_queue, config.init is not None)
