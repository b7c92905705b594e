"""The protocol `linear`: both probes against references, chosen without the test split, the backbone frozen."""

import shutil
import warnings

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax

import cyclecontrast as cc
from cyclecontrast.config import LinearConfig
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import linear
from cyclecontrast.evaluation.epochs import RECIPE, RandomView, step_decay
from cyclecontrast.evaluation.linear import DEFAULT_C, Linear, fit_convex, folds, initial_head
from cyclecontrast.evaluation.metrics import top_k_accuracy
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import make_backbone

MODEL = "random:resnet10-small-w8"
SETTINGS = {"image_size": 16, "workers": 0, "device": "cpu", "batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dark and bright images, eight of each in train and four in val: linearly separable."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, num in (("train", 8), ("val", 4)):
        for name, level in (("bright", 190), ("dark", 60)):
            (root / split / name).mkdir(parents=True)
            for number in range(num):
                image = np.clip(level + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(root / split / name / f"{number}.png"), image)
    return root


def run(data, tmp_path, **settings):
    """Evaluate by `linear` into a folder of the test."""
    return cc.evaluate("linear", MODEL, data, **{"out": tmp_path / "out", **SETTINGS, **settings})


def clusters(seed, num_classes, num_items, spread=1.0, dim=6):
    """Draw vectors around a center per class, and their labels."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_classes, dim))
    labels = np.arange(num_items) % num_classes
    return (centers[labels] + spread * rng.normal(size=(num_items, dim))).astype(np.float32), labels


def plain_regression(x, labels, num_classes, c):
    """Minimize the sum of cross-entropies plus |W|² / 2C, written out, with another solver."""

    def objective(flat):
        weight, bias = flat[:-num_classes].reshape(num_classes, -1), flat[-num_classes:]
        log_p = log_softmax(x @ weight.T + bias, axis=1)
        slope = np.exp(log_p)
        slope[np.arange(len(x)), labels] -= 1
        value = -log_p[np.arange(len(x)), labels].sum() + (weight**2).sum() / (2 * c)
        return value, np.concatenate([(slope.T @ x + weight / c).ravel(), slope.sum(axis=0)])

    start = np.zeros(num_classes * (x.shape[1] + 1))
    flat = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-6}).x
    return x @ flat[:-num_classes].reshape(num_classes, -1).T + flat[-num_classes:]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_linear_equals_a_plain_regression(num_classes, monkeypatch):
    """Probabilities agree with the written-out optimum on standardized vectors, for two classes too."""
    monkeypatch.setattr(linear, "TOLERANCE", 1e-7)
    vectors, labels = clusters(0, num_classes, 60)
    head = fit_convex(vectors * 50 + 7, labels, np.arange(60), 0)
    x = ((vectors - vectors.mean(axis=0)) / vectors.std(axis=0)).astype(float)
    # For two classes scikit-learn fits one row of weights, w: two rows of ±w / 2 would cost half as much.
    expected = plain_regression(x, labels, num_classes, head.c / 2 if num_classes == 2 else head.c)
    ours = log_softmax(head.scores(vectors * 50 + 7), axis=1)
    np.testing.assert_allclose(ours, log_softmax(expected, axis=1), atol=2e-3)
    assert head.converged


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=25), st.integers(0, 9))
def test_held_out_videos_are_whole_and_leave_every_class_to_learn(videos, seed):
    """No video lies on both sides, no item is held out twice, and each class keeps a video to learn from."""
    video_labels, lengths = (np.array(column) for column in zip(*videos, strict=True))
    numbers = np.repeat(np.arange(len(videos)), lengths)
    labels = video_labels[numbers]
    held_out = list(folds(labels, numbers, seed))
    several = np.isin(labels, [label for label in range(4) if (video_labels == label).sum() > 1])
    assert (sum(fold.astype(int) for fold in held_out) == several).all()
    for fold in held_out:
        assert not set(numbers[fold]) & set(numbers[~fold])
        assert set(labels[~fold]) == set(labels)


def test_many_items_are_validated_on_one_fold_with_every_class():
    """Time is bounded: one hold-out, that tests each class with two videos."""
    labels = np.arange(3000) % 40
    (fold,) = folds(labels, np.arange(3000), 0)
    assert set(labels[fold]) == set(labels)
    assert 0.15 < fold.mean() < 0.25


def test_classes_of_one_video_take_the_default_and_say_so():
    """Nothing can be held out; the regularization is then a default, named in the notes."""
    vectors, labels = clusters(0, 3, 30)
    head = fit_convex(vectors, labels, labels, 0)
    assert head.c == DEFAULT_C
    assert any("not chosen by validation" in note for note in head.notes)


def test_regularization_is_chosen_for_new_videos():
    """Frames of a video are near copies, and their class nearly noise: only whole videos held out show it."""
    rng = np.random.default_rng(0)
    num_videos, dim = 40, 60
    labels = np.repeat(np.arange(num_videos) % 2, 5)
    centers = rng.normal(size=(num_videos, dim)) + 0.3 * (np.arange(num_videos) % 2)[:, None]
    videos = np.repeat(np.arange(num_videos), 5)
    vectors = (centers[videos] + 0.01 * rng.normal(size=(200, dim))).astype(np.float32)
    grouped = fit_convex(vectors, labels, videos, 0)
    leaking = fit_convex(vectors, labels, np.arange(200), 0)
    assert max(leaking.validation.values()) == 1.0
    assert max(grouped.validation.values()) < 1.0
    assert grouped.validation[f"{grouped.c:g}"] == max(grouped.validation.values())


def test_a_fit_that_does_not_converge_says_so(monkeypatch):
    """The solver's warning becomes a note of the result, not noise on the screen and not silence."""
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 2)
    vectors, labels = clusters(0, 4, 80)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = fit_convex(vectors, labels, np.arange(80), 0)
    assert not head.converged
    assert "the fit did not converge in 2 iterations" in head.notes


