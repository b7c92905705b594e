"""What `embed`, `export`, `report` and `demo` take."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from cyclecontrast.config.fields import STRICT, Count, Device, Seed, Side, Whole


class EmbedConfig(BaseModel):
    """One row per frame: frame index, video id, time, vector."""

    model_config = STRICT
    model: str = Field(description="a run, a backbone file, a checkpoint, timm:<name>, or random:<backbone>")
    data: Path = Field(description="a prepared store, a tree of frames, the R2V2 layout, or a folder of images")
    out: Path = Field(description="file to write, .parquet or .npz")
    image_size: Side | None = Field(None, description="default: the size it was trained at")
    batch_size: Count = Field(256, description="images per forward pass")
    workers: Whole | None = Field(None, description="processes that load images; default: the number of cores")
    seed: Seed = Field(0, description="of random:<backbone>")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N, mps")

    @model_validator(mode="after")
    def _known_suffix(self) -> Self:
        if self.out.suffix.lower() not in {".parquet", ".npz"}:
            raise ValueError(f"out ({self.out}) must end in .parquet or .npz")
        return self


class ExportConfig(BaseModel):
    """A backbone → a file that other tools load."""

    model_config = STRICT
    model: str = Field(description="a run, a backbone file, a checkpoint, timm:<name>, or random:<backbone>")
    format: Literal["safetensors", "torchvision"] = Field("safetensors", description="what the file is for")
    out: Path | None = Field(None, description="file to write; default: backbone.safetensors or backbone.pth")
    seed: Seed = Field(0, description="of random:<backbone>")


class ReportConfig(BaseModel):
    """Runs → one static HTML file."""

    model_config = STRICT
    runs: tuple[Path, ...] = Field(min_length=1, description="run folders, shown side by side")
    out: Path | None = Field(None, description="file to write; default: report.html in the first run")
    seed: Seed = Field(0, description="of the frames whose neighbors are shown, and of the random baseline")
    workers: Whole | None = Field(None, description="processes that load images; default: the number of cores")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N, mps")

    @model_validator(mode="after")
    def _is_a_page(self) -> Self:
        if self.out is not None and self.out.suffix.lower() not in {".html", ".htm"}:
            raise ValueError(f"out ({self.out}) must end in .html")
        return self


class DemoConfig(BaseModel):
    """Built-in videos → frames → backbone → evaluation → report."""

    model_config = STRICT
    out: Path = Field(Path("demo"), description="folder of the demo's videos, frames, runs and report")
    compare: bool = Field(False, description="train intra-image and intra-video beside the full method")
    seeds: Count = Field(1, description="trainings of each objective")
    workers: Whole | None = Field(None, description="processes; default: the number of cores")
