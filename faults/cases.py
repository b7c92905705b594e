"""What is killed: commands of some seconds, on data made for them, and how a user goes on with each."""

import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.synthetic import SyntheticSpec, SyntheticVideos, make_videos

MODEL = "random:resnet10-small-w8"
SPEC = SyntheticSpec(
    num_videos=60, num_categories=3, num_train_per_category=5, num_test_per_category=5, num_frames=6, size=32
)
LONG_SPEC = SyntheticSpec(
    num_videos=16, num_categories=2, num_train_per_category=1, num_test_per_category=1, num_frames=30, size=160
)
PADDING = struct.pack(">I4s", 400_000, b"free") + bytes(400_000 - 8)
"""A box of MP4 that holds nothing: with it, so few videos fill several shards."""
TINY = "--backbone resnet10-small-w8 --image-size 32 --batch-size 8 --device cpu"
PRETRAIN = f"{TINY} --no-report --steps 48 --queue-size 64 --cycle-queue-size 64 --support-size 16 --log-every 4"
SWEEP = f"{TINY} --steps 6 --small --seeds 1"
FRAMES = "--image-size 16 --batch-size 16 --device cpu"


class Case(NamedTuple):
    """A command that writes the folder `out`; `resumes`: it is gone on with by --resume once it has begun.

    `may_be_cut` names files whose damage the command tells of or mends itself; a store's is told when it is opened.
    """

    name: str
    arguments: tuple[str, ...]
    out: Path
    resumes: bool = False
    may_be_cut: str = "*"

    @property
    def command(self) -> list[str]:
        """What a user would give now, for the first time or to go on."""
        arguments = self.arguments
        if self.resumes and (self.out / "config.toml").exists():
            arguments = (arguments[0], "--resume", str(self.out))
        return [sys.executable, "-m", "cyclecontrast", *arguments]


def make_cases(command: str, root: Path, seed: int) -> list[Case]:
    """Make the data of a command below `root`; return its variants, in the order in which they take turns."""
    return _MAKERS[command](root, seed)


def _prepare(root: Path, seed: int) -> list[Case]:
    made = make_videos(root / "long", LONG_SPEC, seed, workers=0)
    for path in made.videos.iterdir():
        with path.open("ab") as file:
            file.write(PADDING)
    (made.videos / "broken.mp4").write_text("no video")
    return [
        _case(f"{number} workers", f"prepare {made.videos} --every 1 --shard-mb 1 --workers {number}", root)._replace(
            may_be_cut="*.part"
        )
        for number in (2, 0)
    ]


def _pretrain(root: Path, seed: int) -> list[Case]:
    frames = _frames(_made(root, seed), root)
    return [
        _case(name, f"pretrain {frames} {PRETRAIN} --seed {seed} {options}", root)._replace(resumes=True)
        for name, options in {
            "0 workers": "--workers 0 --checkpoint-every 7",
            "2 workers, selected by health": "--workers 2 --checkpoint-every 5 --health-every 10 --select health",
        }.items()
    ]


def _evaluate(root: Path, seed: int) -> list[Case]:
    labeled = _made(root, seed).labeled
    sequences = _write_sequences(root / "otb", seed)
    return [
        _case(options.split()[0], f"evaluate {options} --seed {seed}", root)
        for options in (
            f"knn {MODEL} {labeled} {FRAMES} --workers 2",
            f"linear {MODEL} {labeled} {FRAMES} --workers 0 --probe sgd --epochs 12",
            f"finetune {MODEL} {labeled} {FRAMES} --workers 2 --epochs 5",
            f"tracking {MODEL} {sequences} --no-train --workers 0 --device cpu",
        )
    ]


def _sweep(root: Path, seed: int) -> list[Case]:
    made = _made(root, seed)
    frames, videos, together = (
        _case(name, f"sweep table4 {data} --on {made.labeled} {SWEEP} --workers 0 {options}", root)
        for name, data, options in (
            ("frames", made.labeled, "--jobs 1"),
            ("videos", made.videos, "--jobs 1"),
            ("two at a time", made.labeled, "--jobs 2"),
        )
    )
    # A sweep reads the results of finished trials, not their checkpoints.
    return [case._replace(may_be_cut="results/**/*") for case in (frames, videos, frames, videos, together)]


_MAKERS: dict[str, Callable[[Path, int], list[Case]]] = {
    "prepare": _prepare,
    "pretrain": _pretrain,
    "evaluate": _evaluate,
    "sweep": _sweep,
}
COMMANDS = tuple(_MAKERS)


def _case(name: str, words: str, root: Path) -> Case:
    arguments = words.split()
    out = root / f"{arguments[0]}-{name.replace(' ', '-').replace(',', '')}"
    return Case(f"{arguments[0]}, {name}", (*arguments, "--out", str(out)), out)


def _made(root: Path, seed: int) -> SyntheticVideos:
    shutil.rmtree(root / "made", ignore_errors=True)
    return make_videos(root / "made", SPEC, seed, workers=0)


def _frames(made: SyntheticVideos, root: Path) -> Path:
    return prepare(PrepareConfig(videos=made.videos, out=root / "frames", every=1, workers=0)).store


def _write_sequences(root: Path, seed: int) -> Path:
    """Write sequences of a bright square that moves, in OTB's layout."""
    rng = np.random.default_rng(seed)
    for name in ("Left", "Right", "Up", "Down"):
        folder, at, step = root / name / "img", rng.integers(20, 40, 2), rng.integers(-2, 3, 2)
        folder.mkdir(parents=True)
        boxes = []
        for number in range(1, 5):
            at = at + step
            image = rng.integers(0, 120, (64, 64, 3), np.uint8)
            image[at[1] : at[1] + 12, at[0] : at[0] + 12] = 230
            cv2.imwrite(str(folder / f"{number:04}.png"), image)
            boxes.append(f"{at[0] + 1},{at[1] + 1},12,12\n")
        (root / name / "groundtruth_rect.txt").write_text("".join(boxes))
    return root
