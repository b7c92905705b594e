"""On a GPU, in less than 8 minutes: images/s of our training with frames from disk, the bare step's, the rivals'.

    python benchmarks/gpu.py                            # two ResNets and ViT-S/16 at 224 px, batches of 256 and 1,024
    python benchmarks/gpu.py --device cpu --small       # the same path, tiny, to see that it works

First three checks: both ways to augment give the same views, CPU and GPU the same losses, and a resumed run the weights
of one that never stopped. Then a row for each network. Whole, in memory and bare are those of step.py. Loading: the
workers alone, nothing trained; where whole is as slow as that, more cores or smaller frames on disk help, not a faster
GPU. Release: the restatement of release.py; lightly: that of lightly_moco.py, where it is installed; same workers.
Some rows show options: views that are augmented by the workers alone, not on the device, and encoders that
torch.compile made (the bare step's are not). Memory is the most that PyTorch held. The aim is at least 0.95 of the bare
step (1 / 1.05). Videos are those of ../shared/data, else made of moving patterns.
"""

import copy
import importlib.util
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _ours import NUM_STEPS, Ours, Steps, make_store, open_ours, seconds_per_step, steps_of
from _turns import Row, Work, parser_of, present, print_table, take_turns
from lightly_moco import lightly_steps
from release import Size, plain_steps, write_files
from step import bare_steps, in_memory, one_batch

import cyclecontrast as cc
from cyclecontrast.data.dataset import Batch
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import exact_convolutions
from cyclecontrast.methods import StepInfo
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.models.hardware import limited_threads, num_cores, pick_device, pick_workers
from cyclecontrast.training.progress import Clock


class Case(NamedTuple):
    """A network, its batch, and options other than usual."""

    backbone: str
    batch_size: int
    options: dict[str, Any]

    def __str__(self) -> str:
        options = (f", {name.replace('_', '-')} {value}" for name, value in self.options.items())
        return f"{self.backbone}, batch {self.batch_size}{''.join(options)}"


COMPILED, BY_WORKERS, ON_DEVICE = {"compile": True}, {"augment_on": "cpu"}, {"augment_on": "device"}
VIT = "timm:vit_small_patch16_224"
CASES = (
    *(Case("resnet18", 256, {}), Case("resnet50", 256, {}), Case(VIT, 256, {})),
    *(Case("resnet18", 256, BY_WORKERS), Case("resnet50", 256, COMPILED), Case(VIT, 256, COMPILED)),
    *(Case("resnet50", 1024, {}), Case(VIT, 1024, {}), Case("resnet18", 1024, {})),
)
"""In the order of what is most worth knowing: the last ones are left out where the time is over."""
SMALL_CASES = tuple(Case("resnet10-small-w8", 8, options) for options in ({}, ON_DEVICE, COMPILED))
RIVALS = {"release": plain_steps} | ({"lightly": lightly_steps} if importlib.util.find_spec("lightly") else {})
RATES = ("bare", "in memory", "whole", "loading", "release", "lightly")
LARGEST_OF_RIVALS = 256
"""Their steps are slow; larger batches would take minutes."""


