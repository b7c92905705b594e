"""What `evaluate knn`, `linear` and `finetune` take."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from cyclecontrast.config.evaluate import EvaluateConfig
from cyclecontrast.config.fields import MOST, Count, IsNumber, NonNegative, Place, Positive, Side

CLASSES_OF_IMAGES = (
    "train/<class> and val/<class>, ImageNet's flat val too, or a frame tree with train.txt and test.txt"
)


def _some(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers:
        raise ValueError("name one number or more")
    return numbers


Ks = Annotated[tuple[Count, ...], AfterValidator(_some)]
"""Numbers of neighbors; `min_length` would tell of a wrong number in a second line."""


class ClassifyConfig(EvaluateConfig):
    """What every protocol that classifies images takes."""

    data: Place = Field(description=CLASSES_OF_IMAGES)
    classes: Place | None = Field(
        None, description="text file of those to use, one a line (ImageNet-100); default: all"
    )
    level: Literal["frame", "video"] = Field("frame", description="single frames, or the mean over a video")
    image_size: Side | None = Field(None, description="default: the size it was trained at")
    batch_size: Count = Field(256, description="images per forward pass")


class KnnConfig(ClassifyConfig):
    """Weighted k-nearest-neighbor classification on frozen features."""

    k: Ks = Field((10, 20, 100, 200), description="numbers of neighbors that vote")
    temperature: Positive = Field(0.07, description="a neighbor's vote is exp(similarity / temperature)")


class LinearConfig(ClassifyConfig):
    """Linear classification on frozen features."""

    probe: Literal["auto", "lbfgs", "sgd"] = Field(
        "auto", description="lbfgs: convex fit without a learning rate; sgd: the paper's recipe; auto: by size"
    )
    epochs: Count = Field(100, description="of the sgd probe; ÷10 at 60 % and at 80 %")
    learning_rate: Positive = Field(30.0, description="of the sgd probe, at batch 256; scaled with the batch")


class FinetuneConfig(ClassifyConfig):
    """Classification after training the whole network end to end."""

    epochs: Count = Field(30, description="passes over the training images; ÷10 at 60 % and at 80 %")
    batch_size: Annotated[int, Field(ge=2, le=MOST), IsNumber] = Field(
        64, description="images per step and per forward pass"
    )
    learning_rate: Positive = Field(0.03, description="of the backbone, at batch 256; scaled with the batch")
    head_learning_rate: Positive = Field(0.3, description="of the new classifier, at batch 256; scaled with the batch")
    weight_decay: NonNegative = Field(1e-4, description="of the optimizer")
