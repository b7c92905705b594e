"""The protocols of `evaluate` by name; it imports none of them, so that help and errors need no PyTorch."""

import importlib
from dataclasses import dataclass
from types import ModuleType

from cyclecontrast.config import EvaluateConfig, KnnConfig, LinearConfig
from cyclecontrast.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Protocol:
    """A protocol's options, and the module that has `open_data(config)` and `evaluate(backbone, data, config)`."""

    summary: str
    config: type[EvaluateConfig]
    module: str

    def load(self) -> ModuleType:
        """Import the module, and PyTorch with it."""
        return importlib.import_module(self.module)


PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol("weighted k-nearest neighbors", KnnConfig, "cyclecontrast.evaluate.knn"),
    "linear": Protocol("linear classifier", LinearConfig, "cyclecontrast.evaluate.linear"),
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name; raises UserError with the nearest name."""
    if name not in PROTOCOLS:
        raise UserError(f"protocol {name!r} is none of {', '.join(PROTOCOLS)}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]
