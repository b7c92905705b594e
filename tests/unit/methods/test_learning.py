"""Every method beside the first three learns: its loss falls, and frames of one video become neighbors.

The seed is one whose untrained weights find no frame of the same video, so that every trajectory has room.
"""

import json

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cyclecontrast.config import PretrainConfig
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.training.pretrain import pretrain
from tests import make_videos as make

SETTINGS = {
    "backbone": "resnet10-small-w8",
    "image_size": 16,
    "projector": "linear",
    "augmentation": "moco-v1",
    "min_crop": 0.5,
    "batch_size": 12,
    "queue_size": 64,
    "cycle_queue_size": 64,
    "support_size": 24,
    "bn_groups": 2,
    "temperature": 0.2,
    "learning_rate": 0.03,
    "momentum": 0.9,
    "cycle_start": 0.0,
    "steps": 100,
    "log_every": 1,
    "health_every": 0,
    "workers": 0,
    "seed": 1,
    "device": "cpu",
    "precision": "fp32",
}
PREDICTS = {"bn_groups": 1, "learning_rate": 0.1}
METHODS = {
    "cycle-only": {"learning_rate": 0.06, "steps": 130},
    "cycle-only with k++": {"query_frame_in_support": True, "learning_rate": 0.06, "steps": 160},
    "vince": {"steps": 60},
    "seco": {"steps": 80},
    "simclr": {"positives": "video", "steps": 70},
    "simsiam": PREDICTS | {"projector": "mlp3-bn", "learning_rate": 0.05, "steps": 140},
    "byol": PREDICTS | {"projector": "mlp-bn"},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames of moving stripes."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


def same_video_first(backbone, tree):
    """Return how many frames have a frame of their own video as nearest neighbor, by a plain loop over paths."""
    paths = sorted(tree.rglob("*.png"))
    small = [cv2.resize(cv2.imread(str(path))[..., ::-1], (16, 16), interpolation=cv2.INTER_AREA) for path in paths]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        vectors = normalize(backbone.eval()(backbone.normalise(pixels)), dim=1)
    nearest = (vectors @ vectors.T).fill_diagonal_(-2).argmax(dim=1).tolist()
    return np.mean([paths[i].parent == paths[j].parent for i, j in enumerate(nearest)])


def train(tree, out, method, **changes):
    """Train, and return the backbone and the loss of every step."""
    done = pretrain(PretrainConfig(data=tree, out=out, method=method, **(SETTINGS | changes)))
    losses = [json.loads(line)["loss"] for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    return done.backbone, losses


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(tree, tmp_path, name):
    """The loss falls once the queue holds keys only, and more neighbors are of one video than by untrained weights."""
    backbone, losses = train(tree, tmp_path / "run", name.split()[0], **METHODS[name])
    assert np.mean(losses[-16:]) < np.mean(losses[8:24]) - 0.1
    untrained = same_video_first(make_backbone(SETTINGS["backbone"], SETTINGS["seed"], 16), tree)
    assert same_video_first(backbone, tree) >= untrained + 0.15
