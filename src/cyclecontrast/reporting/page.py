"""The command `report`: runs as one HTML file that needs no server, no network and no script."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from cyclecontrast.charts import COLORS
from cyclecontrast.config import AllConfig, EvaluateConfig, PretrainConfig, ReportConfig
from cyclecontrast.config.types import is_user_defined
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.predictions import results_folder
from cyclecontrast.files import atomic_write, check_folder
from cyclecontrast.methods import learns_from
from cyclecontrast.output import html_environment, printable, quoted, say
from cyclecontrast.reporting import cycles, results
from cyclecontrast.reporting.curves import INCHES, draw_charts
from cyclecontrast.reporting.embeddings import MAX_DOTS, MAX_DOTS_ON_PAGE, draw_maps, embed_sample, find_neighbors
from cyclecontrast.reporting.inputs import list_inputs, view_pairs
from cyclecontrast.reporting.runs import RunReport, by_data, is_run, one_per_settings, read_runs
from cyclecontrast.reporting.sprites import PER_ROW, SpriteSheet, shortened
from cyclecontrast.training.verdict import BETTER, UNCHANGED, is_start_kept, measured_on

if TYPE_CHECKING:
    from cyclecontrast.training.pretrain import Run

MAX_BYTES = 15_000_000
"""Largest size of a page: mail servers refuse more."""
MIN_SPRITE_BYTES = 600
"""The coarsest sprite needs fewer."""
NUM_OPEN_QUERIES = 4
NEIGHBOR_SIDE, DOT_SIDE, INPUT_SIDE = 96, 64, 112
"""Sides of the sprites in pixels."""


@dataclass(frozen=True)
class Report:
    """A written page."""

    path: Path

    def __str__(self) -> str:
        return printable(str(self.path))


def write_report(config: ReportConfig) -> Report:
    """Write the page of some runs; raises UserError with all problems, and nothing is written then."""
    path = config.out or config.runs[0] / "report.html"
    if path.is_dir():
        raise UserError(f"out: {path} is a folder; name a file")
    runs = read_runs(config.runs, download=config.download)
    check_folder(path.absolute().parent)
    num_maps = sum(1 + (run.config.init is not None) for run in one_per_settings(runs))
    max_dots = min(MAX_DOTS, MAX_DOTS_ON_PAGE // num_maps)
    data = [_data_section(group, number, max_dots, config) for number, group in enumerate(by_data(runs))]
    page = render(runs, data).encode("utf-8", "replace")
    with atomic_write(path) as part:
        part.write_bytes(page)
    return Report(path)


def after_training(config: PretrainConfig, run: "Run") -> None:
    """Write the page of a finished training in the first process, unless `report` is off."""
    if config.report and run.is_first:
        _write_or_warn(run.folder, config.workers, config.device, download=True)


def after_evaluation(config: EvaluateConfig | AllConfig, result: Any) -> None:
    """Write the page of the run that has a new result; `result` is None in all processes but the first."""
    run = Path(config.model)
    if not config.report or result is None or not is_run(run):
        return
    if results_folder(config).resolve() == (run / "results").resolve():
        _write_or_warn(run, config.workers, config.device)


def _write_or_warn(run: Path, workers: int | None, device: str, download: bool = False) -> None:
    """Write a page; a failure is one line on stderr, because the training or evaluation is done."""
    try:
        page = write_report(ReportConfig(runs=(run,), workers=workers, device=device, download=download))
    except KeyboardInterrupt:
        problem = "interrupted"
    except UserError as error:
        problem = error.problems[0]
    except Exception as error:  # whatever happens here must not fail the training
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    else:
        say(f"report: {page}")
        return
    say(f"report: not written ({problem}); try `cyclecontrast report {quoted(run)}`")


def _data_section(runs: list[RunReport], number: int, max_dots: int, config: ReportConfig) -> dict[str, Any]:
    """Return the template values for the runs that share a dataset: inputs, neighbors and map."""
    sides = {"inputs": INPUT_SIDE, "near": NEIGHBOR_SIDE, "map": DOT_SIDE}
    sprites = {name: SpriteSheet(f"{name}-{number}", side) for name, side in sides.items()}
    shown: dict[str, Any] = {"inputs": list_inputs(runs, sprites["inputs"], config.seed), "groups": [], "map": None}
    try:
        sample, models, problem = embed_sample(runs, config)
        if sample is not None:
            shown["groups"] = find_neighbors(sample, models, sprites["near"], config.seed)
            shown["map"] = draw_maps(sample, models, sprites["map"], max_dots, config.seed)
    except UserError as error:
        problem = f"The frames cannot be shown: {error}"
    return shown | {"problem": problem, "sprites": [sheet for sheet in sprites.values() if len(sheet)]}


def render(runs: Sequence[RunReport], data: Sequence[dict[str, Any]]) -> str:
    """Return the page as HTML; every text that comes from data is escaped.

    Raises UserError if the texts alone would make the page larger than MAX_BYTES.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    colors = [methods.index(run.method) % len(COLORS) for run in runs]  # runs that differ in their seed share a color
    with_status = any(run.about.get("status", "finished") != "finished" for run in runs)
    with_start = any(run.config.init is not None for run in runs)
    explored = [cycles.explore(run, f"cycles-{number}") for number, run in enumerate(one_per_settings(runs))]
    sprites = [sheet for shown in data for sheet in shown["sprites"]]
    sprites += [one.sheet for one in explored if one.sheet is not None]
    loader = jinja2.PackageLoader("cyclecontrast.reporting")
    environment = html_environment(loader=loader, keep_trailing_newline=True)
    page = environment.get_template("page.html").render(
        title=runs[0].name if len(runs) == 1 else f"Comparison of {len(runs)} runs",
        summary=_summary(runs),
        runs=list(zip(runs, colors, [_facts(run, with_status, with_start) for run in runs], strict=True)),
        results=results.summarize(runs, colors),
        all_results=results.list_all(runs, colors),
        data=data,
        sprites=sprites,
        num_open=NUM_OPEN_QUERIES,
        charts=draw_charts(runs, colors),
        chart_size=[round(72 * inches, 1) for inches in INCHES],
        cycles=explored,
        max_stages=cycles.MAX_STAGES,
        views=[view_pairs(run) for run in one_per_settings(runs)],
        health_of={run.name: _measured_on(run) for run in runs if run.verdict},
        good_words=("healthy", BETTER, UNCHANGED),
        evaluate_command=_evaluate_command(runs[0]),
        commands={run.name: _commands(run) for run in runs},
    )
    return _with_sprites(page, sprites)


