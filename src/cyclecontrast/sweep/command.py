"""The command: every row trained and evaluated over seeds, then the table; it goes on where it was stopped."""

import time
from collections.abc import Callable

from cyclecontrast.config import SweepConfig
from cyclecontrast.errors import UserError
from cyclecontrast.files import locked
from cyclecontrast.sweep.cells import Cell
from cyclecontrast.sweep.outcome import Measured, Sweep
from cyclecontrast.sweep.page import write_files
from cyclecontrast.sweep.plan import Plan, make_plan
from cyclecontrast.sweep.tables import Row, Table
from cyclecontrast.sweep.workers import Finished, run_cells
from cyclecontrast.train.progress import console


def run_sweep(config: SweepConfig) -> Sweep:
    """As `make_sweep`; where a cell failed it prints the table itself and raises UserError, so that scripts notice."""
    sweep = make_sweep(config)
    failed = dict.fromkeys(problem.partition(": ")[0] for problem in sweep.problems)
    if failed:
        print(sweep, flush=True)
        raise UserError(
            f"{len(failed)} of {len(sweep.rows) * sweep.num_seeds} cells are not finished: {'; '.join(failed)}; the "
            f"same command goes on; a cell that is damaged is trained anew once its folder in {sweep.folder / 'runs'} "
            "is deleted"
        )
    return sweep


def make_sweep(config: SweepConfig) -> Sweep:
    """Train and evaluate what is not done yet and write the table into `config.out`; raises UserError.

    A cell that fails is told of and the others go on; raises UserError where none ends well, or where another process
    is at work in the folder.
    """
    plan = make_plan(config)
    with locked(plan.folder, "out"):
        for leftover in (*plan.folder.glob("*.part"), *plan.folder.glob("runs/*.part")):
            leftover.unlink()
        return _carry_out(plan, config.seeds)


def _carry_out(plan: Plan, num_seeds: int) -> Sweep:
    console.print(f"{plan.about}\n{len(plan.cells)} cells, {plan.jobs} at a time, in {plan.folder / 'runs'}")
    try:
        finished = run_cells(plan.cells, plan.jobs, _make_teller(len(plan.cells), plan.table))
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
