"""On a GPU, in some 10 minutes: images/s of our training with frames from disk, the bare step's, the release's.

    python benchmarks/gpu.py                            # ResNet-18 and ResNet-50 at 224 px, batches of 256 and 1,024
    python benchmarks/gpu.py --device cpu --small       # the same path, tiny, to see that it works

Whole, in memory and bare are those of step.py. Loading: the workers alone, nothing trained; where whole is as slow as
that, more cores or smaller frames on disk help, not a faster GPU. Release: the restatement of release.py, same workers.
Two rows show options: views that are augmented by the workers alone, not on the device, and encoders that torch.compile
made (the bare step's are not). The aim is at least 0.95 of the bare step (1 / 1.05). Videos are those of
../shared/data, else made of moving patterns.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _ours import NUM_STEPS, Ours, Steps, make_store, open_ours, seconds_per_step, steps_of
from _turns import Work, parser_of, print_table, take_turns
from release import Size, plain_steps, write_files
from step import bare_steps, in_memory, one_batch

from cyclecontrast.data.dataset import Batch
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.models.hardware import limited_threads, num_cores, pick_device, pick_workers


class Row(NamedTuple):
    """A network, its batch, and options other than usual."""

    backbone: str
    batch_size: int
    options: dict[str, Any]

    def __str__(self) -> str:
        options = (f", {name.replace('_', '-')} {value}" for name, value in self.options.items())
        return f"{self.backbone}, batch {self.batch_size}{''.join(options)}"


COMPILED, BY_WORKERS, ON_DEVICE = {"compile": True}, {"augment_on": "cpu"}, {"augment_on": "device"}
ROWS = (
    *(Row("resnet18", 256, {}), Row("resnet50", 256, {})),
    *(Row("resnet18", 256, BY_WORKERS), Row("resnet50", 256, COMPILED)),
    *(Row("resnet18", 1024, {}), Row("resnet50", 1024, {})),
)
SMALL_ROWS = tuple(Row("resnet10-small-w8", 8, options) for options in ({}, ON_DEVICE, COMPILED))
RATES = ("bare", "in memory", "whole", "loading", "release")
LARGEST_OF_RELEASE = 256
"""Its steps are slow; larger batches would take minutes."""


def loading(ours: Ours) -> Steps[Batch]:
    """Load the batches and do nothing with them."""
    sampler = StepSampler(range(NUM_STEPS // 2, NUM_STEPS), ours.trainer.config.batch_size)
    yield from load_batches(ours.dataset, sampler, ours.workers, ours.trainer.device.type == "cuda")


def measure(
    store: Path, files: Path, size: Size, options: dict[str, Any], num_steps: int, repetitions: int
) -> list[str]:
    """Return the cells of one row; where data are loaded, whole rounds of the workers count: batches come in swarms."""
    device, rounds = size.device, max(1, size.workers)
    ours, bare = (open_ours(store, device, size.workers, **size.settings, **asked) for asked in (options, {}))
    batch = one_batch(ours)
    works: dict[str, Work] = {
        "bare": lambda: seconds_per_step(bare_steps(bare.trainer, batch), num_steps, 3, device),
        "in memory": lambda: seconds_per_step(in_memory(ours.trainer, batch), num_steps, 3, device),
        "whole": lambda: seconds_per_step(steps_of(ours), 2 * rounds, rounds, device),
        "loading": lambda: seconds_per_step(loading(ours), rounds, rounds, device),
    }
    if size.batch_size <= LARGEST_OF_RELEASE and not options:
        works["release"] = lambda: seconds_per_step(plain_steps(files, size), rounds, rounds, device)
    with limited_threads(device):
        costs = take_turns(works, repetitions)
    speeds = {name: size.batch_size / statistics.median(each) for name, each in costs.items()}
    rates = [f"{speeds[name]:,.0f}" if name in speeds else "" for name in RATES]
    shares = [("whole", "bare"), ("in memory", "bare"), ("whole", "release")]
    whole, *others = (f"{speeds[a] / speeds[b]:.2f}" if b in speeds else "" for a, b in shares)
    return [*rates, whole, "" if options else "≥ 0.95", *others]


def main(arguments: list[str] | None = None) -> None:
    """Measure each size for as long as there is time, and print the table."""
    parser = parser_of(__doc__, repetitions=3)
    parser.add_argument("--data", type=Path, help="a frame store; default: one made of ../shared/data")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny batch at 32 px")
    parser.add_argument("--num-steps", type=int, default=10, help="steps in a turn, with views in memory")
    parser.add_argument("--workers", type=int, help="default: as the commands choose, the number of cores")
    parser.add_argument("--minutes", type=float, default=5.0, help="after so many, no further size is begun")
    asked = parser.parse_args(arguments)
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU was found (torch.cuda.is_available() is false), so nothing was measured; step.py measures CPUs")
        return
    device = pick_device(asked.device)
    workers, began, side = pick_workers(asked.workers, device), time.monotonic(), 32 if asked.small else 224

    def rows(store: Path, files: Path) -> Iterator[list[str]]:
        for row in SMALL_ROWS if asked.small else ROWS:
            if time.monotonic() - began > 60 * asked.minutes:
                yield [f"{row}: left out, {asked.minutes:g} minutes are over"]
                continue
            size = Size(row.backbone, side, row.batch_size, workers, device)
            try:
                yield [str(row), *measure(store, files, size, row.options, asked.num_steps, asked.repetitions)]
            except (UserError, torch.OutOfMemoryError) as error:
                yield [f"{row}: {str(error).partition('. ')[0]}"]

    with tempfile.TemporaryDirectory() as folder:
        num_clips = 8 if asked.small else 256
        store = asked.data or make_store(Path(folder), num_clips, 8, workers=num_cores())
        files = write_files(FrameStore.open(store), Path(folder) / "files")
        of_gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
        print(f"{of_gpu}, {num_cores()} cores, {workers} workers, PyTorch {torch.__version__}; images/s (queries):\n")
        rates = ["bare", "in memory", "whole", "loading", "release"]
        print_table(
            [f"network at {side} px", *rates, "whole / bare", "goal", "in memory / bare", "whole / release"],
            rows(store, files),
        )


if __name__ == "__main__":
    main()
