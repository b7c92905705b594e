"""The whole path on videos that it makes itself: videos → frames → backbone → evaluation → report, in minutes."""

import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from cyclecontrast.config import DemoConfig, KnnConfig, LinearConfig, PrepareConfig, PretrainConfig, ReportConfig
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.synthetic import SyntheticSpec, SyntheticVideos, make_videos
from cyclecontrast.errors import UserError
from cyclecontrast.evaluate import evaluate_config
from cyclecontrast.report.page import write_report
from cyclecontrast.train.pretrain import pretrain

MARK = "this-is-a-demo"
BACKBONE = "resnet10-small-w16"
METRICS = ("knn top-1", "linear top-1")

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Row(NamedTuple):
    """One trained or untrained backbone: what it is, and its accuracies in the order of METRICS."""

    name: str
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class Demo:
    """What the demo found, and where its page is; its text is a table."""

    rows: tuple[Row, ...]
    report: Path
    seconds: float

    def __str__(self) -> str:
        names = list(dict.fromkeys(row.name for row in self.rows))
        width = max(map(len, names)) + 2
        lines = ["", f"{'frames of unseen instances':<{width}}" + "".join(f"{metric:>16}" for metric in METRICS)]
        lines += [f"{name:<{width}}" + "".join(f"{cell:>16}" for cell in self._cells(name)) for name in names]
        return "\n".join([*lines, "", *self._verdict(), f"done in {self.seconds:.0f} s; look at {self.report}"])

    def _of(self, name: str, metric: int) -> list[float]:
        return [row.accuracies[metric] for row in self.rows if row.name == name]

    def _cells(self, name: str) -> list[str]:
        cells = []
        for metric in range(len(METRICS)):
            values = self._of(name, metric)
            spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{100 * statistics.mean(values):.1f} %{spread}")
        return cells

    def _verdict(self) -> list[str]:
        others = [name for name in dict.fromkeys(row.name for row in self.rows) if name.startswith("intra")]
        lines = []
        for other in others:
            gains = [
                f"{metric} {100 * (statistics.mean(self._of('cycle', i)) - statistics.mean(self._of(other, i))):+.1f}"
                for i, metric in enumerate(METRICS)
            ]
            seeds = len(self._of(other, 0))
            lines.append(f"the full method against {other}: {', '.join(gains)} points, {seeds} seed{'s'[: seeds > 1]}")
        return [*lines, ""] if lines else []


def demo(config: DemoConfig) -> Demo:
    """Make videos, prepare, pretrain, evaluate and report into `config.out`; raises UserError."""
    began = time.monotonic()
    _make_room(config.out)
    console.print("making videos of twenty kinds of things ...")
    made = make_videos(config.out / "made", SyntheticSpec(), seed=0, workers=config.workers)
    frames = config.out / "frames"
    summary = prepare(PrepareConfig(videos=made.videos, out=frames, fps=100, workers=config.workers))
    console.print(str(summary))
    objectives = ("intra-image", "intra-video", "cycle") if config.compare else ("cycle",)
    runs = [_train(config, frames, objective, seed) for objective in objectives for seed in range(config.seeds)]
    rows = [_evaluate(f"random:{BACKBONE}", "random initialisation", runs[-1].out, made, 0)]
    rows += [_evaluate(str(run.out), run.objective, run.out, made, run.seed) for run in runs]
    report = write_report(ReportConfig(runs=tuple(run.out for run in runs), out=config.out / "report.html"))
    return Demo(tuple(rows), report.path, time.monotonic() - began)


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
        objective=objective,
        backbone=BACKBONE,
        image_size=32,
        min_crop=0.4,
        steps=1500,
        seed=seed,
        workers=config.workers,
    )
    pretrain(run)
    return run


def _evaluate(model: str, name: str, run: Path, made: SyntheticVideos, seed: int) -> Row:
    out = run / "results"
    knn = KnnConfig(model=model, data=made.labeled, out=out, image_size=32, seed=seed, k=(20,))
    linear = LinearConfig(model=model, data=made.labeled, out=out, image_size=32, seed=seed, probe="lbfgs")
    return Row(
        name,
        (
            evaluate_config("knn", knn).metrics["top1_k20"],
            evaluate_config("linear", linear).metrics["top1"],
        ),
    )
