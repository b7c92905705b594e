"""What checkpoints cost: the time of writing one, in percent of the training between two at the default interval.

    python benchmarks/checkpointing.py                                  # ResNet-18 at 112 px, the demo's network
    python benchmarks/checkpointing.py --backbone resnet50 --image-size 224 --device cuda

A step here has its images in memory, so that real training, which also reads them, spends a smaller part. Steps and
checkpoints take turns. The aim is below 2 %.
"""

import tempfile
from itertools import count, starmap
from pathlib import Path

import torch
from _turns import Row, parser_of, present, take_turns, timed

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

NUM_VIDEOS, NUM_STEPS, METRICS_LINES = 10_000, 10**6, 400


def percent_of(config: PretrainConfig, device: torch.device, repetitions: int, num_steps: int) -> Row:
    """Let so many steps and a checkpoint take turns and return the percentage."""
    config = resolve(config, DataSize(NUM_VIDEOS, config.image_size), Machine(device.type == "cpu"))
    config = config.model_copy(update={"precision": pick_precision(config.precision, device)})
    method = METHODS[config.method](make_backbone(config.backbone, 0), config)
    trainer = Trainer(method, config, NUM_STEPS, device, ALONE)
    shape = config.batch_size, config.image_size, config.image_size, 3
    views = [torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2) for _ in range(2)]
    frames = torch.arange(2).repeat(config.batch_size, 1)
    batch = Batch(tuple(views), torch.arange(config.batch_size), frames)
    run_folder.write_config(config.out, config)
    run_folder.write_about(config.out, {})
    for line in range(METRICS_LINES):
        run_folder.append_metrics(config.out, {"step": line, **dict.fromkeys(map(str, range(20)), 0.123456789)})

    step = count(1)

    def train() -> None:
        for _ in range(num_steps):
            float(trainer.train_step(batch, StepInfo(NUM_STEPS // 2, NUM_STEPS))[0].total)

    works = {"steps": timed(train), "checkpoint": timed(lambda: save_checkpoint(trainer, ReadErrors(), next(step)))}
    costs, between = take_turns(works, repetitions), config.checkpoint_every / num_steps
    percent = [100 * b / (a * between) for a, b in zip(costs["steps"], costs["checkpoint"], strict=True)]
    return Row(f"checkpoints, % of the training, {config.backbone} at {config.image_size} px", percent, 2.0)


def main(arguments: list[str] | None = None) -> None:
    """Print the percentage of each network."""
    parser = parser_of(__doc__, repetitions=5)
    parser.add_argument("--backbone")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-steps", type=int, default=3, help="steps in a turn")
    asked = parser.parse_args(arguments)
    device = pick_device(asked.device)
    networks = [(asked.backbone, asked.image_size)] if asked.backbone else [("resnet18", 112), (BACKBONE, IMAGE_SIZE)]
    with tempfile.TemporaryDirectory() as folder, limited_threads(device):

        def row(backbone: str, image_size: int) -> Row:
            sizes = {"backbone": backbone, "image_size": image_size, "batch_size": asked.batch_size}
            config = PretrainConfig(data="none", out=Path(folder) / backbone, **sizes)
            return percent_of(config, device, asked.repetitions, asked.num_steps)

        present(starmap(row, networks), asked)


if __name__ == "__main__":
    main()
