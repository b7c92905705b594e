"""What the benchmarks of the training share: real videos prepared into a store, and our training on it, step by step.

The videos are those of ../shared/data, where that is there, else made of moving patterns.
"""

import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import av
import cv2
import numpy as np
import torch

from cyclecontrast.config import PrepareConfig, PretrainConfig
from cyclecontrast.data.dataset import ViewDataset
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.data.prepare import prepare
from cyclecontrast.distributed import ALONE, World
from cyclecontrast.methods import METHODS, Losses, StepInfo
from cyclecontrast.models.hardware import num_cores, pick_precision, pick_workers
from cyclecontrast.training.auto_settings import Machine
from cyclecontrast.training.progress import Clock
from cyclecontrast.training.read_errors import ReadErrors
from cyclecontrast.training.setup import open_training
from cyclecontrast.training.trainer import Trainer

SHARED = Path(__file__).parents[2] / "shared" / "data"
SEQUENCES = ("davis/JPEGImages/480p/*", "tracking/got10k/val/GOT-10k_*", "tracking/otb/*/img")
FILES = ("intel_sample_videos", "sam2_gallery", "torchcodec")
MADE_SIZE = (426, 320)
NUM_STEPS = 10**6
T = TypeVar("T")
Steps: TypeAlias = Generator[T, None, None]
"""Each step is done when it is asked for; closed, they end their workers."""


class Ours(NamedTuple):
    """A training as `cyclecontrast pretrain` opens it, and the number of processes that load its data."""

    trainer: Trainer
    dataset: ViewDataset
    workers: int


def make_videos(folder: Path, num_clips: int, num_frames: int) -> None:
    """Write so many clips of so many frames; of real sequences, and beside them real video files, where there are."""
    folder.mkdir(parents=True)
    sequences = sorted(found for pattern in SEQUENCES for found in SHARED.glob(pattern))
    images = [sorted(sequence.glob("*.jpg")) for sequence in sequences]
    real = [paths[at : at + num_frames] for paths in images for at in range(0, len(paths) - num_frames + 1, num_frames)]
    rng = np.random.default_rng(0)
    for number in range(num_clips):
        frames = map(_read, real[number * len(real) // num_clips]) if real else _moving_pattern(rng, num_frames)
        _encode(folder / f"clip{number:04d}.mp4", frames)
    for path in (path for name in FILES for path in (SHARED / "video_misc" / name).glob("*")):
        shutil.copyfile(path, folder / path.name)


def make_store(root: Path, num_clips: int = 40, num_frames: int = 12, **settings: Any) -> Path:
    """Prepare such videos and return the store, whose frames have a short side of 256 px at most."""
    make_videos(root / "videos", num_clips, num_frames)
    chosen = {"frames_per_video": num_frames, "workers": 0} | settings
    prepare(PrepareConfig(videos=root / "videos", out=root / "store", **chosen))
    return root / "store"


def open_ours(
    data: Path, device: torch.device, workers: int | None = None, world: World = ALONE, **settings: Any
) -> Ours:
    """Open a training as the command does, however many threads the benchmark's own environment allows."""
    torch.set_num_threads(num_cores())
    asked = PretrainConfig(data=data, out=data.parent / "no-run", device=str(device), **settings)
    config, dataset, backbone = open_training(asked, Machine(device.type == "cpu", world.size), world)
    config = config.model_copy(update={"precision": pick_precision(config.precision, device)})
    torch.manual_seed(config.seed)
    trainer = Trainer(METHODS[config.method](backbone, config, world), config, NUM_STEPS, device, world)
    return Ours(trainer, dataset, pick_workers(workers, device))


def steps_of(ours: Ours, clock: Clock | None = None) -> Steps[Losses]:
    """Train as the command's loop does between two lines of metrics, in the second half: λ is switched on there."""
    (trainer, dataset, workers), clock, read_errors = ours, clock or Clock(), ReadErrors()
    steps, world = range(NUM_STEPS // 2, NUM_STEPS), trainer.world
    sampler = StepSampler(steps, trainer.config.batch_size, world.rank, world.size)
    batches = clock.timed(load_batches(dataset, sampler, workers, trainer.device.type == "cuda"))
    for step, batch in zip(steps, batches, strict=True):
        losses, _ = trainer.train_step(batch, StepInfo(step, NUM_STEPS))
        read_errors.count(batch, dataset.store, step + 1, world)
        yield losses


def seconds_per_step(steps: Steps[object], num_steps: int, warm_up: int, device: torch.device) -> float:
    """Return the mean of so many steps, behind those that use up what was loaded in advance; the workers are ended."""
    for _ in range(warm_up):
        next(steps)
    taken = seconds_of_the_next(steps, num_steps, device)
    steps.close()
    return taken


def seconds_of_the_next(steps: Steps[object], num_steps: int, device: torch.device) -> float:
    """Return the mean of the next so many steps; more can follow."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(num_steps):
        next(steps)
    synchronize(device)
    return (time.perf_counter() - began) / num_steps


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read(path: Path) -> Pixels:
    return np.asarray(cv2.imread(str(path)), np.uint8)


def _moving_pattern(rng: np.random.Generator, num_frames: int) -> Iterator[Pixels]:
    width, height = MADE_SIZE
    coarse, fine = (rng.integers(0, 256, (height // side, width // side, 3), np.uint8) for side in (32, 4))
    size = width + 4 * num_frames, height
    layers = (cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC) for noise in (coarse, fine))
    scene = cv2.addWeighted(next(layers), 0.8, next(layers), 0.2, 0)
    for left in range(0, 4 * num_frames, 4):
        yield scene[:, left : left + width]


def _encode(path: Path, frames: Iterator[Pixels]) -> None:
    with av.open(str(path), "w") as container:
        stream = None
        for image in frames:
            height, width = (side // 2 * 2 for side in image.shape[:2])
            if stream is None:
                stream = container.add_stream("h264", rate=25, options={"crf": "20", "preset": "veryfast"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="bgr24")
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode(None))
