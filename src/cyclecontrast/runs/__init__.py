"""The commands `runs ls`, which lists the runs below folders, and `runs compare`, which shows runs side by side.

PyTorch is imported only when one of them is called.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclecontrast.config import CompareConfig, ListConfig
from cyclecontrast.errors import checked

if TYPE_CHECKING:
    from cyclecontrast.runs.tables import Comparison, Listing

__all__ = ["compare", "ls"]


def ls(*folders: str | Path, **settings: Any) -> "Listing":
    """Return the runs below folders (default: the current one); takes the options of `cyclecontrast runs ls`.

    Raises UserError if a folder does not exist.
    """
    config = checked(ListConfig, {**({"folders": folders} if folders else {}), **settings})
    from cyclecontrast.runs.tables import list_runs

    return list_runs(config)


def compare(*runs: str | Path) -> "Comparison":
    """Return a comparison of runs, as `cyclecontrast runs compare` prints it.

    Raises UserError if a run cannot be read.
    """
    config = checked(CompareConfig, {"runs": runs})
    from cyclecontrast.runs.tables import compare_runs

    return compare_runs(config)
