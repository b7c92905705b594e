"""The commands as Python functions: `cyclecontrast.pretrain("videos", out="run")`.

Each function takes the options of the command of the same name (listed by `cyclecontrast pretrain --help`, defined in
`PretrainConfig`). It checks them before it imports PyTorch.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from pydantic.fields import FieldInfo

from cyclecontrast.config import (
    AllConfig,
    DemoConfig,
    EmbedConfig,
    EvaluateConfig,
    ExploreConfig,
    ExportConfig,
    LabelConfig,
    PrepareConfig,
    PretrainConfig,
    ReportConfig,
    SearchConfig,
    SweepConfig,
)
from cyclecontrast.config.types import MODEL, detail, is_model, is_url
from cyclecontrast.errors import Config, UserError, attempt, checked
from cyclecontrast.files import check_new_run

if TYPE_CHECKING:
    from torch import nn

    from cyclecontrast.data.augment import Augmentation
    from cyclecontrast.data.prepare import PrepareSummary
    from cyclecontrast.demo_run import Demo
    from cyclecontrast.evaluation.embed import Embedded
    from cyclecontrast.evaluation.protocol import Protocol
    from cyclecontrast.exporting.export import Export
    from cyclecontrast.methods import Method
    from cyclecontrast.models.backbone import Backbone
    from cyclecontrast.reporting.page import Report
    from cyclecontrast.searching.explore import Explored
    from cyclecontrast.searching.label import Labeled
    from cyclecontrast.searching.results import Results
    from cyclecontrast.sweeping.results import Sweep
    from cyclecontrast.training.plan import Plan
    from cyclecontrast.training.pretrain import Run


NOT_SCORED = frozenset({"model", "data", "train_data", "classes"})
"""Options that --score-only does not read: the saved predictions have everything."""


def prepare(videos: str | Path, **options: Any) -> "PrepareSummary":
    """Extract frames of videos into a frame store; returns a summary. Raises UserError."""
    config = check_options(PrepareConfig, {"videos": videos, **options})
    from cyclecontrast.data import prepare as preparation

    return preparation.prepare(config)


@overload
def pretrain(data: str | Path | None = None, *, plan: Literal[True], **options: Any) -> "Plan": ...


@overload
def pretrain(
    data: str | Path | None = None,
    *,
    backbone: "str | nn.Module | None" = None,
    augmentation: "str | Augmentation | None" = None,
    method: "str | type[Method] | None" = None,
    **options: Any,
) -> "Run": ...


def pretrain(
    data: str | Path | None = None,
    *,
    backbone: "str | nn.Module | None" = None,
    augmentation: "str | Augmentation | None" = None,
    method: "str | type[Method] | None" = None,
    **options: Any,
) -> "Run | Plan":
    """Train a backbone on unlabeled videos; returns the finished run. Raises UserError.

    With `plan=True`, it only returns what the training would do and how long it would take.

    Three options also accept objects: `backbone` an `nn.Module` that maps images (batch, 3, h, w) to vectors
    (batch, dim) or a feature map, `augmentation` a function (frame, numpy generator, size) → view, and `method` a
    subclass of `Method`. To resume such a run, pass the same objects again.
    """
    chosen = {"data": data, "backbone": backbone, "augmentation": augmentation, "method": method}
    options |= {name: value for name, value in chosen.items() if value is not None}
    config, user_parts = _take_user_parts(options)
    from cyclecontrast.reporting.page import after_training
    from cyclecontrast.training import pretrain as training

    if config.plan:
        return training.plan(config, *user_parts)
    run = training.pretrain(config, *user_parts)
    after_training(config, run)
    return run


def _take_user_parts(options: dict[str, Any]) -> tuple[PretrainConfig, tuple[Any, ...]]:
    """Return the config, with names in place of custom objects, and the custom objects as `UserParts` (or nothing)."""
    parts = {
        name: options[name]
        for name in ("backbone", "augmentation", "method")
        if not isinstance(options.get(name, ""), str)
    }
    if not parts:
        return check_options(PretrainConfig, options), ()
    from cyclecontrast.training.user_parts import name_of, take_user_parts

    problems: list[str] = []
    taken = attempt(lambda: take_user_parts(parts), problems)
    named = options | {name: name_of(part) for name, part in parts.items()}
    config = attempt(lambda: check_options(PretrainConfig, named), problems)
    if taken is None or config is None:
        raise UserError(*problems)
    return config, (taken,)


def evaluate(
    protocol: "str | type[Protocol[Any, Any]]",
    model: "str | Path | Backbone",
    data: str | Path | None = None,
    **options: Any,
) -> Any:
    """Evaluate a model with a protocol, write the result file and return the result. Raises UserError.

    `model` may be a `Backbone`, and `protocol` a subclass of `cyclecontrast.evaluation.protocol.Protocol`. The protocol
    `all` takes `data_root` instead of `data`. Returns a Result, or a SuiteResult for `all`; under torchrun, None on all
    ranks but 0.
    """
    from cyclecontrast.evaluation.protocol import config_class_of

    name, backbone = _name_and_backbone(model)
    options |= {"model": name} if data is None else {"model": name, "data": data}
    config: EvaluateConfig | AllConfig
    if protocol != "all":
        config = _check_beside_backbone(config_class_of(protocol), options, backbone)
        from cyclecontrast.evaluation import runner

        result: Any = runner.evaluate(protocol, config, backbone)
        runner.print_path(config, result)
    elif backbone is not None:
        raise UserError("model: protocol all needs the name of a model, not a Backbone; name a file or a run")
    else:
        config = check_options(AllConfig, options)
        from cyclecontrast.evaluation.suite import evaluate_all

        result = evaluate_all(config)
    if backbone is None:
        from cyclecontrast.reporting.page import after_evaluation

        after_evaluation(config, result)
    return result


def embed(model: "str | Path | Backbone", data: str | Path, **options: Any) -> "Embedded | None":
    """Embed every frame of `data` and write the vectors to a file; returns a summary. Raises UserError.

    `model` may be a `Backbone`. Under torchrun, returns None on all ranks but 0.
    """
    name, backbone = _name_and_backbone(model)
    config = _check_beside_backbone(EmbedConfig, {"model": name, "data": data, **options}, backbone)
    from cyclecontrast.evaluation import embed as embedding

    return embedding.embed(config, backbone)


def search(index: str | Path, **options: Any) -> "Results":
    """Return the frames most similar to an image or to a frame of a video. Raises UserError.

    With `serve`, it runs a web server until KeyboardInterrupt, which it raises.
    """
    config = check_options(SearchConfig, {"index": index, **options})
    from cyclecontrast.searching.command import run_search

    return run_search(config)


def explore(index: str | Path, **options: Any) -> "Explored":
    """Find near-duplicates, groups, outliers and frames to label in what `embed` wrote; write tables and a page.

    Raises UserError.
    """
    config = check_options(ExploreConfig, {"index": index, **options})
    from cyclecontrast.searching.explore import explore_index

    return explore_index(config)


def label(index: str | Path, labels: str | Path, **options: Any) -> "Labeled":
    """Label all frames of an index from a few examples (a CSV file), or by a classifier that an earlier call saved.

    Returns the accuracy by cross-validation, and where the labels are. Raises UserError.
    """
    config = check_options(LabelConfig, {"index": index, "labels": labels, **options})
    from cyclecontrast.searching.label import label_index

    return label_index(config)


def export(model: "str | Path | Backbone", **options: Any) -> "Export":
    """Write a backbone in the format of another tool; returns the path and the code that loads it. Raises UserError.

    `model` may be a `Backbone`.
    """
    name, backbone = _name_and_backbone(model)
    config = _check_beside_backbone(ExportConfig, {"model": name, **options}, backbone)
    from cyclecontrast.exporting.export import export_backbone

    return export_backbone(config, backbone)


def report(*runs: str | Path, **options: Any) -> "Report":
    """Write a static HTML report of one or more runs; returns its path. Raises UserError."""
    config = check_options(ReportConfig, {"runs": runs, **options})
    from cyclecontrast.reporting.page import write_report

    return write_report(config)


def sweep(table: str, data: str | Path, **options: Any) -> "Sweep | None":
    """Train and evaluate every row of a table of the paper; returns the table.

    Failed training runs are listed in its `problems`; raises UserError if all fail. Under torchrun, returns None on all
    ranks but 0.
    """
    config = check_options(SweepConfig, {"table": table, "data": data, **options})
    from cyclecontrast.sweeping.command import run_sweep

    return run_sweep(config)


def demo(**options: Any) -> "Demo":
    """Run the whole workflow on synthetic videos, in minutes; returns the results. Raises UserError."""
    config = check_options(DemoConfig, options)
    from cyclecontrast.demo_run import run_demo

    return run_demo(config)


def check_options(config: type[Config], options: Mapping[str, Any]) -> Config:
    """Return the validated config; also checks that the files it refers to exist.

    Raises UserError with all mistakes.
    """
    problems: list[str] = []
    made = attempt(lambda: checked(config, options), problems)
    wrong = {problem.partition(" ")[0].rstrip(":") for problem in problems}
    right = {name: value for name, value in options.items() if value not in (None, "auto") and name not in wrong}
    for name, field in config.model_fields.items():
        if name in right and not (name in NOT_SCORED and right.get("score_only")):
            problems += _absent(name, str(right[name]), field)
    if config is PretrainConfig and "out" in right and options.get("resume") is None:
        attempt(lambda: check_new_run(Path(right["out"])), problems)
    if problems or made is None:
        raise UserError(*problems)
    return made


def _absent(name: str, value: str, field: FieldInfo) -> list[str]:
    """Return an error message if the file or folder of an option does not exist, otherwise an empty list."""
    kind, is_folder, is_file = detail(field, "names"), os.path.isdir(value), os.path.isfile(value)
    if kind == "model":
        return [] if is_model(value) else [f"{name} {value}: no such file or folder; name {MODEL}"]
    if is_url(value) or {"": True, "folder": is_folder, "file": is_file, "path": is_folder or is_file}[kind]:
        return []
    what = "file or folder" if kind == "path" else kind
    problem = f"is not a {what}" if os.path.exists(value) else f"no such {what}"
    return [f"{name}: {value}: {problem}; name {str(field.description).partition(' (')[0]}"]


def _check_beside_backbone(config: type[Config], options: Mapping[str, Any], backbone: "Backbone | None") -> Config:
    """Return the validated config; with a `backbone`, the file of `model` need not exist."""
    return check_options(config, options) if backbone is None else checked(config, options)


def _name_and_backbone(model: "str | Path | Backbone") -> tuple[str, "Backbone | None"]:
    """Return the name of a model, and the model if it is a Backbone. Raises UserError if it is neither."""
    if isinstance(model, str | Path):
        return str(model), None
    if not hasattr(model, "normalize"):  # its class cannot be checked without importing PyTorch
        kind = type(model).__name__
        raise UserError(
            f"model: a {kind} is neither a path or name nor a Backbone; wrap your network in "
            f"cyclecontrast.Backbone(...)"
        )
    return model.name, model