def _with_sprites(page: str, sheets: Sequence[SpriteSheet]) -> str:
    """Return the page with all sprite sheets embedded as data URLs; they share the remaining bytes of MAX_BYTES.

    The placeholders contain quotation marks, which are escaped in all text from data.
    """
    free = MAX_BYTES - len(page.encode("utf-8", "replace"))
    num_sprites = [len(sheet) + PER_ROW for sheet in sheets]
    if free < MIN_SPRITE_BYTES * sum(num_sprites):
        raise UserError(f"runs: too many for one page of {MAX_BYTES // 10**6} MB; name fewer")
    for sheet, num in zip(sheets, num_sprites, strict=True):
        page = page.replace(f'url("{sheet.name}")', f"url({sheet.to_url(free * num // sum(num_sprites))})")
    return page


def _summary(runs: Sequence[RunReport]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} image backbones, trained on videos without labels."
    config, about = runs[0].config, runs[0].about
    return (
        f"An image backbone ({config.backbone}, {config.image_size} px), trained without labels on "
        f"{about['num_frames']:,} frames of {about['num_videos']:,} videos. "
        f"It learns from {learns_from(config.method)}."
    )


def _facts(run: RunReport, with_status: bool, with_start: bool) -> list[tuple[str, str]]:
    about, config = run.about, run.config
    total = int(about["num_steps"])
    steps = f"{run.steps_done:,}" if run.steps_done == total else f"{run.steps_done:,} of {total:,}"
    return [
        ("Method", config.method),
        ("Backbone", f"{config.backbone}, {config.image_size} px"),
        *([("Started from", shortened(config.init or "random weights"))] if with_start else []),
        ("Steps", f"{steps}, {config.batch_size} videos each"),
        ("Trained on", f"{about['device']}, {about['precision']}"),
        *([("Status", about.get("status", "finished"))] if with_status else []),
    ]


def _measured_on(run: RunReport) -> str:
    kept = " The final backbone is the start of the run, because training made it worse."
    measured = f"Measured without labels on {run.health['views']:,} views of {measured_on(run.health)}."
    return measured + kept * is_start_kept(run.about)


def _evaluate_command(run: RunReport) -> str:
    folder = os.path.abspath(run.folder)
    if is_user_defined(run.config.backbone):  # the command line cannot make a network of the user's
        return f"cyclecontrast.evaluate('knn', cyclecontrast.load_backbone({folder!r}, network=...), 'LABELED')"
    beside = "" if run.config.init is None or is_start_kept(run.about) else " --baseline start"
    return f"cyclecontrast evaluate knn {shlex.quote(folder)} LABELED{beside}"


def _commands(run: RunReport) -> list[tuple[str, str]]:
    folder, config = os.path.abspath(run.folder), run.config
    has_user_parts = any(is_user_defined(getattr(config, name)) for name in ("backbone", "augmentation", "method"))
    again = f"cyclecontrast pretrain --config {shlex.quote(os.path.join(folder, 'config.toml'))} --out AGAIN"
    load = ("Load it in Python", f"cyclecontrast.load_backbone({folder!r}, network=...)")
    export = ("Export it for other tools", f"cyclecontrast export {shlex.quote(folder)}")
    return [
        *([] if has_user_parts else [("Repeat the training", again)]),
        ("Evaluate it on labeled images", _evaluate_command(run)),
        load if is_user_defined(config.backbone) else export,
    ]
