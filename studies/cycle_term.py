"""What does the cycle loss add to the intra-video loss, and is it more than longer steps would?

    python studies/cycle_term.py                                             # the demo's videos, 1,000 steps, seed 0
    python studies/cycle_term.py GTSRB --no-flip --steps 3000 --seeds 0 1 2

A run is intra-video up to `--start` of the training; from that very state each variant goes on, on the same batches.
Beside the cycle loss at several weights stand controls: the intra-video loss itself, two times and four times.
With `--prepare` the cycle's projector learns in the first part, too, from which no gradient reaches the backbone.
`--cycle-queue` holds more frames of each video for the cycle loss, and with them U, a quarter of it, grows.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cyclecontrast.config import KnnConfig, LinearConfig, PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.data.loader import load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.demo_run import BACKBONE, IMAGE_SIZE, make_data
from cyclecontrast.errors import checked
from cyclecontrast.evaluation.runner import evaluate
from cyclecontrast.loss.attention import log_sum_exp
from cyclecontrast.loss.losses import soft_nearest_neighbor
from cyclecontrast.loss.objectives import cycle_only, intra_video, split_candidates
from cyclecontrast.data.clips import measure
from cyclecontrast.loss.step import Step, own_in
from cyclecontrast.methods.method import Losses
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import save_backbone
from cyclecontrast.models.hardware import limited_threads, pick_precision, pick_workers
from cyclecontrast.distributed import World
from cyclecontrast.training.open_data import make_pairs, size_of
from cyclecontrast.training.auto_settings import Machine, resolve
from cyclecontrast.training.pretrain import num_steps
from cyclecontrast.training.train_step import train_step
from cyclecontrast.training.training import Hardware, Training, make_training, restore, state_of

DEVICE = torch.device("cpu")
LAST = 10
"""Steps at the end over which the rate of cycles that close is averaged."""


class Variant(NamedTuple):
    """A loss beside the intra-video loss, and its weight λ after a part in [0, 1) of the steps that it is given."""

    further: Callable[[Step], Tensor]
    weight: Callable[[float], float]


def constant(weight: float) -> Callable[[float], float]:
    """Return a λ that is the same at every step."""
    return lambda done: weight


def rising(peak: float) -> Callable[[float], float]:
    """Return a λ that grows with the steps, from 0 to the peak."""
    return lambda done: peak * done


def again(step: Step) -> Tensor:
    """Compute the intra-video loss: the control, a longer step in the same direction."""
    return intra_video(step).total


def eq5(step: Step) -> Tensor:
    """Compute the cycle loss as the method has it."""
    return cycle_only(step).total


def with_support(share: float, step: Step) -> Tensor:
    """Compute the cycle loss with another share of the candidates as support."""
    return eq5(step._replace(settings=step.settings._replace(support_size=int(share * len(step.cycle.keys)))))


def back_to_any_frame(step: Step) -> Tensor:
    """Compute the cycle loss with every candidate of the query's video as a positive: any of them closes the cycle."""
    split, temperature = split_candidates(step), step.settings.temperature
    neighbor = soft_nearest_neighbor(step.query.cycle, split.support, temperature, split.ignore_support)
    to_own = log_sum_exp(neighbor, step.cycle.keys, temperature, ~own_in(step.cycle, step))
    to_others = log_sum_exp(neighbor, split.negatives, temperature, split.ignore_negatives)
    return nn.functional.softplus(to_others - to_own).mean()


VARIANTS = {
    "intra-video": Variant(again, constant(0.0)),
    "2 x intra-video": Variant(again, constant(1.0)),
    "4 x intra-video": Variant(again, constant(3.0)),
    "1 to 3 x intra-video": Variant(again, rising(2.0)),
    "cycle, λ .1": Variant(eq5, constant(0.1)),
    "cycle, λ 1": Variant(eq5, constant(1.0)),
    "cycle, λ 3": Variant(eq5, constant(3.0)),
    "cycle, λ rising to 2": Variant(eq5, rising(2.0)),
    "cycle, λ 1, U 7/8": Variant(partial(with_support, 0.875), constant(1.0)),
    "cycle, λ 1, any frame": Variant(back_to_any_frame, constant(1.0)),
}


def compute(variant: Variant, done: float, step: Step) -> Losses:
    """Compute the intra-video loss and, where λ is not 0, the variant's beside it."""
    intra, weight = intra_video(step), variant.weight(done)
    return intra._replace(total=intra.total + weight * variant.further(step)) if weight else intra


