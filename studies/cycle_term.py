"""What does the cycle loss add to the intra-video loss, and is it more than longer steps would?

    python studies/cycle_term.py                                             # the demo's videos, 1,000 steps, seed 0
    python studies/cycle_term.py GTSRB --no-flip --steps 3000 --seeds 0 1 2

A run is intra-video up to `--start` of the training; from that state each variant continues on the same batches.
Beside the cycle loss at several weights stand controls: the intra-video loss itself, two times and four times.
With `--prepare` the cycle's projector learns in the first part, too, from which no gradient reaches the backbone.
`--cycle-queue` holds more frames of each video for the cycle loss, and with them U, a quarter of it, grows.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cyclecontrast.config import KnnConfig, LinearConfig, PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.demo_run import BACKBONE, IMAGE_SIZE, make_data
from cyclecontrast.distributed import ALONE
from cyclecontrast.errors import checked
from cyclecontrast.evaluation.runner import evaluate_alone
from cyclecontrast.loss import cycle_consistency, info_nce, soft_nearest_neighbor
from cyclecontrast.loss.attention import log_sum_exp
from cyclecontrast.methods import Candidates, CycleContrast, Losses, StepInfo
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import save_backbone
from cyclecontrast.models.encoder import Features
from cyclecontrast.models.hardware import limited_threads, pick_precision, pick_workers
from cyclecontrast.training.auto_settings import Machine, resolve
from cyclecontrast.training.pretrain import num_steps
from cyclecontrast.training.setup import frame_size, make_dataset
from cyclecontrast.training.trainer import Trainer

DEVICE = torch.device("cpu")
LAST = 10
"""Steps at the end over which the rate of cycles that close is averaged."""


class Step(NamedTuple):
    """What a variant's loss is computed from: the vectors of a batch and the keys that they are compared with."""

    method: "Study"
    query: Features
    key: Features
    intra: Candidates
    cycle: Candidates
    video: Tensor
    info: StepInfo


class Variant(NamedTuple):
    """A loss beside the intra-video loss, and its weight λ after a fraction in [0, 1) of the steps that it is given."""

    extra_frames: Callable[[Step], Tensor]
    weight: Callable[[float], float]


class Study(CycleContrast):
    """The intra-video loss and, where λ is not 0, the variant's loss beside it."""

    variant: Variant
    steps: range

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses of a batch."""
        key = self.encode_keys(batch.views[1], info)
        new, new_video = self.stage_keys([key], batch.video)
        query = self.encode(batch.views[0])
        intra = self.candidates(self.intra_queue, new.intra, new_video)
        cycle = self.candidates(self.cycle_queue, new.cycle, new_video)
        step = Step(self, query, key, intra, cycle, batch.video, info)
        loss, weight = again(step), self.variant.weight((info.step - self.steps.start) / len(self.steps))
        closed = self.closed(query, key, self.split(cycle, batch.video, info)) if info.measure else None
        total = loss + weight * self.variant.extra_frames(step) if weight else loss
        return Losses(total, loss, cycle_closed=closed)


def constant(weight: float) -> Callable[[float], float]:
    """Return a λ that is the same at every step."""
    return lambda done: weight


def rising(peak: float) -> Callable[[float], float]:
    """Return a λ that grows with the steps, from 0 to the peak."""
    return lambda done: peak * done


def again(step: Step) -> Tensor:
    """Compute the intra-video loss: the control, a longer step in the same direction."""
    ignore = step.intra.ignore(step.video, own_video=step.method.options.mask_own_video)
    return info_nce(step.query.intra, step.key.intra, step.intra.keys, step.method.options.temperature, ignore)


def eq5(step: Step, share: float | None = None) -> Tensor:
    """Compute the cycle loss as the method has it, or with another share of the candidates as support."""
    method, options = step.method, step.method.options
    if share is not None:
        method.options = options.model_copy(update={"support_size": int(share * len(step.cycle.keys))})
    support, negatives, *ignore = method.split(step.cycle, step.video, step.info)
    method.options = options
    return cycle_consistency(step.query.cycle, step.key.cycle, support, negatives, options.temperature, *ignore)


def back_to_any_frame(step: Step) -> Tensor:
    """Compute the cycle loss with every candidate of the query's video as a positive: any of them closes the cycle."""
    temperature = step.method.options.temperature
    support, negatives, ignore_support, ignore_negatives = step.method.split(step.cycle, step.video, step.info)
    neighbor = soft_nearest_neighbor(step.query.cycle, support, temperature, ignore_support)
    to_video = log_sum_exp(neighbor, step.cycle.keys, temperature, ~step.cycle.ignore(step.video, own_video=True))
    to_others = log_sum_exp(neighbor, negatives, temperature, ignore_negatives)
    return nn.functional.softplus(to_others - to_video).mean()


