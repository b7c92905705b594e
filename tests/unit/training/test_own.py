"""A network, an augmentation and an objective of the user's own: trained with, kept, resumed, refused where amiss."""

import functools
import os
import signal

import numpy as np
import pytest
import torch
from cyclecontrast.data.pairs import FramePairs
from safetensors.torch import load_file
from torch import nn

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.augment import Recipe
from cyclecontrast.data.loader import load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import checked
from cyclecontrast.loss import OBJECTIVES, Term, ignored_positive, ignored_video, only_intra
from cyclecontrast.models.checkpoint import fingerprint
from cyclecontrast.training import pretrain as module
from tests import make_videos as make
from tests.unit.training.test_pretrain import lines_of

STEPS = 6
OPTIONS = {"image_size": 16, "batch_size": 8, "queue_size": 32, "cycle_queue_size": 32, "support_size": 8}
OPTIONS |= {"bn_groups": 2, "workers": 0, "log_every": 1, "device": "cpu", "seed": 3, "steps": STEPS}
SMALL = {"backbone": "resnet10-small-w8"} | OPTIONS


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


class Net(nn.Module):
    """A map of few channels."""

    def __init__(self, width=6):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, images):
        """Return the map."""
        return self.layers(images)


class Flat(Net):
    """The same as vectors."""

    def forward(self, images):
        """Return the means over places."""
        return super().forward(images).mean(dim=(2, 3))


def seeded(make_network, seed=0):
    """Make a network with the same weights each time."""
    torch.manual_seed(seed)
    return make_network()


def corner(image, rng, size):
    """Cut a random square, and change the frame in place, which must harm no other view."""
    top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
    image += rng.integers(20, dtype=np.uint8)
    return image[top : top + size, left : left + size]


def by_hand(step):
    """The intra-video loss, written out, and a term with a name."""
    positive = (step.query.intra * step.positive.intra).sum(dim=1) / step.settings.temperature
    others = step.query.intra @ step.intra.keys.T / step.settings.temperature
    others = others.masked_fill(ignored_video(step), float("-inf"))
    loss = (torch.logsumexp(torch.cat((positive[:, None], others), dim=1), dim=1) - positive).mean()
    return only_intra(loss, Term("nearness", positive.mean()))


BY_HAND = cc.Objective(by_hand, ignored_video, cc.Needs(), "frames of the same video")


def refusal(*arguments, **settings):
    """Return what is said against a training, which leaves nothing behind."""
    with pytest.raises(cc.UserError) as error:
        cc.pretrain(*arguments, **settings)
    assert "out" not in settings or not settings["out"].exists()
    return list(error.value.problems)


def weights_of(run):
    """Read the weights that a run has left."""
    return load_file(run / "backbone.safetensors")


def test_a_network_is_trained_kept_and_loaded(tree, tmp_path):
    """Its weights change, a run names it by its class, and another of the class is filled with what it learned."""
    network = seeded(Net)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    done = cc.pretrain(tree, out=tmp_path / "run", backbone=network, **OPTIONS)
    assert 'backbone = "own:Net"' in (tmp_path / "run" / "config.toml").read_text()
    assert any(not torch.equal(value, network.state_dict()[key]) for key, value in before.items())
    loaded = cc.load_backbone(tmp_path / "run", network=Net())
    assert (loaded.name, loaded.dim, loaded.image_size, loaded.training) == ("own:Net", 6, 16, False)
    assert fingerprint(loaded) == fingerprint(done.backbone)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(loaded(images), network.eval()(images).mean(dim=(2, 3)))  # memory is laid out otherwise


