"""When a run's health is measured, and what comes of it on disk: the verdict so far, its cycles, the best backbone."""

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path

from cyclecontrast.config import PretrainConfig
from cyclecontrast.config.types import is_user_defined
from cyclecontrast.data.pairs import FramePairs
from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.training import run_folder
from cyclecontrast.training.health import Signals, Watched, measure_health, watch
from cyclecontrast.training.open_data import make_health_pairs
from cyclecontrast.training.progress import console
from cyclecontrast.training.training import Training
from cyclecontrast.training.verdict import Known, Verdict, best_step, chosen_step, judge
from cyclecontrast.training.watched_cycles import Cycles, is_kept, write_cycles


@dataclass
class Monitor:
    """The views that this process measures health on: only the first process has any, and only where it is wanted."""

    training: Training
    watched: Watched | None
    seconds: float = 0.0
    last: Signals = field(default_factory=dict)
    cycles: Cycles | None = None
    told: str = ""

    def is_due(self, done: int) -> bool:
        """Whether health is measured after so many steps; the same in all processes."""
        every = self.training.config.health_every
        return bool(every) and (done % (every or 1) == 0 or done == self.training.num_steps)

    def measure(self, done: int) -> Signals:
        """Return the signals after so many steps, nothing where none are due."""
        if self.watched is None or not self.is_due(done):
            return {}
        began = time.perf_counter()
        self.last, self.cycles = measure_health(self.training, self.watched)
        self.seconds += time.perf_counter() - began
        return self.last

    def conclude(self, done: int) -> None:
        """Write the verdict so far into run.json, tell a new alarm, keep the cycles and the best backbone."""
        if self.watched is None or not self.is_due(done):
            return
        config = self.training.config
        self.keep_cycles(done)
        verdict, about = read_verdict(config.out, config), run_folder.read_about(config.out)
        if verdict is not None:
            before = about["health"]
            health = before | {"seconds": before.get("seconds", 0.0) + self.seconds}
            run_folder.change_about(config.out, verdict=verdict.word, reason=verdict.reason, health=health)
            self.seconds = 0.0
            self._tell(verdict, done)
        if config.select == "health" and best_step(run_folder.read_metrics(config.out)) == done:
            run_folder.save_best(config.out, done, self.training.encoder.backbone)

    def keep_cycles(self, done: int) -> None:
        """Write what the last cycles were made of, where there were any, for the report to look at."""
        config, cycles = self.training.config, self.cycles
        if cycles is not None and is_kept(done, config.health_every or 1, self.training.num_steps):
            write_cycles(config.out, done, cycles)

    def _tell(self, verdict: Verdict, done: int) -> None:
        if verdict.is_alarm and verdict.word != self.told and done < self.training.num_steps:
            console.print(f"step {done:,}: {verdict}")
        self.told = verdict.word


def open_monitor(training: Training, pairs: FramePairs, start: int) -> Monitor:
    """Make the views and, before the first step, measure what the network knows untrained."""
    config = training.config
    if training.hardware.world.rank or not config.health_every:
        return Monitor(training, None)
    watched = watch(make_health_pairs(config, pairs))
    monitor = Monitor(training, watched)
    if "health" not in run_folder.read_about(config.out):
        at_start: Signals = {}
        if start == 0:
            at_start = monitor.measure(0)
            monitor.keep_cycles(0)
        health = {
            "held_out": config.holdout > 0,
            "videos": watched.num_videos,
            "views": 2 * len(watched.video),
            "chance": watched.chance,
            "cycle_chance": watched.cycle_chance,
            "seconds": 0.0,
            "at_start": at_start,
        }
        run_folder.change_about(config.out, health=health)
    return monitor


def read_verdict(run: Path, config: PretrainConfig) -> Verdict | None:
    """Judge a run by what its files say; None where no health was measured."""
    known = _read_known(run, config)
    return None if known is None else judge(run_folder.read_metrics(run), known)


def best_backbone(training: Training) -> Backbone:
    """Return the backbone that remains: the last, or with `select` health an earlier one that was clearly better."""
    config, last = training.config, training.encoder.backbone.eval()
    known = _read_known(config.out, config)
    if config.select != "health" or known is None:
        return last
    step = chosen_step(run_folder.read_metrics(config.out), known)
    best = last
    if step < training.num_steps:
        try:
            network = copy.deepcopy(last.network) if is_user_defined(last.name) else None
            best = load_backbone(run_folder.best_folder(config.out, step), network=network)
            best = best.to(training.hardware.device)
            best.source = f"{last.source}, step {step:,} of {training.num_steps:,}, where it retrieved best"
        except UserError as error:
            console.print(f"--select health chose step {step:,}, whose backbone is lost ({error}): the last remains")
            step = training.num_steps
    run_folder.change_about(config.out, selected_step=step)
    console.print(f"the backbone of step {step:,} of {training.num_steps:,} remains (--select health)")
    return best


def _read_known(run: Path, config: PretrainConfig) -> Known | None:
    health = run_folder.read_about(run).get("health")
    if health is None:
        return None
    of_queue = config.queue_size, config.temperature
    return Known(health["views"], health["chance"], health["at_start"], *of_queue, is_given=config.init is not None)
