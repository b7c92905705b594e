"""Training the head of the tracker: losses against plain loops, the published schedule, and that it learns."""

import copy
import math

import cv2
import numpy as np
import pytest
import torch

from cyclecontrast.config import TrackingConfig
from cyclecontrast.data.tracking_sequences import Sequence, Sequences, open_got10k
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import epochs
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.evaluation.tracking import fit_head as fitting
from cyclecontrast.evaluation.tracking.fit_head import (
    balanced_loss,
    decay,
    fit_head,
    focal_loss,
    make_labels,
    make_optimizer,
    preset_of,
)
from cyclecontrast.evaluation.tracking.siamfc import RELEASE, SIAMFC, VINCE, DenseFeatures, make_head
from cyclecontrast.models.backbone import make_backbone
from tests.make_sequences import moving_square

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 2, "pairs_per_sequence": 3}


def config_of(tmp_path, **settings):
    """Return the options of a short training on the CPU."""
    values = {"model": "in memory", "data": tmp_path, "device": "cpu", "workers": 0, **settings}
    return TrackingConfig(**values)


def fit(train, tmp_path, cache="cache", **settings):
    """Train a head on the features of a random backbone."""
    features = DenseFeatures(make_backbone("resnet10-w8"), CPU)
    return fit_head(features, train, config_of(tmp_path, **settings), ResumeCache(tmp_path / cache))


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Two sequences of six frames of the moving square."""
    root = tmp_path_factory.mktemp("got10k")
    made = []
    for name, growth in (("a", 1.0), ("b", 0.98)):
        (root / name).mkdir()
        frames = list(moving_square(6, growth))
        files = tuple(f"{number:08}.png" for number in range(1, 7))
        for file, (frame, _) in zip(files, frames, strict=True):
            cv2.imwrite(str(root / name / file), frame[..., ::-1])
        made.append(Sequence(name, root / name, files, np.array([box for _, box in frames])))
    return Sequences(root, "got10k", tuple(made))


def test_the_number_of_positives_is_the_published_one():
    """16 pixels are 2 cells: 12 positives where the middle is between cells, 13 on it; VINCE's 2.5 cells give 21."""
    centered = torch.zeros(1, 2)
    assert int(make_labels(16, RELEASE.positive_distance / 8, centered).sum()) == 12
    assert int(make_labels(15, SIAMFC.positive_distance / 8, centered).sum()) == 13
    vince = make_labels(17, VINCE.positive_distance / 8, centered)
    assert int(vince.sum()) == sum(abs(y) + abs(x) <= 2.5 for y in range(-8, 9) for x in range(-8, 9))


def test_labels_move_with_the_target():
    """The positives of each pair are around its target: down by 3 cells, left by 2."""
    labels = make_labels(17, 1.5, torch.tensor([[3.0, -2.0], [0.0, 0.0]]))
    expected = {(11, 6), (10, 6), (12, 6), (11, 5), (11, 7)}
    assert {tuple(place) for place in labels[0].nonzero().tolist()} == expected
    assert labels[1][8, 8] == 1


