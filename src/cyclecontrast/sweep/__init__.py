"""The paper's ablation tables, each in one command. Importing this imports no PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclecontrast.callable_module import make_callable
from cyclecontrast.config import SweepConfig
from cyclecontrast.errors import checked

if TYPE_CHECKING:
    from cyclecontrast.sweep.outcome import Sweep

__all__ = ["sweep"]


def sweep(table: str, data: str | Path, **settings: Any) -> "Sweep | None":
    """Train and evaluate every row of an ablation table; options as of `cyclecontrast sweep`; raises UserError.

    Cells that failed are in the result's `problems`; where all did, it raises. Of several processes that torchrun
    started, the first alone returns something.
    """
    from cyclecontrast.sweep.command import make_sweep

    return make_sweep(checked(SweepConfig, {"table": table, "data": data, **settings}))


make_callable(__name__)
