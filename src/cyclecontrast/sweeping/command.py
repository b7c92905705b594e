"""The command: every row trained and evaluated over seeds, then the table; it goes on where it was stopped."""

import time
from collections.abc import Callable

from cyclecontrast.config import SweepConfig
from cyclecontrast.distributed import World, joined_world
from cyclecontrast.errors import UserError
from cyclecontrast.files import locked
from cyclecontrast.sweeping.cells import Cell
from cyclecontrast.sweeping.outcome import Measured, Sweep
from cyclecontrast.sweeping.page import write_files
from cyclecontrast.sweeping.plan import Plan, make_plan
from cyclecontrast.sweeping.shares import help_run, run_together
from cyclecontrast.sweeping.tables import Row, Table
from cyclecontrast.sweeping.workers import Finished
from cyclecontrast.training.leading import CPU, leading
from cyclecontrast.training.progress import console


def run_sweep(config: SweepConfig) -> Sweep | None:
    """Train and evaluate what is not done yet and write the table into `config.out`; raises UserError.

    A cell that fails is told of and the others go on; raises UserError where none ends well, or where another process
    is at work in the folder. Of several processes that torchrun started each takes its share of the cells; the first
    writes the table, the others return None.
    """
    with joined_world(CPU) as world:
        if world.rank:
            help_run(config, world)
            return None
        with leading(world):
            plan = make_plan(config, world.size)
            with locked(plan.folder, "out"):
                for leftover in (*plan.folder.glob("*.part"), *plan.folder.glob("runs/*.part")):
                    leftover.unlink()
                return _carry_out(plan, config.seeds, world)


def _carry_out(plan: Plan, num_seeds: int, world: World) -> Sweep:
    at_once = f"{plan.jobs * world.size} at a time"
    console.print(f"{plan.about}\n{len(plan.cells)} cells, {at_once}, in {plan.folder / 'runs'}")
    try:
        finished = run_together(plan, _make_teller(len(plan.cells), plan.table), world)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it was") from interrupt
    problems = tuple(f"{_name(one.cell)}: {line}" for one in finished for line in one.problems)
    if not any(one.metrics for one in finished):
        raise UserError(*dict.fromkeys(problems))
    rows = tuple(_measured(row, plan.table, finished) for row in plan.rows)
    sweep = Sweep(plan.table, rows, num_seeds, plan.about, problems, plan.folder)
    write_files(sweep)
    console.print(
        f"table: {plan.folder / plan.table.name}.md, and beside it .html, .json{' and .png' * bool(plan.table.axis)}"
    )
    return sweep


def _measured(row: Row, table: Table, finished: list[Finished]) -> Measured:
    values: dict[str, dict[int, float]] = {metric.title: {} for metric in table.metrics}
    for one in sorted(finished, key=lambda one: one.cell.seed):
        for metric in table.metrics if one.cell.row == row.folder else ():
            value = metric.pick(one.metrics.get(metric.protocol, {}))
            if value is not None:
                values[metric.title][one.cell.seed] = value
    return Measured(row, values)


def _name(cell: Cell) -> str:
    return f"{cell.row}, seed {cell.seed}"


def _make_teller(total: int, table: Table) -> Callable[[Finished], None]:
    """Return what says of each cell how it ended, and about how long the rest will take."""
    began, ended, fresh = time.monotonic(), 0, 0

    def tell(one: Finished) -> None:
        nonlocal ended, fresh
        ended, fresh = ended + 1, fresh + (not one.was_trained)
        values = ((metric.title, metric.pick(one.metrics.get(metric.protocol, {}))) for metric in table.metrics)
        found = ", ".join(f"{title} {value:.1f}" for title, value in values if value is not None)
        left = (time.monotonic() - began) / fresh * (total - ended) if fresh else 0.0
        rest = f"; about {left / 60:.0f} min to go" if left >= 60 else ""
        how = "trained before" if one.was_trained else f"{one.seconds:.0f} s"
        console.print(f"[{ended}/{total}] {_name(one.cell)}: {'; '.join(one.problems) or found} ({how}){rest}")

    return tell
