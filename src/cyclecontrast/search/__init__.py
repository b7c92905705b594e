"""Floor 6, what people ask: the frames most like this one. Importing this imports nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclecontrast.callable_module import make_callable
from cyclecontrast.config import SearchConfig
from cyclecontrast.errors import checked

if TYPE_CHECKING:
    from cyclecontrast.search.results import Results

__all__ = ["search"]


def search(index: str | Path, **settings: Any) -> "Results":
    """Find the frames most like an image or a frame; the options are those of `cyclecontrast search`.

    Raises UserError; with `serve`, KeyboardInterrupt when the page is closed.
    """
    from cyclecontrast.search.command import run_search

    return run_search(checked(SearchConfig, {"index": index, **settings}))


make_callable(__name__)
