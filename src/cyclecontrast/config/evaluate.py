"""The options of `evaluate`, with one config per protocol."""

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
    Count,
    Device,
    FrameRate,
    HalfOpenFraction,
    ImageSize,
    IsNumber,
    LocalPath,
    Name,
    NonNegative,
    NonNegativeInt,
    Positive,
    Seed,
    SmallCount,
    WorkerCount,
    option,
)

RESULTS = "folder for the results (default: that of the run, else ./results)"
REPORT = "update report.html of the evaluated run"


def _named_baseline(value: object) -> object:
    """Return the name for True and False, which --baseline and --no-baseline of `evaluate all` used to mean."""
    return ("random" if value else "none") if isinstance(value, bool) else value


BaselineName = Annotated[Literal["none", "random", "start"], BeforeValidator(_named_baseline)]
BASELINE = (
    "also evaluate, and compare with: random, the same backbone with random weights; start, the weights that the run "
    "started from (--init)"
)


class EvaluateConfig(BaseModel):
    """The options that all protocols share."""

    model_config = STRICT
    scoring: ClassVar[frozenset[str]] = frozenset()
    """Names of the settings that affect the scores but not the predictions."""

    model: Name = option(..., MODEL, names="model")
    data: LocalPath = option(..., "the folder of the dataset", names="folder")
    out: LocalPath | None = option(None, RESULTS, "FOLDER", "output")
    baseline: BaselineName = option("none", BASELINE, bare="random")
    score_only: bool = option(False, "score saved predictions again; model and data may be gone", group="output")
    report: bool = option(True, REPORT, group="output")
    workers: WorkerCount | None = option(None, LOADERS, "N", "hardware")
    seed: Seed = option(0, "seed of random:<backbone> and of all random choices", "SEED")
    device: Device = option("auto", DEVICES, "DEVICE", "hardware")

    def unusual(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, given the chosen mode, preset or head."""
        fields = type(self).model_fields
        given = {
            name: getattr(self, name)
            for name, field in fields.items()
            if field.is_required() or get_origin(field.annotation) is Literal
        }
        usual = type(self).model_validate(given)
        return {name: getattr(self, name) for name in fields if getattr(self, name) != getattr(usual, name)}


# --- classification of images

LABELED_IMAGES = (
    "train/<class> and val/<class> (or the flat val of ImageNet), or frames or images with train.txt and test.txt"
)


def _not_empty(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers:
        raise ValueError("give one number or more")
    return numbers


Counts = Annotated[tuple[Count, ...], AfterValidator(_not_empty)]
"""Values of k. `min_length` is not used, because it would report a wrong value twice."""


class ClassifyConfig(EvaluateConfig):
    """The options of protocols that classify images."""

    data: LocalPath = option(..., LABELED_IMAGES, names="folder")
    classes: LocalPath | None = option(
        None, "text file with the classes to use, one per line, e.g. for ImageNet-100 (default: all)", "FILE"
    )
    level: Literal["frame", "video"] = option("frame", "classify single frames, or the mean vector of each video")
    image_size: ImageSize | None = option(None, TRAINED_SIZE, "PIXELS")
    batch_size: Count = option(256, "images per forward pass", "IMAGES", "hardware")


class KnnConfig(ClassifyConfig):
    """k-NN classification of images with frozen features."""

    k: Counts = option((20, 10, 100, 200), "values of k, the number of neighbors that vote", "K")
    temperature: Positive = option(0.07, "neighbors vote with weight exp(similarity / temperature)", "NUMBER")


class LinearConfig(ClassifyConfig):
    """Classification of images by a linear probe on frozen features."""

    probe: Literal["auto", "lbfgs", "sgd"] = option(
        "auto",
        "lbfgs: logistic regression without a learning rate; sgd: recipe of the paper; auto: lbfgs up to 50,000 images",
    )
    epochs: Count = option(100, "epochs of the sgd probe; learning rate x0.1 at 60% and 80% of training", "EPOCHS")
    learning_rate: Positive = option(
        30.0, "learning rate of the sgd probe at batch size 256; scaled linearly with the batch size", "RATE"
    )


GBCU = {"image_size": 224, "learning_rate": 0.012, "head_learning_rate": 0.012, "weight_decay": 5e-4}
"""Defaults of `evaluate finetune --preset gbcu` (Basu et al. 2022): .003 at a batch size of 64, for all layers."""


class FinetuneConfig(ClassifyConfig):
    """Classification of images by fine-tuning all layers."""

    preset: Literal["none", "gbcu"] = option(
        "none", "gbcu: recipe and metrics of that data set; label 2 of three, malignant, against the rest"
    )
    epochs: Count = option(30, "epochs; learning rate x0.1 at 60% and 80% of training (gbcu: cosine)", "EPOCHS")
    batch_size: Annotated[int, Field(ge=2, le=MAX_COUNT), IsNumber] = option(
        64, "images per step and per forward pass", "IMAGES"
    )
    learning_rate: Positive = option(
        0.03, "learning rate of the backbone at batch size 256; scaled linearly with the batch size", "RATE"
    )
    head_learning_rate: Positive = option(
        0.3, "learning rate of the classifier at batch size 256; scaled linearly with the batch size", "RATE"
    )
    weight_decay: NonNegative = option(1e-4, "weight decay of SGD", "NUMBER")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**(GBCU if values.get("preset") == "gbcu" else {}), **values}


class ShapeBiasConfig(EvaluateConfig):
    """Decisions by shape or by texture where the two conflict."""

    data: LocalPath = option(
        ..., "a folder of images named <shape><n>-<texture><n>, e.g. cat1-clock2.png", names="folder"
    )
    train_data: LocalPath = option(
        ..., "labeled images of all shapes and textures: <class> or train/<class>", "DATA", names="folder"
    )
    classifier: Literal["knn", "linear"] = option("knn", "k-NN, or logistic regression, on frozen features")
    k: Count = option(20, "neighbors that vote, with --classifier knn", "K")
    temperature: Positive = option(0.07, "neighbors vote with weight exp(similarity / temperature)", "NUMBER")
    image_size: ImageSize | None = option(None, TRAINED_SIZE, "PIXELS")
    batch_size: Count = option(256, "images per forward pass", "IMAGES", "hardware")


# --- clips of videos

LABELED_VIDEOS = "a UCF101 or HMDB51 root: class folders in videos/, split lists in annotations/"
SPLIT = "number of the train/test split"
LINEAR_MODE = {"num_frames": 8, "batch_size": 64, "clips_per_video": 10, "dropout": 0.5}
"""Defaults of `evaluate action --mode linear` (Table 10)."""


class ActionConfig(EvaluateConfig):
    """Action recognition: a linear layer on mean frame features."""

    data: LocalPath = option(..., LABELED_VIDEOS, names="folder")
    mode: Literal["finetune", "linear"] = option(
        "finetune", "train all layers (Table 9), or the last layer only (Table 10)"
    )
    split: Count = option(1, SPLIT, "N")
    num_frames: SmallCount = option(32, "frames per clip; 8 with --mode linear", "N")
    fps: FrameRate = option(16.0, "frames per second of a clip", "FPS")
    image_size: ImageSize | None = option(None, TRAINED_SIZE, "PIXELS")
    flip: bool = option(True, "random horizontal flip of training clips; disable if left and right differ in meaning")
    batch_size: Count = option(32, "clips per step; 64 with --mode linear", "CLIPS")
    epochs: Count = option(
        16, "epochs after the warm-up; learning rate x0.3 after 6/16, 10/16 and 14/16 of them", "EPOCHS"
    )
    warmup_epochs: NonNegativeInt = option(5, "warm-up epochs, in which only the last layer is trained", "EPOCHS")
    clips_per_video: SmallCount = option(5, "clips per training video and epoch; 10 with --mode linear", "N")
    learning_rate: Positive = option(1e-4, "learning rate of Adam, not scaled with the batch size", "RATE")
    dropout: HalfOpenFraction = option(0.9, "dropout before the last layer; 0.5 with --mode linear", "FRACTION")
    bn: Literal["eval", "train"] = option(
        "eval", "BatchNorm in --mode linear: running statistics (eval), or batch statistics as in the release (train)"
    )
    num_clips: SmallCount = option(10, "evenly spaced clips per test video, over which the softmax is averaged", "N")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**(LINEAR_MODE if values.get("mode") == "linear" else {}), **values}

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.mode == "finetune" and self.bn == "train":
            raise ValueError("bn: train needs --mode linear; --mode finetune always uses batch statistics")
        return self


class RetrievalConfig(EvaluateConfig):
    """Nearest-neighbor retrieval of videos of the same class."""

    scoring: ClassVar[frozenset[str]] = frozenset({"k"})

    data: LocalPath = option(..., LABELED_VIDEOS, names="folder")
    split: Count = option(1, SPLIT, "N")
    level: Literal["frame", "clip", "video"] = option(
        "clip", "retrieve single frames, clips, or videos by the mean vector of their clips"
    )
    per_video: SmallCount = option(10, "evenly spaced frames or clips per video", "N")
    clip_length: SmallCount = option(16, "consecutive frames per clip", "FRAMES")
    k: Counts = option(
        (1, 5, 10, 20, 50),
        "values of k: a query counts as correct if one of its k nearest neighbors has its class",
        "K",
    )
    center: bool = option(False, "subtract the mean of each split from its vectors")
    image_size: ImageSize | None = option(None, TRAINED_SIZE, "PIXELS")
    batch_size: Count = option(256, "frames per forward pass", "FRAMES", "hardware")
    ann: Literal["exact", "faiss"] = option(
        "exact", "exact search, or approximate search with faiss (needs an extra package)"
    )


# --- masks

LABELED_PIXELS = (
    "a VOC, ADE20K or DAVIS root, train/ and val/ with images/ and masks/, or frames/ and masks/ with train.txt and "
    "test.txt"
)


def _check_stride(stride: int) -> int:
    if stride not in (2, 4, 8, 14, 16, 32):
        raise ValueError("must be 2, 4, 8, 14, 16 or 32")
    return stride


class SegmentationConfig(EvaluateConfig):
    """Semantic segmentation by a head on the feature map."""

    data: LocalPath = option(..., LABELED_PIXELS, names="folder")
    head: Literal["linear", "fcn"] = option("linear", "a 1x1 convolution, or an FCN head")
    frozen: bool = option(True, "train the head only, not the backbone")
    stride: Annotated[int, AfterValidator(_check_stride), IsNumber] = option(
        8, "stride of the feature map: 2, 4, 8, 14, 16 or 32", "PIXELS"
    )
    num_classes: Annotated[int, Field(ge=2, le=255), IsNumber] | None = option(
        None, "number of classes (default: 21 for VOC, 150 for ADE20K, else from the masks)", "N"
    )
    ignore_label: Annotated[int, Field(ge=0, le=255), IsNumber] = option(255, "label of pixels to ignore", "LABEL")
    train_list: Name = option("train", "list of training images; train_aug is the extended list of VOC", "NAME")
    crop_size: ImageSize = option(512, "side of the training crops", "PIXELS")
    flip: bool = option(True, "random horizontal flip of training crops")
    epochs: Count | None = option(None, "passes over the training images (default: 60 for ADE20K, else 45)", "EPOCHS")
    batch_size: Count = option(16, "images per step", "IMAGES")
    learning_rate: Positive = option(0.01, "initial learning rate; decays by (1 - epoch / epochs) ** 0.9", "RATE")
    weight_decay: NonNegative = option(1e-4, "weight decay of SGD", "NUMBER")


class PropagationConfig(EvaluateConfig):
    """Video object segmentation on DAVIS by label propagation."""

    data: LocalPath = option(..., "a DAVIS root: JPEGImages/480p, Annotations/480p, ImageSets", names="folder")
    preset: Literal["crw", "vfs", "dino"] = option("vfs", "use the settings of this project")
    year: Annotated[Literal["2016", "2017"], BeforeValidator(str)] | None = option(
        None, "year of the list of videos, 2016 or 2017 (default: 2017 if available)", "YEAR"
    )
    height: ImageSize | None = option(
        None, "height of the input images (default: 480; smaller frames are not enlarged)", "PIXELS"
    )
    stage: Annotated[int, Field(ge=1, le=4), IsNumber] = option(
        3, "backbone stage whose feature map is used: 1 to 4, also known as res2 to res5", "STAGE"
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
    """Object tracking with SiamFC on OTB, GOT-10k, or a video file."""

    scoring: ClassVar[frozenset[str]] = frozenset({"toolkit", "others"})

    data: LocalPath = option(..., "an OTB or GOT-10k root, or a video file with --box", names="path")
    subset: Literal["train", "val", "test"] = option("val", "subset of GOT-10k")
    tracker: Literal["siamfc", "identity", "perfect"] = option(
        "siamfc", "siamfc, or baselines: identity always predicts the first box, perfect the true box"
    )
    preset: Literal["release", "siamfc", "vince"] = option("release", "use the head, loss and geometry of this project")
    train: bool = option(True, "train the head; if disabled, raw features are correlated")
    train_data: LocalPath | None = option(
        None, "GOT-10k root to train the head on (default: one next to the data)", "FOLDER"
    )
    epochs: Count | None = option(None, "training epochs of the head (default: the preset's)", "EPOCHS")
    batch_size: Count | None = option(None, "pairs per step (default: the preset's)", "PAIRS")
    learning_rate: Positive | None = option(None, "learning rate of the head (default: the preset's)", "RATE")
    pairs_per_sequence: Count | None = option(
        None, "pairs per sequence and epoch (default: the preset's, or enough for 50 steps)", "PAIRS"
    )
    exact_geometry: bool = option(
        False, "use the exact size of the response map; the release approximates it by 17 cells"
    )
    fix_scale_penalty: bool = option(False, "also apply the scale penalty to negative response peaks")
    toolkit: Literal["got10k", "official"] = option(
        "got10k", "compute success and precision as the GOT-10k toolkit, or as the official code of OTB"
    )
    others: LocalPath | None = option(
        None, "folder with results of other trackers, which are scored too: <tracker>/<sequence>.txt", "FOLDER"
    )
    box: Annotated[str, AfterValidator(_check_box)] | None = option(
        None, "target box in the first frame of a video file; pixels are counted from 1", "X,Y,W,H"
    )
    save: LocalPath | None = option(None, "video file to write, with the predicted boxes", "FILE", "output")


# --- all of them

PROTOCOL_CONFIGS: dict[str, type[EvaluateConfig]] = {
    "knn": KnnConfig,
    "linear": LinearConfig,
    "finetune": FinetuneConfig,
    "shape-bias": ShapeBiasConfig,
    "retrieval": RetrievalConfig,
    "action": ActionConfig,
    "tracking": TrackingConfig,
    "segmentation": SegmentationConfig,
    "propagation": PropagationConfig,
}
ProtocolName = Literal[
    "knn", "linear", "finetune", "shape-bias", "retrieval", "action", "tracking", "segmentation", "propagation"
]


class AllConfig(BaseModel):
    """Run all protocols on all datasets in a folder."""

    model_config = STRICT
    model: Name = option(..., MODEL, names="model")
    data_root: LocalPath = option(
        ..., "a folder with datasets at any depth, in any layout that a protocol reads", "FOLDER", names="folder"
    )
    only: tuple[ProtocolName, ...] = option((), "protocols to run (default: all that support the data)", "PROTOCOL")
    baseline: BaselineName = option("none", BASELINE, bare="random")
    again: bool = option(False, "evaluate again, even if there are results with the same settings")
    image_size: ImageSize | None = option(
        None, "side of the input images, if the protocol has it (default: the training size of the model)", "PIXELS"
    )
    epochs: Count | None = option(None, "epochs, for protocols that train (default: the protocol's)", "EPOCHS")
    out: LocalPath | None = option(None, RESULTS, "FOLDER", "output")
    report: bool = option(True, REPORT, group="output")
    workers: WorkerCount | None = option(None, LOADERS, "N", "hardware")
    seed: Seed = option(0, "seed of random weights and of all random choices", "SEED")
    device: Device = option("auto", DEVICES, "DEVICE", "hardware")