def test_a_map_is_averaged_to_vectors(tree, tmp_path):
    """A network that gives maps trains as one that gives their means; its map is that of the last stage."""
    for name, make_network in (("map", Net), ("flat", Flat)):
        cc.pretrain(tree, out=tmp_path / name, backbone=seeded(make_network), precision="fp32", **OPTIONS)
    found, expected = weights_of(tmp_path / "map"), weights_of(tmp_path / "flat")
    assert all(torch.allclose(found[key].float(), value.float(), atol=1e-5) for key, value in expected.items())
    images = torch.randn(2, 3, 16, 16)
    loaded = cc.load_backbone(tmp_path / "map", network=Net())
    assert torch.equal(loaded.feature_map(images, 4), loaded.network(images))
    with pytest.raises(cc.UserError, match="a map of its last stage only; this asks for the map of stage 3"):
        loaded.feature_map(images, 3)
    with pytest.raises(cc.UserError, match="vectors only, no map"):
        cc.load_backbone(tmp_path / "flat", network=Flat()).feature_map(images, 4)


def test_a_file_of_a_network_needs_it(tree, tmp_path, capsys):
    """Without the network, with another, or with one too many, loading ends in lines that say which keys."""
    run = cc.pretrain(tree, out=tmp_path / "run", backbone=Net(), **OPTIONS).folder
    with pytest.raises(cc.UserError, match=r"weights of own:Net, .*load_backbone\(.*, network=\.\.\.\) fills yours"):
        cc.load_backbone(run)
    assert main(["export", str(run), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {run}/backbone.safetensors: holds the weights")
    other = nn.Sequential(nn.Conv2d(3, 6, 3))
    with pytest.raises(cc.UserError) as error:
        cc.load_backbone(run, network=other)
    missing, unknown = error.value.problems
    assert "2 keys (0.weight, 0.bias) missing" in missing
    assert "7 keys (layers.0.bias, layers.0.weight, layers.1.bias, ...) unknown" in unknown
    untouched = Net(5)
    before = untouched.layers[0].weight.clone()
    with pytest.raises(cc.UserError, match=r"layers.0.weight \(6, 3, 3, 3\), not \(5, 3, 3, 3\)"):
        cc.load_backbone(run, network=untouched)
    assert torch.equal(untouched.layers[0].weight, before)
    for model in ("random:resnet10-small-w8", cc.pretrain(tree, out=tmp_path / "ours", **SMALL).folder):
        with pytest.raises(cc.UserError, match=r"^network: .*; leave it out$"):
            cc.load_backbone(model, network=Net())


def test_a_stopped_run_goes_on_to_the_bit(tree, tmp_path, monkeypatch):
    """With all three of the user's, stopped half-way and resumed with new objects, a run is as if undisturbed."""
    options = OPTIONS | {"checkpoint_every": 2, "holdout": 0.2, "health_every": 1, "select": "health"}
    own = {"augmentation": corner, "method": BY_HAND}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cc.pretrain(tree, out=whole, backbone=seeded(Net), **own, **options)
    original = module.train_step

    def interrupted(training, batch, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(training, batch, step)

    monkeypatch.setattr(module, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cc.pretrain(tree, out=cut, backbone=seeded(Net), **own, **options)
    monkeypatch.undo()
    assert [row["step"] for row in lines_of(cut)] == [1, 2, 3]
    cc.pretrain(resume=cut, backbone=seeded(Net, seed=9), **own)
    assert lines_of(cut) == lines_of(whole)
    found, expected = weights_of(cut), weights_of(whole)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_an_earlier_backbone_of_a_network_can_be_chosen(tree, tmp_path, monkeypatch):
    """Where health chooses an earlier step, the weights of that step remain, and the network of the last is not it."""
    monkeypatch.setattr("cyclecontrast.training.monitor.best_step", lambda rows: 2)
    monkeypatch.setattr("cyclecontrast.training.monitor.chosen_step", lambda rows, known: 2)
    options = OPTIONS | {"checkpoint_every": 2, "holdout": 0.2, "health_every": 1, "select": "health"}
    done = cc.pretrain(tree, out=tmp_path / "run", backbone=seeded(Net), **options)
    best = load_file(tmp_path / "run" / "best" / "step-00000002" / "backbone.safetensors")
    last = load_file(tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}" / "backbone.safetensors")
    assert all(torch.equal(value, done.backbone.network.state_dict()[key]) for key, value in best.items())
    assert any(not torch.equal(value, last[key]) for key, value in best.items())


def test_what_no_file_holds_must_be_passed_again(tree, tmp_path, capsys):
    """Resuming and rerunning without the user's own names all that lacks, on the command line too."""
    run = tmp_path / "run"
    cc.pretrain(tree, out=run, backbone=Net(), augmentation=corner, objective=BY_HAND, **OPTIONS)
    problems = refusal(resume=run)
    assert problems == [
        f"{option}: own:{name} is your own and in no file; pass it in Python: "
        f"cyclecontrast.pretrain(resume={str(run)!r}, {option}=...)"
        for option, name in (("backbone", "Net"), ("augmentation", "corner"), ("objective", "by_hand"))
    ]
    (problem,) = refusal(resume=run, backbone=Net(), objective=BY_HAND)
    assert problem.startswith("augmentation: own:corner is your own")
    (problem,) = refusal(resume=run, backbone=Flat(), augmentation=corner, objective=BY_HAND)
    assert problem == "resume: settings must stay as they are; backbone: own:Net in the run, own:Flat asked"
    capsys.readouterr()
    assert main(["pretrain", "--config", str(run / "config.toml"), "--out", str(tmp_path / "again")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "cyclecontrast.pretrain(..., backbone=...)" in lines[0]
    assert not (tmp_path / "again").exists()


def test_another_network_of_the_name_does_not_resume(tree, tmp_path):
    """A run whose checkpoint has other weights than the network says which, and stays as it is."""
    run = cc.pretrain(tree, out=tmp_path / "run", backbone=Net(), **OPTIONS).folder
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"}
    (problem,) = refusal(resume=run, backbone=Net(7))
    assert problem.startswith(f"resume: {run}/checkpoints/step-00000006: 6 keys (layers.0.weight (6, 3, 3, 3), not (7,")
    assert before == {path: path.read_bytes() for path in before}


class Reshaped(Net):
    """Three dimensions."""

    def forward(self, images):
        """Return one too many."""
        return super().forward(images).flatten(2)


class Tied(nn.Module):
    """Two layers with one memory."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)
        self.two = nn.Conv2d(3, 3, 1)
        self.two.weight = self.one.weight

    def forward(self, images):
        """Return a map."""
        return self.two(self.one(images))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Net, "backbone: Net is a class; pass what it makes: Net(...)"),
        (3, "backbone: a int is neither a name nor a torch.nn.Module"),
        (nn.Conv2d(1, 2, 3), "backbone: own:Conv2d does not take images of 16 px (Given groups=1"),
        (Reshaped(), "backbone: own:Reshaped gives torch.float32 (2, 6, 49) for 2 images, neither vectors"),
        (nn.AvgPool2d(2), "backbone: own:AvgPool2d has nothing to learn"),
        (nn.LSTM(16, 2), "backbone: own:LSTM does not take images of 16 px"),
        (Tied(), "backbone: own:Tied has one memory for several weights (one.weight, two.weight); give each its own"),
        (Net().double(), "backbone: own:Net does not take images of 16 px"),
        (cc.Backbone(Net(), "resnet18", 6), "backbone: a Backbone of your own is named own:<name>, not 'resnet18'; to"),
        (cc.Backbone(Net(), "own:Net", 9), "backbone: own:Net gives 6 numbers, its dim says 9"),
    ],
    ids=str,
)
def test_a_network_that_does_not_fit_is_refused(tree, tmp_path, network, words):
    """What is no network, or one whose vectors or weights cannot be used, is told in a line before anything is made."""
    (problem,) = refusal(tree, out=tmp_path / "run", backbone=network, **OPTIONS)
    assert problem.startswith(words)


def test_a_backbone_brings_its_normalisation(tree, tmp_path):
    """A Backbone of the user's keeps its name, mean and deviation, in the file too."""
    backbone = cc.Backbone(Net(), "own:mine", 6)
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)
    cc.pretrain(tree, out=tmp_path / "run", backbone=backbone, **OPTIONS)
    loaded = cc.load_backbone(tmp_path / "run", network=Net())
    assert (loaded.name, loaded.mean, loaded.std) == ("own:mine", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    (problem,) = refusal(tree, out=tmp_path / "no", backbone=Net(), init="random:resnet10-small-w8", **OPTIONS)
    assert problem == "init: a network of your own begins with the weights that it has; leave init out"


def test_views_are_a_function_of_seed_epoch_and_place(tree):
    """A view is what the function makes of the frame and of the numbers of (seed, purpose, place, epoch)."""
    store = FrameStore.open(tree)
    pairs = FramePairs(store, corner, 16, seed=5)
    for position in (0, 7, 30):
        epoch, place = divmod(position, 12)
        sample = pairs[position]
        for purpose, frame in enumerate(sample.frames):
            numbers = np.random.Generator(np.random.Philox(key=5, counter=[0, purpose, place, epoch]))
            expected = corner(store.image(sample.video, frame).copy(), numbers, 16)
            assert np.array_equal((sample.query, sample.positive)[purpose], expected)
    twice = FramePairs(store, corner, 16, seed=5, same_frame=True)[3]
    assert not np.array_equal(twice.query, twice.positive)


def test_views_are_the_same_for_any_workers(tree):
    """0, 1 and 2 workers give the same batches."""
    pairs = FramePairs(FrameStore.open(tree), corner, 16, seed=5)
    first, *others = (list(load_batches(pairs, range(3), 4, 0, 1, workers)) for workers in (0, 1, 2))
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert torch.equal(one.query, two.query)
            assert torch.equal(one.positive, two.positive)


def test_an_augmentation_gets_the_whole_frame(tmp_path):
    """Frames are not decoded at a part of their size, as those for a recipe are."""
    folder = tmp_path / "tree" / "video"
    folder.mkdir(parents=True)
    import cv2

    for number in range(2):
        cv2.imwrite(str(folder / f"{number}.jpg"), np.full((256, 320, 3), 90, np.uint8))
    seen = []

    def look(image, rng, size):
        seen.append(image.shape)
        return np.zeros((size, size, 3), np.uint8)

    store = FrameStore.open(tmp_path / "tree")
    FramePairs(store, look, 16, seed=0)[0]
    assert set(seen) == {(256, 320, 3)}


def fails(image, rng, size):
    """Fail."""
    raise KeyError("colour")


def floats(image, rng, size):
    """Give the wrong kind."""
    return np.zeros((size, size, 3))


def from_elsewhere(image, rng, size):
    """Draw from a generator that is not the view's."""
    return np.random.randint(255, size=(size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (lambda image, rng, size: image, "augmentation: gives uint8 (32, 32, 3), not uint8 (16, 16, 3)"),
        (lambda image, rng, size: image.tolist(), "augmentation: gives a list, not an array uint8 (16, 16, 3)"),
        (floats, "augmentation: gives float64 (16, 16, 3), not uint8 (16, 16, 3)"),
        (fails, "augmentation: fails on a frame (32, 32, 3) (KeyError: 'colour')"),
        (from_elsewhere, "augmentation: gives two views of one frame and one generator that differ; draw from the"),
        (Recipe, "augmentation: Recipe is a class; pass what it makes: Recipe(...)"),
        (3, "augmentation: a int is neither a name nor a function"),
        ("moco-v3", "augmentation: input should be 'moco-v1' or 'moco-v2', not 'moco-v3'; did you mean moco-v"),
    ],
    ids=["frame", "list", "floats", "fails", "from elsewhere", "class", "number", "name"],
)
def test_an_augmentation_that_does_not_fit_is_refused(tree, tmp_path, augmentation, words):
    """It is tried on a frame, twice, and what is amiss told in a line before anything is made."""
    (problem,) = refusal(tree, out=tmp_path / "run", augmentation=augmentation, **SMALL)
    assert problem.startswith(words)


def test_what_workers_cannot_be_given_is_refused(tree, tmp_path):
    """A lambda is refused where there are worker processes; a partial of a function is not; without workers all go."""
    cut = functools.partial(corner)
    (problem,) = refusal(tree, out=tmp_path / "no", augmentation=lambda *view: corner(*view), **SMALL | {"workers": 1})
    assert problem.startswith("augmentation: cannot be sent to the processes that load data (")
    assert problem.endswith("; define it with def or class at the top of a file, or set workers=0")
    cc.pretrain(tree, out=tmp_path / "two", augmentation=cut, **SMALL | {"workers": 1, "steps": 2})
    cc.pretrain(tree, out=tmp_path / "none", augmentation=lambda *view: corner(*view), **SMALL | {"steps": 2})
    rows = [[row["loss"] for row in lines_of(tmp_path / name)] for name in ("two", "none")]
    assert rows[0] == rows[1]
    assert 'augmentation = "own:lambda"' in (tmp_path / "none" / "config.toml").read_text()


def test_the_device_makes_no_views_of_ones_own(tree, tmp_path):
    """Asked to, it is refused; left open, the workers make them."""
    (problem,) = refusal(tree, out=tmp_path / "no", augmentation=corner, augment_on="device", **SMALL)
    assert problem == "augment_on: the device knows no augmentation of your own; leave it out, or set cpu"


def test_options_of_recipes_are_told_to_play_no_part(tree, tmp_path, capsys):
    """Those that say how recipes crop and mirror do nothing to the user's function, which is said."""
    cc.pretrain(tree, out=tmp_path / "run", augmentation=corner, min_crop=0.5, flip=False, **SMALL | {"steps": 1})
    assert "plays no part in cycle: min_crop, flip" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cycle", "byol"])
def test_an_objective_of_ones_own_trains_as_the_built_in_one(tree, tmp_path, name):
    """Passed as an object, an objective of ours gives the same metrics and weights to the bit as by its name."""
    # what `auto` decides for a name, which it does not know of an objective of the user's
    options = SMALL | {"cycle_start": 0.0}
    cc.pretrain(tree, out=tmp_path / "ours", method=name, **options)
    cc.pretrain(tree, out=tmp_path / "own", objective=OBJECTIVES[name], **options)
    assert f'objective = "own:{name}"' in (tmp_path / "own" / "config.toml").read_text()
    assert lines_of(tmp_path / "ours") == lines_of(tmp_path / "own")
    found, expected = weights_of(tmp_path / "own"), weights_of(tmp_path / "ours")
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_an_objective_written_by_hand_computes_the_same(tree, tmp_path):
    """Written out from the features of a step, the intra-video loss is the built-in one, and its term is measured."""
    options = SMALL | {"precision": "fp32", "batch_keys": False}
    cc.pretrain(tree, out=tmp_path / "ours", method="intra-video", **options)
    cc.pretrain(tree, out=tmp_path / "own", objective=BY_HAND, **options)
    ours, own = lines_of(tmp_path / "ours"), lines_of(tmp_path / "own")
    np.testing.assert_allclose([row["loss"] for row in own], [row["loss"] for row in ours], rtol=1e-4)
    assert all(isinstance(row["nearness_loss"], float) for row in own)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (
            by_hand,
            "objective: a function is neither a name nor an Objective; say what it needs: cyclecontrast.Objective",
        ),
        (cc.Objective, "objective: Objective is a class; pass what it makes: Objective(...)"),
        (BY_HAND._replace(needs=cc.Needs(queries=())), "objective: its needs have no query, or no positive: name one"),
        (BY_HAND._replace(needs=cc.Needs(num_enqueued=2)), "objective: its needs enqueue 2 of 1 keys"),
        (BY_HAND._replace(needs=cc.Needs(keys=(2,))), "objective: its needs number a view above 1, and further makes"),
        (
            BY_HAND._replace(needs=cc.Needs(queries=(0, 1), keys=(), num_enqueued=0)),
            "objective: its needs have a queue and no keys for it; set has_intra=False, or name keys",
        ),
        ("intra-vido", "objective: input should be 'intra-image', 'intra-video', "),
    ],
    ids=["function", "class", "no query", "too many", "no view", "no keys", "name"],
)
def test_an_objective_that_does_not_fit_is_refused(tree, tmp_path, objective, words):
    """What is no objective, or needs what contradicts itself, is told in a line before anything is made."""
    (problem,) = refusal(tree, out=tmp_path / "run", method=objective, **SMALL)
    assert problem.startswith(words)


def test_all_mistakes_come_at_once(tree, tmp_path):
    """Those of objects and of options are told together, and then those that data and networks tell of."""
    problems = refusal(tree, out=tmp_path / "run", backbone=Net, augmentation=1, objective=print, **OPTIONS, seeed=1)
    assert [problem.partition(":")[0] for problem in problems] == [
        *("backbone", "augmentation", "objective", "seeed is no option; did you mean seed?")
    ]
    own = {"backbone": Reshaped(), "augmentation": floats}
    problems = refusal(tree, out=tmp_path / "run", **own, **OPTIONS)
    assert [problem.partition(":")[0] for problem in problems] == ["backbone", "augmentation"]


def test_a_backbone_stands_for_the_name_of_a_model(tree, tmp_path):
    """Embedding, evaluating and exporting take a backbone itself, with the result that its name gives."""
    labeled = make_labeled(tmp_path / "labeled")
    name, backbone = "random:resnet10-small-w8", cc.load_backbone("random:resnet10-small-w8")
    by_name = cc.evaluate("knn", name, labeled, out=tmp_path / "one", image_size=16, k=(1,), workers=0)
    by_object = cc.evaluate("knn", backbone, labeled, out=tmp_path / "two", image_size=16, k=(1,), workers=0)
    assert by_name.metrics == by_object.metrics
    again = cc.evaluate(
        "knn", backbone, labeled, out=tmp_path / "two", image_size=16, k=(1,), workers=0, score_only=True
    )
    assert again.metrics == by_object.metrics
    for model in (name, backbone):
        cc.embed(model, tree, out=tmp_path / f"{len(str(model))}.npz", image_size=16, workers=0)
    first, second = (np.load(path) for path in sorted(tmp_path.glob("*.npz")))
    assert np.array_equal(first["vector"], second["vector"])
    cc.export(backbone, out=tmp_path / "x.safetensors")
    assert fingerprint(cc.load_backbone(tmp_path / "x.safetensors")) == fingerprint(backbone)
    for ask in (cc.embed, cc.export, functools.partial(cc.evaluate, "knn")):
        with pytest.raises(cc.UserError, match=r"^model: a Net is neither a name nor a Backbone; make one by"):
            ask(Net(), data=labeled)
    with pytest.raises(cc.UserError, match="protocol all takes the name of a model"):
        cc.evaluate("all", backbone, data_root=tmp_path)


def test_a_network_that_gives_maps_is_evaluated_as_one_that_gives_vectors(tmp_path):
    """Of the same weights, a network of maps and one of their means are fine-tuned and probed to the same numbers."""
    labeled = make_labeled(tmp_path / "labeled")
    found = {}
    for name, make_network in (("map", Net), ("flat", Flat)):
        backbone = cc.Backbone(seeded(make_network), f"own:{name}", 6, 16)
        asked = {"out": tmp_path / name, "image_size": 16, "workers": 0, "batch_size": 4}
        tuned = cc.evaluate("finetune", backbone, labeled, epochs=2, **asked)
        probed = cc.evaluate("linear", backbone, labeled, probe="lbfgs", **asked)
        found[name] = tuned.metrics | probed.metrics | {"loss": tuned.about.details["last_loss"]}
    assert found["map"] == pytest.approx(found["flat"], rel=1e-5)


def make_labeled(root):
    """Write six images of either of two classes for training and testing."""
    import cv2

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, low in (("dark", 0), ("bright", 150)):
            (root / split / label).mkdir(parents=True)
            for index in range(6):
                image = rng.integers(low, low + 100, (20, 20, 3), np.uint8)
                cv2.imwrite(str(root / split / label / f"{index}.png"), image)
    return root


def test_exports_of_a_network_are_its_weights_and_graph(tmp_path):
    """Formats that know ResNets only say what can hold it; its own file loads with the printed line."""
    backbone = cc.Backbone(seeded(Net).eval(), "own:Net", 6, 16)
    for name in ("torchvision", "timm", "detectron2"):
        with pytest.raises(cc.UserError) as error:
            cc.export(backbone, format=name, out=tmp_path / "x.pkl" if name == "detectron2" else tmp_path / "x.pth")
        (problem,) = error.value.problems
        assert problem == f"format {name}: has no own:Net; what can hold it: safetensors or onnx"
    made = cc.export(backbone, out=tmp_path / "x.safetensors")
    variables = {"Net": Net}
    exec(made.snippet.replace("network=Net()", "network=Net()"), variables)
    assert fingerprint(variables["backbone"]) == fingerprint(backbone)


def test_the_graph_of_a_network_gives_its_vectors(tmp_path):
    """The ONNX graph of a network that gives maps computes what the backbone does of the same pixels."""
    for needed in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(needed, reason="the extra onnx is not installed")
    import onnxruntime

    backbone = cc.Backbone(seeded(Net).eval(), "own:Net", 6, 16)
    cc.export(backbone, format="onnx", out=tmp_path / "x.onnx")
    pixels = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    (found,) = onnxruntime.InferenceSession(tmp_path / "x.onnx").run(None, {"pixels": pixels.numpy()})
    expected = backbone(backbone.normalise(pixels)).detach()
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)


def test_the_page_says_what_it_cannot_show(tree, tmp_path):
    """The report of a run with all three charts the objective's term, and says why views and neighbors are absent."""
    own = {"backbone": Net(), "augmentation": corner, "method": BY_HAND}
    run = cc.pretrain(tree, out=tmp_path / "run", **own, **OPTIONS | {"holdout": 0.2, "health_every": 2}).folder
    assert "cyclecontrast.evaluate(&#39;knn&#39;, " in cc.report(run, workers=0).path.read_text()
    result = cc.evaluate(
        "knn",
        cc.load_backbone(run, network=Net()),
        make_labeled(tmp_path / "l"),
        out=run / "results",
        k=(1,),
        workers=0,
    )
    cc.pretrain(tree, out=tmp_path / "ours", **SMALL | {"steps": 1})
    for runs in ((run,), (run, tmp_path / "ours")):
        page = cc.report(*runs, out=tmp_path / "page.html", workers=0).path.read_text()
        assert "Nearness loss" in page
        assert "no file says how the user&#39;s own:corner and own:by_hand makes them" in page
        assert "Its neighbors and map cannot be shown: " in page
        assert f"{100 * result.metrics['top1_k1']:.1f} %" in page
    alone = cc.report(run, workers=0).path.read_text()
    assert "by an objective of its own, by_hand." in alone
    assert "cyclecontrast.load_backbone(" in alone
    assert "cyclecontrast pretrain --config" not in alone  # which could not train it again


def test_names_of_ones_own_are_plain_words():
    """A config holds the name of a user's own as plain data, and no other text."""
    named = {"backbone": "own:Net", "augmentation": "own:corner", "method": "own:by_hand"}
    config = checked(PretrainConfig, {"data": "data", "out": "run"} | named)
    assert {name: config.model_dump(mode="json")[name] for name in named} == named
    for name in named:
        for wrong in ("own:", "own:a b", "own:../x", "own"):
            with pytest.raises(cc.UserError):
                checked(PretrainConfig, {"data": "data", "out": "run", name: wrong})


def test_objectives_need_no_more_than_what_is_exported():
    """What an objective of one's own is made of is found where the documentation says."""
    assert cc.Objective(by_hand, ignored_positive, cc.Needs(), "words") == cc.Objective(
        losses=by_hand, ignored=ignored_positive, needs=cc.Needs(), learns_from="words"
    )
    assert {"Backbone", "Losses", "Needs", "Objective", "Step"} <= set(dir(cc))
