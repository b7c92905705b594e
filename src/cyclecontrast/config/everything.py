"""What `evaluate all` takes."""

from typing import Literal

from pydantic import BaseModel, Field

from cyclecontrast.config.fields import STRICT, Count, Device, Name, Place, Processes, Seed, Side

ProtocolName = Literal["knn", "linear", "finetune", "retrieval", "action", "tracking", "segmentation", "propagation"]


class AllConfig(BaseModel):
    """Every protocol on every data set that lies below a folder, in one table."""

    model_config = STRICT
    model: Name = Field(description="a run, a backbone file, a checkpoint, timm:<name>, or random:<backbone>")
    data_root: Place = Field(description="folder below which data sets lie, in any layout that a protocol reads")
    only: tuple[ProtocolName, ...] = Field((), description="protocols to run; default: all that fit the data")
    baseline: bool = Field(False, description="evaluate random weights of the same backbone beside the model")
    again: bool = Field(False, description="evaluate again what was evaluated before with the same settings")
    image_size: Side | None = Field(None, description="where a protocol has one; default: the size it was trained at")
    epochs: Count | None = Field(None, description="where something is trained; default: each protocol's own")
    out: Place | None = Field(None, description="folder of results; default: the run's, else ./results")
    report: bool = Field(True, description="write the report.html of the run that is evaluated anew")
    workers: Processes | None = Field(None, description="processes that load images; default: the number of cores")
    seed: Seed = Field(0, description="of random weights and of every random choice")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N, mps")
