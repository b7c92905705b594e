"""What checkpoints cost: the time of writing one, in percent of the training between two at the default interval.

    python benchmarks/checkpointing.py                                  # ResNet-18 at 112 px, the demo's network
    python benchmarks/checkpointing.py --backbone resnet50 --image-size 224 --device cuda

A step here has its images in memory, so that real training, which also reads them, spends a smaller part. Steps and
checkpoints take turns. The aim is below 2 %.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.demo_run import BACKBONE, IMAGE_SIZE
from cyclecontrast.distributed import ALONE
from cyclecontrast.methods import METHODS, StepInfo
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.hardware import limited_threads, pick_device, pick_precision
from cyclecontrast.training import run_folder
from cyclecontrast.training.auto_settings import DataSize, Machine, resolve
from cyclecontrast.training.checkpoints import save_checkpoint
from cyclecontrast.training.read_errors import ReadErrors
from cyclecontrast.training.trainer import Trainer

NUM_VIDEOS, METRICS_LINES = 10_000, 400


def percent_of(config: PretrainConfig, device: torch.device, turns: int, steps: int) -> float:
    """Return the percentage by medians over so many turns of so many steps and a checkpoint."""
    config = resolve(config, DataSize(NUM_VIDEOS, config.image_size), Machine(device.type == "cpu"))
    config = config.model_copy(update={"precision": pick_precision(config.precision, device)})
    method = METHODS[config.method](make_backbone(config.backbone, 0), config)
    trainer = Trainer(method, config, turns * steps, device, ALONE)
    shape = config.batch_size, config.image_size, config.image_size, 3
    views = [torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2) for _ in range(2)]
    frames = torch.arange(2).repeat(config.batch_size, 1)
    batch = Batch(tuple(views), torch.arange(config.batch_size), frames)
    run_folder.write_config(config.out, config)
    run_folder.write_about(config.out, {})
    for line in range(METRICS_LINES):
        run_folder.append_metrics(config.out, {"step": line, **dict.fromkeys(map(str, range(20)), 0.123456789)})
    of_steps, of_keeping = list[float](), list[float]()
    for turn in range(turns):
        for step in range(turn * steps, (turn + 1) * steps):
            began = time.perf_counter()
            float(trainer.train_step(batch, StepInfo(step, turns * steps))[0].total)
            of_steps.append(time.perf_counter() - began)
        began = time.perf_counter()
        save_checkpoint(trainer, ReadErrors(), turn)
        of_keeping.append(time.perf_counter() - began)
    step, keeping = statistics.median(of_steps), statistics.median(of_keeping)
    percent = 100 * keeping / (config.checkpoint_every * step)
    print(
        f"{config.backbone} at {config.image_size} px, batch {config.batch_size}: a step {step:.3f} s, a checkpoint "
        f"{keeping:.3f} s, every {config.checkpoint_every:,} steps: {percent:.2f} %"
    )
    return percent


def main() -> None:
    """Print the percentage of each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    device = pick_device(asked.device)
    networks = [(asked.backbone, asked.image_size)] if asked.backbone else [("resnet18", 112), (BACKBONE, IMAGE_SIZE)]
    with tempfile.TemporaryDirectory() as folder, limited_threads(device):
        for backbone, image_size in networks:
            sizes = {"backbone": backbone, "image_size": image_size, "batch_size": asked.batch_size}
            config = PretrainConfig(data="none", out=Path(folder) / backbone, **sizes)
            percent_of(config, device, asked.turns, asked.steps)


if __name__ == "__main__":
    main()
