"""From a folder of unlabeled videos to an image backbone, by cross-video cycle-consistency.

The commands are functions of the same names: `cyclecontrast.pretrain("videos", out="run")`. PyTorch is imported when it
is needed.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cyclecontrast import runs
from cyclecontrast.api import demo, embed, evaluate, explore, export, label, prepare, pretrain, report, search, sweep
from cyclecontrast.errors import UserError

if TYPE_CHECKING:
    from cyclecontrast.methods import Losses, Method
    from cyclecontrast.models.backbone import Backbone
    from cyclecontrast.models.checkpoint import load_backbone

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "Losses",
    "Method",
    "UserError",
    "demo",
    "embed",
    "evaluate",
    "explore",
    "export",
    "label",
    "load_backbone",
    "prepare",
    "pretrain",
    "report",
    "runs",
    "search",
    "sweep",
]
_IMPORTED_WHEN_USED = {
    "Backbone": "cyclecontrast.models.backbone",
    "load_backbone": "cyclecontrast.models.checkpoint",
    **dict.fromkeys(("Losses", "Method"), "cyclecontrast.methods"),
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_WHEN_USED:
        raise AttributeError(f"module 'cyclecontrast' has no attribute {name!r}")
    return getattr(importlib.import_module(_IMPORTED_WHEN_USED[name]), name)