VARIANTS = {
    "intra-video": Variant(again, constant(0.0)),
    "2 x intra-video": Variant(again, constant(1.0)),
    "4 x intra-video": Variant(again, constant(3.0)),
    "1 to 3 x intra-video": Variant(again, rising(2.0)),
    "cycle, λ .1": Variant(eq5, constant(0.1)),
    "cycle, λ 1": Variant(eq5, constant(1.0)),
    "cycle, λ 3": Variant(eq5, constant(3.0)),
    "cycle, λ rising to 2": Variant(eq5, rising(2.0)),
    "cycle, λ 1, U 7/8": Variant(partial(eq5, share=0.875), constant(1.0)),
    "cycle, λ 1, any frame": Variant(back_to_any_frame, constant(1.0)),
}


def train(trainer: Trainer, batches: Iterable[Batch], steps: range, variant: Variant) -> float:
    """Run the steps with the variant's losses; returns the fraction of the last cycles that closes."""
    method, closed = trainer.method, list[float]()
    assert isinstance(method, Study)
    method.variant, method.steps = variant, steps
    for number, batch in zip(steps, batches, strict=True):
        is_last = steps.stop - number <= LAST
        losses, _ = trainer.train_step(batch, StepInfo(number, trainer.num_steps, measure=is_last))
        closed += [float(losses.cycle_closed)] if losses.cycle_closed is not None else []
    return mean(closed)


@contextmanager
def detached(projector: nn.Module) -> Iterator[None]:
    """Keep the gradient of what the projector learns from reaching the backbone."""
    hook = projector.register_forward_pre_hook(lambda _, representation: (representation[0].detach(),))
    try:
        yield
    finally:
        hook.remove()


def train_first(trainer: Trainer, batches: Iterable[Batch], steps: range, prepare: bool) -> float:
    """Train the backbone by the intra-video loss alone, and with `prepare` the cycle's projector by its own."""
    if not prepare:
        return train(trainer, batches, steps, VARIANTS["intra-video"])
    with detached(trainer.method.encoder.cycle_projector):
        return train(trainer, batches, steps, VARIANTS["cycle, λ 1"])


def evaluate_training(trainer: Trainer, labeled: Path) -> tuple[float, float]:
    """Return the accuracies by kNN and by a linear probe."""
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(trainer.method.encoder.backbone.eval(), Path(folder))
        trainer.method.encoder.backbone.train()
        asked = {"model": folder, "data": labeled, "out": Path(folder) / "results", "image_size": IMAGE_SIZE}
        knn = evaluate_alone("knn", checked(KnnConfig, asked | {"k": (20,)}))
        linear = evaluate_alone("linear", checked(LinearConfig, asked | {"probe": "lbfgs"}))
    return knn.metrics["top1_k20"], linear.metrics["top1"]


def study(config: PretrainConfig, labeled: Path, start: float, prepare: bool, names: list[str]) -> None:
    """Train to `start`, then with each variant to the end; print a line for each."""
    store = FrameStore.open(config.data)
    config = resolve(config, frame_size(store), Machine(cpu=True))
    config = config.model_copy(update={"precision": pick_precision(config.precision, DEVICE)})
    dataset, workers = make_dataset(config, store), pick_workers(None, DEVICE)
    total = num_steps(config, dataset)
    first, rest = range(int(start * total)), range(int(start * total), total)

    def batches(steps: range) -> Iterator[Batch]:
        return load_batches(dataset, StepSampler(steps, config.batch_size), workers)

    torch.manual_seed(config.seed)
    trainer = Trainer(Study(make_backbone(config.backbone, config.seed), config), config, total, DEVICE, ALONE)
    closed = train_first(trainer, batches(first), first, prepare)
    print(f"seed {config.seed}  {'at the start':<23} cycles closed {closed:.1%}", flush=True)
    state = {key: value.clone() for key, value in trainer.state_dict().items()}
    for name in names:
        trainer.load_state_dict(state)
        closed = train(trainer, batches(rest), rest, VARIANTS[name])
        knn, linear = evaluate_training(trainer, labeled)
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