def train(training: Training, batches: Iterable[Batch], steps: range, variant: Variant) -> float:
    """Run the steps with the variant's losses; returns the part of the last cycles that closes."""
    closed: list[float] = []
    for number, batch in zip(steps, batches, strict=True):
        losses = partial(compute, variant, (number - steps.start) / len(steps))
        result = train_step(replace(training, objective=training.objective._replace(losses=losses)), batch, number)
        if steps.stop - number <= LAST:
            closed.append(measure(result.inputs, training.objective).cycle_closed)
    return mean(closed)


@contextmanager
def detached(projector: nn.Module) -> Iterator[None]:
    """Keep the gradient of what the projector learns from reaching the backbone."""
    hook = projector.register_forward_pre_hook(lambda _, representation: (representation[0].detach(),))
    try:
        yield
    finally:
        hook.remove()


def train_first(training: Training, batches: Iterable[Batch], steps: range, prepare: bool) -> float:
    """Train the backbone by the intra-video loss alone, and with `prepare` the cycle's projector by its own."""
    if not prepare:
        return train(training, batches, steps, VARIANTS["intra-video"])
    with detached(training.encoder.cycle_projector):
        return train(training, batches, steps, VARIANTS["cycle, λ 1"])


def evaluate_training(training: Training, labeled: Path) -> tuple[float, float]:
    """Return the accuracies by kNN and by a linear probe."""
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(training.encoder.backbone.eval(), Path(folder))
        training.encoder.backbone.train()
        asked = {"model": folder, "data": labeled, "out": Path(folder) / "results", "image_size": IMAGE_SIZE}
        knn = evaluate("knn", checked(KnnConfig, asked | {"k": (20,)}), alone=True)
        linear = evaluate("linear", checked(LinearConfig, asked | {"probe": "lbfgs"}), alone=True)
    return knn.metrics["top1_k20"], linear.metrics["top1"]


def study(config: PretrainConfig, labeled: Path, start: float, prepare: bool, names: list[str]) -> None:
    """Train to `start`, then with each variant to the end; print a line for each."""
    store = FrameStore.open(config.data)
    config = resolve(config, size_of(store), Machine(cpu=True))
    config = config.model_copy(update={"precision": pick_precision(config.precision, DEVICE)})
    pairs = make_pairs(config, store)
    total = num_steps(config, pairs)
    first, rest = range(int(start * total)), range(int(start * total), total)
    workers = pick_workers(None, DEVICE)
    batches = partial(load_batches, pairs, batch_size=config.batch_size, rank=0, world=1, workers=workers)
    hardware = Hardware(DEVICE, config.precision, World(0, 1))
    training = make_training(config, make_backbone(config.backbone, config.seed), total, hardware)
    closed = train_first(training, batches(first), first, prepare)
    print(f"seed {config.seed}  {'at the start':<23} cycles closed {closed:.1%}", flush=True)
    state = {part: {key: value.clone() for key, value in own.items()} for part, own in state_of(training).items()}
    for name in names:
        restore(training, state)
        closed = train(training, batches(rest), rest, VARIANTS[name])
        knn, linear = evaluate_training(training, labeled)
        found = f"kNN {knn:.1%}  linear {linear:.1%}  cycles closed {closed:.1%}"
        print(f"seed {config.seed}  {name:<23} {found}", flush=True)


def main() -> None:
    """Run the study on given or on the demo's data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a frame tree with lists of labels; default: the demo's")
    parser.add_argument("--no-flip", action="store_true")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--start", type=float, default=0.5)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--cycle-queue", type=int, help="keys in it; default: as auto has it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    asked = parser.parse_args()
    if not 1 <= asked.start * asked.steps < asked.steps:
        parser.error(f"--start {asked.start} of {asked.steps:,} steps leaves none before or none after; name .5, say")
    with tempfile.TemporaryDirectory() as folder, limited_threads(DEVICE):
        data = make_data(Path(folder)) if asked.data is None else (asked.data, asked.data)
        options: dict[str, Any] = {"backbone": BACKBONE, "image_size": IMAGE_SIZE, "steps": asked.steps, "holdout": 0}
        options |= {} if asked.cycle_queue is None else {"cycle_queue_size": asked.cycle_queue}
        options |= {"min_crop": 0.4} if asked.data is None else {"flip": not asked.no_flip}
        for seed in asked.seeds:
            config = PretrainConfig(data=data[0], out=Path(folder) / "run", seed=seed, **options)
            study(config, data[1], asked.start, asked.prepare, asked.variants)


if __name__ == "__main__":
    main()
