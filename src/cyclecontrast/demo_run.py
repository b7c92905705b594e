"""The command `demo`: make videos, prepare, pretrain, evaluate and report, in minutes on a CPU."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.config import DemoConfig, KnnConfig, LinearConfig, PrepareConfig, PretrainConfig, ReportConfig
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation.runner import evaluate_alone
from cyclecontrast.files import LOCK_FILE, locked, remove
from cyclecontrast.output import join_lines, say
from cyclecontrast.reporting.page import write_report
from cyclecontrast.sweeping.results import Gain, gain
from cyclecontrast.training.auto_settings import ON_CPU
from cyclecontrast.training.pretrain import pretrain

DEMO_FILE = "this-is-a-demo"
"""Marks a folder that a new demo may replace."""
BACKBONE = "resnet10-small-w16"
IMAGE_SIZE = 32
STEPS = 1000
"""Steps of the paper's method and its ablations, in batches of 128 videos."""
SIMCLR = ON_CPU | {"batch_size": 16}
SIMCLR_STEPS = 3.15
"""Steps of SimCLR per step of the others, in the same time (benchmarks/accuracy_per_minute.py)."""
METRICS = ("knn", "linear")


class Row(NamedTuple):
    """A backbone and its accuracy by each of METRICS."""

    name: str
    accuracies: dict[str, float]


class DemoData(NamedTuple):
    """A prepared store to train on, and labeled frames of other objects to evaluate on."""

    frames: Path
    labeled: Path


@dataclass(frozen=True)
class Demo:
    """The results of a demo and the path of its report; `str` is a table."""

    rows: tuple[Row, ...]
    report: Path
    seconds: float

    def __str__(self) -> str:
        names = list(dict.fromkeys(row.name for row in self.rows))
        lines = ["", f"{'frames of unseen instances':<32}" + "".join(f"{metric:>18}" for metric in METRICS)]
        for name in names:
            cells = []
            for values in ([*self._percents(name, metric).values()] for metric in METRICS):
                deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f} %{deviation}")
            lines.append(f"{name:<32}" + "".join(f"{cell:>18}" for cell in cells))
        pairs = [("cycle", name) for name in names if name.startswith("intra")]
        pairs += [("simclr", name) for name in names if name == "cycle"]
        lines += ["", *(self._comparison(*pair) for pair in pairs)]
        return join_lines([*lines, f"done in {self.seconds:.0f} s; report: {self.report}"])

    def _percents(self, name: str, metric: str) -> dict[int, float]:
        """Return the accuracies by seed; the rows of a name are in the order of their seeds."""
        return dict(enumerate(100 * row.accuracies[metric] for row in self.rows if row.name == name))

    def _comparison(self, name: str, other: str) -> str:
        """Return a line that compares a method with another one, paired by seed."""
        gains = {metric: gain(self._percents(name, metric), self._percents(other, metric)) for metric in METRICS}
        parts = (f"{metric} {found.mean:+.1f} points ({_judge(found)})" for metric, found in gains.items() if found)
        return f"{name} compared with {other}: {', '.join(parts)}"


def _judge(found: Gain) -> str:
    if found.num_seeds < 2:
        return "one seed is not enough to judge"
    if not found.is_significant:
        return f"within the noise of {found.num_seeds} seeds"
    return "better" if found.mean > 0 else "worse"


def run_demo(config: DemoConfig) -> Demo:
    """Make videos, prepare, pretrain, evaluate and report into `config.out`. Raises UserError."""
    _check_folder(config.out)
    with locked(config.out, "out"):
        return _run_demo(config)


def _run_demo(config: DemoConfig) -> Demo:
    start = time.monotonic()
    for earlier in config.out.iterdir():
        if earlier.name != LOCK_FILE:
            remove(earlier)
    (config.out / DEMO_FILE).touch()
    data = make_data(config.out, config.workers)
    methods = ("intra-image", "intra-video", "cycle", "simclr") if config.compare else ("simclr",)
    runs = [_train(config, data.frames, method, seed) for method in methods for seed in range(config.seeds)]
    models = [("random weights", f"random:{BACKBONE}", runs[-1].out)]
    models += [(run.method, str(run.out), run.out) for run in runs]
    rows = [_evaluate(name, model, out / "results", data.labeled, config.workers) for name, model, out in models]
    page = ReportConfig(runs=tuple(run.out for run in runs), out=config.out / "report.html", workers=config.workers)
    report = write_report(page)
    return Demo(tuple(rows), report.path, time.monotonic() - start)


def make_data(out: Path, workers: int | None = None) -> DemoData:
    """Make the videos and the labeled frames of the demo in `out`, and prepare the videos."""
    say("generating synthetic videos of 20 classes ...")
    made = make_videos(out / "made", SyntheticSpec(), seed=0, workers=workers)
    summary = prepare(PrepareConfig(videos=made.videos, out=out / "frames", every=1, workers=workers))
    say(*str(summary).split("\n"))
    return DemoData(out / "frames", made.labeled)


def _check_folder(out: Path) -> None:
    """Raise UserError if the folder contains anything but an earlier demo, which will be deleted."""
    names = {path.name for path in out.iterdir()} - {LOCK_FILE} if out.is_dir() else set()
    if (names and DEMO_FILE not in names) or (out.exists() and not out.is_dir()):
        raise UserError(f"out: {out} exists and is not an earlier demo; name another folder with --out")


def _train(config: DemoConfig, frames: Path, method: str, seed: int) -> PretrainConfig:
    is_simclr = method == "simclr"
    run = PretrainConfig(
        data=frames,
        out=config.out / "runs" / f"{method}-{seed}",
        backbone=BACKBONE,
        image_size=IMAGE_SIZE,
        min_crop=0.4,
        steps=round(SIMCLR_STEPS * STEPS) if is_simclr else STEPS,
        holdout=0,
        seed=seed,
        workers=config.workers,
        **(SIMCLR if is_simclr else {"method": method}),
    )
    pretrain(run)
    return run


def _evaluate(name: str, model: str, out: Path, labeled: Path, workers: int | None) -> Row:
    options = {"model": model, "data": labeled, "out": out, "image_size": IMAGE_SIZE, "workers": workers}
    knn = evaluate_alone("knn", checked(KnnConfig, options | {"k": (20,)}))
    linear = evaluate_alone("linear", checked(LinearConfig, options | {"probe": "lbfgs"}))
    return Row(name, {"knn": knn.metrics["top1_k20"], "linear": linear.metrics["top1"]})