def test_a_dimension_that_does_not_vary_is_no_problem():
    """A dead unit gives no division by zero, and its later values no surprise."""
    vectors, labels = clusters(0, 3, 60)
    vectors[:, 0] = 0.1
    head = fit_convex(vectors, labels, np.arange(60), 0)
    assert np.isfinite(head.scores(vectors)).all()
    assert top_k_accuracy(head.scores(vectors), labels, 1) > 0.5


def test_one_readable_class_is_an_error(data, tmp_path):
    """The convex probe cannot tell apart what it has never seen; the line names the class that is gone."""
    root = shutil.copytree(data, tmp_path / "data")
    for path in (root / "train" / "dark").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="only one class has training images that can be read") as caught:
        run(root, tmp_path)
    assert "class dark was not trained" in caught.value.problems[1]


@pytest.mark.parametrize("settings", [{"probe": "lbfgs"}, {"probe": "sgd", "epochs": 15, "learning_rate": 100.0}])
def test_both_probes_learn_what_is_separable(data, tmp_path, settings):
    """Dark and bright are distinguished without an error, and the tag says by which probe."""
    result = run(data, tmp_path, **settings)
    assert result.metrics == {"top1": 1.0}
    assert result.tag.startswith(f"linear probe={settings['probe']} level=frame")


@pytest.mark.parametrize("settings", [{"probe": "lbfgs"}, {"probe": "sgd", "epochs": 2}])
def test_the_same_seed_gives_the_same_bits_and_frozen_means_frozen(data, tmp_path, settings):
    """Weights of the head repeat to the bit with any number of workers; the backbone does not change by one bit."""
    backbone = make_backbone("resnet10-small-w8").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    results = []
    for workers in (0, 2):
        torch.manual_seed(workers)
        values = {**SETTINGS, **settings, "workers": workers, "out": tmp_path / str(workers)}
        result = cc.evaluate("linear", backbone, data, **values)
        results.append((result.metrics, result.per_item, result.about.details))
    assert results[0] == results[1]
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_auto_names_the_probe_it_takes(data, tmp_path, monkeypatch):
    """Small sets get the convex fit, large ones the paper's recipe; unused options are named."""
    result = run(data, tmp_path, epochs=1)
    assert result.tag == "linear probe=lbfgs level=frame image_size=16"
    assert "probe: auto is lbfgs for 16 training images" in str(result)
    assert "epochs had no effect: probe lbfgs does not use it" in str(result)
    monkeypatch.setattr(linear, "MAX_CONVEX", 15)
    assert run(data, tmp_path, epochs=1).tag == "linear probe=sgd level=frame image_size=16 batch_size=8 epochs=1"


