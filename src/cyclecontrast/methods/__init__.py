"""The training methods by command-line name. A method is an `nn.Module` whose `forward` computes losses from views."""

from cyclecontrast.config.types import USER_PREFIX
from cyclecontrast.methods.byol import BYOL
from cyclecontrast.methods.cycle_contrast import CycleContrast, CycleOnly, IntraImage, IntraVideo
from cyclecontrast.methods.diet import DIET
from cyclecontrast.methods.distill import Distill
from cyclecontrast.methods.method import Candidates, Losses, Method, MomentumMethod, StepInfo
from cyclecontrast.methods.nnclr import NNCLR
from cyclecontrast.methods.seco import SeCo
from cyclecontrast.methods.simclr import SimCLR
from cyclecontrast.methods.simsiam import SimSiam
from cyclecontrast.methods.vince import VINCE

METHODS: dict[str, type[Method]] = {
    "intra-image": IntraImage,
    "intra-video": IntraVideo,
    "cycle": CycleContrast,
    "cycle-only": CycleOnly,
    "vince": VINCE,
    "seco": SeCo,
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "byol": BYOL,
    "nnclr": NNCLR,
    "diet": DIET,
    "distill": Distill,
}


def unread_options(method: type[Method]) -> frozenset[str]:
    """Return the method-specific options that a method does not use; a custom method may not say which it uses."""
    known: frozenset[str] = frozenset().union(*(one.reads for one in METHODS.values()))
    unread = known - method.reads if method.reads or method in METHODS.values() else frozenset()
    return unread if method.has_projectors else unread | {"projector", "projector_dim"}


def learns_from(name: str) -> str:
    """Return the phrase that completes "it learns from" for a method name of a config."""
    return METHODS[name].learns_from if name in METHODS else f"the custom method {name.removeprefix(USER_PREFIX)}"


__all__ = [
    "BYOL",
    "DIET",
    "METHODS",
    "NNCLR",
    "VINCE",
    "Candidates",
    "CycleContrast",
    "CycleOnly",
    "Distill",
    "IntraImage",
    "IntraVideo",
    "Losses",
    "Method",
    "MomentumMethod",
    "SeCo",
    "SimCLR",
    "SimSiam",
    "StepInfo",
    "learns_from",
    "unread_options",
]
