"""The protocols of `evaluate` by name; it imports none of them, so that help and errors need no PyTorch."""

import importlib
from dataclasses import dataclass
from types import ModuleType

from cyclecontrast.config import (
    ActionConfig,
    EvaluateConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    PropagationConfig,
    RetrievalConfig,
    SegmentationConfig,
    TrackingConfig,
)
from cyclecontrast.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Protocol:
    """A protocol's options, and the module with its functions (two_steps.py says which)."""

    name: str
    config: type[EvaluateConfig]
    module: str

    def load(self) -> ModuleType:
        """Import the module, and PyTorch with it."""
        return importlib.import_module(self.module)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("knn", KnnConfig, "cyclecontrast.evaluate.knn"),
        Protocol("linear", LinearConfig, "cyclecontrast.evaluate.linear"),
        Protocol("finetune", FinetuneConfig, "cyclecontrast.evaluate.finetune"),
        Protocol("retrieval", RetrievalConfig, "cyclecontrast.evaluate.retrieval.protocol"),
        Protocol("action", ActionConfig, "cyclecontrast.evaluate.action.protocol"),
        Protocol("tracking", TrackingConfig, "cyclecontrast.evaluate.tracking.protocol"),
        Protocol("segmentation", SegmentationConfig, "cyclecontrast.evaluate.segmentation.protocol"),
        Protocol("propagation", PropagationConfig, "cyclecontrast.evaluate.propagation.protocol"),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name; raises UserError with the nearest name."""
    if name not in PROTOCOLS:
        raise UserError(f"protocol {name!r} is none of {', '.join(PROTOCOLS)}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_of(config: EvaluateConfig) -> Protocol:
    """Return the protocol whose options these are."""
    return next(protocol for protocol in PROTOCOLS.values() if protocol.config is type(config))
