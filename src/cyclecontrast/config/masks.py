"""What `evaluate segmentation` and `propagation` take: images with masks."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cyclecontrast.config.evaluate import EvaluateConfig
from cyclecontrast.config.fields import Count, Positive, Side

Label = Annotated[int, Field(ge=0, le=255)]


class SegmentationConfig(EvaluateConfig):
    """Semantic segmentation by a head on feature maps, the backbone frozen or trained along."""

    data: Path = Field(description="a VOC, ADE20K or DAVIS root: images, and masks of class indices")
    head: Literal["linear", "fcn"] = Field("linear", description="a 1x1 convolution, or an FCN head")
    frozen: bool = Field(True, description="train the head alone, or the whole network end to end")
    num_classes: Count | None = Field(None, description="default: what the layout or the masks say")
    ignore_label: Label = Field(255, description="pixels of this label count for nothing")
    crop_size: Side = Field(512, description="side of the training crops in pixels")
    epochs: Count = Field(45, description="passes over the training images")
    batch_size: Count = Field(16, description="images per step")
    learning_rate: Positive = Field(0.01, description="at its peak")


class PropagationConfig(EvaluateConfig):
    """Label propagation through videos on frozen features: J, F and J&F of DAVIS."""

    data: Path = Field(description="a DAVIS root: JPEGImages/480p, Annotations/480p, ImageSets")
    preset: Literal["crw", "vfs"] = Field("vfs", description="settings of which paper")
