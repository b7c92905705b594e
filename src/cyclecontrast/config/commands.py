"""The options of all commands but `pretrain` and `evaluate`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from cyclecontrast.config.pretrain import LogTo
from cyclecontrast.config.types import (
    DEVICES,
    LOADERS,
    MODEL,
    STRICT,
    TRAINED_SIZE,
    BackboneName,
    Count,
    Device,
    FrameRate,
    HtmlFile,
    ImageSize,
    IsNumber,
    LocalPath,
    Name,
    NonNegativeInt,
    PathOrUrl,
    Seed,
    SmallCount,
    VectorFile,
    WorkerCount,
    option,
)

MODEL_SEED = "seed of random:<backbone>"


class DemoConfig(BaseModel):
    """Train, evaluate and report on built-in videos, in minutes."""

    model_config = STRICT
    out: LocalPath = option(Path("demo"), "folder for videos, frames, runs and report", "FOLDER")
    compare: bool = option(False, "also train the paper's method and its ablations intra-image and intra-video")
    seeds: SmallCount = option(1, "training runs of each method", "N")
    workers: WorkerCount | None = option(None, "worker processes (default: by the number of cores)", "N", "hardware")


# --- prepare


def _check_part(text: str) -> str:
    part, parts = map(int, text.split("/"))
    if part > parts:
        raise ValueError(f"there are {parts} parts, counted from 1")
    return text


Part = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}/[1-9][0-9]{0,3}$"), AfterValidator(_check_part)]


class PrepareConfig(BaseModel):
    """Extract frames of videos into a store on disk."""

    model_config = STRICT
    videos: LocalPath = option(..., "a folder of video files; subfolders are included", names="folder")
    out: LocalPath = option(..., "folder of the frame store; an unfinished store is completed", "FOLDER", "output")
    frames_per_video: Count | None = option(None, "number of evenly spaced frames per video (R2V2: 4)", "N")
    fps: FrameRate | None = option(None, "frames per second of video (default: 2, if no other sampling is set)", "FPS")
    every: Count | None = option(None, "extract every N-th frame", "N")
    keyframes: bool = option(False, "extract keyframes only, which are fastest to decode")
    size: Count = option(256, "short side of the frames; smaller frames are not enlarged", "PIXELS")
    quality: Annotated[int, Field(ge=1, le=100), IsNumber] = option(90, "JPEG quality", "PERCENT")
    max_pixels: Count = option(64_000_000, "skip videos whose frames have more pixels", "PIXELS")
    deinterlace: bool = option(False, "combine the two fields of interlaced frames (FFmpeg's bwdif)")
    keep_duplicates: bool = option(False, "use every video, also those with the same bytes as another one")
    shard_mb: Count = option(
        256,
        "maximum total size of the videos of a shard; shards are the unit of parallel work and resuming",
        "MB",
        "output",
    )
    workers: WorkerCount | None = option(
        None, "worker processes; 0: use the main process only (default: the number of cores)", "N", "hardware"
    )
    part: Part | None = option(
        None,
        "prepare only part I of N, to share the work among N machines that write to the same --out",
        "I/N",
        "hardware",
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        policies = ("frames_per_video", "fps", "every", "keyframes")
        chosen = [f"--{name.replace('_', '-')}" for name in policies if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other; choose one")
        return self


# --- embed, search, explore, label, export


class EmbedConfig(BaseModel):
    """Encode every frame as a vector and write the vectors to a file."""

    model_config = STRICT
    model: Name = option(..., MODEL, names="model")
    data: PathOrUrl = option(
        ...,
        "a folder of videos or images, a prepared store or its URL, a tree of frames, or the R2V2 layout",
        names="folder",
    )
    out: VectorFile = option(..., "file to write, .parquet or .npz", "FILE", "output")
    image_size: ImageSize | None = option(None, TRAINED_SIZE, "PIXELS")
    seed: Seed = option(0, MODEL_SEED, "SEED")
    batch_size: Count = option(256, "images per forward pass", "IMAGES", "hardware")
    workers: WorkerCount | None = option(None, LOADERS, "N", "hardware")
    device: Device = option("auto", DEVICES, "DEVICE", "hardware")


CLOCK = re.compile(r"(?:([0-9]{1,6}):)?([0-9]{1,6}):([0-9]{1,2}(?:\.[0-9]{1,9})?)")


def _to_seconds(value: object) -> object:
    """Convert h:mm:ss.s and mm:ss.s, the format of times in results, to seconds."""
    match = CLOCK.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    hours, minutes, seconds = match.groups(default="0")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False), IsNumber, BeforeValidator(_to_seconds)]


FRAMES = "frames of the index, to show images (default: the path in the index)"
AN_INDEX = "a file that embed wrote, .parquet or .npz"


class SearchConfig(BaseModel):
    """Find the frames most similar to an image or to a frame of a video."""

    model_config = STRICT
    index: VectorFile = option(..., AN_INDEX, names="file")
    image: LocalPath | None = option(None, "search for frames similar to this image", "FILE", names="file")
    video: Annotated[str, Field(min_length=1, max_length=10_000)] | None = option(
        None, "search for frames similar to a frame of this video, given by its id in the index", "ID"
    )
    frame: NonNegativeInt | None = option(None, "the frame of --video, by its index", "N")
    time: Seconds | None = option(
        None, "select the frame of --video nearest to this time, in seconds or h:mm:ss", "TIME"
    )
    top: SmallCount = option(10, "number of frames to find", "N")
    per_video: SmallCount | None = option(None, "at most this many results per video (default: no limit)", "N")
    other_videos: bool = option(False, "exclude frames of the query's own video")
    serve: bool = option(False, "search in the browser: start a local web server; Ctrl-C stops it")
    port: Annotated[int, Field(ge=0, le=65535), IsNumber] | None = option(
        None, "port of --serve; 0: any free port (default: 8765, or a free port)", "PORT"
    )
    faiss: bool = option(False, "with --serve: approximate search with faiss (extra `faiss`)")
    model: Name | None = option(
        None, "model that encodes the query (default: the path in the index)", "MODEL", names="model"
    )
    data: PathOrUrl | None = option(None, FRAMES, "DATA", names="folder")
    videos: LocalPath | None = option(
        None,
        "folder of the source videos, for playback with --serve (default: the training videos of the run)",
        "FOLDER",
        names="folder",
    )
    format: Literal["table", "json"] = option("table", "format of the printed results", group="output")
    html: HtmlFile | None = option(None, "also write an HTML page with images", "FILE", "output")
    device: Device = option("auto", DEVICES, "DEVICE", "hardware")

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        of_query = ("image", "video", "frame", "time", "top", "per_video", "other_videos", "format", "html")
        fields = type(self).model_fields
        named = [name for name in of_query if getattr(self, name) != fields[name].default]
        if self.serve and named:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in named)
            raise ValueError(f"with --serve, queries come from the web page; remove {flags}")
        if not self.serve and (problems := [*self._unfit_for_search()]):
            raise ValueError(*problems)
        return self

    def _unfit_for_search(self) -> Iterator[str]:
        of_video, of_image = self.video is not None, self.image is not None
        if of_image == of_video:
            yield "give one of --image FILE and --video ID, or --serve to search in the browser"
        if of_video and (self.frame is None) == (self.time is None):
            yield "--video needs one of --frame N and --time SECONDS"
        if not of_video and (self.frame is not None or self.time is not None):
            yield "--frame and --time need --video ID"
        if self.other_videos and of_image:
            yield "--other-videos needs --video, because an image belongs to no video"
        if self.faiss:
            yield "--faiss needs --serve, because building its index takes longer than one search"
        if self.port is not None:
            yield "--port needs --serve"
        if self.videos is not None:
            yield "--videos needs --serve; only the web page plays videos"
        if self.data is not None and self.html is None:
            yield "--data needs --html or --serve, because it is only used for thumbnails"
        encoding = [*(["--model"] if self.model else []), *(["--device"] if self.device != "auto" else [])]
        if of_video and not of_image and encoding:
            verb = "need" if encoding[1:] else "needs"
            yield f"{' and '.join(encoding)} {verb} --image or --serve; the vector of a frame is in the index"


Tools = tuple[Literal["label-studio", "fiftyone", "lightly-studio"], ...]


class ExploreConfig(BaseModel):
    """Find duplicates, groups, outliers and frames to label in footage."""

    model_config = STRICT
    index: VectorFile = option(..., AN_INDEX, names="file")
    sample: SmallCount = option(50, "number of frames to label, chosen to cover the footage", "N")
    groups: Annotated[int, Field(ge=1, le=100), IsNumber] | None = option(
        None, "number of groups, found by k-means (default: by the number of frames, 2 to 30)", "N"
    )
    duplicates: Annotated[float, Field(gt=0, le=1), IsNumber] = option(
        0.99, "cosine similarity from which a frame counts as a near-duplicate of another", "SIMILARITY"
    )
    max_frames: Annotated[int, Field(ge=1, le=100_000), IsNumber] = option(
        20_000, "most frames to compare; of a larger index, frames are drawn from all videos in turn", "N"
    )
    data: PathOrUrl | None = option(None, FRAMES, "DATA", names="folder")
    seed: Seed = option(0, "seed of the groups, the map and the choice of frames", "SEED")
    out: LocalPath | None = option(
        None, "new folder to write (default: INDEX's name with .explore)", "FOLDER", "output"
    )
    format: Tools = option(
        (), "also write the frames to label for other tools: label-studio, fiftyone, lightly-studio", "TOOL", "output"
    )


class LabelConfig(BaseModel):
    """Label all frames from a few examples, and test the labels."""

    model_config = STRICT
    index: VectorFile = option(..., AN_INDEX, names="file")
    labels: LocalPath = option(
        ..., "a CSV file with columns video, class and frame or time (or neither), or a saved classifier", names="file"
    )
    seed: Seed = option(0, "seed of the folds of cross-validation", "SEED")
    data: PathOrUrl | None = option(
        None, "frames of the index, for --format (default: the path in the index)", "DATA", names="folder"
    )
    out: LocalPath | None = option(None, "new folder to write (default: INDEX's name with .labels)", "FOLDER", "output")
    format: Tools = option(
        (), "also write the labeled frames for other tools: label-studio, fiftyone, lightly-studio", "TOOL", "output"
    )


class ExportConfig(BaseModel):
    """Write a backbone in a format that other tools load."""

    model_config = STRICT
    model: Name = option(..., MODEL, names="model")
    format: Literal["safetensors", "torchvision", "timm", "onnx", "detectron2", "huggingface"] = option(
        "safetensors", "target format", "FORMAT"
    )
    seed: Seed = option(0, MODEL_SEED, "SEED")
    out: LocalPath | None = option(
        None,
        "file, for huggingface folder, to write (default: backbone.<suffix of the format>, or backbone-huggingface)",
        "PATH",
        "output",
    )


# --- reports, runs, sweeps


class ReportConfig(BaseModel):
    """Write a static HTML report of one or more runs."""

    model_config = STRICT
    runs: tuple[LocalPath, ...] = option(..., "run folders, compared side by side", min_length=1)
    out: HtmlFile | None = option(None, "file to write (default: report.html in the first run)", "FILE", "output")
    seed: Seed = option(0, "seed of the random baseline and of the choice of frames", "SEED")
    download: bool = option(False, "also fetch what the runs name: frames at a URL, weights of a start timm:<name>")
    workers: WorkerCount | None = option(None, LOADERS, "N", "hardware")
    device: Device = option("auto", DEVICES, "DEVICE", "hardware")


class ListConfig(BaseModel):
    """List the runs in folders with progress, verdict and results."""

    model_config = STRICT
    folders: tuple[LocalPath, ...] = option(
        (Path("."),), "folders to search (default: current folder); subfolders of runs are skipped", min_length=1
    )
    depth: SmallCount = option(5, "levels of subfolders to search; links are not followed", "N")
    as_json: bool = option(False, "print all information about each run as JSON", alias="json")


class CompareConfig(BaseModel):
    """Compare runs: different settings, losses, health and results."""

    model_config = STRICT
    runs: tuple[LocalPath, ...] = option(..., "run folders, one column each", min_length=1)


TableName = Literal["table2", "table4", "table5", "table6", "table7", "table8", "table10"]


class SweepConfig(BaseModel):
    """Reproduce a table of the paper, with several seeds per row."""

    model_config = STRICT
    table: TableName = option(
        ...,
        "table2, table4, table10: losses, by tracking, image classification, action recognition; table5, table6: "
        "support size; "
        "table7: K; table8: λ",
    )
    data: LocalPath = option(
        ..., "training data: a store, a folder of videos, a tree of frames, or the R2V2 layout", names="folder"
    )
    on: LocalPath | None = option(
        None,
        "labeled data to evaluate on: images, for table2 an OTB root, for table10 UCF101 (default: DATA)",
        "FOLDER",
        names="folder",
    )
    seeds: SmallCount = option(3, "training runs per row, with the seeds 0, 1, ...", "N")
    small: bool = option(
        False, "scale the support size and K with the number of videos, and use preset auto for all other settings"
    )
    preset: Literal["paper", "release"] | None = option(
        None, "preset for settings that are the same in all rows (default: paper; auto with --small)", "PRESET"
    )
    backbone: BackboneName | None = option(
        None, "resnet10, 18, 34 or 50, optionally with -small or -wN (default: the preset's)", "NAME"
    )
    image_size: ImageSize | None = option(None, "side of the square views (default: the preset's)", "PIXELS")
    batch_size: Count | None = option(None, "videos per step (default: the preset's)", "VIDEOS")
    epochs: Count | None = option(None, "passes over the training videos (default: the preset's)", "EPOCHS")
    steps: Count | None = option(None, "optimizer steps in total; overrides --epochs", "STEPS")
    flip: bool = option(True, "random horizontal flip; disable if left and right differ in meaning")
    train: bool = option(
        True,
        "table2: train the tracking head; if disabled, use cross-correlation of the backbone features without a head",
    )
    train_data: LocalPath | None = option(
        None, "table2: GOT-10k root to train the tracking head on (default: one next to the data)", "FOLDER"
    )
    jobs: SmallCount | None = option(
        None, "training runs at the same time (default: half the cores; 1 on a GPU)", "N", "hardware"
    )
    workers: WorkerCount | None = option(
        None, "image-loading processes per training run (default: by the number of cores)", "N", "hardware"
    )
    device: Device = option("auto", DEVICES, "DEVICE", "hardware")
    out: LocalPath | None = option(None, "folder for runs and tables (default: sweeps/<table>)", "FOLDER", "output")
    log_to: LogTo = option((), "also log each training run to tensorboard or wandb", "LOGGER", "output")
