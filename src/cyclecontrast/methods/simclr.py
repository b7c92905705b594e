"""SimCLR (Chen et al. 2020): each view is contrasted with the other views of its video among all views of the batch."""

from functools import partial

import torch
from torch import Tensor

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, ExtraFrames, random_frames
from cyclecontrast.distributed import ALONE, World
from cyclecontrast.methods.method import Losses, Method, StepInfo
from cyclecontrast.methods.vince import nce_of_pairs
from cyclecontrast.models.backbone import Backbone


class SimCLR(Method):
    """SimCLR: NT-Xent over the views of a batch. If `positives` is video, the views show frames of a video.

    With more than two `views` of a video, each is contrasted with each other one (as in VINCE and SupCon).
    Differs from SimCLR's release: negatives are not gathered from other processes; the optimizer is SGD instead of
    LARS; BatchNorm statistics are per view.
    """

    learns_from = "two views, contrasted with all others of the batch"
    reads = frozenset({"temperature", "positives", "views"})
    num_queries = 2
    compares_queries = True

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        self.num_queries = options.views  # type: ignore[misc]

    @classmethod
    def frames(cls, options: PretrainConfig) -> tuple[bool, ExtraFrames]:
        """Return whether the first two views show the same frame, and a function that draws frames of further views."""
        same_frame, none = super().frames(options)
        return same_frame, partial(random_frames, options.views - 2) if options.views > 2 else none

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the loss of a batch."""
        views = [self.encode(view).intra for view in batch.views]  # NxD each
        loss = nt_xent(views, self.options.temperature)
        accuracy = self.in_batch_accuracy(views[0], views[1], batch.video) if info.measure else None
        return Losses(loss, loss, intra_accuracy=accuracy)


def nt_xent(views: list[Tensor], temperature: float) -> Tensor:
    """Return NT-Xent: the mean cross entropy of each pair of views of an image among the views of all other images.

    Each of the views is (num_images, dim); row i of all of them shows image i.
    """
    every = torch.cat(views)
    image = torch.arange(len(views[0]), device=every.device).repeat(len(views))
    same = image == image[:, None]
    others = same ^ torch.eye(len(every), dtype=torch.bool, device=every.device)
    return nce_of_pairs(every @ every.T / temperature, others, same)
