"""The options of all commands, with types, defaults and help texts. It does not import the rest of the package."""

from cyclecontrast.config.commands import (
    CompareConfig,
    DemoConfig,
    EmbedConfig,
    ExploreConfig,
    ExportConfig,
    LabelConfig,
    ListConfig,
    PrepareConfig,
    ReportConfig,
    SearchConfig,
    SweepConfig,
)
from cyclecontrast.config.evaluate import (
    PROTOCOL_CONFIGS,
    ActionConfig,
    AllConfig,
    ClassifyConfig,
    EvaluateConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    PropagationConfig,
    RetrievalConfig,
    SegmentationConfig,
    ShapeBiasConfig,
    TrackingConfig,
)
from cyclecontrast.config.presets import PRESETS
from cyclecontrast.config.pretrain import (
    CHANGEABLE_ON_RESUME,
    MACHINE_SETTINGS,
    RESOLVED_BY_AUTO,
    RUNTIME_SETTINGS,
    PretrainConfig,
)
