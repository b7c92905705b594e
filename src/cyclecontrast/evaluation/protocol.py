"""The interface of an evaluation protocol, and the built-in ones. Importing this imports no PyTorch.

runner.evaluate does the same for every protocol: `open` the data, `predict` with the backbone, write the predictions as
a record, `score` the record, write the result.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from cyclecontrast.config import PROTOCOL_CONFIGS, EvaluateConfig
from cyclecontrast.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

    from cyclecontrast.evaluation.predictions import DataInfo, Json, Record
    from cyclecontrast.evaluation.resume_cache import Arrays, ResumeCache
    from cyclecontrast.models.backbone import Backbone

ConfigT = TypeVar("ConfigT", bound=EvaluateConfig)
DataT = TypeVar("DataT")


class Predictions(NamedTuple):
    """A table with everything that `score` needs; `tag` names the variant, `problems` the items that were skipped.

    `num_used` is the number of train and test items used, None for all. `untagged` are settings that the runner does
    not add to the tag, because the tag describes them otherwise or they had no effect.
    """

    table: "pa.Table"
    tag: str
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()
    details: "Json" = {}  # noqa: RUF012
    num_used: tuple[int, int] | None = None
    untagged: frozenset[str] = frozenset()


class Score(NamedTuple):
    """Metrics as fractions, their breakdown per item, an addition to the tag, notes, and files (suffix → content)."""

    metrics: dict[str, float]
    per_item: "Json"
    tag: str = ""
    notes: Sequence[str] = ()
    files: Mapping[str, bytes] = {}


class Part(NamedTuple):
    """A unit of embedding work: `make` computes the arrays of any slice of `items`, so processes can share it."""

    name: str
    items: Sequence[Any]
    make: "Callable[[Sequence[Any]], Arrays]"


class Protocol(ABC, Generic[ConfigT, DataT]):
    """One way to evaluate a backbone. For a custom protocol pass a subclass to `cyclecontrast.evaluate`.

    `name` is the prefix of file names: lower-case words joined by hyphens. `config_class` has the options; its
    `scoring` names those that only `score` reads.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[EvaluateConfig]]

    def __init__(self, config: ConfigT) -> None:
        """Store the options. Before `predict`, the runner replaces an `image_size` of None by that of the backbone."""
        self.config = config

    @abstractmethod
    def open(self) -> DataT:
        """Open the data and check the options against it; raises UserError."""

    @abstractmethod
    def describe(self, data: DataT) -> "DataInfo":
        """Return the name, size and fingerprint of the data."""

    @abstractmethod
    def predict(self, backbone: "Backbone", data: DataT, cache: "ResumeCache") -> Predictions:
        """Compute all predictions. `cache` stores intermediate results, so that an interrupted evaluation resumes.

        Raises UserError.
        """

    @abstractmethod
    def score(self, record: "Record") -> Score:
        """Compute the metrics from the record only; data and model may not exist any more. Raises UserError."""

    def parts(self, backbone: "Backbone", data: DataT) -> list[Part]:
        """Return the embedding work of `predict`, with the names used in the cache, to distribute it over processes.

        Protocols that train do not override this method; they run in a single process.
        """
        from cyclecontrast.distributed import single_process_message

        raise UserError(single_process_message(f"evaluate {self.name}"))


def find_protocol(protocol: str | type[Protocol[Any, Any]]) -> type[Protocol[Any, Any]]:
    """Return the class of a built-in protocol by its name, or check a custom class; raises UserError."""
    if isinstance(protocol, str):
        if protocol not in PROTOCOL_CONFIGS:
            hint = did_you_mean(protocol, PROTOCOL_CONFIGS)
            raise UserError(f"unknown protocol {protocol!r}{hint}; known: {', '.join(PROTOCOL_CONFIGS)}")
        return _built_in(protocol)
    if not (isinstance(protocol, type) and issubclass(protocol, Protocol)):
        raise UserError("protocol: neither a name nor a subclass of cyclecontrast.evaluation.protocol.Protocol")
    named = [name for name in ("name", "config_class") if not hasattr(protocol, name)]
    missing = sorted([*protocol.__abstractmethods__, *named])
    if missing:
        raise UserError(f"protocol: {protocol.__name__} does not define {', '.join(missing)}")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", protocol.name):
        raise UserError(f"protocol: name {protocol.name!r}: use lower-case letters, digits and hyphens")
    if protocol.name in PROTOCOL_CONFIGS and protocol is not _built_in(protocol.name):
        raise UserError(f"protocol: {protocol.__name__} has the name of the built-in {protocol.name}; rename it")
    return protocol


def config_class_of(protocol: str | type[Protocol[Any, Any]]) -> type[EvaluateConfig]:
    """Return the config class of a protocol; raises UserError. For a name this imports no PyTorch."""
    return PROTOCOL_CONFIGS[protocol] if protocol in PROTOCOL_CONFIGS else find_protocol(protocol).config_class


def _built_in(name: str) -> type[Protocol[Any, Any]]:
    """Return a built-in protocol; imports PyTorch."""
    from cyclecontrast.evaluation.action import Action
    from cyclecontrast.evaluation.finetune import Finetune
    from cyclecontrast.evaluation.knn import Knn
    from cyclecontrast.evaluation.linear import Linear
    from cyclecontrast.evaluation.propagation import Propagation
    from cyclecontrast.evaluation.retrieval import Retrieval
    from cyclecontrast.evaluation.segmentation import Segmentation
    from cyclecontrast.evaluation.shape_bias import ShapeBias
    from cyclecontrast.evaluation.tracking.protocol import Tracking

    protocols = (Knn, Linear, Finetune, ShapeBias, Retrieval, Action, Tracking, Segmentation, Propagation)
    return next(protocol for protocol in protocols if protocol.name == name)
