"""A backbone → what other tools load, one file per tool. Importing this imports no PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclecontrast.callable_module import make_callable
from cyclecontrast.config import ExportConfig
from cyclecontrast.errors import checked
from cyclecontrast.evaluate import told_apart

if TYPE_CHECKING:
    from cyclecontrast.export.command import Export
    from cyclecontrast.model.backbone import Backbone

__all__ = ["export"]


def export(model: "str | Path | Backbone", **settings: Any) -> "Export":
    """Write a backbone for other tools; the options are those of `cyclecontrast export`; raises UserError.

    `model` may be a backbone itself.
    """
    from cyclecontrast.export.command import export_backbone

    name, backbone = told_apart(model)
    return export_backbone(checked(ExportConfig, {"model": name, **settings}), backbone)


make_callable(__name__)
