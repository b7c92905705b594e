"""What `evaluate tracking` takes."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from cyclecontrast.config.evaluate import EvaluateConfig
from cyclecontrast.config.fields import Count, Positive


class TrackingConfig(EvaluateConfig):
    """Tracking by SiamFC on frozen features: success and precision on OTB or GOT-10k, or boxes in a video."""

    scoring: ClassVar[frozenset[str]] = frozenset({"toolkit"})

    data: Path = Field(description="an OTB or GOT-10k root, or a video file with --box")
    preset: Literal["release", "siamfc", "vince"] = Field(
        "release", description="head, loss and geometry of which code"
    )
    train: bool = Field(True, description="train the head, or correlate the raw features")
    train_data: Path | None = Field(None, description="GOT-10k root to train the head on; default: one beside the data")
    epochs: Count | None = Field(None, description="of the head; default: the preset's")
    batch_size: Count | None = Field(None, description="pairs per step; default: the preset's")
    learning_rate: Positive | None = Field(None, description="of the head; default: the preset's")
    toolkit: Literal["got10k", "official"] = Field("got10k", description="whose success and precision")
    box: str | None = Field(None, description="x,y,w,h of the target in the first frame of a video file")
    save: Path | None = Field(None, description="video file to draw the boxes into")