def test_the_recipe_is_the_papers(data):
    """lr 30 at batch 256, ÷10 at 60 and 80 of 100 epochs, fc of N(0, 0.01), crops from 8 %."""
    defaults = LinearConfig(model=MODEL, data=data)
    assert (defaults.learning_rate, defaults.batch_size, defaults.epochs) == (30.0, 256, 100)
    rates = [step_decay(100)(epoch) for epoch in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    head = initial_head(512, 1000, 0)
    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.01)
    assert float(head.bias.detach().abs().max()) == 0
    assert linear.MOMENTUM == 0.9
    assert RECIPE[1:] == (0.0, 0.0, 0.0, 0.08, True)


def test_every_epoch_sees_other_views_of_every_image(data):
    """A view is a function of seed, epoch and image, and of nothing else."""
    image = cv2.imread(str(data / "train" / "dark" / "0.png"))
    views = {key: RandomView(*key[:2], 16)(image, key[2]).tobytes() for key in np.ndindex(2, 2, 2)}
    assert len(set(views.values())) == 8
    assert RandomView(1, 0, 16)(image, 1).tobytes() == views[1, 0, 1]


def test_epochs_of_sgd_equal_the_formulas(data, tmp_path, monkeypatch):
    """Gradient, momentum and learning rate, written out in NumPy for the same views in the same order."""
    seen, encode = [], linear.encode

    def watch(backbone, batch, device):
        features = encode(backbone, batch, device)
        seen.append((features.numpy().astype(float), batch.positions.numpy()))
        return features

    monkeypatch.setattr(linear, "encode", watch)
    images = LabeledImages.open(data)
    protocol = Linear(LinearConfig(model=MODEL, data=data, epochs=5, **SETTINGS))
    backbone, cache = make_backbone("resnet10-small-w8").eval(), ResumeCache(tmp_path)
    test = protocol.embed_items(backbone, images.test, "test", cache)
    scores = protocol._fit_sgd(backbone, images, test, cache).scores
    assert sorted(np.concatenate([positions for _, positions in seen[:2]])) == list(range(16))
    weight = initial_head(backbone.dim, 2, 0).weight.detach().numpy().astype(float)
    parameters, velocity = np.c_[weight, np.zeros(2)], 0
    for step, (features, positions) in enumerate(seen):
        inputs = np.c_[features, np.ones(len(features))]
        logits = inputs @ parameters.T
        slope = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope = slope / slope.sum(axis=1, keepdims=True) - np.eye(2)[images.train.labels[positions]]
        velocity = 0.9 * velocity + slope.T @ inputs / len(features)
        parameters = parameters - 30 * 8 / 256 * (1, 1, 1, 0.1, 0.01)[step // 2] * velocity
    expected = np.c_[test.vectors, np.ones(len(test.vectors))] @ parameters.T
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)


def test_a_loss_that_explodes_is_an_error(data, tmp_path):
    """No accuracy is reported for a classifier of nan; the line says what to change."""
    with pytest.raises(UserError, match="lower learning_rate"):
        run(data, tmp_path, probe="sgd", epochs=3, learning_rate=9e39)
    assert not [*(tmp_path / "out").rglob("*.json"), *(tmp_path / "out").rglob("*.parquet")]


def test_a_learning_rate_that_is_too_high_shows(data, tmp_path):
    """The loss stays finite but above that of uniform predictions: the result says so."""
    result = run(data, tmp_path, probe="sgd", epochs=1, learning_rate=1e6)
    assert result.about.details["last_loss"] > np.log(2)
    assert "above chance level" in str(result)
