"""The commands as functions with the same names and options; each imports what it needs when it is called."""

import importlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from cyclecontrast import config
from cyclecontrast.config import ExportConfig, ReportConfig, SearchConfig, SweepConfig
from cyclecontrast.config.fields import Place
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.evaluation import check_options, evaluate_checked, told_apart
from cyclecontrast.evaluation.registry import PROTOCOLS
from cyclecontrast.files import check_new_run, is_model

if TYPE_CHECKING:
    from torch import nn

    from cyclecontrast.data.own_augment import Augmentation
    from cyclecontrast.data.prepare import PrepareSummary
    from cyclecontrast.demo_run import Demo
    from cyclecontrast.evaluation.embed import Embedded
    from cyclecontrast.exporting.export import Export
    from cyclecontrast.loss.step import Objective
    from cyclecontrast.models.backbone import Backbone
    from cyclecontrast.reporting.page import Report
    from cyclecontrast.searching.results import Results
    from cyclecontrast.sweeping.outcome import Sweep
    from cyclecontrast.training.pretrain import Run


class Command(NamedTuple):
    """A command's options, which of them have no flag, and the function that takes them, as `module:function`."""

    config: type[BaseModel]
    positional: tuple[str, ...]
    function: str
    protocol: tuple[str, ...] = ()
    alone: str = ""
    """Its name, where several processes that torchrun started cannot share its work, and it does not tell itself."""
    then: tuple[str, ...] = ()
    """Functions, as `module:function`, that take the options and the result when it is done."""

    def run(self, values: dict[str, Any]) -> Any:
        """Check the options and call the function; its result prints itself. Raises UserError."""
        return self.call(self.check(values))

    def check(self, values: dict[str, Any]) -> BaseModel:
        """Return the options; raises UserError with all that is wrong or missing, before anything heavy is imported."""
        problems: list[str] = []
        options = attempt(lambda: checked(self.config, values), problems)
        names = {name: value for name, value in values.items() if _is_name(value)}
        for name in ("videos", "data", "data_root"):
            attempt(partial(self._check_input, name, names.get(name)), problems)
        for name in ("index", "image"):
            attempt(partial(self._check_file, name, names.get(name)), problems)
        for name in () if values.get("score_only") else ("model", "init"):
            attempt(partial(_check_model, name, names.get(name)), problems)
        if self.config is config.PretrainConfig and values.get("resume") is None and "out" in names:
            attempt(lambda: check_new_run(Path(names["out"])), problems)
        if problems or options is None:
            raise UserError(*problems)
        return options

    def _check_input(self, name: str, value: Any) -> None:
        may_be_file = self.config is config.TrackingConfig
        if value is None or os.path.isdir(value) or (may_be_file and os.path.isfile(value)):
            return
        what = "is not a folder" if os.path.exists(value) else f"no such {'file or ' if may_be_file else ''}folder"
        raise UserError(f"{name}: {value}: {what}; name {self._help_of(name, ';')}")

    def _check_file(self, name: str, value: Any) -> None:
        if value is None or os.path.isfile(value):
            return
        what = "is no file" if os.path.exists(value) else "no such file"
        raise UserError(f"{name}: {value}: {what}; name {self._help_of(name, ':')}")

    def _help_of(self, name: str, end: str) -> str:
        """Return what the help says of an option, as far as it says what to name."""
        return str(self.config.model_fields[name].description).partition(end)[0]

    def call(self, options: BaseModel, *objects: Any) -> Any:
        """Call the function with checked options, and with what only Python can pass."""
        if self.alone and {"RANK", "WORLD_SIZE"} <= os.environ.keys():
            from cyclecontrast.training.leading import check_alone

            check_alone(self.alone)
        done = self.load()(*self.protocol, options, *objects)
        for name in self.then:
            _loaded(name)(options, done)
        return done

    def load(self) -> Callable[..., Any]:
        """Return the function, importing what it needs."""
        return _loaded(self.function)


def _loaded(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"cyclecontrast.{module}"), function)  # type: ignore[no-any-return]


def _is_name(value: Any) -> bool:
    """Tell whether a file may be called so; what may not be is told by the config."""
    try:
        TypeAdapter(Place).validate_python(value)
    except ValidationError:
        return False
    return True


def _check_model(name: str, value: Any) -> None:
    if value is not None and not is_model(str(value)):
        raise UserError(
            f"{name} {value}: no such file or folder; name a run, a backbone or checkpoint file, timm:<name>, "
            "or random:<backbone>"
        )


COMMANDS = {
    "demo": Command(config.DemoConfig, (), "demo_run:run_demo"),
    "prepare": Command(config.PrepareConfig, ("videos",), "data.prepare:prepare", alone="prepare"),
    "pretrain": Command(
        config.PretrainConfig, ("data",), "training.pretrain:pretrain", then=("reporting.page:after_training",)
    ),
    "embed": Command(config.EmbedConfig, ("model", "data"), "evaluation.embed:embed"),
    "search": Command(config.SearchConfig, ("index",), "searching.command:run_search", alone="search"),
    "export": Command(config.ExportConfig, ("model",), "exporting.export:export_backbone", alone="export"),
    "report": Command(config.ReportConfig, ("runs",), "reporting.page:write_report", alone="report"),
    "sweep": Command(config.SweepConfig, ("table", "data"), "sweeping.command:run_sweep"),
}
EVALUATIONS = {
    name: Command(
        protocol.config,
        ("model", "data"),
        "evaluation:evaluate_and_tell",
        (name,),
        then=("reporting.page:after_evaluation",),
    )
    for name, protocol in PROTOCOLS.items()
} | {
    "all": Command(
        config.AllConfig,
        ("model",),
        "evaluation.everything:run_all",
        then=("reporting.page:after_evaluation", "evaluation.everything:check_all"),
    )
}

