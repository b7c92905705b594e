"""The whole path on videos that it makes itself: videos → frames → backbone → evaluation → report, in minutes."""

import shutil
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.config import DemoConfig, KnnConfig, LinearConfig, PrepareConfig, PretrainConfig, ReportConfig
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos
from cyclecontrast.distributed import check_alone
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation.runner import evaluate
from cyclecontrast.reporting.page import write_report
from cyclecontrast.sweeping.results import Gain, gain
from cyclecontrast.training.pretrain import pretrain
from cyclecontrast.training.progress import console

MARK = "this-is-a-demo"
BACKBONE = "resnet10-small-w16"
IMAGE_SIZE = 32
STEPS = 1000
METRICS = ("knn", "linear")
HEADING = "frames of unseen instances"


class Row(NamedTuple):
    """One trained or untrained backbone: what it is, and its accuracy by each of METRICS."""

    name: str
    accuracies: dict[str, float]


class DemoData(NamedTuple):
    """What the demo trains on, a prepared store, and what it evaluates on, labeled frames of unseen instances."""

    frames: Path
    labeled: Path


@dataclass(frozen=True)
class Demo:
    """What the demo found, and where its page is; its text is a table."""

    rows: tuple[Row, ...]
    report: Path
    seconds: float

    def __str__(self) -> str:
        names = list(dict.fromkeys(row.name for row in self.rows))
        lines = [f"{HEADING:<32}" + "".join(f"{metric:>18}" for metric in METRICS)]
        for name in names:
            cells = (_mean_and_spread(list(self._values(name, metric).values())) for metric in METRICS)
            lines.append(f"{name:<32}" + "".join(f"{cell:>18}" for cell in cells))
        lines += ["", *(self._verdict(other) for other in names if other.startswith("intra"))]
        return "\n".join(["", *lines, f"done in {self.seconds:.0f} s; look at {self.report}"])

    def _values(self, name: str, metric: str) -> dict[int, float]:
        """Return percents by seed; the rows of a name stand in the order of their seeds."""
        return dict(enumerate(100 * row.accuracies[metric] for row in self.rows if row.name == name))

    def _verdict(self, other: str) -> str:
        """Say honestly how the full method compares: seed by seed, for trainings of one seed share their luck."""
        gains = {metric: gain(self._values("cycle", metric), self._values(other, metric)) for metric in METRICS}
        told = (f"{metric} {found.mean:+.1f} points ({_judge(found)})" for metric, found in gains.items() if found)
        return f"the full method against {other}: {', '.join(told)}"


def _mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f} %{spread}"


def _judge(found: Gain) -> str:
    if found.num_seeds < 2:
        return "one seed proves nothing"
    if not found.is_significant:
        return f"within the noise of {found.num_seeds} seeds"
    return "better" if found.mean > 0 else "worse"


def run_demo(config: DemoConfig) -> Demo:
    """Make videos, prepare, pretrain, evaluate and report into `config.out`; raises UserError."""
    check_alone("demo")
    began = time.monotonic()
    _make_room(config.out)
    frames, labeled = make_data(config.out, config.workers)
    objectives = ("intra-image", "intra-video", "cycle") if config.compare else ("cycle",)
    runs = [_train(config, frames, objective, seed) for objective in objectives for seed in range(config.seeds)]
    measure = partial(_evaluate, labeled, config.workers)
    rows = [measure("random initialisation", f"random:{BACKBONE}", runs[-1].out / "results")]
    rows += [measure(run.method, str(run.out), run.out / "results") for run in runs]
    page = ReportConfig(runs=tuple(run.out for run in runs), out=config.out / "report.html", workers=config.workers)
    report = write_report(page)
    return Demo(tuple(rows), report.path, time.monotonic() - began)


def make_data(out: Path, workers: int | None = None) -> DemoData:
    """Make the demo's videos and labeled frames in `out`, and prepare the videos."""
    console.print("making videos of twenty kinds of things ...")
    made = make_videos(out / "made", SyntheticSpec(), seed=0, workers=workers)
    summary = prepare(PrepareConfig(videos=made.videos, out=out / "frames", every=1, workers=workers))
    console.print(str(summary))
    return DemoData(out / "frames", made.labeled)


def _make_room(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        raise UserError(f"out: {out} exists and is not an earlier demo; name another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()


def _train(config: DemoConfig, frames: Path, objective: str, seed: int) -> PretrainConfig:
    run = PretrainConfig(
        data=frames,
        out=config.out / "runs" / f"{objective}-{seed}",
        method=objective,
        backbone=BACKBONE,
        image_size=IMAGE_SIZE,
        min_crop=0.4,
        steps=STEPS,
        holdout=0,
        seed=seed,
        workers=config.workers,
    )
    pretrain(run)
    return run


def _evaluate(labeled: Path, workers: int | None, name: str, model: str, out: Path) -> Row:
    asked = {"model": model, "data": labeled, "out": out, "image_size": IMAGE_SIZE, "workers": workers}
    knn = evaluate("knn", checked(KnnConfig, asked | {"k": (20,)}), alone=True)
    linear = evaluate("linear", checked(LinearConfig, asked | {"probe": "lbfgs"}), alone=True)
    return Row(name, {"knn": knn.metrics["top1_k20"], "linear": linear.metrics["top1"]})
