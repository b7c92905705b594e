"""From a folder of unlabeled videos to an image backbone, by cross-video cycle-consistency.

The commands are functions of the same names: `cyclecontrast.pretrain("videos", out="run")`. Nothing heavy is imported
before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclecontrast import runs
    from cyclecontrast.commands import embed, prepare, pretrain
    from cyclecontrast.demo import demo
    from cyclecontrast.errors import UserError
    from cyclecontrast.evaluate import evaluate
    from cyclecontrast.export import export
    from cyclecontrast.loss.step import Losses, Needs, Objective, Step
    from cyclecontrast.model.backbone import Backbone
    from cyclecontrast.model.checkpoint import load_backbone
    from cyclecontrast.report import report
    from cyclecontrast.search import search
    from cyclecontrast.sweep import sweep

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "Losses",
    "Needs",
    "Objective",
    "Step",
    "UserError",
    "demo",
    "embed",
    "evaluate",
    "export",
    "load_backbone",
    "prepare",
    "pretrain",
    "report",
    "runs",
    "search",
    "sweep",
]

_HOMES = {
    "UserError": "cyclecontrast.errors",
    "Backbone": "cyclecontrast.model.backbone",
    "load_backbone": "cyclecontrast.model.checkpoint",
    **dict.fromkeys(("Losses", "Needs", "Objective", "Step"), "cyclecontrast.loss.step"),
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in ("demo", "evaluate", "export", "report", "runs", "search", "sweep"):
        return importlib.import_module(f"cyclecontrast.{name}")
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "cyclecontrast.commands")), name)
    raise AttributeError(f"module 'cyclecontrast' has no attribute {name!r}")
