"""The paper's comparison, scaled to the frames at hand: intra-image, intra-video and full, over seeds, all protocols.

    python studies/replication.py ../shared/data --out replication                 # ResNet-18 at 112 px: a GPU
    python studies/replication.py ../shared/data --out replication --backbone resnet10-small-w16 --image-size 32 \\
        --steps 1000 --seeds 1 --only knn linear                                   # what a CPU can do

Gathers the folders of frames named in FRAMES and the video files below those in VIDEOS, all below DATA_ROOT, as one set
of videos, trains on all of it, and evaluates each run by `evaluate all`. Left out are ucf101_layout/gtsrb_clips, which
show the tracks of video_frames/gtsrb, and photographs (images). Stopped, the same command goes on. Frames of test sets
are trained on too, without labels: the figures compare these runs with each other and with nothing else.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

import cyclecontrast as cc
from cyclecontrast.config import AllConfig
from cyclecontrast.data.store import FrameStore
from cyclecontrast.evaluation.suite import evaluate_all

OBJECTIVES = ("intra-image", "intra-video", "cycle")
FRAMES = ("video_frames/*/frames/*/*", "tracking/otb/*/img", "tracking/got10k/val/*", "davis/JPEGImages/480p/*")
VIDEOS = ("video_misc", "ucf101_layout/weizmann4")


def gather(root: Path, out: Path) -> Path:
    """Link the folders of frames and write the decoded frames of the videos, a folder per video."""
    frames = out / "frames"
    if frames.exists():
        return frames
    aside = out / "frames-unfinished"
    aside.mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in FRAMES for path in sorted(root.glob(pattern)) if path.is_dir()):
        link = aside / "_".join(path.relative_to(root).parts)
        if not link.is_symlink():
            link.symlink_to(path.resolve(), target_is_directory=True)
    for name in VIDEOS:
        store = out / "stores" / name.replace("/", "_")
        cc.prepare(videos=root / name, out=store)
        decode(FrameStore.open(store), aside / store.name)
    aside.rename(frames)
    return frames


def decode(store: FrameStore, folder: Path) -> None:
    """Write the frames of a store as JPEG files, a folder per video."""
    for video in range(store.num_videos):
        place = folder.with_name(f"{folder.name}_{video:04d}")
        place.mkdir(exist_ok=True)
        for number in range(store.frames_in(video)):
            cv2.imwrite(str(place / f"{number:06d}.jpg"), store.image(video, number)[..., ::-1])


def train(data: Path, run: Path, objective: str, seed: int, options: dict[str, Any]) -> None:
    """Train a run, or go on with it."""
    if (run / "backbone.safetensors").exists():
        return
    if (run / "config.toml").exists():
        cc.pretrain(data=data, resume=run)
    else:
        cc.pretrain(data=data, out=run, method=objective, seed=seed, **options)


def evaluate(model: Path | str, asked: argparse.Namespace) -> dict[str, float]:
    """Return the first metric of every evaluation in percent; what was evaluated before is read."""
    out = None if isinstance(model, Path) else asked.out / "results"
    only, size = tuple(asked.only), asked.image_size
    config = AllConfig(model=str(model), data_root=asked.data_root, only=only, image_size=size, out=out)
    return {
        f"{result.tag} | {Path(result.about.data.path).name} | {metric}": 100 * result.metrics[metric]
        for result, _ in evaluate_all(config).rows
        for metric in list(result.metrics)[:1]
    }


def table(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: an evaluation each, mean ± deviation over seeds."""
    yield "| protocol | data | metric | " + " | ".join(found) + " |"
    yield "|---|---|---|" + "---:|" * len(found)
    for name in dict.fromkeys(name for results in found.values() for result in results for name in result):
        cells = []
        for results in found.values():
            values = [result[name] for result in results if name in result]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Train and evaluate run by run, seed by seed; write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="protocols; default: all that fit the data")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--steps", type=int, help="default: what auto decides")
    asked = parser.parse_args()
    data = gather(asked.data_root, asked.out)
    options: dict[str, Any] = {"backbone": asked.backbone, "image_size": asked.image_size, "flip": False, "holdout": 0}
    options |= {} if asked.steps is None else {"steps": asked.steps}
    found: dict[str, list[dict[str, float]]] = {
        f"random:{asked.backbone}": [evaluate(f"random:{asked.backbone}", asked)],
        **{objective: [] for objective in OBJECTIVES},
    }
    for seed in range(asked.seeds):
        for objective in OBJECTIVES:
            run = asked.out / "runs" / f"{objective}-{seed}"
            train(data, run, objective, seed, options)
            found[objective].append(evaluate(run, asked))
            text = "\n".join(table(found))
            (asked.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
