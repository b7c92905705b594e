"""The whole training step against the bare one, and where the rest of its time goes: seconds of ours / bare.

    python benchmarks/step.py                                           # ResNet-18 at 64, 112, 224 px, ResNet-50 at 224
    python benchmarks/step.py --network resnet50 224 256 --device cuda

Whole: frames from a prepared store by worker processes, augmentation, both encoders, losses, queues, optimizer, as in
`cyclecontrast pretrain`. In memory: the same, its views there already. Bare: the encoder forward and backward, the
momentum encoder forward, both over the whole batch, and the optimizer, on normalized images there already, with the
same precision, layout of memory and number of threads; with --all-cores, also with a thread for every core, which
wants a machine of its own. Own time counts the seconds in which the training's thread had a core or waited for data:
others who use the machine change it least. The aim is at most 1.15 at 112 px and above on a CPU, 1.05 on a GPU.
"""

import inspect
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator
from cProfile import Profile
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _ours import NUM_STEPS, Ours, Steps, make_store, open_ours, seconds_per_step, steps_of
from _turns import Costs, Row, parser_of, present, print_table, ratios, take_turns
from torch import Tensor

from cyclecontrast.data.dataset import Batch
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.loss.key_queue import KeyQueue
from cyclecontrast.methods import CycleContrast, Losses, Method, MomentumMethod, StepInfo
from cyclecontrast.models.encoder import update_momentum_encoder
from cyclecontrast.models.hardware import autocast, limited_threads, num_cores, pick_device
from cyclecontrast.training.progress import Clock
from cyclecontrast.training.trainer import Trainer

PAPERS_QUEUES = {"queue_size": 65_536, "cycle_queue_size": 65_536, "support_size": 16_384}


class Case(NamedTuple):
    """A network, the side of its images, the batch, and whether its queues are as long as the paper's."""

    backbone: str
    image_size: int
    batch_size: int
    papers_queues: bool = False

    def __str__(self) -> str:
        name = f"{self.backbone}, {self.image_size} px, batch {self.batch_size}"
        return f"{name}, the paper's queues" if self.papers_queues else name


CASES = (
    Case("resnet18", 64, 64),
    Case("resnet18", 112, 32),
    Case("resnet18", 112, 32, papers_queues=True),
    Case("resnet18", 224, 16),
    Case("resnet50", 224, 8),
)


class Measured(NamedTuple):
    """What the turns cost, in seconds and in own time; percent of the whole step that wait; the parts of a step."""

    costs: Costs
    own: Costs
    waiting: list[float]
    parts: dict[str, float]


