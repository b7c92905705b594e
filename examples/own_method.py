"""Your own method: a subclass that goes from views to losses.

python examples/own_method.py FOLDER
"""

import sys
from pathlib import Path

from torch.nn.functional import relu

import cyclecontrast as cc
from cyclecontrast.data.dataset import Batch
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos
from cyclecontrast.methods import Losses, MomentumMethod, StepInfo

SPEC = SyntheticSpec(num_videos=16, num_categories=4, num_train_per_category=1, num_test_per_category=1)
MARGIN = 0.2


class HardestKey(MomentumMethod):
    """A query must be nearer to another frame of its video than to every key of the queue, by a margin."""

    has_intra = True  # there is a queue of keys

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses; views[0] are the queries, views[1] other frames of their videos."""
        key = self.encode_keys(batch.views[1], info)  # NxD, by the momentum encoder
        new, new_video = self.stage_keys([key], batch.video)
        query = self.encode(batch.views[0])  # NxD
        keys = self.candidates(self.intra_queue, new.intra, new_video)  # KxD
        ignore = keys.ignore(batch.video, own_video=True)  # NxK
        hardest = (query.intra @ keys.keys.T).masked_fill(ignore, -1).amax(dim=1)  # N
        to_positive = (query.intra * key.intra).sum(dim=1)  # N
        loss = relu(MARGIN + hardest - to_positive).mean()
        return Losses(loss, loss, terms={"positive": 1 - to_positive.mean()})  # a column in metrics


def main(folder: Path) -> None:
    """Make videos, train with this method, write the report."""
    made = make_videos(folder / "made", SPEC, seed=0, workers=0)
    run = cc.pretrain(
        made.videos,
        out=folder / "run",
        method=HardestKey,
        backbone="resnet10-small-w8",
        image_size=32,
        batch_size=8,
        steps=15,
        workers=0,
    )
    print(run, cc.report(run.folder, workers=0), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
