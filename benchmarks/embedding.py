"""Embedding images from disk against the bare forward pass, at the same batch and precision: images/s of ours / bare.

    python benchmarks/embedding.py                              # 1,024 JPEG frames made for it, resnet18 at 112 px
    python benchmarks/embedding.py DATA --backbone resnet50 --image-size 224 --device cuda

Ours reads, decodes, crops, copies to the device, normalizes, embeds and keeps the vectors on disk; bare is the frozen
network alone on images that lie there. Turns alternate, so that both see the same machine. The aim is at least 0.9,
where the device or other cores leave the workers their time: on a CPU, workers and network share the cores.
"""

import tempfile
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import torch
from _turns import Row, parser_of, present, ratios, take_turns, timed

from cyclecontrast.data.store import FrameStore
from cyclecontrast.evaluation.embed import Loading, embed_images, frozen
from cyclecontrast.evaluation.image_batches import StoreImages
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import Backbone, make_backbone
from cyclecontrast.models.hardware import limited_threads, pick_device, pick_workers

FRAMES_PER_VIDEO = 64
FRAME_SIZE = (320, 240)


def make_frames(folder: Path, num_frames: int) -> None:
    """Write videos of blurred noise as JPEG files, of some 15 kB each."""
    rng = np.random.default_rng(0)
    for number in range(num_frames):
        path = folder / f"video{number // FRAMES_PER_VIDEO:04d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (30, 40, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, FRAME_SIZE, interpolation=cv2.INTER_CUBIC))


def forward_pass(backbone: Backbone, num_images: int, loading: Loading) -> None:
    """Run the network alone over as many images of one normalized batch that lies on the device already."""
    images = torch.randn(loading.batch_size, 3, loading.image_size, loading.image_size, device=loading.device)
    # Channels last in memory, as decoded images lie: on a CPU that is the faster way.
    images = images.to(memory_format=torch.channels_last)
    with frozen(backbone, loading.device), torch.inference_mode():
        for start in range(0, num_images, loading.batch_size):
            vectors = backbone(images[: num_images - start])
        vectors.cpu()


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = parser_of(__doc__, repetitions=5)
    parser.add_argument("data", nargs="?", type=Path, help="a frame store; default: frames made in a temporary folder")
    for name, default in (("backbone", "resnet18"), ("device", "auto")):
        parser.add_argument(f"--{name}", default=default)
    for name, default in (("image-size", 112), ("batch-size", 64), ("num-images", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int, help="default: as the commands choose")
    asked = parser.parse_args(arguments)
    device = pick_device(asked.device)
    loading = Loading(asked.image_size, asked.batch_size, pick_workers(asked.workers, device), device)
    with tempfile.TemporaryDirectory() as folder, limited_threads(device):
        if asked.data is None:
            make_frames(Path(folder) / "frames", asked.num_images)
        images = StoreImages(FrameStore.open(asked.data or Path(folder) / "frames"))
        backbone, turns = make_backbone(asked.backbone, 0, asked.image_size), count()

        def ours() -> None:
            unfinished = ResumeCache(Path(folder) / f"unfinished{next(turns)}")
            embed_images(backbone, images, loading, "embedding", unfinished)

        works = {"bare": timed(partial(forward_pass, backbone, len(images), loading)), "ours": timed(ours)}
        costs = take_turns(works, asked.repetitions)
    name = f"embedding from disk / bare forward pass, images/s, {backbone.name}, {asked.image_size} px"
    present([Row(name, ratios(costs, "bare", "ours"), 0.9, "higher")], asked)


if __name__ == "__main__":
    main()