def plain_focal(logits, labels):
    """Compute the focal loss cell by cell."""
    losses, weights = [], []
    for logit, label in zip(logits.ravel(), labels.ravel(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        losses.append(-(label * (1 - p) ** 2 * math.log(p) + (1 - label) * p**2 * math.log(1 - p)))
        weights.append(label * (1 - p) ** 2 + (1 - label) * p**2)
    return np.mean(np.array(losses) / np.mean(weights))


def test_the_losses_equal_plain_loops():
    """Focal and balanced loss agree with double-precision loops on random responses."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (2, 5, 5)), make_labels(5, 1, torch.zeros(2, 2)).numpy().astype(float)
    made = [loss(torch.from_numpy(logits), torch.from_numpy(labels)).item() for loss in (focal_loss, balanced_loss)]
    p = 1 / (1 + np.exp(-logits))
    balanced = (-np.log(p[labels == 1]).mean() - np.log(1 - p[labels == 0]).mean()) / 2
    assert made == pytest.approx([plain_focal(logits, labels), balanced], rel=1e-9)


def test_gradients_run_through_the_weights_of_the_focal_loss():
    """The gradient is that of the whole formula, also of the mean weight in the denominator."""
    logits = torch.tensor([[[0.5, -1.0], [2.0, 0.1]]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels), logits)


def test_certain_responses_give_a_finite_loss():
    """Responses beyond single precision give loss 0 where they are right, and a finite one where they are wrong."""
    labels = make_labels(5, 1, torch.zeros(1, 2))
    right = (2 * labels - 1) * 1000
    assert float(focal_loss(right, labels)) == 0
    assert np.isfinite(float(focal_loss(-right, labels)))


def test_optimizer_and_schedule_are_the_published_ones(tmp_path):
    """`release`: Adam from 1e-3, times 0.91201 per epoch, no weight decay; `siamfc`: SGD; `vince`: steps of 10."""
    release = preset_of(config_of(tmp_path))
    assert release == RELEASE
    rates = [decay(release)(epoch) for epoch in range(51)]
    assert rates[1] == pytest.approx(0.91201, abs=5e-6)
    assert rates[50] == pytest.approx(1e-2)
    vince = preset_of(config_of(tmp_path, preset="vince"))
    assert [decay(vince)(epoch) for epoch in (0, 9, 10, 20, 30, 39)] == pytest.approx([1, 1, 0.1, 0.01, 1e-3, 1e-3])
    head = make_head(8, RELEASE, 0)
    adam, sgd = (make_optimizer(head, preset).param_groups[0] for preset in (RELEASE, SIAMFC))
    assert [group["weight_decay"] for group in (adam, sgd)] == [0, 5e-4]
    assert (adam["lr"], sgd["lr"], sgd["momentum"]) == (1e-3, 1e-2, 0.9)
    changed = preset_of(config_of(tmp_path, epochs=3, learning_rate=0.5))
    assert (changed.epochs, changed.learning_rate, changed.batch_size) == (3, 0.5, 8)


def test_training_lowers_the_loss_and_does_not_change_the_backbone(tmp_path, train):
    """The head learns; weights, buffers, mode and gradients of the backbone stay as they were."""
    backbone = make_backbone("resnet10-w8").train()
    before = copy.deepcopy(backbone.state_dict())
    config = config_of(tmp_path, **{**SHORT, "epochs": 4})
    fitted = fit_head(DenseFeatures(backbone, CPU), train, config, ResumeCache(tmp_path / "cache"))
    losses = fitted.details["losses"]
    assert losses[-1] < losses[0]
    assert (fitted.details["num_steps"], fitted.details["epochs"]) == (12, 4)
    assert fitted.notes == [
        "the head was trained for 12 steps, in the release for 58,300; raise pairs_per_sequence or epochs",
    ]
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("preset", ["release", "siamfc", "vince"])
def test_a_stopped_training_resumes_exactly(tmp_path, train, preset, monkeypatch):
    """Stopped in the second epoch and run again, the head has the same weights as without a stop."""
    settings = {**SHORT, "preset": preset, "pairs_per_sequence": 1}
    whole = fit(train, tmp_path, "whole", **settings)
    original = fitting._batches

    def stopping(features, pairs, *rest):
        if pairs.epoch == 1:
            raise KeyboardInterrupt
        yield from original(features, pairs, *rest)

    monkeypatch.setattr(fitting, "_batches", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(train, tmp_path, "halves", **settings)
    monkeypatch.setattr(fitting, "_batches", original)
    torch.manual_seed(5)
    halves = fit(train, tmp_path, "halves", **settings)
    assert halves.details == whole.details
    states = whole.head.state_dict(), halves.head.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_few_sequences_fill_an_epoch(tmp_path, train, monkeypatch):
    """Pairs per sequence are raised to the least number of steps, with a note; a set number is not raised."""
    monkeypatch.setattr(fitting, "MIN_STEPS", 4)
    fitted = fit(train, tmp_path, epochs=1, batch_size=3)
    assert fitted.details["pairs_per_sequence"] == 6
    assert fitted.details["num_steps"] == 4
    assert "pairs_per_sequence: 6 instead of 1" in fitted.notes[0]
    with pytest.raises(UserError, match="pairs_per_sequence: 1 of 2 sequences fill no batch of 3; set 2"):
        fit(train, tmp_path, "other", epochs=1, batch_size=3, pairs_per_sequence=1)


def test_an_epoch_is_full_batches_in_its_own_order(tmp_path, train, monkeypatch):
    """An incomplete batch is dropped, no pair comes twice in an epoch, and each epoch has another order."""
    requested = []
    load = epochs.load_image_batches
    monkeypatch.setattr(
        epochs,
        "load_image_batches",
        lambda pairs, crop, batches, *rest: requested.append(batches) or load(pairs, crop, batches, *rest),
    )
    fit(train, tmp_path, **{**SHORT, "batch_size": 4})
    assert [[len(batch) for batch in batches] for batches in requested] == [[4], [4]]
    assert all(len({place for batch in batches for place in batch}) == 4 for batches in requested)
    assert requested[0] != requested[1]


def test_sequences_that_cannot_be_used_are_noted(tmp_path, train):
    """One without two usable frames is noted, an unreadable image is named; no usable sequence is an error."""
    small = Sequence("b", train.sequences[1].folder, train.sequences[1].files, train.sequences[1].boxes / 4)
    away = Sequence("c", tmp_path / "away", train.sequences[1].files, train.sequences[1].boxes)
    some = Sequences(train.root, "got10k", (train.sequences[0], small, away))
    fitted = fit(some, tmp_path, epochs=1, batch_size=2, pairs_per_sequence=1)
    assert any("2 of 3 training sequences have fewer than two usable frames" in note for note in fitted.notes)
    assert len(fitted.problems) == 1
    assert "away/00000001.png" in fitted.problems[0]
    none = Sequences(train.root, "got10k", (small,))
    with pytest.raises(UserError, match="none of the 1 sequences has two frames to train on"):
        fit(none, tmp_path, "other")


def test_the_loss_falls_on_real_pairs(tmp_path, shared):
    """A few steps on pairs of real sequences of GOT-10k lower the loss of the head."""
    if not (shared / "tracking" / "got10k" / "val").is_dir():
        pytest.skip("no tracking/got10k/val in the shared data")
    sequences = open_got10k(shared / "tracking" / "got10k", "val").sequences[:2]
    train = Sequences(shared, "got10k", sequences)
    losses = fit(train, tmp_path, epochs=4, batch_size=4, pairs_per_sequence=4).details["losses"]
    assert losses[-1] < losses[0]
