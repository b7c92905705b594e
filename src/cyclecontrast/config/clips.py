"""What `evaluate action` and `retrieval` take: clips of labeled videos."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cyclecontrast.config.classification import Ks
from cyclecontrast.config.evaluate import EvaluateConfig
from cyclecontrast.config.fields import BelowOne, Count, Few, Place, Positive, Rate, Side, Whole

CLASSES_OF_VIDEOS = "a UCF101 or HMDB51 root: folders of classes in videos/, lists in annotations/"


class ActionConfig(EvaluateConfig):
    """Action recognition: the mean of frame features classifies a clip, end to end or frozen."""

    data: Place = Field(description=CLASSES_OF_VIDEOS)
    mode: Literal["finetune", "linear"] = Field(
        "finetune", description="train all layers (Table 9), or the last one (Table 10)"
    )
    split: Count = Field(1, description="number of the train and test lists")
    num_frames: Few = Field(32, description="per clip; mode linear: 8")
    fps: Rate = Field(16.0, description="frames per second of a clip")
    image_size: Side | None = Field(None, description="default: the size it was trained at")
    flip: bool = Field(True, description="mirror half of the training clips; off where left and right differ")
    batch_size: Count = Field(32, description="clips per step; mode linear: 64")
    epochs: Count = Field(16, description="after the warm-up; x0.3 at 6, 10 and 14 of 16")
    warmup_epochs: Whole = Field(5, description="epochs of the new last layer alone")
    clips_per_video: Few = Field(5, description="of each training video in an epoch; mode linear: 10")
    learning_rate: Positive = Field(1e-4, description="of Adam, at any batch size")
    dropout: BelowOne = Field(0.9, description="before the last layer; mode linear: 0.5")
    bn: Literal["eval", "train"] = Field(
        "eval", description="mode linear: BatchNorm frozen too, or by batch statistics as in the release"
    )
    num_clips: Few = Field(10, description="of each test video, spread evenly; their softmax is averaged")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**(OF_LINEAR if values.get("mode") == "linear" else {}), **values}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mode == "finetune" and self.bn == "train":
            raise ValueError("bn: is an option of --mode linear; finetune trains BatchNorm in any case")
        return self


OF_LINEAR = {"num_frames": 8, "batch_size": 64, "clips_per_video": 10, "dropout": 0.5}
"""Defaults of the mode linear (protocols.md §c)."""


class RetrievalConfig(EvaluateConfig):
    """Nearest-neighbor retrieval: is the class of a test video among those of its nearest training videos?"""

    scoring: ClassVar[frozenset[str]] = frozenset({"k"})

    data: Place = Field(description=CLASSES_OF_VIDEOS)
    split: Count = Field(1, description="number of the train and test lists")
    level: Literal["frame", "clip", "video"] = Field(
        "clip", description="what is compared: single frames, clips, or the mean over a video's clips"
    )
    per_video: Few = Field(10, description="frames or clips of each video, spread evenly")
    clip_length: Few = Field(16, description="consecutive frames of a clip")
    k: Ks = Field((1, 5, 10, 20, 50), description="numbers of neighbors to look at")
    center: bool = Field(False, description="take each split's own mean off its vectors first")
    image_size: Side | None = Field(None, description="default: the size it was trained at")
    batch_size: Count = Field(256, description="frames per forward pass")
    ann: Literal["exact", "faiss"] = Field("exact", description="exact, or approximate by faiss, which needs the extra")
