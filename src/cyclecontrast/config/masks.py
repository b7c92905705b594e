"""What `evaluate segmentation` and `propagation` take: images with masks."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cyclecontrast.config.evaluate import EvaluateConfig
from cyclecontrast.config.fields import Count, IsNumber, Name, NonNegative, Place, Positive, Side

CLASSES_OF_PIXELS = (
    "a VOC, ADE20K or DAVIS root, train/ and val/ with images/ and masks/, or frames/ and masks/ with train.txt and "
    "test.txt"
)

Label = Annotated[int, Field(ge=0, le=255), IsNumber]
Classes = Annotated[int, Field(ge=2, le=255), IsNumber]


def _power_of_two(stride: int) -> int:
    if stride not in (2, 4, 8, 16, 32):
        raise ValueError("must be 2, 4, 8, 16 or 32")
    return stride


Stride = Annotated[int, AfterValidator(_power_of_two), IsNumber]
Stage = Annotated[int, Field(ge=1, le=4), IsNumber]
Year = Annotated[Literal["2016", "2017"], BeforeValidator(str)]


class SegmentationConfig(EvaluateConfig):
    """Semantic segmentation by a head on feature maps, the backbone frozen or trained along."""

    data: Place = Field(description=CLASSES_OF_PIXELS)
    head: Literal["linear", "fcn"] = Field("linear", description="a 1x1 convolution, or an FCN head")
    frozen: bool = Field(True, description="train the head alone, or the whole network end to end")
    stride: Stride = Field(8, description="pixels per cell of the feature map: 2, 4, 8, 16 or 32")
    num_classes: Classes | None = Field(None, description="default: VOC 21, ADE20K 150, else what the masks say")
    ignore_label: Label = Field(255, description="pixels of this label count for nothing")
    train_list: Name = Field("train", description="name of the list to train on; train_aug: the extended one of VOC")
    crop_size: Side = Field(512, description="side of the training crops in pixels")
    flip: bool = Field(True, description="mirror half of the training crops")
    epochs: Count | None = Field(None, description="passes over the training images; default: 45, ADE20K 60")
    batch_size: Count = Field(16, description="images per step")
    learning_rate: Positive = Field(0.01, description="at the start; it falls as (1 - epoch / epochs) ** 0.9")
    weight_decay: NonNegative = Field(1e-4, description="of the optimizer")


class PropagationConfig(EvaluateConfig):
    """Label propagation through videos on frozen features: J, F and J&F of DAVIS."""

    data: Place = Field(description="a DAVIS root: JPEGImages/480p, Annotations/480p, ImageSets")
    preset: Literal["crw", "vfs", "dino"] = Field("vfs", description="settings of which paper")
    year: Year | None = Field(None, description="2016 or 2017: whose list; default: 2017 where there is one")
    height: Side | None = Field(None, description="of frames for the network; default: 480, but never enlarged")
    stage: Stage = Field(3, description="whose feature map is compared: 1 to 4, res2 to res5")
