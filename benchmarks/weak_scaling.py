"""Two processes that train together against two trainings side by side, each with the same batch: their speeds' ratio.

    python benchmarks/weak_scaling.py                                   # ResNet-18 at 112 px, 32 videos a process
    python benchmarks/weak_scaling.py --network resnet50 224 8

torchrun starts two processes that talk through gloo. In each turn they do steps of one training of twice the batch,
then each steps of one of its own, which says nothing to the other: whole steps, from frames of a prepared store by
worker processes to the optimizer, at a batch, groups of BatchNorm and queues of the same size for a process. A
process has its share of the cores. What is lost are the messages, and waiting for the slower one. Own time counts the
seconds in which the processes had a core: the messages without the waiting, which others who use the machine prolong.
The aim is at least 0.90 of the speed of those side by side.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _ours import Steps, make_store, open_ours, seconds_of_the_next, steps_of
from _turns import Costs, Row, parser_of, present, ratios, take_turns

from cyclecontrast.distributed import ALONE, World, all_reduce_mean, barrier, process_group
from cyclecontrast.models.hardware import limited_threads, num_cores

CPU = torch.device("cpu")
NUM_PROCESSES = 2
QUEUES = {"queue_size": 4096, "cycle_queue_size": 4096, "support_size": 1024}


class Measured(NamedTuple):
    """Seconds per step, and those in which the process had a core: means of the processes."""

    costs: Costs
    own: Costs


def measure(asked: argparse.Namespace, world: World) -> Measured:
    """Let both ways take turns."""
    own: dict[str, list[float]] = {"together": [], "side by side": []}

    def steps_in(some: World) -> Steps[object]:
        backbone, size, batch = asked.network
        settings: dict[str, Any] = {"backbone": backbone, "image_size": int(size)} | QUEUES
        settings |= {"batch_size": int(batch) * some.size, "bn_groups": 2 * some.size}
        return steps_of(open_ours(asked.data, CPU, asked.workers, some, **settings))

    def seconds(name: str, steps: Steps[object]) -> float:
        barrier(world)  # both begin at once
        began = time.process_time()
        taken = seconds_of_the_next(steps, asked.num_steps, CPU)
        taken, in_own_time = all_reduce_mean([taken, time.process_time() - began], world)
        own[name].append(in_own_time)
        return taken

    all_steps = {"together": steps_in(world), "side by side": steps_in(ALONE)}
    torch.set_num_threads(max(1, num_cores() // world.size))
    with limited_threads(CPU):
        works = {name: partial(seconds, name, steps) for name, steps in all_steps.items()}
        costs = take_turns(works, asked.repetitions)
    for steps in all_steps.values():
        steps.close()
    return Measured(costs, {name: each[1:] for name, each in own.items()})


def work(asked: argparse.Namespace) -> None:
    """Do one process's part; the first prints."""
    with process_group(CPU, "weak scaling") as world:
        costs, own = measure(asked, world)
    if world.rank:
        return
    backbone, size, batch = asked.network
    name = f"2 processes / 2 independent ones, steps/s, {backbone}, {size} px, batch {batch} each"
    named = {name: (costs, 0.9), f"the same in CPU time, {backbone}": (own, None)}
    present(
        (Row(n, ratios(each, "side by side", "together"), goal, "higher") for n, (each, goal) in named.items()), asked
    )


def start(arguments: list[str], data: Path | None) -> None:
    """Start the processes and wait for them."""
    with tempfile.TemporaryDirectory() as folder:
        store = data or make_store(Path(folder))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_PROCESSES}"]
        subprocess.run([*launcher, __file__, *arguments, "--data", str(store)], check=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = parser_of(__doc__, repetitions=5)
    network = ["resnet18", "112", "32"]
    parser.add_argument("--network", nargs=3, metavar=("BACKBONE", "SIZE", "BATCH"), default=network)
    parser.add_argument("--num-steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--data", type=Path, help="a frame store; default: one made of ../shared/data")
    parser.add_argument("--workers", type=int, help="of each process; default: as the command has it")
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = parser.parse_args(arguments)
    if "RANK" in os.environ:
        work(asked)
    else:
        start(arguments, asked.data)


if __name__ == "__main__":
    main()
