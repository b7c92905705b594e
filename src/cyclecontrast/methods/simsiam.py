"""SimSiam (Chen & He 2021): two views predict each other, without negatives and without a momentum encoder."""

from torch import Tensor

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.distributed import ALONE, World
from cyclecontrast.methods.method import Losses, Method, StepInfo
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.encoder import Predictor
from cyclecontrast.models.hardware import autocast


class SimSiam(Method):
    """SimSiam, which has neither negatives nor a momentum encoder.

    A predictor maps the projection of a view to that of the other view, which gets no gradient (stop-gradient). If
    `positives` is video, the two views show two frames of a video. Differs from SimSiam's release: residual branches
    are not zero-initialized; augmentation and projector follow the options; BatchNorm statistics are per view.
    """

    learns_from = "two views that predict each other"
    reads = frozenset({"positives"})
    num_queries = 2
    constant_head_rate = True

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        dim = options.projector_dim
        self.head: Predictor = Predictor(dim, max(1, dim // 4))  # a bottleneck: 2048-512-2048

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the loss of a micro-batch with two views per video."""
        projections = [self.project(view) for view in batch.views]
        first, second = (projection.features().intra for projection in projections)  # NxD each
        with autocast(first.device, self.options.precision):
            of_second, of_first = (self.head(projection.intra) for projection in projections)
        loss = (negative_cosine(of_second, second) + negative_cosine(of_first, first)) / 2
        accuracy = self.in_batch_accuracy(first, second, batch.video) if info.measure else None
        return Losses(loss, loss, intra_accuracy=accuracy)


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the negative cosine similarity of prediction and target; no gradient through the target (SimSiam, BYOL).

    BYOL sums 2 + 2 · this value over both directions, where methods here use the mean of this value. Multiply BYOL's
    learning rates by 4.
    """
    return -(prediction * target.detach()).sum(dim=1).mean()
