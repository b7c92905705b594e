"""From a folder of unlabeled videos to an image backbone, by cross-video cycle-consistency.

The commands are functions of the same names: `cyclecontrast.pretrain("videos", out="run")`. Nothing heavy is imported
before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclecontrast import demo, evaluate, export, report, runs, search, sweep
    from cyclecontrast.commands import embed, prepare, pretrain
    from cyclecontrast.errors import UserError
    from cyclecontrast.model.checkpoint import load_backbone

__version__ = "0.1.0"
__all__ = [
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

_HOMES = {"UserError": "cyclecontrast.errors", "load_backbone": "cyclecontrast.model.checkpoint"}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in ("demo", "evaluate", "export", "report", "runs", "search", "sweep"):
        return importlib.import_module(f"cyclecontrast.{name}")
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "cyclecontrast.commands")), name)
    raise AttributeError(f"module 'cyclecontrast' has no attribute {name!r}")
