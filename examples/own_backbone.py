"""Your own network: trained on videos without labels, loaded again, and evaluated with labels.

python examples/own_backbone.py FOLDER
"""

import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import cyclecontrast as cc
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos

SPEC = SyntheticSpec(num_videos=16, num_categories=4, num_train_per_category=3, num_test_per_category=3)


class SmallNet(nn.Module):
    """Normalized images (batch, 3, h, w) → a feature map (batch, 64, h / 8, w / 8), of which the mean is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for in_dim, out_dim in pairwise((3, 16, 32, 64)):
            self.layers.extend([nn.Conv2d(in_dim, out_dim, 3, 2, 1), nn.BatchNorm2d(out_dim), nn.ReLU()])

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map."""
        feature_map: Tensor = self.layers(images)
        return feature_map


def main(folder: Path) -> None:
    """Make videos, train, load, evaluate."""
    made = make_videos(folder / "made", SPEC, seed=0, workers=0)
    torch.manual_seed(0)  # you draw the network's initial weights yourself
    run = cc.pretrain(
        made.videos, out=folder / "run", backbone=SmallNet(), image_size=32, batch_size=8, steps=30, workers=0
    )
    backbone = cc.load_backbone(run.folder, network=SmallNet())  # a file holds weights, never code
    print(cc.evaluate("knn", backbone, made.labeled, out=folder / "results", k=(5,), workers=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
