"""A user's network, augmentation and method: trained with, saved, resumed, and refused if they do not fit."""

import functools
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.augment import Recipe
from cyclecontrast.data.dataset import ViewDataset
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.distributed import ALONE
from cyclecontrast.errors import checked
from cyclecontrast.methods import METHODS, CycleContrast, Losses, Method, MomentumMethod
from cyclecontrast.models.checkpoint import fingerprint
from cyclecontrast.training.trainer import Trainer
from tests import make_videos as make
from tests.make_runs import rows_of as lines_of

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


class ByHand(MomentumMethod):
    """The intra-video loss, written out, and a term with a name; `calls` is a buffer of its own."""

    has_intra = True

    def __init__(self, backbone, options, world=ALONE):
        super().__init__(backbone, options, world)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch, info):
        """Return the losses."""
        self.calls += 1
        key = self.encode_keys(batch.views[1], info)
        new, new_video = self.enqueue_later([key], batch.video)
        query = self.encode(batch.views[0])
        keys = self.candidates(self.intra_queue, new.intra, new_video)
        positive = (query.intra * key.intra).sum(dim=1) / self.options.temperature
        others = query.intra @ keys.keys.T / self.options.temperature
        others = others.masked_fill(keys.ignore(batch.video, own_video=True), float("-inf"))
        loss = (torch.logsumexp(torch.cat((positive[:, None], others), dim=1), dim=1) - positive).mean()
        return Losses(loss, loss, terms={"nearness": positive.mean()})


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
    with pytest.raises(cc.UserError, match="returns only the map of its last stage, but the map of stage 3 is needed"):
        loaded.feature_map(images, 3)
    with pytest.raises(cc.UserError, match="returns only vectors, but the map of"):
        cc.load_backbone(tmp_path / "flat", network=Flat()).feature_map(images, 4)


def test_a_file_of_a_network_needs_it(tree, tmp_path, capsys):
    """Without the network, with another, or with one too many, loading ends in lines that say which keys."""
    run = cc.pretrain(tree, out=tmp_path / "run", backbone=Net(), **OPTIONS).folder
    with pytest.raises(
        cc.UserError, match=r"weights of own:Net, .* but not its code; load it in Python by load_backbone\("
    ):
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


def test_a_stopped_run_resumes_to_the_bit(tree, tmp_path, monkeypatch):
    """With all three parts of the user, a run stopped half-way and resumed equals an uninterrupted one."""
    options = OPTIONS | {"checkpoint_every": 2, "holdout": 0.2, "health_every": 1, "select": "health"}
    own = {"augmentation": corner, "method": ByHand}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cc.pretrain(tree, out=whole, backbone=seeded(Net), **own, **options)
    original = Trainer.train_step

    def interrupted(trainer, batch, info):
        if info.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(trainer, batch, info)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
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
    cc.pretrain(tree, out=run, backbone=Net(), augmentation=corner, method=ByHand, **OPTIONS)
    problems = refusal(resume=run)
    assert problems == [
        f"{option}: own:{name} is defined in your code, not in a file; pass it in Python: "
        f"cyclecontrast.pretrain(resume={str(run)!r}, {option}=...)"
        for option, name in (("backbone", "Net"), ("augmentation", "corner"), ("method", "ByHand"))
    ]
    (problem,) = refusal(resume=run, backbone=Net(), method=ByHand)
    assert problem.startswith("augmentation: own:corner is defined in your code")
    (problem,) = refusal(resume=run, backbone=Flat(), augmentation=corner, method=ByHand)
    assert (
        problem == "resume: the settings of a run cannot change: backbone is own:Net in the run and own:Flat requested"
    )
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
    assert problem.startswith(f"resume: {run}/checkpoints/step-00000006 is of another network or method (")
    assert "size mismatch for encoder.backbone.network.layers.0.weight" in problem
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
        (Net, "backbone: Net is a class; pass an instance: Net(...)"),
        (3, "backbone: a int is neither a name nor a torch.nn.Module"),
        (nn.Conv2d(1, 2, 3), "backbone: own:Conv2d fails on images of 16 px (Given groups=1"),
        (
            Reshaped(),
            "backbone: own:Reshaped returns torch.float32 (2, 6, 49) for 2 images, not floats of shape",
        ),
        (nn.AvgPool2d(2), "backbone: own:AvgPool2d has no trainable weights"),
        (nn.LSTM(16, 2), "backbone: own:LSTM fails on images of 16 px"),
        (Tied(), "backbone: own:Tied shares memory between weights (one.weight, two.weight); give each its own"),
        (Net().double(), "backbone: own:Net fails on images of 16 px"),
        (
            cc.Backbone(Net(), "resnet18", 6),
            "backbone: the name of a custom Backbone must be own:<name>, not 'resnet18'",
        ),
        (cc.Backbone(Net(), "own:Net", 9), "backbone: own:Net returns vectors of 6 dimensions, its dim is 9"),
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
    assert problem == "init: a custom network is trained from the weights that it has; leave init out"


