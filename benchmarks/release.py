"""Our training against a plain restatement of the release's recipe: images/s of ours / the release's, data included.

    python benchmarks/release.py                        # ResNet-18 at 112 px, frames of 256 px, as many workers

The restatement is written from the recipe: a view of a frame, another one of it, and one of a frame drawn
independently are encoded, three passes; fp32 in NCHW; frames are JPEG files, read and changed by Pillow in the workers
of a DataLoader; intra queue 65,536, cycle queue 81,920, 16,384 of it support. Ours trains on the same JPEG bytes in a
prepared store: as `auto` decides, with the release's queues and projectors, and that in fp32. An image is a query: a
step has as many as the batch. The aim is at least 3.0 on a CPU.
"""

import copy
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _plain
import torch
from _ours import Ours, Steps, make_store, open_ours, seconds_per_step, steps_of
from _turns import Row, Work, parser_of, present, ratios, take_turns
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, Dataset

from cyclecontrast.data.store import FrameStore
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.hardware import limited_threads, pick_device, pick_workers

DIM, TEMPERATURE, MOMENTUM, CYCLE_WEIGHT = 128, 0.07, 0.999, 0.1
QUEUE_SIZE, CYCLE_QUEUE_SIZE, SUPPORT_SIZE = 65_536, 81_920, 16_384
ENDLESS = 10**7


class Size(NamedTuple):
    """What is trained, in what batches, and by how many processes it is loaded."""

    backbone: str
    image_size: int
    batch_size: int
    workers: int
    device: torch.device

    @property
    def settings(self) -> dict[str, Any]:
        """Return the options of ours that say so."""
        return {"backbone": self.backbone, "image_size": self.image_size, "batch_size": self.batch_size}


class Way(NamedTuple):
    """Options with which ours trains, and the goal of the comparison."""

    name: str
    settings: dict[str, Any]
    goal: float | None = None


RivalSteps = Callable[[Path, Size], Steps[object]]
"""Trains another way on folders of JPEG files, a folder for each video."""

RELEASE = {"preset": "release", "bn_groups": 1}
OURS = (
    Way("auto", {}, 3.0),
    Way("the release's queues and projectors", RELEASE),
    Way("the same in fp32", RELEASE | {"precision": "fp32"}),
)


class Views(NamedTuple):
    """Two views of one frame, and one of a frame of the same video that is drawn for itself; (batch, 3, h, w)."""

    query: Tensor
    key: Tensor
    other: Tensor


class PlainFrames(Dataset[Views]):
    """Random views of the JPEG files of each video's folder, video after video without end."""

    def __init__(self, root: Path, size: int) -> None:
        self.videos = [sorted(str(path) for path in folder.iterdir()) for folder in sorted(root.iterdir())]
        self.size = size

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Views:
        rng = random.Random(index)
        frames = self.videos[index % len(self.videos)]
        frame, other = (_plain.decode(Path(rng.choice(frames)).read_bytes()) for _ in range(2))
        return Views(*(_plain.random_view(image, self.size, rng) for image in (frame, frame, other)))


class PlainEncoder(nn.Module):
    """A ResNet with the release's two projectors; unit vectors for the intra and for the cycle loss."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = make_backbone(backbone)
        dim = self.backbone.dim
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, DIM)) for _ in range(2)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return both (batch, dim)."""
        representation = self.backbone(images)
        intra, cycle = (normalize(projector(representation), dim=1) for projector in self.projectors)
        return intra, cycle


