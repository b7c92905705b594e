"""Runs → one HTML file that needs nothing else: no server, no network, no script."""

import importlib.resources
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2

from cyclecontrast.config import ReportConfig
from cyclecontrast.config.fields import is_own
from cyclecontrast.errors import UserError
from cyclecontrast.files import check_folder, replacing
from cyclecontrast.loss.objectives import learns_from
from cyclecontrast.report import curves, cycles, neighbors, pictures, results
from cyclecontrast.report.atlas import PER_ROW
from cyclecontrast.report.neighbors import NeighborSheet
from cyclecontrast.report.runs import RunReport, one_per_method, read_runs

NUM_COLORS = 8
MAX_SKIPPED = 200
NUM_OPEN_QUERIES = 4


@dataclass(frozen=True)
class Report:
    """A written page; its text is its path."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


class Section(NamedTuple):
    """Something more to tell: paragraphs, then a table, whose first column names the rows."""

    title: str
    paragraphs: tuple[str, ...]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class Fact(NamedTuple):
    """A short thing to know of a run."""

    name: str
    value: str


def write_report(config: ReportConfig, sections: Sequence[Section] = ()) -> Report:
    """Write the page of some runs; raises UserError with every problem, and then nothing is written."""
    path = config.out or config.runs[0] / "report.html"
    if path.is_dir():
        raise UserError(f"out: {path} is a folder; name a file to write")
    runs = read_runs(config.runs)
    check_folder(path.absolute().parent)
    page = render(runs, neighbors.find_neighbors(runs, config), sections)
    with replacing(path) as aside:
        aside.write_bytes(page.encode("utf-8", "replace"))
    return Report(path)


def render(runs: Sequence[RunReport], sheets: Sequence[NeighborSheet], sections: Sequence[Section] = ()) -> str:
    """Return the page as HTML; every text that comes from data is escaped."""
    colors = _colors(runs)
    template = _environment().from_string(_template())
    return template.render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side",
        summary=_summary(runs),
        runs=list(zip(runs, colors, [_facts(run) for run in runs], strict=True)),
        sections=sections,
        results=results.summarize(runs, colors),
        all_results=results.list_all(runs, colors),
        sheets=sheets,
        num_open=NUM_OPEN_QUERIES,
        charts=curves.draw_charts(runs, colors),
        chart_size=curves,
        cycles=[cycles.explore(run) for run in one_per_method(runs)],
        atlas_columns=PER_ROW,
        pairs=[pictures.view_pairs(run) for run in one_per_method(runs)],
        max_skipped=MAX_SKIPPED,
        health_of={run.name: _measured_on(run) for run in runs if run.verdict},
        commands={run.name: _commands(run) for run in runs},
    )


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("cyclecontrast.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _template() -> str:
    return (importlib.resources.files("cyclecontrast.report") / "template.html").read_text("utf-8")


def _colors(runs: Sequence[RunReport]) -> list[int]:
    """Number the methods: runs that differ in their seed only share a color."""
    methods = list(dict.fromkeys(run.method for run in runs))
    return [methods.index(run.method) % NUM_COLORS for run in runs]


def _summary(runs: Sequence[RunReport]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} image backbones trained on video without labels, compared."
    config, about = runs[0].config, runs[0].about
    return (
        f"An image backbone ({config.backbone}, {config.image_size} px) that learned without labels from "
        f"{about['num_frames']:,} frames of {about['num_videos']:,} videos, by {learns_from(config.objective)}."
    )


def _facts(run: RunReport) -> list[Fact]:
    about, config = run.about, run.config
    total = int(about["num_steps"])
    steps = f"{run.steps_done:,}" if run.steps_done == total else f"{run.steps_done:,} of {total:,}"
    held_out = f", {about['num_held_out']:,} held out" if about.get("num_held_out") else ""
    return [
        Fact("Videos", f"{about['num_videos']:,}{held_out}"),
        Fact("Frames", f"{about['num_frames']:,}"),
        Fact("Single-frame", f"{about['num_single_frame_videos']:,}"),
        Fact("Skipped", f"{len(run.frames.skipped):,}"),
        Fact("Objective", config.objective),
        Fact("Backbone", f"{config.backbone}, {config.image_size} px"),
        Fact("Steps", f"{steps}, {config.batch_size} videos each"),
        Fact("Trained on", f"{about['device']}, {about['precision']}"),
        *([] if about.get("status") in ("finished", None) else [Fact("Status", about["status"])]),
    ]


def _measured_on(run: RunReport) -> str:
    """Say what the verdict of a run rests on."""
    health = run.health
    kept = "that were held out" if health["held_out"] else "that it was trained on (none were held out)"
    return f"Measured without labels on {health['views']:,} views of {health['videos']:,} videos {kept}."


def _commands(run: RunReport) -> list[Fact]:
    folder, config = shlex.quote(str(run.folder)), run.config
    of_user = [name for name in ("backbone", "augmentation", "objective") if is_own(getattr(config, name))]
    again = Fact("Train it again", f"cyclecontrast pretrain --config {folder}/config.toml --out AGAIN")
    if is_own(config.backbone):
        return [Fact("Load it in Python", f"cyclecontrast.load_backbone({str(run.folder)!r}, network=...)")]
    return [
        *([] if of_user else [again]),
        Fact("Prove it on labels", f"cyclecontrast evaluate knn {folder} LABELED"),
        Fact("Take it away", f"cyclecontrast export {folder}"),
    ]
