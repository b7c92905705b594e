"""Every option of every command, as typed records; it knows nothing of pixels, networks or losses."""

from cyclecontrast.config.classification import ClassifyConfig, FinetuneConfig, KnnConfig, LinearConfig
from cyclecontrast.config.clips import ActionConfig, RetrievalConfig
from cyclecontrast.config.evaluate import EvaluateConfig
from cyclecontrast.config.everything import AllConfig
from cyclecontrast.config.masks import PropagationConfig, SegmentationConfig
from cyclecontrast.config.outputs import DemoConfig, EmbedConfig, ExportConfig, ReportConfig
from cyclecontrast.config.prepare import PrepareConfig
from cyclecontrast.config.presets import PRESETS
from cyclecontrast.config.pretrain import DECIDED_BY_AUTO, MAY_CHANGE, PretrainConfig
from cyclecontrast.config.runs import CompareConfig, ListConfig
from cyclecontrast.config.search import SearchConfig
from cyclecontrast.config.sweep import SweepConfig
from cyclecontrast.config.tracking import TrackingConfig

__all__ = [
    "DECIDED_BY_AUTO",
    "MAY_CHANGE",
    "PRESETS",
    "ActionConfig",
    "AllConfig",
    "ClassifyConfig",
    "CompareConfig",
    "DemoConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FinetuneConfig",
    "KnnConfig",
    "LinearConfig",
    "ListConfig",
    "PrepareConfig",
    "PretrainConfig",
    "PropagationConfig",
    "ReportConfig",
    "RetrievalConfig",
    "SearchConfig",
    "SegmentationConfig",
    "SweepConfig",
    "TrackingConfig",
]
