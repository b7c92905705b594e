"""The proof: protocols that say what a frozen backbone knows. Importing this imports no PyTorch."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclecontrast.callable_module import make_callable
from cyclecontrast.config import AllConfig, EvaluateConfig
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.evaluate.registry import PROTOCOLS, find_protocol
from cyclecontrast.evaluate.result import Result
from cyclecontrast.files import is_model

if TYPE_CHECKING:
    from cyclecontrast.evaluate.everything import Everything
    from cyclecontrast.model.backbone import Backbone
    from cyclecontrast.train.distributed import World

__all__ = ["PROTOCOLS", "Result", "evaluate", "evaluate_config"]


def evaluate(protocol: str, model: str | Path, data: str | Path | None = None, **settings: Any) -> Any:
    """Evaluate a model by a protocol; `settings` are the protocol's options by name; raises UserError.

    Returns a Result; for the protocol `all`, which takes `data_root` and not `data`, an Everything with many of them.
    Of several processes that torchrun started, the first alone returns something. `cyclecontrast.evaluate(...)` calls
    it, and then writes the report of a run.
    """
    return evaluate_checked(protocol, check_options(protocol, model, data, settings))


def check_options(
    protocol: str, model: str | Path, data: str | Path | None, settings: dict[str, Any]
) -> EvaluateConfig | AllConfig:
    """Return the options of a protocol; raises UserError with all that is wrong with them."""
    named = {"model": str(model), **({} if data is None else {"data": data}), **settings}
    if protocol == "all":
        return checked(AllConfig, named)
    return checked(find_protocol(protocol).config, named)


def evaluate_checked(protocol: str, config: EvaluateConfig | AllConfig) -> Any:
    """As `evaluate`, by options that were checked."""
    if isinstance(config, AllConfig):
        return _evaluate_all(config)
    return evaluate_together(protocol, config)


def _evaluate_all(config: AllConfig) -> "Everything":
    from cyclecontrast.evaluate.everything import evaluate_all

    return evaluate_all(config)


def evaluate_together(protocol: str, config: EvaluateConfig) -> Result | None:
    """As `evaluate_config`; of the processes that torchrun started each embeds its share, and the first does the rest.

    Returns None in the others. Raises UserError, in the others without a line.
    """
    from cyclecontrast.evaluate.shares import help_embed
    from cyclecontrast.evaluate.two_steps import work_of
    from cyclecontrast.train.distributed import joined_world
    from cyclecontrast.train.leading import CPU, leading

    with joined_world(CPU) as world:
        if world.rank:
            help_embed(lambda: work_of(*_open(protocol, config), config), config.device, world)
            return None
        with leading(world):
            return evaluate_config(protocol, config, world=world)


def evaluate_config(protocol: str, config: EvaluateConfig, reuse: bool = False, world: "World | None" = None) -> Result:
    """Evaluate as the config says; predictions, then the result, are written into the folder of results.

    With `reuse` the result of before is returned where there is one of the same model, data and settings.
    """
    module = find_protocol(protocol).load()
    from cyclecontrast.evaluate.two_steps import evaluate as evaluate_backbone
    from cyclecontrast.evaluate.two_steps import find_result, score_again
    from cyclecontrast.train.distributed import ALONE

    if config.score_only and not is_model(config.model):
        return score_again(module.open_data(config), config)
    backbone, data = _open(protocol, config)
    found = find_result(backbone, data, config) if reuse else None
    return evaluate_backbone(backbone, data, config, world or ALONE) if found is None else found


def _open(protocol: str, config: EvaluateConfig) -> tuple["Backbone", Any]:
    """Open model and data; raises UserError with what is wrong with either."""
    from cyclecontrast.model.checkpoint import load_backbone

    problems: list[str] = []
    backbone = attempt(lambda: load_backbone(config.model, config.seed), problems)
    data = attempt(lambda: find_protocol(protocol).load().open_data(config), problems)
    if backbone is None or problems:
        raise UserError(*problems)
    return backbone, data


def evaluate_and_tell(protocol: str, config: EvaluateConfig) -> Result | None:
    """Evaluate as the config says, and say on stderr where the result lies, or how to go on after a stop."""
    try:
        result = evaluate_together(protocol, config)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it was") from interrupt
    if result is None:
        return None
    from cyclecontrast.evaluate.record import results_folder

    print(f"result: {results_folder(config) / result.about.key}.json", file=sys.stderr)
    return result


make_callable(__name__, "cyclecontrast.commands")