def one_batch(ours: Ours) -> Batch:
    """Return a batch in the device's memory."""
    sampler = StepSampler(range(NUM_STEPS // 2, NUM_STEPS), ours.trainer.config.batch_size)
    batch = next(load_batches(ours.dataset, sampler, 0))
    return batch._replace(views=tuple(view.to(ours.trainer.device) for view in batch.views))


def in_memory(trainer: Trainer, batch: Batch) -> Steps[Losses]:
    """Do the training's step on the same batch again and again."""
    while True:
        yield trainer.train_step(batch, StepInfo(NUM_STEPS // 2, NUM_STEPS))[0]


def bare_steps(trainer: Trainer, batch: Batch) -> Steps[None]:
    """Do what no step can do without, again and again."""
    method = trainer.method
    assert isinstance(method, MomentumMethod)
    query, positive = (method.encoder.backbone.normalize(view) for view in batch.views)
    while True:
        trainer.optimizer.zero_grad()
        with autocast(query.device, trainer.config.precision):
            with torch.no_grad():
                method.momentum_encoder(positive)
            features = method.encoder(query)
        (features.intra.sum() + features.cycle.sum()).backward()
        trainer.optimizer.step()
        yield


def measure(ours: Ours, bare: Trainer, num_steps: int, repetitions: int, all_cores: bool) -> Measured:
    """Let the whole step, the one in memory and the bare one take turns."""
    device, batch = ours.trainer.device, one_batch(ours)
    own: dict[str, list[float]] = {"bare": [], "in memory": [], "whole": [], "all cores": []}
    waiting = list[float]()

    def noted(name: str, steps: Steps[object], warm_up: int, clock: Clock) -> float:
        for _ in range(warm_up):
            next(steps)
        clock.lap()
        began = time.thread_time()
        taken = seconds_per_step(steps, num_steps, 0, device)
        own[name].append(time.thread_time() - began + clock.waited)
        return taken

    def whole() -> float:
        clock = Clock()
        taken = noted("whole", steps_of(ours, clock), 1 + ours.workers, clock)
        waiting.append(100 * clock.waited / num_steps / taken)
        return taken

    def on_all_cores() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(num_cores())
        try:
            return noted("all cores", bare_steps(bare, batch), 1, Clock())
        finally:
            torch.set_num_threads(before)

    works = {
        "bare": lambda: noted("bare", bare_steps(bare, batch), 1, Clock()),
        "in memory": lambda: noted("in memory", in_memory(ours.trainer, batch), 1, Clock()),
        "whole": whole,
        **({"all cores": on_all_cores} if all_cores else {}),
    }
    costs = take_turns(works, repetitions)
    parts = parts_of(in_memory(ours.trainer, batch), ours.trainer, num_steps) if device.type == "cpu" else {}
    return Measured(costs, {name: each[1:] for name, each in own.items()}, waiting[1:], parts)


def parts_of(steps: Steps[Losses], trainer: Trainer, num_steps: int) -> dict[str, float]:
    """Return the shares of a step by name, measured in the time of its thread: others on the machine count less."""
    next(steps)
    profile = Profile(time.thread_time)
    profile.runcall(lambda: [next(steps) for _ in range(num_steps)])
    spent = partial(_spent, pstats.Stats(profile))
    total = spent(Trainer.train_step)
    encoding = spent(Method.encode) + spent(MomentumMethod.encode_keys)
    parts = {
        "encoder, forward": spent(Method.encode),
        "backward": spent(Tensor.backward),
        "keys: momentum encoder, forward": spent(MomentumMethod.encode_keys),
        "losses and queues, forward": spent(CycleContrast.forward) - encoding + spent(KeyQueue.push),
        "optimizer": spent(torch.optim.SGD.step),
        "momentum encoder follows": spent(update_momentum_encoder),
        "norm of the gradient": spent(torch.nn.utils.get_total_norm),
    }
    parts["all else"] = total - sum(parts.values())
    return {name: part / total for name, part in parts.items()}


def _spent(stats: pstats.Stats, function: Callable[..., object]) -> float:
    """Return the seconds within a function, all that it calls included."""
    code = inspect.unwrap(function).__code__
    calls: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = stats.stats  # type: ignore[attr-defined]
    return calls[code.co_filename, code.co_firstlineno, code.co_name][3]


def main(arguments: list[str] | None = None) -> None:
    """Measure each network and print the ratios and the parts of a step."""
    parser = parser_of(__doc__, repetitions=3)
    parser.add_argument("--network", nargs=3, metavar=("BACKBONE", "SIZE", "BATCH"), help="one instead of all")
    parser.add_argument("--num-steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--data", type=Path, help="a frame store; default: one made of ../shared/data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--all-cores", action="store_true", help="a bare step with a thread for every core, too")
    asked = parser.parse_args(arguments)
    cases = CASES if asked.network is None else (Case(asked.network[0], int(asked.network[1]), int(asked.network[2])),)
    device, parts = pick_device(asked.device), dict[str, dict[str, float]]()

    def rows(case: Case) -> Iterator[Row]:
        settings: dict[str, Any] = {name: getattr(case, name) for name in ("backbone", "image_size", "batch_size")}
        settings |= PAPERS_QUEUES if case.papers_queues else {}
        ours, bare = (open_ours(store, device, **settings) for _ in range(2))
        with limited_threads(device):
            costs, own, waiting, parts[str(case)] = measure(
                ours, bare.trainer, asked.num_steps, asked.repetitions, asked.all_cores
            )
        goal = None if case.image_size < 112 else 1.05 if device.type == "cuda" else 1.15
        yield Row(f"whole step / bare step, {case}", ratios(costs, "whole", "bare"), goal)
        yield Row(f"the same in own time, {case}", ratios(own, "whole", "bare"))
        yield Row(f"step in memory / bare step, {case}", ratios(costs, "in memory", "bare"))
        if asked.all_cores:
            yield Row(f"whole step / bare step on all cores, {case}", ratios(costs, "whole", "all cores"))
        yield Row(f"waiting for data, % of the whole step, {case}", waiting)

    with tempfile.TemporaryDirectory() as folder:
        store = asked.data or make_store(Path(folder))
        present(chain.from_iterable(map(rows, cases)), asked)
    if device.type == "cpu":  # a GPU's host runs ahead of it
        print("\nThe step in memory:\n")
        shares = ([name, *(f"{each[name]:.1%}" for each in parts.values())] for name in next(iter(parts.values())))
        print_table(["part", *parts], shares)


if __name__ == "__main__":
    main()
