"""VINCE (Gordon et al. 2020): four frames of a video at once, each contrasted with all four keys."""

import numpy as np
import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, FurtherFrames
from cyclecontrast.loss.losses import multi_positive_nce, self_batch_nce
from cyclecontrast.methods.method import Losses, MomentumMethod, StepInfo

NUM_PAIRS = 4


class VINCE(MomentumMethod):
    """Multi-positive contrast of four queries and four keys of a video, against the batch's other keys and the queue.

    Differs from VINCE's release where the query's own video is masked: there the video's older keys are negatives.
    Differs from VINCE's release: each view is a batch of its own for BatchNorm; views and projector are the options'.
    """

    learns_from = "four frames of the same video at once"
    reads = MomentumMethod.reads | {"queue_size", "mask_own_video"}
    num_views = 2 * NUM_PAIRS
    num_queries = NUM_PAIRS
    num_enqueued = NUM_PAIRS
    has_intra = True
    always_batch_keys = True

    @classmethod
    def frames(cls, options: PretrainConfig) -> tuple[bool, FurtherFrames]:
        """Return two frames of the video, and six further ones."""
        return False, _three_pairs

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses; even views are queries, odd views their positives."""
        options = self.options
        each_key = [self.encode_keys(view, info) for view in batch.views[1::2]]  # 4 times NxD
        new, new_video = self.enqueue_later(each_key, batch.video)
        queries = [self.encode(view) for view in batch.views[0::2]]
        query = torch.cat([features.intra for features in queries])  # 4NxD
        keys = self.candidates(self.intra_queue, new.intra, new_video, len(batch.video))  # KxD
        positives = keys.fresh_of(batch.video)  # NxK
        ignore = keys.ignore(batch.video, options.mask_own_video) | positives
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
            return Losses(loss, loss.detach(), intra_accuracy=accuracy)
        video = batch.video.repeat(NUM_PAIRS)
        of_batch = self_batch_nce(query, video == video[:, None], options.self_temperature)
        return Losses(loss + of_batch, loss.detach(), None, {"self_batch": of_batch.detach()}, accuracy)


def _three_pairs(rng: np.random.Generator, query: int, num_frames: int) -> tuple[int, ...]:
    """Draw three more pairs of any frames, perhaps the same one."""
    return tuple(int(frame) for frame in rng.integers(num_frames, size=2 * (NUM_PAIRS - 1)))
