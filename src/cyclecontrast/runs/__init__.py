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
    """List the runs below folders (default: here). Raises UserError."""
    config = checked(ListConfig, {**({"folders": folders} if folders else {}), **settings})
    from cyclecontrast.runs.listing import list_runs, tell_apart

    listing = list_runs(config)
    tell_apart(config, listing)
    return listing


def compare(*runs: str | Path) -> "Comparison":
    """Compare runs: settings that differ, losses, health and results. Raises UserError if a file is damaged."""
    config = checked(CompareConfig, {"runs": runs})
    from cyclecontrast.runs.comparison import compare_runs

    return compare_runs(config)
