"""Which recipe learns most in the same time? kNN on unseen things, for equal seconds of training on this machine.

    python benchmarks/accuracy_per_minute.py                                  # the demo's videos: hours
    python benchmarks/accuracy_per_minute.py --budgets 250 1000 --recipes "cycle, 128" "vince, 16" --seeds 0 1 2
    python benchmarks/accuracy_per_minute.py --data ../shared/data/video_frames/gtsrb --no-flip --budgets 3000

Budgets are in steps of the first recipe, `cycle, 128`, which is what the demo trains. First, some steps of all recipes
take turns, each recipe with its data; the median ratio of the times within a turn says how many steps of a recipe fit
into a budget. Then each trains that many. `--results` keeps the measurements, as in studies/adaptation.py.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _ours import open_ours, seconds_of_the_next, steps_of
from _turns import print_table, take_turns

import cyclecontrast as cc
from cyclecontrast.demo_run import BACKBONE, IMAGE_SIZE, make_data
from cyclecontrast.models.hardware import limited_threads

FIRST = "cycle, 128"
RECIPES: dict[str, dict[str, Any]] = {
    FIRST: {"method": "cycle", "batch_size": 128},
    "intra-video, 128": {"method": "intra-video", "batch_size": 128},
    "intra-video, 64": {"method": "intra-video", "batch_size": 64},
    "intra-video, 32": {"method": "intra-video", "batch_size": 32},
    "intra-video, 32, twice the rate": {"method": "intra-video", "batch_size": 32, "learning_rate": 0.12},
    "vince, 32": {"method": "vince", "batch_size": 32},
    "vince, 16": {"method": "vince", "batch_size": 16},
    "vince, 16, twice the rate": {"method": "vince", "batch_size": 16, "learning_rate": 0.24},
    "simclr, 1 frame of 32, rate 0.06": {"method": "simclr", "batch_size": 32, "learning_rate": 0.06},
    **{
        f"simclr, {views} frames of {batch}, rate {rate}": {
            **{"method": "simclr", "positives": "video", "views": views, "batch_size": batch, "learning_rate": rate},
        }
        for views, batch, rate in [
            *[(2, 64, 0.12), (2, 32, 0.06), (2, 32, 0.12), (2, 16, 0.03)],
            *[(4, 16, 0.06), (4, 16, 0.12), (4, 16, 0.24), (8, 8, 0.06)],
        ]
    },
    "simclr, 2 frames of 32, τ 0.1": {
        **{"method": "simclr", "positives": "video", "batch_size": 32, "learning_rate": 0.06, "temperature": 0.1},
    },
    "nnclr, 64": {"method": "nnclr", "positives": "video", "batch_size": 64, "queue_size": 1024},
    "byol, 32": {"method": "byol", "positives": "video", "batch_size": 32},
    "intra-video, 128, 24 px": {"method": "intra-video", "batch_size": 128, "image_size": 24},
    "intra-video, 128, half as wide": {
        **{"method": "intra-video", "batch_size": 128, "backbone": "resnet10-small-w8"},
    },
    "intra-video, 128, views of moco-v1": {"method": "intra-video", "batch_size": 128, "augmentation": "moco-v1"},
    "intra-video, 128, τ 0.1": {"method": "intra-video", "batch_size": 128, "temperature": 0.1},
}
"""By name, the options of a recipe; a number alone is its batch size. All else is as `auto` has it."""
CPU = torch.device("cpu")


def seconds_per_step(data: Path, shared: Mapping[str, Any], names: list[str], turns: int) -> dict[str, float]:
    """Return the seconds of a step of each recipe: those of the first, and the median ratios to it."""
    running = {name: steps_of(open_ours(data, CPU, 0, **shared | RECIPES[name])) for name in names}
    with limited_threads(CPU):
        costs = take_turns(
            {name: lambda steps=steps: seconds_of_the_next(steps, 4, CPU) for name, steps in running.items()}, turns
        )
    for steps in running.values():
        steps.close()
    first = costs[FIRST]
    ratios = {name: [a / b for a, b in zip(each, first, strict=True)] for name, each in costs.items()}
    return {name: statistics.median(first) * statistics.median(each) for name, each in ratios.items()}


def measured(key: dict[str, Any], data: Path, labeled: Path, options: dict[str, Any], results: Path) -> float:
    """Return the accuracy of a recipe in percent, from the file of results or measured now."""
    lines = results.read_text().splitlines() if results.exists() else []
    for found in map(json.loads, lines):
        if found.items() >= key.items():
            return float(found["knn"])
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "results"
        cc.pretrain(data, out=run, report=False, health_every=0, **options)
        metrics = cc.evaluate("knn", run, labeled, k=(20,), out=out).metrics  # at the image size of the run
    with results.open("a") as file:
        file.write(json.dumps(key | {"knn": 100 * metrics["top1_k20"]}) + "\n")
    return 100 * metrics["top1_k20"]


def main() -> None:
    """Time all recipes, then print a line for each as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a tree of labeled frames with lists; default: the demo's videos")
    parser.add_argument("--no-flip", action="store_true")
    parser.add_argument("--budgets", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--results", type=Path, help="default: a temporary file")
    asked = parser.parse_args()
    names = list(dict.fromkeys([FIRST, *asked.recipes]))
    shared: dict[str, Any] = {"backbone": BACKBONE, "image_size": IMAGE_SIZE, "holdout": 0}
    shared |= {"min_crop": 0.4} if asked.data is None else {"flip": not asked.no_flip}
    with tempfile.TemporaryDirectory() as folder:
        data, labeled = make_data(Path(folder)) if asked.data is None else (asked.data, asked.data)
        seconds = seconds_per_step(data, shared, names, asked.turns)
        results = asked.results or Path(folder) / "results.jsonl"

        def cells(name: str, budget: int) -> list[str]:
            steps = round(budget * seconds[FIRST] / seconds[name])
            about = {"data": data.name, "recipe": name, "budget": budget}
            values = [
                measured(
                    about | {"seed": seed},
                    data,
                    labeled,
                    shared | RECIPES[name] | {"steps": steps, "seed": seed},
                    results,
                )
                for seed in asked.seeds
            ]
            deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            return [
                name,
                f"{budget * seconds[FIRST] / 60:.1f}",
                f"{steps:,}",
                f"{statistics.mean(values):.1f}{deviation}",
            ]

        rows = (cells(name, budget) for budget in asked.budgets for name in asked.recipes)
        print_table(["recipe", "minutes", "steps", "kNN"], rows)


if __name__ == "__main__":
    main()
