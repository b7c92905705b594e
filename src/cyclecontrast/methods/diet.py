"""DIET (Balestriero 2023): the number of a video is its class, and a linear layer classifies the video's frames."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cyclecontrast.data.dataset import Batch
from cyclecontrast.methods.method import Losses, Method, StepInfo
from cyclecontrast.models.hardware import autocast

SMOOTHING = 0.8
"""The label smoothing of DIET."""


class DIET(Method):
    """DIET: a linear layer without bias assigns each view to one of the training videos; cross-entropy with smoothing.

    Both views of a video are classified, which show two of its frames, so that a step costs as much as one of SimCLR.
    The layer has a row per training video. In a flat folder of images each image is a class, as in the paper.
    Differs from DIET's release: SGD instead of AdamW; augmentation follows the options; BatchNorm statistics are per
    view.
    """

    learns_from = "the number of each frame's video, as its class"
    num_queries = 2
    has_projectors = False
    needs_videos = False
    videos: Tensor

    def prepare(self, videos: Tensor) -> None:
        """Make the classifier of these videos."""
        self.head: nn.Linear = nn.Linear(self.encoder.backbone.dim, len(videos), bias=False)
        self.register_buffer("videos", videos, persistent=False)

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the loss of a micro-batch with two views per video; the accuracy is that of the classification."""
        representations = [self.project(view).intra for view in batch.views]  # NxD each
        with autocast(batch.video.device, self.options.precision):
            logits = self.head(torch.cat(representations)).float()  # 2N x number of training videos
        label = torch.searchsorted(self.videos, batch.video).repeat(len(representations))
        loss = cross_entropy(logits, label, label_smoothing=SMOOTHING)
        accuracy = (logits.argmax(dim=1) == label).float().mean() if info.measure else None
        return Losses(loss, intra_accuracy=accuracy)
