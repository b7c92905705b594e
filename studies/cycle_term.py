"""What does the cycle loss add to the intra-video loss, and is it more than longer steps would?

    python studies/cycle_term.py                                             # the demo's videos, 1,000 steps, seed 0
    python studies/cycle_term.py GTSRB --no-flip --steps 3000 --seeds 0 1 2

A run is intra-video up to `--start` of the training; from that very state each variant goes on, on the same batches.
Beside the cycle loss at several weights stand controls: the intra-video loss itself, two times and four times.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.pairs import load_batches
from cyclecontrast.demo import BACKBONE, IMAGE_SIZE, make_data
from cyclecontrast.loss.objectives import cycle, intra_video, measure
from cyclecontrast.loss.step import Losses, Step
from cyclecontrast.model.backbone import make_backbone
from cyclecontrast.model.checkpoint import save_backbone
from cyclecontrast.model.hardware import limited_threads, pick_precision, pick_workers
from cyclecontrast.train.distributed import World
from cyclecontrast.train.open_data import make_pairs, size_of
from cyclecontrast.train.presets import Machine, resolve
from cyclecontrast.train.pretrain import num_steps
from cyclecontrast.train.train_step import train_step
from cyclecontrast.train.training import Hardware, Training, make_training, restore, state_of

DEVICE = torch.device("cpu")


def times_intra(factor: float, step: Step) -> Losses:
    """Weigh the intra-video loss: the control, a longer step in the same direction."""
    losses = intra_video(step)
    return losses._replace(total=factor * losses.total)


def weighted_cycle(weight: float, share: float | None, step: Step) -> Losses:
    """Compute Eq. 6 with another λ, and with another share of the candidates as support."""
    settings = step.settings
    if share is not None:
        settings = settings._replace(support_size=int(share * len(step.cycle.keys)))
    return cycle(step._replace(cycle_weight=weight, settings=settings))


VARIANTS: dict[str, Callable[[Step], Losses]] = {
    "intra-video": intra_video,
    "2 x intra-video": partial(times_intra, 2.0),
    "4 x intra-video": partial(times_intra, 4.0),
    "cycle, λ .1": partial(weighted_cycle, 0.1, None),
    "cycle, λ 1": partial(weighted_cycle, 1.0, None),
    "cycle, λ 3": partial(weighted_cycle, 3.0, None),
    "cycle, λ 1, U 7/8": partial(weighted_cycle, 1.0, 0.875),
}


def train(training: Training, batches: Any, steps: range, losses: Callable[[Step], Losses]) -> float:
    """Run the steps with these losses; returns the part of the last batch's cycles that closes."""
    changed = replace(training, objective=training.objective._replace(losses=losses))
    for step, batch in zip(steps, batches, strict=True):
        result = train_step(changed, batch, step)
    return measure(result.inputs, training.objective).cycle_closed


def evaluate(training: Training, labeled: Path) -> tuple[float, float]:
    """Return the accuracies by kNN and by a linear probe."""
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(training.encoder.backbone.eval(), Path(folder))
        training.encoder.backbone.train()
        shared: dict[str, Any] = {"out": Path(folder) / "results", "image_size": IMAGE_SIZE}
        knn = cc.evaluate("knn", folder, labeled, k=(20,), **shared)
        linear = cc.evaluate("linear", folder, labeled, probe="lbfgs", **shared)
    return knn.metrics["top1_k20"], linear.metrics["top1"]


def study(config: PretrainConfig, labeled: Path, start: float, names: list[str]) -> None:
    """Train to `start`, then with each variant to the end; print a line for each."""
    store = FrameStore.open(config.data)
    config = resolve(config, size_of(store), Machine(cpu=True))
    config = config.model_copy(update={"precision": pick_precision(config.precision, DEVICE)})
    pairs = make_pairs(config, store)
    total = num_steps(config, pairs)
    first, rest = range(int(start * total)), range(int(start * total), total)
    shared: dict[str, Any] = {"batch_size": config.batch_size, "rank": 0, "world": 1}
    batches = partial(load_batches, pairs, workers=pick_workers(None, DEVICE), **shared)
    hardware = Hardware(DEVICE, config.precision, World(0, 1))
    training = make_training(config, make_backbone(config.backbone, config.seed), total, hardware)
    train(training, batches(first), first, intra_video)
    state = {part: {key: value.clone() for key, value in own.items()} for part, own in state_of(training).items()}
    for name in names:
        restore(training, state)
        closed = train(training, batches(rest), rest, VARIANTS[name])
        knn, linear = evaluate(training, labeled)
        found = f"kNN {knn:.1%}  linear {linear:.1%}  cycles closed {closed:.1%}"
        print(f"seed {config.seed}  {name:<20} {found}", flush=True)


def main() -> None:
    """Run the study on given or on the demo's data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a frame tree with lists of labels; default: the demo's")
    parser.add_argument("--no-flip", action="store_true")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--start", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    asked = parser.parse_args()
    if not 1 <= asked.start * asked.steps < asked.steps:
        parser.error(f"--start {asked.start} of {asked.steps:,} steps leaves none before or none after; name .5, say")
    with tempfile.TemporaryDirectory() as folder, limited_threads(DEVICE):
        data = make_data(Path(folder)) if asked.data is None else (asked.data, asked.data)
        options: dict[str, Any] = {"backbone": BACKBONE, "image_size": IMAGE_SIZE, "steps": asked.steps, "holdout": 0}
        options |= {"min_crop": 0.4} if asked.data is None else {"flip": not asked.no_flip}
        for seed in asked.seeds:
            config = PretrainConfig(data=data[0], out=Path(folder) / "run", seed=seed, **options)
            study(config, data[1], asked.start, asked.variants)


if __name__ == "__main__":
    main()
