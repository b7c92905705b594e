"""BYOL (Grill et al. 2020): each view predicts the momentum encoder's projection of the other view."""

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.distributed import ALONE, World
from cyclecontrast.methods.method import Losses, MomentumMethod, StepInfo
from cyclecontrast.methods.simsiam import negative_cosine
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.encoder import Predictor
from cyclecontrast.models.hardware import autocast


class BYOL(MomentumMethod):
    """BYOL: a predictor maps the projection of a view to the momentum encoder's projection of the other view.

    If `positives` is video, the two views show two frames of a video.
    Differs from BYOL's release: the optimizer is SGD instead of LARS; augmentation and projector follow the options;
    BatchNorm statistics are per view.
    """

    learns_from = "two views, each predicting the momentum encoder's projection of the other"
    reads = MomentumMethod.reads - {"temperature"} | {"positives"}
    num_queries = 2
    num_enqueued = 0

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        dim = options.projector_dim
        self.head: Predictor = Predictor(dim, 16 * dim)  # 256-4096-256

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the loss of a micro-batch with two views per video."""
        of_second, of_first = (self.encode_keys(view, info).intra for view in reversed(batch.views))  # NxD each
        projections = [self.project(view) for view in batch.views]
        with autocast(of_first.device, self.options.precision):
            from_first, from_second = (self.head(projection.intra) for projection in projections)
        loss = (negative_cosine(from_first, of_second) + negative_cosine(from_second, of_first)) / 2
        query = projections[0].features().intra
        accuracy = self.in_batch_accuracy(query, of_second, batch.video) if info.measure else None
        return Losses(loss, loss, intra_accuracy=accuracy)
