"""NNCLR (Dwibedi et al. 2021): the nearest key of a queue takes the place of a view; the other view must predict it."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.distributed import ALONE, World, all_gather
from cyclecontrast.loss import KeyQueue
from cyclecontrast.methods.method import Losses, Method, StepInfo
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.encoder import Predictor
from cyclecontrast.models.hardware import autocast


class NNCLR(Method):
    """NNCLR: positives across videos without a cycle, by the nearest projection among those of earlier steps.

    The queue holds projections of first views; there is no momentum encoder. With `mask_own_video`, the nearest key is
    one of another video. If `positives` is video, the two views show two frames of a video. Differs from the paper:
    SGD instead of LARS; augmentation and projector follow the options; negatives are not gathered from other
    processes; BatchNorm statistics are per view.
    """

    learns_from = "two views, of which one predicts the nearest frame of another video to the other"
    reads = frozenset({"temperature", "queue_size", "mask_own_video", "positives"})
    num_queries = 2
    num_enqueued = 1
    has_intra = True
    compares_queries = True

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        dim = options.projector_dim
        self.head: Predictor = Predictor(dim, 16 * dim)  # 256-4096-256
        self.intra_queue = KeyQueue(options.queue_size, dim, options.seed)
        self._new: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the loss of a batch with two views per video."""
        projections = [self.project(view) for view in batch.views]
        first, second = (projection.features().intra for projection in projections)  # NxD each
        with autocast(first.device, self.options.precision):
            from_first, from_second = (self.head(projection.intra) for projection in projections)
        ignore = (self.intra_queue.video == batch.video[:, None]) & self.options.mask_own_video  # NxK
        of_first, of_second = (nearest_key(view, self.intra_queue.keys, ignore) for view in (first, second))  # NxD
        loss = (self.contrast(of_first, from_second) + self.contrast(of_second, from_first)) / 2
        self._new.append((all_gather(first.detach(), self.world), all_gather(batch.video, self.world)))
        accuracy = self.in_batch_accuracy(first, second, batch.video) if info.measure else None
        return Losses(loss, loss, intra_accuracy=accuracy)

    def contrast(self, neighbor: Tensor, prediction: Tensor) -> Tensor:
        """Return the cross entropy of each neighbor's prediction among all predictions of the batch."""
        logits = neighbor @ prediction.T / self.options.temperature  # NxN
        return cross_entropy(logits, torch.arange(len(logits), device=logits.device))

    def after_step(self, info: StepInfo) -> None:
        """Push the projections of the first views into the queue."""
        for keys, video in self._new:
            self.intra_queue.push(keys, video)
        self._new.clear()


@torch.no_grad()
def nearest_key(query: Tensor, keys: Tensor, ignore: Tensor) -> Tensor:
    """Return the most similar unmasked key of each query; all unit vectors."""
    return keys[(query @ keys.T).masked_fill(ignore, float("-inf")).argmax(dim=1)]
