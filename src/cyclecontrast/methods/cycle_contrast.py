"""Cross-video cycle-consistency (Wu & Wang, ICCV 2021), from pixels to loss: Eq. 1 to 6 and Algorithm 1.

Shapes in trailing comments: N videos in the micro-batch, D dimensions of the unit vectors, K keys that queries are
compared with (those of the queue and, with `batch_keys`, of the current batch), S keys in the support U.

The encoder maps one frame of a video to a query, the momentum encoder maps another frame of the same video to a key.
Both return two vectors, one for the intra-video loss and one for the cycle loss. The queues hold keys of earlier steps
and the numbers of their videos.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, ExtraFrames
from cyclecontrast.loss import cycle_consistency, info_nce, is_nearest, soft_nearest_neighbor
from cyclecontrast.methods.method import Candidates, Losses, MomentumMethod, StepInfo
from cyclecontrast.models.encoder import Features


class SupportSplit(NamedTuple):
    """The keys of the cycle loss: support U (S, D) and negatives (K - S, D), and a mask (N, ...) for each.

    True ignores a key.
    """

    support: Tensor
    negatives: Tensor
    ignore_support: Tensor
    ignore_negatives: Tensor


class CycleContrast(MomentumMethod):
    """The paper's method, Eq. 6: intra-video contrast + λ · cycle-consistency across videos.

    Differs from the release, which encodes three views and enqueues the second view of the query's frame. Here, two
    views are encoded and the positive is enqueued. BatchNorm statistics of keys are per group of `bn_groups` (release:
    per pair of keys); those of queries are per micro-batch (release: per GPU, of eight). Differs from the release: all
    processes use the same support, so it does not depend on their number.
    """

    learns_from = "frames of the same video and cycles across videos"
    reads = MomentumMethod.reads | {
        *("queue_size", "batch_keys", "mask_own_video", "cycle_weight", "cycle_start"),
        *("cycle_queue_size", "support_size", "top_k", "split_by"),
    }
    has_intra = True
    has_cycle = True

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses of a micro-batch; views[0] are the queries, views[1] their positives."""
        options, temperature = self.options, self.options.temperature
        key = self.encode_keys(batch.views[1], info)  # key.intra and key.cycle: NxD each
        new, new_video = self.stage_keys([key], batch.video)  # batch keys of all processes
        query = self.encode(batch.views[0])  # query.intra and query.cycle: NxD each

        # Eq. 2: another frame of the query's video is contrasted with frames of other videos.
        intra_keys = self.candidates(self.intra_queue, new.intra, new_video)  # KxD
        ignore = intra_keys.ignore(batch.video, own_video=options.mask_own_video)  # NxK
        intra = info_nce(query.intra, key.intra, intra_keys.keys, temperature, ignore)

        # Eq. 3-5: the query's soft nearest neighbor in other videos must cycle back to the query's own video.
        cycle_keys = self.candidates(self.cycle_queue, new.cycle, new_video)  # KxD
        split = self.split(cycle_keys, batch.video, info)  # support SxD, negatives (K-S)xD, masks NxS and Nx(K-S)
        # λ; if λ = 0, the cycle loss is computed without gradient, for the metrics only
        weight = self.cycle_weight(info) or 0.0
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
            cycle = self.cycle_loss(query, key, split)
        total = intra + weight * cycle  # Eq. 6

        if not info.measure:
            return Losses(total, intra, cycle)
        accuracy = self.accuracy(query.intra, key.intra, intra_keys.keys, ignore)
        return Losses(total, intra, cycle, None, accuracy, self.closed(query, key, split))

    def cycle_loss(self, query: Features, key: Features, split: SupportSplit) -> Tensor:
        """Return Eq. 5: the query's soft nearest neighbor in U (Eq. 3, 4) must cycle back to the query's video."""
        return cycle_consistency(
            query.cycle,  # NxD
            key.cycle,  # NxD
            split.support,  # SxD
            split.negatives,  # (K-S)xD
            self.options.temperature,
            split.ignore_support,  # NxS
            split.ignore_negatives,  # Nx(K-S)
            self.options.top_k,
        )

    def cycle_weight(self, info: StepInfo) -> float | None:
        """Return λ: 0 before the fraction `cycle_start` of the training."""
        return self.options.cycle_weight if info.progress >= self.options.cycle_start else 0.0

    def split(self, candidates: Candidates, video: Tensor, info: StepInfo) -> SupportSplit:
        """Return a random split of the candidates into the support U and the negatives (Algorithm 1).

        Differs from the release with `split_by` video: no video is in both sets. Keys are sorted by a hash of their
        video number. If the boundary cuts a video, its keys outside of the support are masked, not used as negatives.
        """
        size, by_video = self.options.support_size, self.options.split_by == "video"
        index = torch.arange(len(candidates.keys), device=candidates.keys.device)
        groups = candidates.video.where(candidates.video >= 0, -1 - index) if by_video else index
        order = hash_integers(groups, self.seed(info)).argsort(stable=True)
        keys = candidates.keys.index_select(0, order)  # keys[order] is 5 times slower
        positive_index = None if candidates.positive_index is None else order.argsort()[candidates.positive_index]
        drawn = Candidates(keys, candidates.video[order], positive_index)
        ignore = drawn.ignore(video, own_video=self.options.mask_own_video)
        if by_video:
            border = drawn.video[:size][-1:]
            ignore[:, size:].logical_or_((drawn.video[size:] == border) & (border >= 0))
        return SupportSplit(keys[:size], keys[size:], ignore[:, :size], ignore[:, size:])

    @torch.no_grad()
    def closed(self, query: Features, key: Features, split: SupportSplit) -> Tensor:
        """Return the fraction of cycles that close, over the queries that have candidates in the support."""
        temperature, top_k = self.options.temperature, self.options.top_k
        neighbor = soft_nearest_neighbor(query.cycle, split.support, temperature, split.ignore_support, top_k)  # NxD
        ends = is_nearest(neighbor, key.cycle, split.negatives, split.ignore_negatives)
        return ends[~split.ignore_support.all(dim=1)].float().mean()


