"""Does health without labels choose what labels would? Same-video retrieval in held-out videos against kNN with labels.

    python studies/health_choice.py                # four trainings on the demo's videos

Both are measured every hundred steps. Printed are every pair, the step that each would choose, without labels as
`pretrain --select health` does, and the rank correlation over the steps of a training and over the ends of all.
"""

import argparse
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.demo_run import BACKBONE, IMAGE_SIZE, make_data
from cyclecontrast.distributed import ALONE
from cyclecontrast.errors import UserError
from cyclecontrast.methods import METHODS, StepInfo
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import save_backbone
from cyclecontrast.models.hardware import limited_threads, pick_precision, pick_workers
from cyclecontrast.training.auto_settings import Machine, resolve
from cyclecontrast.training.health import chance_level, health_views, measure_health
from cyclecontrast.training.setup import frame_size, make_dataset, make_health_dataset
from cyclecontrast.training.trainer import Trainer
from cyclecontrast.training.verdict import Row, VerdictInputs, chosen_step

DEVICE = torch.device("cpu")
EVERY = 100
TRAININGS: dict[str, dict[str, Any]] = {
    "full method": {"method": "cycle"},
    "intra-image": {"method": "intra-image"},
    "full method at four times the rate": {"method": "cycle", "learning_rate": 0.96},
    "full method, without momentum and BatchNorm": {
        "method": "cycle",
        "projector": "linear",
        "momentum_ramp": 10_000,
    },
}


class Followed(NamedTuple):
    """The measurements of a training as in metrics.jsonl, each with `knn` beside, and what they are judged by."""

    rows: list[Row]
    known: VerdictInputs


def follow(config: PretrainConfig, labeled: Path) -> Followed:
    """Train, and measure on the way; raises UserError where the vectors overflow."""
    store = FrameStore.open(config.data)
    config = resolve(config, frame_size(store), Machine(cpu=True))
    config = config.model_copy(update={"precision": pick_precision(config.precision, DEVICE)})
    assert config.steps is not None
    dataset = make_dataset(config, store)
    torch.manual_seed(config.seed)
    method = METHODS[config.method](make_backbone(config.backbone, config.seed), config)
    trainer = Trainer(method, config, config.steps, DEVICE, ALONE)
    watched, rows = health_views(make_health_dataset(config, dataset)), list[Row]()
    steps, workers = iter(range(config.steps)), pick_workers(None, DEVICE)
    batches = load_batches(dataset, StepSampler(range(config.steps), config.batch_size), workers)
    for done in range(EVERY, config.steps + 1, EVERY):
        for step, batch in zip(islice(steps, EVERY), batches, strict=False):
            trainer.train_step(batch, StepInfo(step, config.steps))
        signals = measure_health(method, watched, config.temperature, config.mask_own_video).signals
        if "health_same_video" not in signals:
            raise UserError(f"the vectors are not finite after step {done:,}")
        with tempfile.TemporaryDirectory() as folder:
            save_backbone(method.encoder.backbone.eval(), Path(folder))
            result = cc.evaluate("knn", folder, labeled, k=(20,), image_size=IMAGE_SIZE, out=Path(folder) / "results")
        method.encoder.train()
        knn = result.metrics["top1_k20"]
        rows.append({"step": done, "knn": knn, **signals})
        print(f"  step {done:,}: same video {signals['health_same_video']:.1%}, kNN {knn:.1%}", flush=True)
    return Followed(rows, VerdictInputs(2 * len(watched.video), chance_level(watched.video), at_start={}))


def agreement(rows: list[Row]) -> float:
    """Return the rank correlation of what is measured without and with labels."""
    return float(spearmanr([row["health_same_video"] for row in rows], [row["knn"] for row in rows]).statistic)


def num_steps(text: str) -> int:
    """Read a number of steps that ends with a measurement."""
    steps = int(text)
    if steps < EVERY or steps % EVERY:
        raise argparse.ArgumentTypeError(f"{steps} is not a multiple of {EVERY}")
    return steps


def main() -> None:
    """Follow the trainings and compare the choices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", nargs="+", default=list(TRAININGS), choices=TRAININGS)
    parser.add_argument("--steps", type=num_steps, default=1000, help=f"a multiple of {EVERY}")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    ends = []
    with tempfile.TemporaryDirectory() as folder, limited_threads(DEVICE):
        data = make_data(Path(folder))
        shared = {"backbone": BACKBONE, "image_size": IMAGE_SIZE, "min_crop": 0.4, "steps": asked.steps}
        for name in asked.trainings:
            print(name, flush=True)
            config = PretrainConfig(
                data=data.frames, out=Path(folder) / "run", holdout=0.1, seed=asked.seed, **(shared | TRAININGS[name])
            )
            try:
                rows, known = follow(config, data.labeled)
            except UserError as error:
                print(f"  given up: {error}", flush=True)
                continue
            ends.append(rows[-1])
            by_health = next(row for row in rows if row["step"] == chosen_step(rows, known))
            by_labels = max(rows, key=lambda row: float(row["knn"]))
            print(
                f"  chosen without labels: step {by_health['step']:,}, kNN {by_health['knn']:.1%}; with labels: step "
                f"{by_labels['step']:,}, kNN {by_labels['knn']:.1%}; rank correlation {agreement(rows):.2f}"
            )
    if len(ends) >= 3:
        print(f"over the ends of {len(ends)} trainings: rank correlation {agreement(ends):.2f}")


if __name__ == "__main__":
    main()
