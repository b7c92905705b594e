"""What `embed`, `export`, `report` and `demo` take."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from cyclecontrast.config.fields import STRICT, Count, Device, Few, Name, Place, PlaceOrUrl, Processes, Seed, Side


def _of_vectors(file: Path) -> Path:
    if file.suffix.lower() not in {".parquet", ".npz"}:
        raise ValueError("must end in .parquet or .npz")
    return file


def _of_a_page(file: Path) -> Path:
    if file.suffix.lower() not in {".html", ".htm"}:
        raise ValueError("must end in .html")
    return file


Vectors = Annotated[Place, AfterValidator(_of_vectors)]
Page = Annotated[Place, AfterValidator(_of_a_page)]


class EmbedConfig(BaseModel):
    """One row per frame: frame index, video id, time, vector."""

    model_config = STRICT
    model: Name = Field(description="a run, a backbone file, a checkpoint, timm:<name>, or random:<backbone>")
    data: PlaceOrUrl = Field(
        description="a prepared store or its URL, a tree of frames, the R2V2 layout, or a folder of images"
    )
    out: Vectors = Field(description="file to write, .parquet or .npz")
    image_size: Side | None = Field(None, description="default: the size it was trained at")
    batch_size: Count = Field(256, description="images per forward pass")
    workers: Processes | None = Field(None, description="processes that load images; default: the number of cores")
    seed: Seed = Field(0, description="of random:<backbone>")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N, mps")


class ExportConfig(BaseModel):
    """A backbone → a file or folder that other tools load."""

    model_config = STRICT
    model: Name = Field(description="a run, a backbone file, a checkpoint, timm:<name>, or random:<backbone>")
    format: Literal["safetensors", "torchvision", "timm", "onnx", "detectron2", "huggingface"] = Field(
        "safetensors", description="what it is for"
    )
    out: Place | None = Field(
        None,
        description="file to write, for huggingface a folder; default: backbone.safetensors, .pth, .onnx or .pkl, or "
        "backbone-huggingface",
    )
    seed: Seed = Field(0, description="of random:<backbone>")


class ReportConfig(BaseModel):
    """Runs → one static HTML file."""

    model_config = STRICT
    runs: tuple[Place, ...] = Field(min_length=1, description="run folders, shown side by side")
    out: Page | None = Field(None, description="file to write; default: report.html in the first run")
    seed: Seed = Field(0, description="of the frames whose neighbors are shown, and of the random baseline")
    workers: Processes | None = Field(None, description="processes that load images; default: the number of cores")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N, mps")


class DemoConfig(BaseModel):
    """Built-in videos → frames → backbone → evaluation → report."""

    model_config = STRICT
    out: Place = Field(Path("demo"), description="folder of the demo's videos, frames, runs and report")
    compare: bool = Field(False, description="train intra-image and intra-video beside the full method")
    seeds: Few = Field(1, description="trainings of each objective")
    workers: Processes | None = Field(None, description="processes; default: the number of cores")
