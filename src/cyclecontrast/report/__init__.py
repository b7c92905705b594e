"""Floor 6, what people look at: one static HTML page. Importing this imports nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclecontrast.callable_module import make_callable
from cyclecontrast.config import ReportConfig
from cyclecontrast.errors import checked

if TYPE_CHECKING:
    from cyclecontrast.report.page import Report


def report(*runs: str | Path, **settings: Any) -> "Report":
    """Write one page about runs; the options are those of `cyclecontrast report`; raises UserError."""
    from cyclecontrast.report.page import write_report

    return write_report(checked(ReportConfig, {"runs": runs, **settings}))


make_callable(__name__)
