"""What `evaluate action` and `retrieval` take: clips of labeled videos."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from cyclecontrast.config.evaluate import EvaluateConfig
from cyclecontrast.config.fields import Count, Positive, Side

CLASSES_OF_VIDEOS = "a UCF101 or HMDB51 root: folders of classes in videos/, lists in annotations/"


class ActionConfig(EvaluateConfig):
    """Action recognition: the mean of frame features classifies a clip, end to end or frozen."""

    data: Path = Field(description=CLASSES_OF_VIDEOS)
    mode: Literal["finetune", "linear"] = Field("finetune", description="train all layers (Table 9), or the last one")
    split: Count = Field(1, description="number of the train and test lists")
    num_frames: Count | None = Field(None, description="per clip; default: finetune 32, linear 8")
    fps: Positive = Field(16.0, description="frames per second of a clip")
    image_size: Side | None = Field(None, description="default: the size it was trained at")
    batch_size: Count | None = Field(None, description="clips per step; default: finetune 32, linear 64")


class RetrievalConfig(EvaluateConfig):
    """Nearest-neighbor retrieval: is the class of a test video among those of its nearest training videos?"""

    scoring: ClassVar[frozenset[str]] = frozenset({"k"})

    data: Path = Field(description=CLASSES_OF_VIDEOS)
    split: Count = Field(1, description="number of the train and test lists")
    level: Literal["frame", "clip", "video"] = Field(
        "clip", description="single frames, clips of 16 frames, or the mean over a video's clips"
    )
    per_video: Count = Field(10, description="frames or clips of each video, spread evenly")
    clip_length: Count = Field(16, description="consecutive frames of a clip")
    k: tuple[Count, ...] = Field((1, 5, 10, 20, 50), description="numbers of neighbors to look at")
    image_size: Side | None = Field(None, description="default: the size it was trained at")
    batch_size: Count = Field(256, description="frames per forward pass")
    ann: Literal["exact", "faiss"] = Field("exact", description="how neighbors are found; faiss needs the extra")
