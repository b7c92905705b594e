"""Whether what a network gives can be used at all."""

from torch import Tensor

from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import Backbone


def check_finite(values: Tensor, backbone: Backbone) -> None:
    """Raise UserError where a backbone's features, or what was made of them, are not finite."""
    if not bool(values.isfinite().all()):
        raise UserError(f"{backbone.source}: the backbone gives values that are not finite; its weights are broken")
