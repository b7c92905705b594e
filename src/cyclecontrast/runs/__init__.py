"""Many runs at a glance: `ls` finds them, `compare` sets them side by side. Importing this imports no PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclecontrast.config import CompareConfig, ListConfig
from cyclecontrast.errors import checked

if TYPE_CHECKING:
    from cyclecontrast.runs.comparison import Comparison
    from cyclecontrast.runs.listing import Listing

__all__ = ["compare", "ls"]


def ls(*folders: str | Path, **settings: Any) -> "Listing":
    """Find the runs below folders, or here; the options are those of `cyclecontrast runs ls`; raises UserError."""
    from cyclecontrast.runs.listing import list_runs

    return list_runs(checked(ListConfig, {**({"folders": folders} if folders else {}), **settings}))


def compare(*runs: str | Path) -> "Comparison":
    """Set runs side by side, as `cyclecontrast runs compare`; raises UserError where a file of one is damaged."""
    from cyclecontrast.runs.comparison import compare_runs

    return compare_runs(checked(CompareConfig, {"runs": runs}))
