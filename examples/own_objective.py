"""An objective of your own: from the features of a step to a loss.

python examples/own_objective.py FOLDER
"""

import sys
from pathlib import Path

from torch.nn.functional import relu

import cyclecontrast as cc
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos
from cyclecontrast.loss import Term, ignored_video, only_intra

SPEC = SyntheticSpec(num_videos=16, num_categories=4, num_train_per_category=1, num_test_per_category=1)
MARGIN = 0.2


def hardest_key(step: cc.Step) -> cc.Losses:
    """Ask that a query is nearer to another frame of its video than to every key of the queue, by a margin."""
    to_keys = (step.query.intra @ step.intra.keys.T).masked_fill(ignored_video(step), -1)  # (batch, num_keys)
    to_positive = (step.query.intra * step.positive.intra).sum(dim=1)
    loss = relu(MARGIN + to_keys.amax(dim=1) - to_positive).mean()
    return only_intra(loss, Term("positive", 1 - to_positive.mean()))  # a term with a column of its own in the metrics


HARDEST_KEY = cc.Objective(hardest_key, ignored_video, cc.Needs(), "frames of the same video")


def main(folder: Path) -> None:
    """Make videos, train by an objective of one's own, write the report."""
    made = make_videos(folder / "made", SPEC, seed=0, workers=0)
    run = cc.pretrain(
        made.videos,
        out=folder / "run",
        objective=HARDEST_KEY,
        backbone="resnet10-small-w8",
        image_size=32,
        batch_size=8,
        steps=15,
        workers=0,
    )
    print(run, cc.report(run.folder, workers=0), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
