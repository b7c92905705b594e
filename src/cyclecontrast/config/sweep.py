"""What `sweep` takes."""

from typing import Literal

from pydantic import BaseModel, Field

from cyclecontrast.config.fields import STRICT, BackboneName, Count, Device, Few, Place, Processes, Side
from cyclecontrast.config.pretrain import LogTo

TableName = Literal["table2", "table4", "table5", "table6", "table7", "table8", "table10"]


class SweepConfig(BaseModel):
    """An ablation table of the paper: a row per setting, over seeds, beside the paper's figures."""

    model_config = STRICT
    table: TableName = Field(
        description="table2, table4, table10: losses, by tracking, images, actions; table5, table6: size of U; "
        "table7: K; table8: λ"
    )
    data: Place = Field(description="what is pretrained on: a store, a folder of videos, a tree of frames, or R2V2")
    on: Place | None = Field(
        None,
        description="labeled data to evaluate on: images, for table2 an OTB root, for table10 UCF101; default: DATA",
    )
    out: Place | None = Field(None, description="folder of runs and tables; default: sweeps/<table>")
    seeds: Few = Field(3, description="trainings of each row, with the seeds 0, 1, ...")
    small: bool = Field(False, description="scale U and K with the number of videos; all else is decided by auto")
    preset: Literal["paper", "release"] | None = Field(
        None, description="paper or release: what is not the row's; default: paper, with --small auto"
    )
    backbone: BackboneName | None = Field(None, description="resnet10|18|34|50, with -small or -wN; default: preset's")
    image_size: Side | None = Field(None, description="side of the square views in pixels; default: the preset's")
    batch_size: Count | None = Field(None, description="videos per step; default: the preset's")
    epochs: Count | None = Field(None, description="passes over the videos; default: the preset's")
    steps: Count | None = Field(None, description="updates in all; overrides --epochs")
    flip: bool = Field(True, description="mirror half of the views; off where left and right differ in meaning")
    train: bool = Field(True, description="table2: train the tracker's head, or correlate the raw features")
    train_data: Place | None = Field(
        None, description="table2: GOT-10k root to train the tracker's head on; default: one beside the data"
    )
    jobs: Few | None = Field(None, description="trainings at once; default: half the cores, 1 on a GPU")
    workers: Processes | None = Field(None, description="processes of each training that load images")
    log_to: LogTo = Field((), description="viewers of each training's metrics, as of pretrain: tensorboard, wandb")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N, mps")
