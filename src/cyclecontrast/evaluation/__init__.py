"""The proof: protocols that say what a frozen backbone knows. Importing this imports no PyTorch."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from cyclecontrast.config import AllConfig, EvaluateConfig
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.evaluation.registry import PROTOCOLS, find_protocol
from cyclecontrast.evaluation.result import Result
from cyclecontrast.files import is_model

if TYPE_CHECKING:
    from cyclecontrast.evaluation.everything import Everything
    from cyclecontrast.models.backbone import Backbone
    from cyclecontrast.training.distributed import World

__all__ = ["PROTOCOLS", "Result", "evaluate", "evaluate_config"]


@overload
def evaluate(protocol: Literal["all"], model: str | Path, data: None = None, **settings: Any) -> "Everything": ...


@overload
def evaluate(
    protocol: str | type[EvaluateConfig], model: "str | Path | Backbone", data: str | Path, **settings: Any
) -> Result: ...


def evaluate(
    protocol: str | type[EvaluateConfig],
    model: "str | Path | Backbone",
    data: str | Path | None = None,
    **settings: Any,
) -> Any:
    """Evaluate a model by a protocol; `settings` are the protocol's options by name; raises UserError.

    `model` may be a backbone itself. A protocol of your own is named by its config, beside which its functions stand
    (two_steps.py says which). Returns a Result; for the protocol `all`, which takes `data_root` and not `data`, an
    Everything with many of them. Of several processes that torchrun started, the first alone returns something.
    `cyclecontrast.evaluate(...)` calls it, and then writes the report of a run.
    """
    options, backbone = check_options(protocol, model, data, settings)
    return evaluate_checked(protocol, options, backbone)


class Checked(NamedTuple):
    """The options of an evaluation, and the backbone where it was given itself."""

    options: EvaluateConfig | AllConfig
    backbone: "Backbone | None"


def check_options(
    protocol: str | type[EvaluateConfig],
    model: "str | Path | Backbone",
    data: str | Path | None,
    settings: dict[str, Any],
) -> Checked:
    """Return the options of a protocol; raises UserError with all that is wrong with them."""
    name, backbone = told_apart(model)
    named = {"model": name, **({} if data is None else {"data": data}), **settings}
    if protocol != "all":
        return Checked(checked(find_protocol(protocol).config, named), backbone)
    if backbone is not None:
        raise UserError("model: protocol all takes the name of a model, no backbone itself; name a file or a run")
    return Checked(checked(AllConfig, named), None)


def evaluate_checked(
    protocol: str | type[EvaluateConfig], options: EvaluateConfig | AllConfig, backbone: "Backbone | None" = None
) -> Any:
    """As `evaluate`, by options that were checked."""
    if isinstance(options, AllConfig):
        return _evaluate_all(options)
    return evaluate_together(protocol, options, backbone)


def told_apart(model: "str | Path | Backbone") -> tuple[str, "Backbone | None"]:
    """Return the name of a model, and the backbone where it is one itself; raises UserError where it is neither."""
    if isinstance(model, str | Path):
        return str(model), None
    if not hasattr(model, "normalise"):  # to ask for its class would import PyTorch
        what = type(model).__name__
        raise UserError(f"model: a {what} is neither a name nor a Backbone; make one by cyclecontrast.Backbone(...)")
    return model.name, model


def _evaluate_all(config: AllConfig) -> "Everything":
    from cyclecontrast.evaluation.everything import evaluate_all

    return evaluate_all(config)


def evaluate_together(
    protocol: str | type[EvaluateConfig], config: EvaluateConfig, backbone: "Backbone | None" = None
) -> Result | None:
    """As `evaluate_config`; of the processes that torchrun started each embeds its share, and the first does the rest.

    Returns None in the others. Raises UserError, in the others without a line.
    """
    from cyclecontrast.evaluation.shares import help_embed
    from cyclecontrast.evaluation.two_steps import work_of
    from cyclecontrast.training.distributed import joined_world
    from cyclecontrast.training.leading import CPU, leading

    with joined_world(CPU) as world:
        if world.rank:
            help_embed(lambda: work_of(*_open(protocol, config, backbone), config), config.device, world)
            return None
        with leading(world):
            return evaluate_config(protocol, config, world=world, backbone=backbone)


def evaluate_config(
    protocol: str | type[EvaluateConfig],
    config: EvaluateConfig,
    reuse: bool = False,
    world: "World | None" = None,
    backbone: "Backbone | None" = None,
) -> Result:
    """Evaluate as the config says; predictions, then the result, are written into the folder of results.

    A `backbone` is taken as it is, whatever the config names. With `reuse` the result of before is returned where there
    is one of the same model, data and settings.
    """
    module = find_protocol(protocol).load()
    from cyclecontrast.evaluation.two_steps import evaluate as evaluate_backbone
    from cyclecontrast.evaluation.two_steps import find_result, score_again
    from cyclecontrast.training.distributed import ALONE

    if config.score_only and backbone is None and not is_model(config.model):
        return score_again(module.open_data(config), config)
    backbone, data = _open(protocol, config, backbone)
    found = find_result(backbone, data, config) if reuse else None
    return evaluate_backbone(backbone, data, config, world or ALONE) if found is None else found


def _open(
    protocol: str | type[EvaluateConfig], config: EvaluateConfig, given: "Backbone | None"
) -> tuple["Backbone", Any]:
    """Open model, unless it is given, and data; raises UserError with what is wrong with either."""
    from cyclecontrast.models.checkpoint import load_backbone

    problems: list[str] = []
    backbone = attempt(lambda: given or load_backbone(config.model, config.seed), problems)
    data = attempt(lambda: find_protocol(protocol).load().open_data(config), problems)
    if backbone is None or problems:
        raise UserError(*problems)
    return backbone, data


def evaluate_and_tell(
    protocol: str | type[EvaluateConfig], config: EvaluateConfig, backbone: "Backbone | None" = None
) -> Result | None:
    """Evaluate as the config says, and say on stderr where the result lies, or how to go on after a stop."""
    try:
        result = evaluate_together(protocol, config, backbone)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it was") from interrupt
    if result is None:
        return None
    from cyclecontrast.evaluation.record import results_folder

    print(f"result: {results_folder(config) / result.about.key}.json", file=sys.stderr)
    return result
