"""SeCo (Yao et al. 2021): inter-frame and intra-frame contrast, and the order of frames."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, ExtraFrames
from cyclecontrast.distributed import ALONE, World
from cyclecontrast.loss import info_nce
from cyclecontrast.loss.losses import masked_mean
from cyclecontrast.methods.method import Losses, MomentumMethod, StepInfo
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.hardware import autocast


class SeCo(MomentumMethod):
    """The sum of three losses; the paper calls them inter-frame, intra-frame and temporal order.

    `inter` contrasts the query's three keys (same frame and two other frames) with the queue. `intra` contrasts the key
    of the query's own frame with the key of another frame of its video. `order` classifies whether the query is before
    or after two other frames. Differs from SeCo's release: keys of the query's own video are masked; both contrasts
    share one temperature; videos of one frame contribute to `inter` only; `order` shares the projector of `intra`
    instead of having its own; BatchNorm statistics are per view.
    """

    learns_from = "frames of the same video, their differences and their order"
    reads = MomentumMethod.reads | {"queue_size", "batch_keys", "mask_own_video"}
    same_frame = True
    num_enqueued = 3
    has_intra = True

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        self.head: OrderHead = OrderHead(options.projector_dim)

    @classmethod
    def frames(cls, options: PretrainConfig) -> tuple[bool, ExtraFrames]:
        """Return True (one frame for both), and a function that draws two frames of the video's other half."""
        return True, _other_half

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses of a micro-batch.

        Views[0] are the queries, views[1] their positives, views[2] and views[3] other frames.
        """
        temperature = self.options.temperature
        same, *others = each_key = [self.encode_keys(view, info) for view in batch.views[1:]]  # NxD each
        new, new_video = self.stage_keys(each_key, batch.video)
        query = self.encode(batch.views[0])  # NxD
        with autocast(query.cycle.device, self.options.precision):
            logits = self.head(torch.cat((query.cycle, *(other.cycle for other in others)), dim=1)).float()  # Nx2
        keys = self.candidates(self.intra_queue, new.intra, new_video)  # KxD
        ignore = keys.ignore(batch.video, own_video=self.options.mask_own_video) | keys.batch_keys_of_video(
            batch.video
        )  # NxK

        inter = torch.stack(
            [info_nce(query.intra, key.intra, keys.keys, temperature, ignore) for key in each_key]
        ).mean()

        frame, other_frames = batch.frames[:, :1], batch.frames[:, 2:]  # Nx1, Nx2
        intra = torch.stack(
            [
                intra_frame_loss(query.cycle, same.cycle, other.cycle, temperature, differs)
                for other, differs in zip(others, (frame != other_frames).T, strict=True)
            ]
        ).mean()

        is_before, is_after = (frame < other_frames).all(dim=1), (frame > other_frames).all(dim=1)
        order = order_loss(logits, is_after, is_before | is_after)

        accuracy = self.accuracy(query.intra, same.intra, keys.keys, ignore) if info.measure else None
        terms = {"same_frame": intra, "order": order}
        return Losses(inter + intra + order, inter, None, terms, accuracy)


class OrderHead(nn.Module):
    """A linear classifier: whether the query is before (0) or after (1) two other frames of its video."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * dim, 2)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return logits (batch, 2) for the three frames' vectors (batch, 3 * dim)."""
        logits: Tensor = self.layer(vectors)
        return logits


def _other_half(rng: np.random.Generator, query: int, num_frames: int) -> tuple[int, ...]:
    """Return two frames, in temporal order, from the half of the video that does not contain the query.

    Differs from SeCo's release: the query is drawn from all frames; the release draws it from either half with equal
    probability. In a video of one frame, all three frames are the same.
    """
    half = num_frames // 2
    low, high = (half, num_frames) if query < half or num_frames == 1 else (0, half)
    return tuple(sorted(int(frame) for frame in rng.integers(low, high, size=2)))


def intra_frame_loss(query: Tensor, same: Tensor, other: Tensor, temperature: float, counts: Tensor) -> Tensor:
    """Return SeCo's intra-frame loss: the key of the query's frame against one negative, a key of another frame.

    The mean is over the rows where `counts` (batch,) is True. Gradient through the query only.
    """
    margin = (query * (other - same).detach()).sum(dim=1) / temperature
    return masked_mean(softplus(margin), counts)


def order_loss(logits: Tensor, is_after: Tensor, counts: Tensor) -> Tensor:
    """Return the cross entropy of logits (batch, 2) for a query before (0) or after (1) the other frames of its video.

    Only rows where `counts` (batch,) is True enter the mean.
    """
    return masked_mean(cross_entropy(logits, is_after.long(), reduction="none"), counts)
