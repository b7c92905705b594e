"""The command `sweep`: trains and evaluates every row over seeds, then writes the table; resumes what was stopped."""

import contextlib
import time
from collections.abc import Callable

from cyclecontrast.config import SweepConfig
from cyclecontrast.distributed import World, broadcast_object, gather_objects, joined_command
from cyclecontrast.errors import UserError
from cyclecontrast.files import locked
from cyclecontrast.sweeping.page import write_files
from cyclecontrast.sweeping.plan import Plan, make_plan
from cyclecontrast.sweeping.results import RowValues, Sweep
from cyclecontrast.sweeping.tables import Row, Table
from cyclecontrast.sweeping.trials import Finished, run_trials
from cyclecontrast.training.progress import console


def run_sweep(config: SweepConfig) -> Sweep | None:
    """Train and evaluate what is not done yet and write the table into the sweep's folder; raises UserError.

    A trial that fails is reported and the others run; where all fail, it raises UserError. The processes of torchrun
    share the trials; rank 0 writes the table and returns it, the others return None.
    """
    with joined_command() as world, contextlib.ExitStack() as stack:
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
    console.print(f"{plan.about}\n{total} trials, {plan.jobs * world.size} at a time, in {plan.folder / 'runs'}")
    report = _make_reporter(total, plan.table)
    try:
        finished = run_trials(plan.trials[world.rank :: world.size], plan.jobs, report, world.size)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command resumes where it stopped") from interrupt
    own, *others = gather_objects(finished, world) or [[]]
    for one in (one for rank in others for one in rank):
        report(one)
        own.append(one)
    places = {trial.run: place for place, trial in enumerate(plan.trials)}
    return sorted(own, key=lambda one: places[one.trial.run])


def _tabulate(plan: Plan, num_seeds: int, finished: list[Finished]) -> Sweep:
    """Write and return the table; raises UserError where no trial succeeded."""
    problems = tuple(f"{one.trial.name}: {line}" for one in finished for line in one.problems)
    if not any(one.metrics for one in finished):
        raise UserError(*dict.fromkeys(problems))
    rows = tuple(_row_values(row, plan.table, finished) for row in plan.rows)
    sweep = Sweep(plan.table, rows, num_seeds, plan.about, problems, plan.folder)
    write_files(sweep)
    suffixes = ".md, .html, .json and .png" if plan.table.axis else ".md, .html and .json"
    console.print(f"table: {plan.folder / plan.table.name}{suffixes}")
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
        console.print(f"[{num_ended}/{total}] {one.trial.name}: {'; '.join(one.problems) or found} ({how}){remaining}")

    return report
