"""Runs → one HTML file that needs nothing else: no server, no network, no script."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2

from cyclecontrast.config import ReportConfig
from cyclecontrast.config.types import is_user_defined
from cyclecontrast.errors import UserError
from cyclecontrast.files import check_folder, replacing
from cyclecontrast.methods import learns_from
from cyclecontrast.reporting import curves, cycles, inputs, maps, neighbors, pictures, results
from cyclecontrast.reporting.atlas import PER_ROW, Atlas
from cyclecontrast.reporting.inputs import Fact, InputSheet
from cyclecontrast.reporting.maps import MapSheet
from cyclecontrast.reporting.neighbors import NeighborSheet
from cyclecontrast.reporting.runs import DataGroup, RunReport, by_data, one_per_method, read_runs
from cyclecontrast.reporting.sample import embed_group

MOST_BYTES = 15_000_000
"""Of a page: more is refused by mail."""
LEAST_PER_TILE = 600
"""Bytes, with which the coarsest picture fits."""
NUM_COLORS = 8
NUM_OPEN_QUERIES = 4
NEAR, DOT, INPUT = 96, 64, 112
"""Sides of tiles in pixels: of neighbors, of the maps, of the contact sheet."""


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


class DataSheets(NamedTuple):
    """All that is shown of one data set, and the pictures that it is shown with."""

    inputs: InputSheet
    neighbors: NeighborSheet
    map: MapSheet
    atlases: tuple[Atlas, ...]


def write_report(config: ReportConfig, sections: Sequence[Section] = ()) -> Report:
    """Write the page of some runs; raises UserError with every problem, and then nothing is written."""
    path = config.out or config.runs[0] / "report.html"
    if path.is_dir():
        raise UserError(f"out: {path} is a folder; name a file to write")
    runs = read_runs(config.runs)
    check_folder(path.absolute().parent)
    num_maps = len(one_per_method(runs))
    shown = [_look(group, number, num_maps, config) for number, group in enumerate(by_data(runs))]
    page = render(runs, shown, sections).encode("utf-8", "replace")
    with replacing(path) as aside:
        aside.write_bytes(page)
    return Report(path)


def _look(group: DataGroup, number: int, num_maps: int, config: ReportConfig) -> DataSheets:
    """Embed frames of a data set, and make its sheets of them."""
    embedded = embed_group(group, config)
    sides = {"inputs": INPUT, "near": NEAR, "map": DOT}
    atlases = {name: Atlas(f"{name}-{number}", side) for name, side in sides.items()}
    return DataSheets(
        inputs.list_inputs(group, atlases["inputs"], config.seed),
        neighbors.find_neighbors(embedded, atlases["near"], config.seed),
        maps.draw_maps(embedded, atlases["map"], num_maps, config.seed),
        tuple(atlas for atlas in atlases.values() if len(atlas)),
    )


def render(runs: Sequence[RunReport], shown: Sequence[DataSheets], sections: Sequence[Section] = ()) -> str:
    """Return the page as HTML; every text that comes from data is escaped.

    Raises UserError where so much is to be told that the page would be larger than MOST_BYTES.
    """
    colors, statuses = _colors(runs), {run.about.get("status", "finished") for run in runs}
    explored = [cycles.explore(run, f"cycles-{number}") for number, run in enumerate(one_per_method(runs))]
    atlases = [atlas for sheets in shown for atlas in sheets.atlases]
    atlases += [sheet.atlas for sheet in explored if sheet.atlas is not None]
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side",
            summary=_summary(runs),
            runs=list(zip(runs, colors, [_facts(run, statuses != {"finished"}) for run in runs], strict=True)),
            sections=sections,
            results=results.summarize(runs, colors),
            all_results=results.list_all(runs, colors),
            shown=shown,
            atlases=atlases,
            num_open=NUM_OPEN_QUERIES,
            charts=curves.draw_charts(runs, colors),
            chart_size=curves,
            cycles=explored,
            most_stages=cycles.MOST_STAGES,
            pairs=[pictures.view_pairs(run) for run in one_per_method(runs)],
            health_of={run.name: _measured_on(run) for run in runs if run.verdict},
            evaluating=_evaluating(runs[0]),
            commands={run.name: _commands(run) for run in runs},
        )
    )
    return _with_pictures(page, atlases)


def _with_pictures(page: str, atlases: Sequence[Atlas]) -> str:
    """Put each atlas where the style sheet names it; all share the bytes that the text leaves.

    The name stands between quotation marks, which no text from data has, for there they are escaped.
    """
    room = MOST_BYTES - len(page.encode("utf-8", "replace"))
    num_tiles = [len(atlas) + PER_ROW for atlas in atlases]
    if room < LEAST_PER_TILE * sum(num_tiles):
        raise UserError(f"runs: too many for one page of {MOST_BYTES // 10**6} MB; name fewer")
    for atlas, num in zip(atlases, num_tiles, strict=True):
        address = atlas.picture(room * num // sum(num_tiles))
        page = page.replace(f'url("{atlas.name}")', f"url({address})")
    return page


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("cyclecontrast.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


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
        f"{about['num_frames']:,} frames of {about['num_videos']:,} videos, by {learns_from(config.method)}."
    )


def _facts(run: RunReport, with_status: bool) -> list[Fact]:
    about, config = run.about, run.config
    total = int(about["num_steps"])
    steps = f"{run.steps_done:,}" if run.steps_done == total else f"{run.steps_done:,} of {total:,}"
    return [
        Fact("Objective", config.method),
        Fact("Backbone", f"{config.backbone}, {config.image_size} px"),
        Fact("Steps", f"{steps}, {config.batch_size} videos each"),
        Fact("Trained on", f"{about['device']}, {about['precision']}"),
        *([Fact("Status", about.get("status", "finished"))] if with_status else []),
    ]


def _measured_on(run: RunReport) -> str:
    """Say what the verdict of a run rests on."""
    health = run.health
    kept = "that were held out" if health["held_out"] else "that it was trained on (none were held out)"
    return f"Measured without labels on {health['views']:,} views of {health['videos']:,} videos {kept}."


def _evaluating(run: RunReport) -> str:
    """Return how a run is evaluated: of a network of the user's no file says how to make it."""
    folder = os.path.abspath(run.folder)
    if is_user_defined(run.config.backbone):
        return f"cyclecontrast.evaluate('knn', cyclecontrast.load_backbone({folder!r}, network=...), 'LABELED')"
    return f"cyclecontrast evaluate knn {shlex.quote(folder)} LABELED"


def _commands(run: RunReport) -> list[Fact]:
    folder, config = os.path.abspath(run.folder), run.config
    of_user = [name for name in ("backbone", "augmentation", "method") if is_user_defined(getattr(config, name))]
    again = f"cyclecontrast pretrain --config {shlex.quote(os.path.join(folder, 'config.toml'))} --out AGAIN"
    own_network = is_user_defined(config.backbone)
    take = f"cyclecontrast export {shlex.quote(folder)}"
    load = f"cyclecontrast.load_backbone({folder!r}, network=...)"
    return [
        *([] if of_user else [Fact("Train it again", again)]),
        Fact("Prove it on labels", _evaluating(run)),
        Fact("Load it in Python", load) if own_network else Fact("Take it away", take),
    ]
