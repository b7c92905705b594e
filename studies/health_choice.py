"""Does health without labels choose what labels would? Same-video retrieval in held-out videos against kNN with labels.

    python studies/health_choice.py                # four trainings on the demo's videos: 20 minutes on two cores

Both are measured every hundred steps. Printed are every pair, the step that each would choose, and the rank correlation
over the steps of a training and over the ends of all.
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
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.pairs import load_batches
from cyclecontrast.demo import BACKBONE, IMAGE_SIZE, make_data
from cyclecontrast.model.backbone import make_backbone
from cyclecontrast.model.checkpoint import save_backbone
from cyclecontrast.model.hardware import limited_threads, pick_precision, pick_workers
from cyclecontrast.train.distributed import World
from cyclecontrast.train.health import measure_health, watch
from cyclecontrast.train.open_data import make_health_pairs, make_pairs, size_of
from cyclecontrast.train.presets import Machine, resolve
from cyclecontrast.train.training import Hardware, make_training, train_step

DEVICE = torch.device("cpu")
EVERY = 100
TRAININGS: dict[str, dict[str, Any]] = {
    "full method": {"objective": "cycle"},
    "intra-image": {"objective": "intra-image"},
    "full method at four times the rate": {"objective": "cycle", "learning_rate": 0.96},
    "full method, without momentum and BatchNorm": {
        "objective": "cycle",
        "projector": "linear",
        "momentum_ramp": 10_000,
    },
}


class Point(NamedTuple):
    """A measurement after so many steps: without labels, with labels, and the rank of the vectors."""

    step: int
    same_video: float
    knn: float
    rank: float


def follow(config: PretrainConfig, labeled: Path) -> list[Point]:
    """Train, and measure on the way."""
    store = FrameStore.open(config.data)
    config = resolve(config, size_of(store), Machine(cpu=True))
    config = config.model_copy(update={"precision": pick_precision(config.precision, DEVICE)})
    assert config.steps is not None
    pairs, hardware = make_pairs(config, store), Hardware(DEVICE, config.precision, World(0, 1))
    training = make_training(config, make_backbone(config.backbone, config.seed), config.steps, hardware)
    watched, points = watch(make_health_pairs(config, pairs)), []
    steps, workers = iter(range(config.steps)), pick_workers(None, DEVICE)
    batches = load_batches(pairs, range(config.steps), config.batch_size, 0, 1, workers)
    for done in range(EVERY, config.steps + 1, EVERY):
        for step, batch in zip(islice(steps, EVERY), batches, strict=False):
            train_step(training, batch, step)
        signals = measure_health(training, watched)
        with tempfile.TemporaryDirectory() as folder:
            save_backbone(training.encoder.backbone.eval(), Path(folder))
            result = cc.evaluate("knn", folder, labeled, k=(20,), image_size=IMAGE_SIZE, out=Path(folder) / "results")
        training.encoder.train()
        knn = result.metrics["top1_k20"]
        points.append(Point(done, signals["health_same_video"], knn, signals["health_rank"]))
        print(f"  step {done:,}: same video {points[-1].same_video:.1%}, kNN {knn:.1%}", flush=True)
    return points


def main() -> None:
    """Follow the trainings and compare the choices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    ends = []
    with tempfile.TemporaryDirectory() as folder, limited_threads(DEVICE):
        data = make_data(Path(folder))
        shared = {"backbone": BACKBONE, "image_size": IMAGE_SIZE, "min_crop": 0.4, "steps": asked.steps}
        for name, options in TRAININGS.items():
            print(name, flush=True)
            config = PretrainConfig(
                data=data.frames, out=Path(folder) / "run", holdout=0.1, seed=asked.seed, **(shared | options)
            )
            points = follow(config, data.labeled)
            ends.append(points[-1])
            by_health, by_labels = (max(points, key=key) for key in (lambda one: one.same_video, lambda one: one.knn))
            agree = spearmanr([one.same_video for one in points], [one.knn for one in points]).statistic
            print(
                f"  chosen without labels: step {by_health.step:,}, kNN {by_health.knn:.1%}; with labels: step "
                f"{by_labels.step:,}, kNN {by_labels.knn:.1%}; rank correlation {agree:.2f}"
            )
    agree = spearmanr([one.same_video for one in ends], [one.knn for one in ends]).statistic
    print(f"over the ends of {len(ends)} trainings: rank correlation {agree:.2f}")


if __name__ == "__main__":
    main()