class PlainQueue:
    """Columns of keys, the oldest of which are written over."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.keys = normalize(torch.randn(DIM, size, device=device), dim=0)
        self.place = 0

    def push(self, keys: Tensor) -> None:
        """Write (batch, dim); the size is a multiple of the batch."""
        self.keys[:, self.place : self.place + len(keys)] = keys.T
        self.place = (self.place + len(keys)) % self.keys.shape[1]


def plain_steps(files: Path, size: Size) -> Steps[Tensor]:
    """Train as the release does, on one device: its shuffle of the keys is a permutation of the batch here."""
    device, frames = size.device, PlainFrames(files, size.image_size)
    loader = DataLoader(
        frames, size.batch_size, num_workers=size.workers, pin_memory=device.type == "cuda", drop_last=True
    )
    encoder = PlainEncoder(size.backbone).to(device)
    momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4)
    queue, cycle_queue = PlainQueue(QUEUE_SIZE, device), PlainQueue(CYCLE_QUEUE_SIZE, device)
    for batch in loader:
        views = Views(*(view.to(device, non_blocking=True) for view in batch))
        query, query_cycle = encoder(views.query)
        with torch.no_grad():
            for slow, fast in zip(momentum_encoder.parameters(), encoder.parameters(), strict=True):
                slow.data = slow.data * MOMENTUM + fast.data * (1 - MOMENTUM)
            order = torch.randperm(2 * len(query), device=device)
            keys = [part[order.argsort()] for part in momentum_encoder(torch.cat((views.key, views.other))[order])]
            (key, other), (key_cycle, other_cycle) = (part.chunk(2) for part in keys)
        intra = contrast(query, other, queue.keys)
        places = torch.randperm(CYCLE_QUEUE_SIZE, device=device)
        support, rest = cycle_queue.keys[:, places[:SUPPORT_SIZE]], cycle_queue.keys[:, places[SUPPORT_SIZE:]]
        neighbor = normalize((query_cycle @ support / TEMPERATURE).softmax(dim=1) @ support.T, dim=1)
        loss = intra + CYCLE_WEIGHT * contrast(neighbor, other_cycle, rest)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        queue.push(key)
        cycle_queue.push(key_cycle)
        yield loss.detach()


def contrast(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """Return the cross entropy of the positive, which comes first, among all."""
    logits = torch.cat(((query * positive).sum(dim=1, keepdim=True), query @ negatives), dim=1) / TEMPERATURE
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def write_files(store: FrameStore, root: Path) -> Path:
    """Write the frames of a store as files, a folder for each video, byte for byte."""
    for video in range(store.num_videos):
        folder = root / f"{video:05d}"
        folder.mkdir(parents=True)
        for frame in range(store.frames_in(video)):
            (folder / f"{frame:05d}.jpg").write_bytes(store.read(video, frame))
    return root


def compare(
    document: str | None, rival: str, steps_of_rival: RivalSteps, ours: Sequence[Way], arguments: list[str] | None
) -> None:
    """Let a rival and our ways take turns on the same frames and print the ratios of their images per second."""
    parser = parser_of(document, repetitions=3)
    for name, text in (("backbone", "resnet18"), ("device", "cpu")):
        parser.add_argument(f"--{name}", default=text)
    for name, number in (("image-size", 112), ("batch-size", 32), ("num-steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--data", type=Path, help="a frame store; default: one made of ../shared/data")
    parser.add_argument("--workers", type=int, help="of either; default: as the commands choose")
    asked = parser.parse_args(arguments)
    device, num_steps, repetitions = pick_device(asked.device), asked.num_steps, asked.repetitions
    size = Size(asked.backbone, asked.image_size, asked.batch_size, pick_workers(asked.workers, device), device)
    with tempfile.TemporaryDirectory() as folder:
        store = asked.data or make_store(Path(folder))
        files = write_files(FrameStore.open(store), Path(folder) / "files")

        def work_of(begin: Callable[[], Steps[object]]) -> Work:
            return lambda: seconds_per_step(begin(), num_steps, 1 + size.workers, device)

        def open_way(way: Way) -> Ours:
            return open_ours(store, device, size.workers, **size.settings, **way.settings)

        works = {rival: work_of(partial(steps_of_rival, files, size))}
        works |= {way.name: work_of(partial(steps_of, open_way(way))) for way in ours}
        with limited_threads(device):
            costs = take_turns(works, repetitions)
    print(f"{size.backbone}, {size.image_size} px, batch {size.batch_size}, {size.workers} workers, {device}\n")
    named = f"ours / {rival}'s, images/s, {size.backbone}, {size.image_size} px"
    present((Row(f"{named}, {way.name}", ratios(costs, rival, way.name), way.goal, "higher") for way in ours), asked)


def main(arguments: list[str] | None = None) -> None:
    """Compare with the release."""
    compare(__doc__, "release", plain_steps, OURS, arguments)


if __name__ == "__main__":
    main()
