"""The options of `evaluate`, one config for each protocol."""

import math
from typing import Annotated, Any, ClassVar, Literal, Self, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from cyclecontrast.config.types import (
    DEVICES,
    LOADERS,
    MAX_COUNT,
    MODEL,
    STRICT,
    TRAINED_SIZE,
    BelowOne,
    Count,
    Device,
    Few,
    IsNumber,
    Name,
    NonNegative,
    Place,
    Positive,
    Processes,
    Rate,
    Seed,
    Side,
    Whole,
    option,
)

RESULTS = "folder of the results (default: that of the run, else ./results)"
REPORT = "update the report.html of the run that is evaluated"


class EvaluateConfig(BaseModel):
    """The options that all protocols share."""

    model_config = STRICT
    scoring: ClassVar[frozenset[str]] = frozenset()
    """Settings of the scoring step: the predictions do not depend on them."""

    model: Name = option(..., MODEL, names="model")
    data: Place = option(..., "folder of the dataset", names="folder")
    out: Place | None = option(None, RESULTS, "FOLDER", "output")
    score_only: bool = option(False, "score saved predictions again, without the model", group="output")
    report: bool = option(True, REPORT, group="output")
    workers: Processes | None = option(None, LOADERS, "N", "hardware")
    seed: Seed = option(0, "seed of random:<backbone> and of all random choices", "SEED")
    device: Device = option("auto", DEVICES, "DEVICE", "hardware")

    def unusual(self) -> dict[str, Any]:
        """Return the settings that are not the defaults of the chosen variant: of a mode, a preset, or a head."""
        fields = type(self).model_fields
        choices = {name: getattr(self, name) for name in fields if get_origin(fields[name].annotation) is Literal}
        usual = type(self).model_validate({"model": self.model, "data": self.data, **choices})
        return {name: getattr(self, name) for name in fields if getattr(self, name) != getattr(usual, name)}


# --- classification of images

LABELED_IMAGES = (
    "train/<class> and val/<class> (or the flat val of ImageNet), or a frame tree with train.txt and test.txt"
)


def _not_empty(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers:
        raise ValueError("give one number or more")
    return numbers


Counts = Annotated[tuple[Count, ...], AfterValidator(_not_empty)]
"""Numbers of neighbors. `min_length` would report a wrong number in a second line."""


class ClassifyConfig(EvaluateConfig):
    """The options of protocols that classify images."""

    data: Place = option(..., LABELED_IMAGES, names="folder")
    classes: Place | None = option(
        None, "text file of the classes to use, one per line, as for ImageNet-100 (default: all)", "FILE"
    )
    level: Literal["frame", "video"] = option("frame", "classify single frames, or the mean of each video")
    image_size: Side | None = option(None, TRAINED_SIZE, "PIXELS")
    batch_size: Count = option(256, "images per forward pass", "IMAGES", "hardware")


class KnnConfig(ClassifyConfig):
    """Classification by the nearest neighbors of frozen features."""

    k: Counts = option((10, 20, 100, 200), "numbers of neighbors that vote", "K")
    temperature: Positive = option(0.07, "a neighbor's vote is exp(similarity / temperature)", "NUMBER")


class LinearConfig(ClassifyConfig):
    """Classification by a linear probe on frozen features."""

    probe: Literal["auto", "lbfgs", "sgd"] = option(
        "auto", "convex fit without a learning rate (lbfgs), the paper's recipe (sgd), or by the size of the data"
    )
    epochs: Count = option(
        100, "epochs of the sgd probe, with a tenth of the rate after 60% and again after 80%", "EPOCHS"
    )
    learning_rate: Positive = option(
        30.0, "learning rate of the sgd probe at batch size 256; scales with the batch", "RATE"
    )


class FinetuneConfig(ClassifyConfig):
    """Classification by the network trained end to end."""

    epochs: Count = option(30, "epochs, with a tenth of the rate after 60% and again after 80%", "EPOCHS")
    batch_size: Annotated[int, Field(ge=2, le=MAX_COUNT), IsNumber] = option(
        64, "images per step and per forward pass", "IMAGES"
    )
    learning_rate: Positive = option(
        0.03, "learning rate of the backbone at batch size 256; scales with the batch", "RATE"
    )
    head_learning_rate: Positive = option(
        0.3, "learning rate of the classifier at batch size 256; scales with the batch", "RATE"
    )
    weight_decay: NonNegative = option(1e-4, "weight decay of SGD", "NUMBER")


# --- clips of videos

LABELED_VIDEOS = "a UCF101 or HMDB51 root: folders of classes in videos/, lists in annotations/"
SPLIT = "number of the train and test lists"
LINEAR_MODE = {"num_frames": 8, "batch_size": 64, "clips_per_video": 10, "dropout": 0.5}
"""Defaults of `evaluate action --mode linear` (Table 10)."""


class ActionConfig(EvaluateConfig):
    """Action recognition in clips, by the mean of frame features."""

    data: Place = option(..., LABELED_VIDEOS, names="folder")
    mode: Literal["finetune", "linear"] = option("finetune", "train all layers (Table 9), or the last one (Table 10)")
    split: Count = option(1, SPLIT, "N")
    num_frames: Few = option(32, "frames per clip; 8 with --mode linear", "N")
    fps: Rate = option(16.0, "frames per second of a clip", "FPS")
    image_size: Side | None = option(None, TRAINED_SIZE, "PIXELS")
    flip: bool = option(True, "mirror half of the training clips; turn off if left and right differ in meaning")
    batch_size: Count = option(32, "clips per step; 64 with --mode linear", "CLIPS")
    epochs: Count = option(16, "epochs after the warm-up; the rate falls to 0.3 of it at 6, 10 and 14 of 16", "EPOCHS")
    warmup_epochs: Whole = option(5, "first epochs, which train the last layer only", "EPOCHS")
    clips_per_video: Few = option(5, "clips of each training video in an epoch; 10 with --mode linear", "N")
    learning_rate: Positive = option(1e-4, "learning rate of Adam at any batch size", "RATE")
    dropout: BelowOne = option(0.9, "dropout before the last layer; 0.5 with --mode linear", "FRACTION")
    bn: Literal["eval", "train"] = option(
        "eval", "with --mode linear: freeze BatchNorm, or use the statistics of the batch as the release does"
    )
    num_clips: Few = option(10, "evenly spaced clips of each test video, whose softmax is averaged", "N")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**(LINEAR_MODE if values.get("mode") == "linear" else {}), **values}

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.mode == "finetune" and self.bn == "train":
            raise ValueError("bn: is an option of --mode linear; finetune always trains BatchNorm")
        return self


