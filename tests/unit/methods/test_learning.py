"""Every method can learn: its loss falls on a fixed batch, and a short training makes frames of a video neighbors."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.dataset import ViewDataset, collate
from cyclecontrast.data.store import FrameStore
from cyclecontrast.methods import METHODS, StepInfo
from cyclecontrast.models.backbone import make_backbone
from tests.make_runs import run
from tests.unit.methods.make_methods import make_method


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_of_each_method_lowers_its_loss(stripes, name):
    """Minimized on one batch, against fixed keys and targets, the loss of each method falls far."""
    method = make_method(name, cycle_weight=1.0)
    same_frame, extra_frames = method.frames(method.options)
    dataset = ViewDataset(FrameStore.open(stripes), RECIPES["moco-v1"], 16, 0, same_frame, extra_frames=extra_frames)
    batch = collate([dataset.sample(position) for position in range(12)])
    optimizer, losses = torch.optim.SGD(method.trainable_parameters(), lr=0.05, momentum=0.9), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = method(batch, StepInfo(0, 10)).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # SimSiam's targets move with its predictions; DIET's smoothed labels leave an entropy of 2.34 of log(12) = 2.48.
    fall = {"simsiam": 0.1, "diet": 0.08}.get(name, 0.6)
    assert losses[-1] < losses[0] - fall, losses


LEARNS = {
    "projector": "linear",
    "augmentation": "moco-v1",
    "min_crop": 0.5,
    "batch_size": 12,
    "queue_size": 64,
    "cycle_queue_size": 64,
    "support_size": 24,
    "temperature": 0.2,
    "learning_rate": 0.03,
    "momentum": 0.9,
    "cycle_start": 0.0,
    "steps": 100,
    "log_every": 100,
    "health_every": 0,
    "precision": "fp32",
}


def same_video_first(backbone, stripes):
    """Return the fraction of frames whose nearest other frame is of their video, by a loop over files."""
    paths = sorted(stripes.rglob("*.png"))
    small = [cv2.resize(cv2.imread(str(path))[..., ::-1], (16, 16), interpolation=cv2.INTER_AREA) for path in paths]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        vectors = normalize(backbone.eval()(backbone.normalize(pixels)), dim=1)
    nearest = (vectors @ vectors.T).fill_diagonal_(-2).argmax(dim=1).tolist()
    return np.mean([paths[i].parent == paths[j].parent for i, j in enumerate(nearest)])


def test_a_distilled_network_predicts_its_teacher(stripes):
    """After a few steps, predictions of views that were not trained on are nearer to the teacher's vectors of them."""
    method = make_method("distill", image_size=16)
    dataset = ViewDataset(FrameStore.open(stripes), RECIPES["moco-v1"], 16, 0)
    *trained, unseen = (
        collate([dataset.sample(position) for position in range(start, start + 12)]) for start in (0, 12, 24, 36, 48)
    )
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=0.1, momentum=0.9)
    before = method(unseen, StepInfo(0, 10)).total.item()
    for step in range(25):
        optimizer.zero_grad()
        method(trained[step % 4], StepInfo(step, 25)).total.backward()
        optimizer.step()
        method.after_step(StepInfo(step, 25))
    assert method(unseen, StepInfo(0, 10)).total.item() < before - 0.15


def test_a_training_makes_frames_of_a_video_neighbors(stripes, tmp_path):
    """Trained on moving stripes, the loss is below chance level and more neighbors are of one video than untrained."""
    done = run(stripes, tmp_path / "run", **LEARNS)
    assert done.metrics["intra_loss"] < 0.9 * np.log(64 + 12)
    untrained = same_video_first(make_backbone(done.backbone.name, 3, 16), stripes)
    assert same_video_first(done.backbone, stripes) >= untrained + 0.15
