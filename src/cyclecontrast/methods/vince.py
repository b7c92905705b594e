"""VINCE (Gordon et al. 2020): four queries and four keys of each video; every key is a positive of every query."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, ExtraFrames, random_frames
from cyclecontrast.loss.losses import masked_mean
from cyclecontrast.methods.method import Losses, MomentumMethod, StepInfo

NUM_PAIRS = 4


class VINCE(MomentumMethod):
    """VINCE: contrasts four queries of a video with its four keys; negatives are the other keys of batch and queue.

    Differs from VINCE's release with `mask_own_video`: the release uses older keys of the query's video as negatives.
    Differs from VINCE's release: BatchNorm statistics are per view; augmentation and projector follow the options.
    """

    learns_from = "eight frames of the same video, four queries and four keys"
    reads = MomentumMethod.reads | {"queue_size", "mask_own_video"}
    num_queries = NUM_PAIRS
    num_enqueued = NUM_PAIRS
    has_intra = True
    always_batch_keys = True

    @classmethod
    def frames(cls, options: PretrainConfig) -> tuple[bool, ExtraFrames]:
        """Return two frames of the video, and a function that draws six more."""
        return False, partial(random_frames, 2 * (NUM_PAIRS - 1))

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses; even views are queries, odd views their positives."""
        options = self.options
        each_key = [self.encode_keys(view, info) for view in batch.views[1::2]]  # 4 times NxD
        new, new_video = self.stage_keys(each_key, batch.video)
        queries = [self.encode(view) for view in batch.views[0::2]]
        query = torch.cat([features.intra for features in queries])  # 4NxD
        keys = self.candidates(self.intra_queue, new.intra, new_video)  # KxD
        positives = keys.batch_keys_of_video(batch.video)  # NxK
        ignore = keys.ignore(batch.video, own_video=options.mask_own_video) | positives
        loss = multi_positive_nce(
            query,
            keys.keys,
            positives.repeat(NUM_PAIRS, 1),
            options.temperature,
            ignore.repeat(NUM_PAIRS, 1),
        )
        accuracy = None
        if info.measure:
            accuracy = self.accuracy(queries[0].intra, each_key[0].intra, keys.keys, ignore)
        if not options.self_batch:
            return Losses(loss, loss, intra_accuracy=accuracy)
        video = batch.video.repeat(NUM_PAIRS)
        of_batch = self_batch_nce(query, video == video[:, None], options.self_temperature)
        return Losses(loss + of_batch, loss, None, {"self_batch": of_batch}, accuracy)


def multi_positive_nce(
    query: Tensor, keys: Tensor, positives: Tensor, temperature: float, ignore: Tensor | None = None
) -> Tensor:
    """Return the mean loss over all (query, positive) pairs.

    Negatives are the keys that are not positives of the query. Shapes: query (batch, dim), keys (num_keys, dim).
    `positives` and `ignore` are masks (batch, num_keys); keys with `ignore` are not negatives. There is one term per
    query and positive, whose denominator holds this positive and the negatives. Returns the mean over all terms.
    Gradient through the query only.
    """
    return nce_of_pairs(query @ keys.detach().T / temperature, positives, ignore)


def self_batch_nce(query: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Return the loss that contrasts the queries of a batch with each other; each query is also its own positive.

    The gradient flows through both sides.
    """
    return nce_of_pairs(query @ query.T / temperature, positives, None)


def nce_of_pairs(logits: Tensor, positives: Tensor, ignore: Tensor | None) -> Tensor:
    """Return the mean cross entropy of each positive among itself and the negatives of its row.

    Negatives are neither `positives` nor `ignore`; all three are (num_queries, num_keys).
    """
    not_negative = positives if ignore is None else positives | ignore
    negatives = logits.masked_fill(not_negative, float("-inf")).logsumexp(dim=1, keepdim=True)
    return masked_mean(softplus(negatives - logits), positives)  # indexing by a mask would wait for the GPU