class RetrievalConfig(EvaluateConfig):
    """Nearest-neighbor retrieval of videos of the same class."""

    scoring: ClassVar[frozenset[str]] = frozenset({"k"})

    data: Place = option(..., LABELED_VIDEOS, names="folder")
    split: Count = option(1, SPLIT, "N")
    level: Literal["frame", "clip", "video"] = option(
        "clip", "compare single frames, clips, or the mean of each video's clips"
    )
    per_video: Few = option(10, "evenly spaced frames or clips of each video", "N")
    clip_length: Few = option(16, "consecutive frames of a clip", "FRAMES")
    k: Counts = option((1, 5, 10, 20, 50), "numbers of neighbors to retrieve", "K")
    center: bool = option(False, "subtract the mean of each split from its vectors")
    image_size: Side | None = option(None, TRAINED_SIZE, "PIXELS")
    batch_size: Count = option(256, "frames per forward pass", "FRAMES", "hardware")
    ann: Literal["exact", "faiss"] = option("exact", "exact search, or approximate search by faiss (an extra)")


# --- masks

LABELED_PIXELS = (
    "a VOC, ADE20K or DAVIS root, train/ and val/ with images/ and masks/, or frames/ and masks/ with train.txt and "
    "test.txt"
)


def _check_stride(stride: int) -> int:
    if stride not in (2, 4, 8, 16, 32):
        raise ValueError("must be 2, 4, 8, 16 or 32")
    return stride


class SegmentationConfig(EvaluateConfig):
    """Semantic segmentation by a head on feature maps."""

    data: Place = option(..., LABELED_PIXELS, names="folder")
    head: Literal["linear", "fcn"] = option("linear", "a 1x1 convolution, or an FCN head")
    frozen: bool = option(True, "train the head only, not the whole network")
    stride: Annotated[int, AfterValidator(_check_stride), IsNumber] = option(
        8, "pixels per cell of the feature map: 2, 4, 8, 16 or 32", "PIXELS"
    )
    num_classes: Annotated[int, Field(ge=2, le=255), IsNumber] | None = option(
        None, "number of classes (default: VOC 21, ADE20K 150, else from the masks)", "N"
    )
    ignore_label: Annotated[int, Field(ge=0, le=255), IsNumber] = option(255, "label of pixels to ignore", "LABEL")
    train_list: Name = option("train", "list to train on; train_aug is the extended list of VOC", "NAME")
    crop_size: Side = option(512, "side of the training crops", "PIXELS")
    flip: bool = option(True, "mirror half of the training crops")
    epochs: Count | None = option(None, "passes over the training images (default: 45, ADE20K 60)", "EPOCHS")
    batch_size: Count = option(16, "images per step", "IMAGES")
    learning_rate: Positive = option(0.01, "first learning rate; falls as (1 - epoch / epochs) ** 0.9", "RATE")
    weight_decay: NonNegative = option(1e-4, "weight decay of SGD", "NUMBER")