RUNS = {
    "ls": Command(
        config.ListConfig, ("folders",), "runs.tables:list_runs", alone="runs", then=("runs.tables:print_problems",)
    ),
    "compare": Command(config.CompareConfig, ("runs",), "runs.tables:compare_runs", alone="runs"),
}


def prepare(videos: str | Path, **settings: Any) -> "PrepareSummary":
    """Turn videos into a store of frames; the options are those of `cyclecontrast prepare`."""
    return COMMANDS["prepare"].run({"videos": videos, **settings})  # type: ignore[no-any-return]


def pretrain(
    data: str | Path | None = None,
    *,
    backbone: "str | nn.Module | None" = None,
    augmentation: "str | Augmentation | None" = None,
    method: "str | Objective | None" = None,
    **settings: Any,
) -> "Run":
    """Train a backbone on videos without labels; the options are those of `cyclecontrast pretrain`.

    In place of a name, `backbone` takes a network of your own, from images (batch, 3, h, w) to vectors (batch, dim) or
    a map; `augmentation` a function (frame, numpy generator, side) → view; `method` an `Objective`. Resuming a run
    takes the same again. Raises UserError.
    """
    given = {"data": data, "backbone": backbone, "augmentation": augmentation, "method": method}
    values = {name: value for name, value in given.items() if value is not None} | settings
    command, problems = COMMANDS["pretrain"], list[str]()
    objects = {name: values[name] for name in list(given)[1:] if not isinstance(values.get(name, ""), str)}
    if not objects:
        return command.run(values)  # type: ignore[no-any-return]
    from cyclecontrast.training.own import name_of, take_own

    own = attempt(lambda: take_own(objects), problems)
    options = attempt(lambda: command.check(values | {name: name_of(objects[name]) for name in objects}), problems)
    if own is None or options is None:
        raise UserError(*problems)
    return command.call(options, own)  # type: ignore[no-any-return]


def evaluate(
    protocol: str | type[config.EvaluateConfig],
    model: "str | Path | Backbone",
    data: str | Path | None = None,
    **settings: Any,
) -> Any:
    """Evaluate a model by a protocol; the options are those of `cyclecontrast evaluate`; raises UserError.

    `model` may be a backbone itself; a protocol of your own is named by its config. Returns a Result; for the protocol
    `all`, which takes `data_root` and not `data`, an Everything with many of them. Of several processes that torchrun
    started, the first alone returns something.
    """
    options, backbone = check_options(protocol, model, data, settings)
    done = evaluate_checked(protocol, options, backbone)
    if backbone is None:
        from cyclecontrast.reporting.page import after_evaluation

        after_evaluation(options, done)
    return done


def embed(model: "str | Path | Backbone", data: str | Path, **settings: Any) -> "Embedded":
    """Write a vector for every frame; the options are those of `cyclecontrast embed`; raises UserError.

    `model` may be a backbone itself.
    """
    name, backbone = told_apart(model)
    values, command = {"model": name, "data": data, **settings}, COMMANDS["embed"]
    options = command.check(values) if backbone is None else checked(command.config, values)
    return command.call(options, backbone)  # type: ignore[no-any-return]


def export(model: "str | Path | Backbone", **settings: Any) -> "Export":
    """Write a backbone for other tools; the options are those of `cyclecontrast export`; raises UserError.

    `model` may be a backbone itself.
    """
    from cyclecontrast.exporting.export import export_backbone

    name, backbone = told_apart(model)
    return export_backbone(checked(ExportConfig, {"model": name, **settings}), backbone)


def report(*runs: str | Path, **settings: Any) -> "Report":
    """Write one page about runs; the options are those of `cyclecontrast report`; raises UserError."""
    from cyclecontrast.reporting.page import write_report

    return write_report(checked(ReportConfig, {"runs": runs, **settings}))


def search(index: str | Path, **settings: Any) -> "Results":
    """Find the frames most like an image or a frame; the options are those of `cyclecontrast search`.

    Raises UserError; with `serve`, KeyboardInterrupt when the page is closed.
    """
    from cyclecontrast.searching.command import run_search

    return run_search(checked(SearchConfig, {"index": index, **settings}))


def sweep(table: str, data: str | Path, **settings: Any) -> "Sweep | None":
    """Train and evaluate every row of an ablation table; options as of `cyclecontrast sweep`; raises UserError.

    Cells that failed are in the result's `problems`; where all did, it raises. Of several processes that torchrun
    started, the first alone returns something.
    """
    from cyclecontrast.sweeping.command import make_sweep

    return make_sweep(checked(SweepConfig, {"table": table, "data": data, **settings}))


def demo(**settings: Any) -> "Demo":
    """Go the whole path on built-in videos; the options are those of `cyclecontrast demo`."""
    return COMMANDS["demo"].run(settings)  # type: ignore[no-any-return]
