"""The protocols of `evaluate` by name; it imports none of them, so that help and errors need no PyTorch."""

import importlib
import re
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

FUNCTIONS = ("open_data", "describe", "predict", "score")


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
        Protocol("knn", KnnConfig, "cyclecontrast.evaluation.knn"),
        Protocol("linear", LinearConfig, "cyclecontrast.evaluation.linear"),
        Protocol("finetune", FinetuneConfig, "cyclecontrast.evaluation.finetune"),
        Protocol("retrieval", RetrievalConfig, "cyclecontrast.evaluation.retrieval.protocol"),
        Protocol("action", ActionConfig, "cyclecontrast.evaluation.action.protocol"),
        Protocol("tracking", TrackingConfig, "cyclecontrast.evaluation.tracking.protocol"),
        Protocol("segmentation", SegmentationConfig, "cyclecontrast.evaluation.segmentation.protocol"),
        Protocol("propagation", PropagationConfig, "cyclecontrast.evaluation.propagation.protocol"),
    )
}


def find_protocol(name: str | type[EvaluateConfig]) -> Protocol:
    """Return a protocol by its name, or by its config where it is the user's own; raises UserError."""
    if not isinstance(name, str):
        return _checked_protocol_with(name)
    if name not in PROTOCOLS:
        raise UserError(f"protocol {name!r} is none of {', '.join(PROTOCOLS)}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def _checked_protocol_with(config: type[EvaluateConfig]) -> Protocol:
    """Return the protocol with this config; raises UserError where it is none or lacks a function."""
    if not (isinstance(config, type) and issubclass(config, EvaluateConfig)):
        raise UserError("protocol: is neither a name nor a config that extends cyclecontrast.config.EvaluateConfig")
    found, problems = _protocol_with(config), []
    known = PROTOCOLS.get(found.name, found)
    if known != found:
        problems.append(f"protocol: {config.__name__} has the name of {known.config.__name__}'s; call it otherwise")
    if missing := [name for name in FUNCTIONS if not hasattr(found.load(), name)]:
        problems.append(f"protocol: {found.module} has no {', '.join(missing)} beside {config.__name__}")
    if problems:
        raise UserError(*problems)
    return found


def protocol_of(config: EvaluateConfig) -> Protocol:
    """Return the protocol whose options these are."""
    return _protocol_with(type(config))


def _protocol_with(config: type[EvaluateConfig]) -> Protocol:
    """Return the protocol with this config, or that of the user's whose functions stand beside it in its module."""
    known = (protocol for protocol in PROTOCOLS.values() if protocol.config is config)
    return next(known, Protocol(_name_of(config), config, config.__module__))


def _name_of(config: type[EvaluateConfig]) -> str:
    """Return NearestMeanConfig's nearest-mean: it begins the names of files."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", config.__name__.removesuffix("Config")).lower()