def loading(ours: Ours) -> Steps[Batch]:
    """Load the batches and do nothing with them."""
    sampler = StepSampler(range(NUM_STEPS // 2, NUM_STEPS), ours.trainer.config.batch_size)
    yield from load_batches(ours.dataset, sampler, ours.workers, ours.trainer.device.type == "cuda")


def equal_views(store: Path, device: torch.device, backbone: str, side: int) -> Row:
    """Return how much the views of the workers and of the device differ, in levels of 255."""
    settings: dict[str, Any] = {"backbone": backbone, "image_size": side, "batch_size": 8}
    cut, made = (one_batch(open_ours(store, device, 0, **settings, **way)) for way in (ON_DEVICE, BY_WORKERS))
    views = open_ours(store, device, 0, **settings).trainer._on_device(cut).views
    each = [(a.float() - b.float()).abs().mean().item() for a, b in zip(views, made.views, strict=True)]
    return Row("views augmented on the device and by the workers, mean difference of 255", each, 0.5)


def equal_losses(store: Path, device: torch.device, backbone: str, side: int) -> Row:
    """Return how much the losses of one step in fp32 differ between the device and the CPU, relatively."""
    settings: dict[str, Any] = {
        "backbone": backbone,
        "image_size": side,
        "batch_size": 16,
        "precision": "fp32",
    } | BY_WORKERS
    there, here = (open_ours(store, place, 0, **settings).trainer for place in (device, torch.device("cpu")))
    batch = one_batch(open_ours(store, torch.device("cpu"), 0, **settings))
    here.method.load_state_dict(copy.deepcopy(there.method.state_dict()))
    with exact_convolutions():
        totals = [float(each.train_step(batch, StepInfo(NUM_STEPS // 2, NUM_STEPS))[0].total) for each in (there, here)]
    return Row("losses on the device and on the CPU, relative difference", [abs(totals[0] / totals[1] - 1)], 0.001)


def equal_resume(store: Path, device: torch.device, backbone: str, side: int) -> Row:
    """Return how far the weights of a run that was stopped halfway and resumed are from those of one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = Path(folder) / "whole", Path(folder) / "stopped"
        settings: dict[str, Any] = {
            "backbone": backbone,
            "image_size": side,
            "batch_size": 8,
            "health_every": 0,
            "method": "cycle",
        }
        settings |= {"steps": 6, "checkpoint_every": 3, "workers": 0, "device": str(device), "report": False}
        cc.pretrain(store, out=whole, **settings)
        shutil.copytree(whole, stopped)
        shutil.rmtree(stopped / "checkpoints" / "step-00000006")
        (stopped / "backbone.safetensors").unlink()
        cc.pretrain(resume=stopped)
        weights = [list(load_backbone(run).parameters()) for run in (whole, stopped)]
    return Row("resumed run, largest difference of a weight", [_largest_difference(*weights)], 0.001)


def _largest_difference(ours: list[torch.nn.Parameter], others: list[torch.nn.Parameter]) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, others, strict=True))


def measure(
    store: Path, files: Path, size: Size, options: dict[str, Any], num_steps: int, repetitions: int
) -> list[str]:
    """Return the cells of one row; where data are loaded, whole rounds of the workers count: batches come in swarms."""
    device, rounds, waiting = size.device, max(1, size.workers), list[float]()
    ours, bare = (open_ours(store, device, size.workers, **size.settings, **asked) for asked in (options, {}))
    batch = one_batch(ours)

    def whole() -> float:
        clock = Clock()
        steps = steps_of(ours, clock)
        for _ in range(rounds):
            next(steps)
        clock.lap()
        taken = seconds_per_step(steps, rounds, 0, device)
        waiting.append(clock.waited / rounds / taken)
        return taken

    works: dict[str, Work] = {
        "bare": lambda: seconds_per_step(bare_steps(bare.trainer, batch), num_steps, 3, device),
        "in memory": lambda: seconds_per_step(in_memory(ours.trainer, batch), num_steps, 3, device),
        "whole": whole,
        "loading": lambda: seconds_per_step(loading(ours), rounds, rounds, device),
    }
    if size.batch_size <= LARGEST_OF_RIVALS and not options and not size.backbone.startswith("timm:"):
        works |= {
            name: lambda steps=steps: seconds_per_step(steps(files, size), rounds, rounds, device)
            for name, steps in RIVALS.items()
        }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with limited_threads(device):
        costs = take_turns(works, repetitions)
    memory = f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}" if device.type == "cuda" else ""
    speeds = {name: size.batch_size / statistics.median(each) for name, each in costs.items()}
    rates = [f"{speeds[name]:,.0f}" if name in speeds else "" for name in RATES]
    shares = [("whole", "bare"), ("in memory", "bare"), ("whole", "release"), ("whole", "lightly")]
    of_bare, *others = (f"{speeds[a] / speeds[b]:.2f}" if b in speeds else "" for a, b in shares)
    return [*rates, of_bare, "" if options else "≥ 0.95", *others, f"{statistics.median(waiting[1:]):.0%}", memory]


def main(arguments: list[str] | None = None) -> None:
    """Measure each size for as long as there is time, and print the table."""
    parser = parser_of(__doc__, repetitions=2)
    parser.add_argument("--data", type=Path, help="a frame store; default: one made of ../shared/data")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny batch at 32 px")
    parser.add_argument("--num-steps", type=int, default=5, help="steps in a turn, with views in memory")
    parser.add_argument("--workers", type=int, help="default: as the commands choose, the number of cores")
    parser.add_argument("--minutes", type=float, default=5.0, help="after so many, no further row is begun")
    asked = parser.parse_args(arguments)
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU was found (torch.cuda.is_available() is false), so nothing was measured; step.py measures CPUs")
        return
    device = pick_device(asked.device)
    workers, began, side = pick_workers(asked.workers, device), time.monotonic(), 32 if asked.small else 224

    def rows(store: Path, files: Path) -> Iterator[list[str]]:
        for case in SMALL_CASES if asked.small else CASES:
            if time.monotonic() - began > 60 * asked.minutes:
                yield [f"{case}: left out, {asked.minutes:g} minutes are over"]
                continue
            size = Size(case.backbone, side, case.batch_size, workers, device)
            try:
                yield [str(case), *measure(store, files, size, case.options, asked.num_steps, asked.repetitions)]
            except (UserError, torch.OutOfMemoryError) as error:
                yield [f"{case}: {str(error).partition('. ')[0]}"]

    with tempfile.TemporaryDirectory() as folder:
        num_clips = 8 if asked.small else 256
        store = asked.data or make_store(Path(folder), num_clips, 8, workers=num_cores())
        files = write_files(FrameStore.open(store), Path(folder) / "files")
        of_gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
        print(f"{of_gpu}, {num_cores()} cores, {workers} workers, PyTorch {torch.__version__}\n")
        checks, backbone = (equal_views, equal_losses, equal_resume), "resnet10-small-w8" if asked.small else "resnet18"
        present((check(store, device, backbone, side) for check in checks), asked)
        shares = ["whole / bare", "goal", "in memory / bare", "whole / release", "whole / lightly"]
        print("\nimages/s (queries):\n")
        print_table([f"network at {side} px", *RATES, *shares, "waiting for data", "GB"], rows(store, files))


if __name__ == "__main__":
    main()
