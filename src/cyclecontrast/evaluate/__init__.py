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

__all__ = ["PROTOCOLS", "Result", "evaluate", "evaluate_config"]


def evaluate(protocol: str, model: str | Path, data: str | Path | None = None, **settings: Any) -> Any:
    """Evaluate a model by a protocol; `settings` are the protocol's options by name; raises UserError.

    Returns a Result; for the protocol `all`, which takes `data_root` and not `data`, an Everything with many of them.
    """
    named = {"model": str(model), **({} if data is None else {"data": data}), **settings}
    if protocol == "all":
        return _evaluate_all(checked(AllConfig, named))
    return evaluate_config(protocol, checked(find_protocol(protocol).config, named))


def _evaluate_all(config: AllConfig) -> "Everything":
    from cyclecontrast.evaluate.everything import evaluate_all

    return evaluate_all(config)


def evaluate_config(protocol: str, config: EvaluateConfig, reuse: bool = False) -> Result:
    """Evaluate as the config says; predictions, then the result, are written into the folder of results.

    With `reuse` the result of before is returned where there is one of the same model, data and settings.
    """
    module = find_protocol(protocol).load()
    from cyclecontrast.evaluate.two_steps import evaluate as evaluate_backbone
    from cyclecontrast.evaluate.two_steps import find_result, score_again
    from cyclecontrast.model.checkpoint import load_backbone

    if config.score_only and not is_model(config.model):
        return score_again(module.open_data(config), config)
    problems: list[str] = []
    backbone = attempt(lambda: load_backbone(config.model, config.seed), problems)
    data = attempt(lambda: module.open_data(config), problems)
    if problems:
        raise UserError(*problems)
    assert backbone is not None
    found = find_result(backbone, data, config) if reuse else None
    return evaluate_backbone(backbone, data, config) if found is None else found


def evaluate_and_tell(protocol: str, config: EvaluateConfig) -> Result:
    """Evaluate as the config says, and say on stderr where the result lies, or how to go on after a stop."""
    try:
        result = evaluate_config(protocol, config)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it was") from interrupt
    from cyclecontrast.evaluate.record import results_folder

    print(f"result: {results_folder(config) / result.about.key}.json", file=sys.stderr)
    return result


make_callable(__name__)