class IntraVideo(MomentumMethod):
    """Intra-video loss (Eq. 2): contrasts two frames of a video with frames of other videos."""

    learns_from = "frames of the same video"
    reads = MomentumMethod.reads | {"queue_size", "batch_keys", "mask_own_video"}
    has_intra = True
    masks_own_video = True
    """Whether keys of the query's own video may be masked."""

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the intra loss of a micro-batch; views[0] are the queries, views[1] their positives."""
        key = self.encode_keys(batch.views[1], info)  # NxD
        new, new_video = self.stage_keys([key], batch.video)
        query = self.encode(batch.views[0])  # NxD
        intra_keys = self.candidates(self.intra_queue, new.intra, new_video)  # KxD
        ignore = intra_keys.ignore(batch.video, own_video=self.masks_own_video and self.options.mask_own_video)  # NxK
        intra = info_nce(query.intra, key.intra, intra_keys.keys, self.options.temperature, ignore)
        accuracy = self.accuracy(query.intra, key.intra, intra_keys.keys, ignore) if info.measure else None
        return Losses(intra, intra, intra_accuracy=accuracy)


class IntraImage(IntraVideo):
    """Intra-image loss (Eq. 1), as in MoCo: contrasts two views of a frame with all other keys."""

    learns_from = "two views of one frame"
    reads = IntraVideo.reads - {"mask_own_video"}
    same_frame = True
    masks_own_video = False


class CycleOnly(CycleContrast):
    """Cycle loss (Eq. 5) without the intra loss (Table 5).

    `query_frame_in_support` adds k++, another view of the query's frame, to the support.
    """

    learns_from = "cycles across videos"
    reads = CycleContrast.reads - {"queue_size", "cycle_weight", "cycle_start"}
    has_intra = False

    def cycle_weight(self, info: StepInfo) -> None:
        """Return None, because there is no intra loss to weigh the cycle loss against."""

    @classmethod
    def frames(cls, options: PretrainConfig) -> tuple[bool, ExtraFrames]:
        """Return False (two frames), and the function that draws the extra view's frame if k++ is enabled."""
        return (False, _query_again) if options.query_frame_in_support else super().frames(options)

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the cycle loss of a micro-batch; views[0] are the queries, views[1] the positives, views[2] is k++."""
        key, *own_keys = (self.encode_keys(view, info) for view in batch.views[1:])  # NxD
        new, new_video = self.stage_keys([key], batch.video)
        query = self.encode(batch.views[0])  # NxD
        keys = self.candidates(self.cycle_queue, new.cycle, new_video)  # KxD
        split = self.split(keys, batch.video, info)
        for own in own_keys:
            # Differs from the release, which adds the query itself to its support.
            of_others = ~torch.eye(len(own.cycle), dtype=torch.bool, device=own.cycle.device)
            split = split._replace(
                support=torch.cat((split.support, own.cycle)),  # (S+N)xD
                ignore_support=torch.cat((split.ignore_support, of_others), dim=1),  # Nx(S+N)
            )
        cycle = self.cycle_loss(query, key, split)
        return Losses(cycle, None, cycle, cycle_closed=self.closed(query, key, split) if info.measure else None)


def hash_integers(numbers: Tensor, seed: int) -> Tensor:
    """Return a hash of each integer (splitmix64); sorting by it gives the same random order on every device."""
    for shift, factor in ((30, 0x1CE4E5B9BF58476D), (27, 0x133111EB94D049BB)):
        numbers = (numbers + seed * 0x1E3779B97F4A7C15 % 2**63) ^ (numbers >> shift)
        numbers = numbers * factor
    return numbers ^ (numbers >> 31)


def _query_again(rng: np.random.Generator, query: int, num_frames: int) -> tuple[int, ...]:
    return (query,)