class PropagationConfig(EvaluateConfig):
    """Label propagation through the videos of DAVIS."""

    data: Place = option(..., "a DAVIS root: JPEGImages/480p, Annotations/480p, ImageSets", names="folder")
    preset: Literal["crw", "vfs", "dino"] = option("vfs", "whose settings to use")
    year: Annotated[Literal["2016", "2017"], BeforeValidator(str)] | None = option(
        None, "list of 2016 or of 2017 (default: 2017 if it is there)", "YEAR"
    )
    height: Side | None = option(None, "height of the network's input (default: 480, but never enlarged)", "PIXELS")
    stage: Annotated[int, Field(ge=1, le=4), IsNumber] = option(
        3, "stage of the feature map that is compared: 1 to 4 for res2 to res5", "STAGE"
    )


# --- tracking


def _check_box(text: str) -> str:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError("give four numbers, x,y,w,h")
    if min(numbers[2:]) <= 0:
        raise ValueError("the box needs a width and a height above 0")
    return text


class TrackingConfig(EvaluateConfig):
    """Tracking by SiamFC on OTB, GOT-10k, or a video."""

    scoring: ClassVar[frozenset[str]] = frozenset({"toolkit", "others"})

    data: Place = option(..., "an OTB or GOT-10k root, or a video file with --box", names="path")
    subset: Literal["train", "val", "test"] = option("val", "which sequences of GOT-10k")
    tracker: Literal["siamfc", "identity", "perfect"] = option(
        "siamfc", "identity always predicts the first box, perfect the true box"
    )
    preset: Literal["release", "siamfc", "vince"] = option("release", "whose head, loss and geometry to use")
    train: bool = option(True, "train the head; without, raw features are correlated")
    train_data: Place | None = option(
        None, "GOT-10k root to train the head on (default: one beside the data)", "FOLDER"
    )
    epochs: Count | None = option(None, "epochs of training the head (default: the preset's)", "EPOCHS")
    batch_size: Count | None = option(None, "pairs per step (default: the preset's)", "PAIRS")
    learning_rate: Positive | None = option(None, "learning rate of the head (default: the preset's)", "RATE")
    pairs_per_sequence: Count | None = option(
        None, "pairs of each sequence in an epoch (default: the preset's, or what makes 50 steps)", "PAIRS"
    )
    exact_geometry: bool = option(False, "use the exact width of a response, which the release rounds")
    fix_scale_penalty: bool = option(False, "apply the penalty on a change of scale to negative peaks too")
    toolkit: Literal["got10k", "official"] = option(
        "got10k", "success and precision of the GOT-10k toolkit, or of the authors of OTB"
    )
    others: Place | None = option(
        None, "folder of the results of other trackers to score too: <tracker>/<sequence>.txt", "FOLDER"
    )
    box: Annotated[str, AfterValidator(_check_box)] | None = option(
        None, "the target in the first frame of a video file; the first pixel is 1", "X,Y,W,H"
    )
    save: Place | None = option(None, "video file to write, with the boxes drawn in", "FILE", "output")


# --- all of them

PROTOCOL_CONFIGS: dict[str, type[EvaluateConfig]] = {
    "knn": KnnConfig,
    "linear": LinearConfig,
    "finetune": FinetuneConfig,
    "retrieval": RetrievalConfig,
    "action": ActionConfig,
    "tracking": TrackingConfig,
    "segmentation": SegmentationConfig,
    "propagation": PropagationConfig,
}
ProtocolName = Literal["knn", "linear", "finetune", "retrieval", "action", "tracking", "segmentation", "propagation"]


class AllConfig(BaseModel):
    """Every protocol on every dataset below a folder, in one table."""

    model_config = STRICT
    model: Name = option(..., MODEL, names="model")
    data_root: Place = option(
        ..., "folder with datasets somewhere below it, in any layout that a protocol reads", "FOLDER", names="folder"
    )
    only: tuple[ProtocolName, ...] = option((), "protocols to run (default: all that fit the data)", "PROTOCOL")
    baseline: bool = option(False, "also evaluate random weights of the same backbone")
    again: bool = option(False, "ignore earlier results with the same settings and evaluate again")
    image_size: Side | None = option(
        None, "side of the images, for protocols that have it (default: the size the model was trained at)", "PIXELS"
    )
    epochs: Count | None = option(None, "epochs, for protocols that train (default: those of the protocol)", "EPOCHS")
    out: Place | None = option(None, RESULTS, "FOLDER", "output")
    report: bool = option(True, REPORT, group="output")
    workers: Processes | None = option(None, LOADERS, "N", "hardware")
    seed: Seed = option(0, "seed of random weights and of all random choices", "SEED")
    device: Device = option("auto", DEVICES, "DEVICE", "hardware")
