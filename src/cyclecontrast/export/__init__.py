"""A backbone → what other tools load, one file per tool. Importing this imports no PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclecontrast.callable_module import make_callable
from cyclecontrast.config import ExportConfig
from cyclecontrast.errors import checked

if TYPE_CHECKING:
    from cyclecontrast.export.command import Export

__all__ = ["export"]


def export(model: str | Path, **settings: Any) -> "Export":
    """Write a backbone for other tools; the options are those of `cyclecontrast export`; raises UserError."""
    from cyclecontrast.export.command import export_backbone

    return export_backbone(checked(ExportConfig, {"model": str(model), **settings}))


make_callable(__name__)