def test_views_are_a_function_of_seed_epoch_and_place(tree):
    """A view is what the function makes of the frame and of the numbers of (seed, purpose, place, epoch)."""
    store = FrameStore.open(tree)
    pairs = ViewDataset(store, corner, 16, seed=5)
    for position in (0, 7, 30):
        epoch, place = divmod(position, 12)
        sample = pairs.sample(position)
        for purpose, frame in enumerate(sample.frames):
            numbers = np.random.Generator(np.random.Philox(key=5, counter=[0, purpose, place, epoch]))
            expected = corner(store.image(sample.video, frame).copy(), numbers, 16)
            assert np.array_equal(sample.views[purpose], expected)
    twice = ViewDataset(store, corner, 16, seed=5, same_frame=True).sample(3)
    assert not np.array_equal(*twice.views)


def test_views_are_the_same_for_any_workers(tree):
    """0, 1 and 2 workers give the same batches."""
    pairs = ViewDataset(FrameStore.open(tree), corner, 16, seed=5)
    first, *others = (list(load_batches(pairs, StepSampler(range(3), 4), workers)) for workers in (0, 1, 2))
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert all(map(torch.equal, one.views, two.views))


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
    ViewDataset(store, look, 16, seed=0)[0]
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
        (lambda image, rng, size: image, "augmentation: returns uint8 (32, 32, 3), not uint8 (16, 16, 3)"),
        (lambda image, rng, size: image.tolist(), "augmentation: returns a list, not an array uint8 (16, 16, 3)"),
        (floats, "augmentation: returns float64 (16, 16, 3), not uint8 (16, 16, 3)"),
        (fails, "augmentation: fails on a frame (32, 32, 3) (KeyError: 'colour')"),
        (from_elsewhere, "augmentation: returns two different views for the same frame and generator; draw"),
        (Recipe, "augmentation: Recipe is a class; pass an instance: Recipe(...)"),
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
    assert problem == "augment_on: a custom augmentation runs on the CPU only; leave it out, or set cpu"


def test_options_of_recipes_are_told_to_play_no_part(tree, tmp_path, capsys):
    """Those that say how recipes crop and mirror do nothing to the user's function, which is said."""
    cc.pretrain(tree, out=tmp_path / "run", augmentation=corner, min_crop=0.5, flip=False, **SMALL | {"steps": 1})
    assert "not used by cycle: min_crop, flip" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cycle", "byol"])
