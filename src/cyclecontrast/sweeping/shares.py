"""The cells of a sweep, dealt out to the processes that torchrun started; the first hears of all and goes on alone."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable

from cyclecontrast.config import SweepConfig
from cyclecontrast.distributed import World
from cyclecontrast.errors import UserError
from cyclecontrast.sweeping.plan import Plan, make_plan
from cyclecontrast.sweeping.workers import Finished, run_cells
from cyclecontrast.training.leading import ask, serve

PLAN, RUN = 0, 1


def run_together(plan: Plan, tell: Callable[[Finished], None], world: World) -> list[Finished]:
    """Run all cells, each process its share; the first calls it, and hears of its own as they end, then of the rest.

    Raises UserError where the others have not planned the same.
    """
    if world.size == 1:
        return run_cells(plan.cells, plan.jobs, tell)
    if len(set(ask(PLAN, lambda _: _digest(plan), world))) > 1:
        raise UserError("the processes have other options or other data; start all with the same")
    own, *others = ask(RUN, lambda _: _run_share(plan, tell, world), world)
    finished = _unpacked(own, plan)
    for number, one in (item for text in others for item in _unpacked(text, plan).items()):
        tell(one)
        finished[number] = one
    return [finished[number] for number in sorted(finished)]


def help_run(config: SweepConfig, world: World) -> None:
    """Run this process's share of the cells when the first one asks, in silence; raises UserError without a line."""
    plans: list[Plan] = []

    def answer(number: int) -> bytes:
        if number == PLAN:
            plans.append(make_plan(config, world.size, prepares=False))
            return _digest(plans[-1])
        return _run_share(plans[-1], lambda one: None, world)

    with contextlib.redirect_stderr(io.StringIO()):
        serve(answer, world)


def _run_share(plan: Plan, tell: Callable[[Finished], None], world: World) -> bytes:
    """Run one cell in `world.size`, and return what came of them by their numbers."""
    numbers = range(world.rank, len(plan.cells), world.size)
    finished = {one.cell.run: one for one in run_cells([plan.cells[n] for n in numbers], plan.jobs, tell, world.size)}
    return json.dumps([[n, *finished[plan.cells[n].run][1:]] for n in numbers]).encode()


def _unpacked(text: bytes, plan: Plan) -> dict[int, Finished]:
    return {
        number: Finished(plan.cells[number], metrics, tuple(problems), was_trained, seconds)
        for number, metrics, problems, was_trained, seconds in json.loads(text)
    }


def _digest(plan: Plan) -> bytes:
    """Return what is the same for the same cells; hardware and place of the data may differ."""
    cells = [[cell.row, cell.seed, cell.data_fingerprint, cell.settings] for cell in plan.cells]
    return hashlib.sha256(json.dumps(cells, sort_keys=True, default=str).encode()).digest()
