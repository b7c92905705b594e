"""What `evaluate tracking` takes."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from cyclecontrast.config.evaluate import EvaluateConfig
from cyclecontrast.config.fields import Count, Place, Positive


def _a_box(text: str) -> str:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError("give four numbers, x,y,w,h")
    if min(numbers[2:]) <= 0:
        raise ValueError("the box needs a width and a height above 0")
    return text


Box = Annotated[str, AfterValidator(_a_box)]


class TrackingConfig(EvaluateConfig):
    """Tracking by SiamFC on frozen features: success and precision on OTB or GOT-10k, or boxes in a video."""

    scoring: ClassVar[frozenset[str]] = frozenset({"toolkit", "others"})

    data: Place = Field(description="an OTB or GOT-10k root, or a video file with --box")
    subset: Literal["train", "val", "test"] = Field("val", description="which sequences of GOT-10k are tracked")
    tracker: Literal["siamfc", "identity", "perfect"] = Field(
        "siamfc", description="identity answers the first box for ever, perfect the true ones"
    )
    preset: Literal["release", "siamfc", "vince"] = Field(
        "release", description="head, loss and geometry of which code"
    )
    train: bool = Field(True, description="train the head, or correlate the raw features")
    train_data: Place | None = Field(
        None, description="GOT-10k root to train the head on; default: one beside the data"
    )
    epochs: Count | None = Field(None, description="of the head; default: the preset's")
    batch_size: Count | None = Field(None, description="pairs per step; default: the preset's")
    learning_rate: Positive | None = Field(None, description="of the head; default: the preset's")
    pairs_per_sequence: Count | None = Field(
        None, description="and epoch of the head; default: the preset's, or more for 50 steps an epoch"
    )
    exact_geometry: bool = Field(False, description="take a response for as wide as it is, where the release rounds")
    fix_scale_penalty: bool = Field(False, description="let the penalty on a change of scale lower negative peaks too")
    toolkit: Literal["got10k", "official"] = Field(
        "got10k", description="success and precision as of the GOT-10k toolkit, or as of the authors of OTB"
    )
    others: Place | None = Field(
        None, description="results of other trackers to score beside ours: <tracker>/<sequence>.txt in a folder"
    )
    box: Box | None = Field(
        None, description="x,y,w,h of the target in the first frame of a video file; the first pixel is 1"
    )
    save: Place | None = Field(None, description="video file to draw the boxes into")