def test_a_built_in_method_may_be_passed_as_a_class(tree, tmp_path, name):
    """Passed as a class, a built-in method gives the same metrics and weights to the bit as by its name."""
    options = SMALL | {"cycle_start": 0.0}  # what `auto` decides by name, it does not know of a class
    cc.pretrain(tree, out=tmp_path / "named", method=name, **options)
    cc.pretrain(tree, out=tmp_path / "passed", method=METHODS[name], **options)
    assert f'method = "own:{METHODS[name].__name__}"' in (tmp_path / "passed" / "config.toml").read_text()
    assert lines_of(tmp_path / "named") == lines_of(tmp_path / "passed")
    found, expected = weights_of(tmp_path / "passed"), weights_of(tmp_path / "named")
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_method_written_by_hand_computes_the_same(tree, tmp_path, capsys):
    """Written out, the intra-video loss is the built-in one, its term is measured, and no option is called unused."""
    options = SMALL | {"precision": "fp32", "batch_keys": False}
    cc.pretrain(tree, out=tmp_path / "named", method="intra-video", **options)
    capsys.readouterr()
    cc.pretrain(tree, out=tmp_path / "passed", method=ByHand, **options)
    assert "queue_size" not in capsys.readouterr().err.partition("not used by")[2]
    named, passed = lines_of(tmp_path / "named"), lines_of(tmp_path / "passed")
    np.testing.assert_allclose([row["loss"] for row in passed], [row["loss"] for row in named], rtol=1e-4)
    assert all(isinstance(row["nearness_loss"], float) for row in passed)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (len, "method: a builtin_function_or_method is neither a name nor a subclass of cyclecontrast.methods.Method"),
        (Net, "method: the class Net is neither a name nor a subclass of cyclecontrast.methods.Method"),
        (Method, "method: Method has no forward(batch, info) that returns Losses"),
        ("intra-vido", "method: input should be 'intra-image', 'intra-video', "),
    ],
    ids=["function", "class", "no forward", "name"],
)
def test_a_method_that_does_not_fit_is_refused(tree, tmp_path, method, words):
    """What is not a method is reported in a line before anything is made."""
    (problem,) = refusal(tree, out=tmp_path / "run", method=method, **SMALL)
    assert problem.startswith(words)


class TermsOnly(CycleContrast):
    """A method that reports a cycle loss but no rate."""

    def forward(self, batch, info):
        """Return the losses without rates."""
        return super().forward(batch, info)._replace(cycle_closed=None)


def test_a_method_need_not_measure_rates(tree, tmp_path):
    """A method that reports a cycle loss without a rate of closed cycles trains to its end."""
    done = cc.pretrain(tree, out=tmp_path / "run", method=TermsOnly, **SMALL | {"steps": 2, "cycle_start": 0.0})
    assert done.metrics["cycle_loss"] is not None
    assert done.metrics["cycle_closed"] is None


def test_all_mistakes_come_at_once(tree, tmp_path):
    """Those of objects and of options are told together, and then those that data and networks tell of."""
    problems = refusal(tree, out=tmp_path / "run", backbone=Net, augmentation=1, method=print, **OPTIONS, seeed=1)
    assert [problem.partition(":")[0] for problem in problems] == [
        *("backbone", "augmentation", "method", "unknown option seeed; did you mean seed?")
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
    with pytest.raises(cc.UserError, match="protocol all needs the name of a model"):
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
        assert problem == f"format {name}: does not support own:Net; use safetensors or onnx"
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
    """The report of such a run charts the method's term, and says why views and neighbors cannot be shown."""
    own = {"backbone": Net(), "augmentation": corner, "method": ByHand}
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
        assert "the files of a run do not contain the user&#39;s own:corner and own:ByHand" in page
        assert "Its neighbors and map cannot be shown: " in page
        assert f"{100 * result.metrics['top1_k1']:.1f} %" in page
    alone = cc.report(run, workers=0).path.read_text()
    assert "the custom method ByHand" in alone
    assert "cyclecontrast.load_backbone(" in alone
    assert "cyclecontrast pretrain --config" not in alone  # which could not train it again


def test_names_of_ones_own_are_plain_words():
    """A config holds the name of a user's own as plain data, and no other text."""
    named = {"backbone": "own:Net", "augmentation": "own:corner", "method": "own:ByHand"}
    config = checked(PretrainConfig, {"data": "data", "out": "run"} | named)
    assert {name: config.model_dump(mode="json")[name] for name in named} == named
    for name in named:
        for wrong in ("own:", "own:a b", "own:../x", "own"):
            with pytest.raises(cc.UserError):
                checked(PretrainConfig, {"data": "data", "out": "run", name: wrong})
