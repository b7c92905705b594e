"""A user's network, augmentation and method: trained, kept, resumed, and refused if they cannot be used."""

import functools
import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.augment import Recipe
from cyclecontrast.errors import checked
from cyclecontrast.methods import BYOL, CycleContrast, IntraVideo, Losses, Method, MomentumMethod
from cyclecontrast.models.checkpoint import fingerprint
from cyclecontrast.training.user_parts import check_network, take_user_parts
from tests.make_backbones import Flat, Net, seeded
from tests.make_runs import (
    TINY,
    assert_same_run,
    assert_same_tensors,
    copy_until,
    files_of,
    refusal,
    rows_of,
    start_many,
    state_path,
    weights_path,
)

SMALL = TINY | {"steps": 4}
OPTIONS = {name: value for name, value in SMALL.items() if name != "backbone"}


def corner(image, rng, size):
    """Cut a random square, and change the frame in place, which must not affect other views."""
    top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
    image += rng.integers(20, dtype=np.uint8)
    return image[top : top + size, left : left + size]


class ByHand(MomentumMethod):
    """The intra-video loss, written out, and a further part with a name."""

    has_intra = True

    def forward(self, batch, info):
        """Return the loss against the queue alone."""
        key = self.encode_keys(batch.views[1], info)
        self.stage_keys([key], batch.video)
        query = self.encode(batch.views[0])
        positive = (query.intra * key.intra).sum(dim=1) / self.options.temperature
        others = query.intra @ self.intra_queue.keys.T / self.options.temperature
        others = others.masked_fill(self.intra_queue.video == batch.video[:, None], float("-inf"))
        loss = (torch.logsumexp(torch.cat((positive[:, None], others), dim=1), dim=1) - positive).mean()
        return Losses(loss, loss.detach(), terms={"nearness": positive.mean().detach()})


class Counting(Method):
    """Classifies the videos by a layer that is as large as the data, and takes note of the videos."""

    has_projectors = False

    def prepare(self, videos):
        """Make the layer."""
        self.head, self.numbers = nn.Linear(self.encoder.backbone.dim, len(videos)), videos.tolist()

    def forward(self, batch, info):
        """Return the cross-entropy of the first view."""
        label = torch.tensor([self.numbers.index(number) for number in batch.video.tolist()])
        return Losses(
            nn.functional.cross_entropy(
                self.head(self.encoder.project(self.encoder.backbone.normalize(batch.views[0])).intra), label
            )
        )


class Noisy(Net):
    """A network with dropout."""

    def forward(self, images):
        """Return a map with random zeros while it is trained."""
        return nn.functional.dropout(super().forward(images), 0.2, self.training)


@pytest.fixture(scope="module")
def whole(stripes, tmp_path_factory):
    """A run with a network, an augmentation and a method of the user."""
    out = tmp_path_factory.mktemp("whole") / "run"
    options = OPTIONS | {"checkpoint_every": 2, "holdout": 0.2, "health_every": 1, "select": "health"}
    return cc.pretrain(stripes, out=out, backbone=seeded(Noisy), augmentation=corner, method=ByHand, **options)


# --- all of them


def test_a_run_names_what_was_passed(whole):
    """Files of the run have the names of the class and the function, and another network of the class can be filled."""
    text = (whole.folder / "config.toml").read_text()
    assert all(
        line in text for line in ('backbone = "own:Noisy"', 'augmentation = "own:corner"', 'method = "own:ByHand"')
    )
    assert not torch.equal(whole.backbone.network.layers[0].weight, seeded(Noisy).layers[0].weight)
    loaded = cc.load_backbone(whole.folder, network=Noisy())
    assert (loaded.name, loaded.dim, loaded.image_size, loaded.training) == ("own:Noisy", 6, 16, False)
    assert fingerprint(loaded) == fingerprint(whole.backbone)
    assert "in Python load_backbone(" in str(whole)


def test_a_resumed_run_is_the_same_run(whole, tmp_path):
    """Resumed with new objects, whose weights do not matter, a run ends with the same bits, its dropout too."""
    part = copy_until(whole.folder, tmp_path / "part", 2)
    cc.pretrain(resume=part, backbone=seeded(Noisy, seed=9), augmentation=corner, method=ByHand)
    assert_same_run(part, whole.folder, 4)


def test_a_method_knows_the_videos_before_training(stripes, tmp_path):
    """A method that prepares itself for the training videos has as many as are not held out, resumed too."""
    options = OPTIONS | {"backbone": "resnet10-small-w1", "holdout": 0.25, "checkpoint_every": 2}
    run = cc.pretrain(stripes, out=tmp_path / "run", method=Counting, **options).folder
    assert load_file(state_path(run, 4))["head/weight"].shape == (9, 8)
    part = copy_until(run, tmp_path / "part", 2)
    cc.pretrain(resume=part, method=Counting)
    assert_same_run(part, run, 4)


def test_what_is_not_in_a_file_must_be_passed_again(whole, tmp_path, capsys):
    """Resuming or repeating a run without the user's parts names all that lack, on the command line too."""
    run = whole.folder
    names = {"backbone": "Noisy", "augmentation": "corner", "method": "ByHand"}
    assert refusal(resume=run) == [
        f"{option}: own:{name} is defined in your code, not in a file; pass it in Python: "
        f"cyclecontrast.pretrain(resume={str(run)!r}, {option}=...)"
        for option, name in names.items()
    ]
    (problem,) = refusal(resume=run, backbone=Noisy(), method=ByHand)
    assert problem.startswith("augmentation: own:corner is defined in your code")
    (problem,) = refusal(resume=run, backbone=Flat(), augmentation=corner, method=ByHand)
    assert "backbone is own:Noisy in the run and own:Flat requested" in problem
    capsys.readouterr()
    assert main(["pretrain", "--config", str(run / "config.toml"), "--out", str(tmp_path / "again")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "cyclecontrast.pretrain(..., backbone=...)" in lines[0]
    assert not (tmp_path / "again").exists()


def test_the_page_says_what_it_cannot_show(whole):
    """The report has the method's further part, and says why views and neighbors are absent."""
    page = cc.report(whole.folder, workers=0).path.read_text()
    assert "Nearness loss" in page
    assert "own:corner and own:ByHand" in page
    assert "cyclecontrast.load_backbone(" in page
    assert "cyclecontrast pretrain --config" not in page, "it could not be trained again"


def test_all_mistakes_are_reported_at_once(stripes, tmp_path):
    """Those of objects and of options come together, and then those that data and networks show."""
    parts = {"backbone": Net, "augmentation": 1, "method": print}
    problems = refusal(data=stripes, out=tmp_path / "run", **parts, **OPTIONS, seeed=1)
    assert [problem.partition(":")[0] for problem in problems] == [
        *("backbone", "augmentation", "method", "unknown option seeed; did you mean seed?")
    ]
    parts = {"backbone": Net().double(), "augmentation": floats}
    problems = refusal(data=stripes, out=tmp_path / "run", **parts, **OPTIONS)
    assert [problem.partition(":")[0] for problem in problems] == ["backbone", "augmentation"]


def test_names_of_user_parts_are_plain_words():
    """A config accepts names of user-defined parts that are plain words, and no other text."""
    named = {"backbone": "own:Net", "augmentation": "own:corner", "method": "own:ByHand"}
    config = checked(PretrainConfig, {"data": "data", "out": "run"} | named)
    assert {name: config.model_dump(mode="json")[name] for name in named} == named
    for name in named:
        for wrong in ("own:", "own:a b", "own:../x", "own"):
            with pytest.raises(cc.UserError):
                checked(PretrainConfig, {"data": "data", "out": "run", name: wrong})


# --- networks


def test_a_map_is_averaged_to_vectors(stripes, tmp_path):
    """A network that returns maps is trained like one that returns their means, up to rounding."""
    weights = []
    for name, make_network in (("map", Net), ("flat", Flat)):
        options = OPTIONS | {"precision": "fp32", "steps": 3}
        cc.pretrain(stripes, out=tmp_path / name, backbone=seeded(make_network), **options)
        weights.append(load_file(weights_path(tmp_path / name)))
    assert all(torch.allclose(weights[0][key].float(), value.float(), atol=1e-5) for key, value in weights[1].items())


def test_an_earlier_backbone_can_be_chosen(stripes, tmp_path, monkeypatch):
    """If health chooses an earlier step, the weights of that step remain in the network that is returned."""
    monkeypatch.setattr("cyclecontrast.training.monitor.best_step", lambda rows: 2)
    monkeypatch.setattr("cyclecontrast.training.monitor.chosen_step", lambda rows, known: 2)
    options = OPTIONS | {"holdout": 0.2, "health_every": 1, "select": "health"}
    done = cc.pretrain(stripes, out=tmp_path / "run", backbone=seeded(Net), **options)
    best = load_file(tmp_path / "run" / "best" / "step-00000002" / "backbone.safetensors")
    last = load_file(state_path(tmp_path / "run", 4))
    assert_same_tensors(done.backbone.network.state_dict(), best)
    assert any(not torch.equal(value, last[f"encoder/backbone.network.{key}"]) for key, value in best.items())


def test_another_network_of_the_name_does_not_resume(whole, tmp_path):
    """If the checkpoint is of other weights the error says which, and the run stays as it is."""
    run = copy_until(whole.folder, tmp_path / "run", 2)
    before = files_of(run)
    (problem,) = refusal(resume=run, backbone=Noisy(7), augmentation=corner, method=ByHand)
    assert problem.startswith(f"resume: {run}/checkpoints/step-00000002 ")
    assert "size mismatch for encoder.backbone.network.layers.0.weight" in problem
    assert files_of(run) == before


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


class Extra(Net):
    """A network with a state that is not a tensor."""

    def get_extra_state(self):
        """Return what no file of weights can hold."""
        return {"steps": 3}

    def set_extra_state(self, state):
        """Take it back."""


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Net, "backbone: Net is a class; pass an instance: Net(...)"),
        (3, "backbone: a int is neither a name nor a torch.nn.Module"),
        (nn.Conv2d(1, 2, 3), "backbone: own:Conv2d fails on images of 16 px (Given groups=1"),
        (Reshaped(), "backbone: own:Reshaped returns torch.float32 (2, 6, 49) for 2 images"),
        (nn.AvgPool2d(2), "backbone: own:AvgPool2d has no trainable weights"),
        (nn.LSTM(16, 2), "backbone: own:LSTM fails on images of 16 px"),
        (Tied(), "backbone: own:Tied shares memory between weights (one.weight, two.weight)"),
        (Extra(), "backbone: own:Extra has non-tensor entries in its state_dict (_extra_state)"),
        (Net().double(), "backbone: own:Net fails on images of 16 px"),
        (
            cc.Backbone(Net(), "resnet18", 6),
            "backbone: the name of a custom Backbone must be own:<name>, not 'resnet18'",
        ),
        (cc.Backbone(Net(), "own:Net", 9), "backbone: own:Net returns vectors of 6 dimensions, its dim is 9"),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_used_is_refused(stripes, tmp_path, network, words):
    """What is not a network, or cannot be trained or saved, is one line before anything is written."""
    (problem,) = refusal(data=stripes, out=tmp_path / "run", backbone=network, **OPTIONS)
    assert problem.startswith(words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": 2}, "freeze: the stages of a custom network are not known; remove freeze, and call"),
        ({"layer_decay": 0.5}, "layer_decay: own:Net is not a network of timm; remove --layer-decay$"),
    ],
)
def test_options_for_known_stages_are_refused(stripes, tmp_path, options, words):
    """Options that need to know the layers of a network are refused for a custom one before anything is written."""
    (problem,) = refusal(data=stripes, out=tmp_path / "run", backbone=Net(), **OPTIONS | options)
    assert re.match(words, problem)
    assert not (tmp_path / "run").exists()


def test_checking_a_network_does_not_change_it():
    """It is tried in evaluation mode: weights, statistics and modes stay, and its dimension is found."""
    network = seeded(Net).train()
    network.layers[1].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    backbone = take_user_parts({"backbone": network}).backbone
    check_network(backbone, 16)
    assert backbone.dim == 6
    assert [module.training for module in network.modules()] == [True, True, True, False, True]
    assert_same_tensors(network.state_dict(), before)


def test_a_backbone_keeps_its_normalization(stripes, tmp_path):
    """A user's Backbone keeps its name, mean and deviation, in the file too; it excludes `init`."""
    backbone = cc.Backbone(Net(), "own:mine", 6)
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)
    cc.pretrain(stripes, out=tmp_path / "run", backbone=backbone, **OPTIONS | {"steps": 1})
    loaded = cc.load_backbone(tmp_path / "run", network=Net())
    assert (loaded.name, loaded.mean, loaded.std) == ("own:mine", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    options = OPTIONS | {"init": "random:resnet10-small-w8"}
    (problem,) = refusal(data=stripes, out=tmp_path / "no", backbone=Net(), **options)
    assert problem.startswith("init: a custom network is trained from its current weights")


def train_with_network(data, out, widths, seeds):
    """Train as one of two processes, each with a network of its own width and weights."""
    rank = int(os.environ["RANK"])
    network = seeded(functools.partial(Net, widths[rank]), seeds[rank])
    try:
        cc.pretrain(data, out=out, backbone=network, **OPTIONS)
    except cc.UserError as error:
        os.write(2, f"{error}\n".encode())


def test_processes_start_from_the_weights_of_the_first(stripes, tmp_path):
    """Networks with other weights start from those of the first process; networks of another size are refused."""
    for name, widths, seeds in (("same", (6, 6), (0, 0)), ("other", (6, 6), (0, 1)), ("wider", (6, 7), (0, 0))):
        prepare = functools.partial(train_with_network, stripes, tmp_path / name, widths, seeds)
        ends = [process.end() for process in start_many(None, None, prepare=prepare)]
        assert all(("number of weights of the backbone: " in text) == (name == "wider") for _, text in ends), ends
    assert_same_run(tmp_path / "other", tmp_path / "same", 4)
    assert not (tmp_path / "wider" / "config.toml").exists()


# --- augmentations


def fails(image, rng, size):
    """Fail."""
    raise KeyError("color")


def floats(image, rng, size):
    """Return the wrong type."""
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
        (fails, "augmentation: fails on a frame (32, 32, 3) (KeyError: 'color')"),
        (from_elsewhere, "augmentation: returns two different views"),
        (Recipe, "augmentation: Recipe is a class; pass an instance: Recipe(...)"),
        (3, "augmentation: a int is neither a name nor a function"),
        ("moco-v3", "augmentation: input should be 'moco-v1' or 'moco-v2', not 'moco-v3'; did you mean moco-v"),
    ],
    ids=["frame", "list", "floats", "fails", "from elsewhere", "class", "number", "name"],
)
def test_an_augmentation_that_cannot_be_used_is_refused(stripes, tmp_path, augmentation, words):
    """It is tried twice on a frame, and what is wrong is one line before anything is written."""
    (problem,) = refusal(data=stripes, out=tmp_path / "run", augmentation=augmentation, **SMALL)
    assert problem.startswith(words)


def test_what_cannot_be_sent_to_workers_is_refused(stripes, tmp_path):
    """A lambda is refused for worker processes, a partial of a function is not; without workers both can be used."""
    options = SMALL | {"steps": 2}
    anonymous = lambda *view: corner(*view)  # noqa: E731
    (problem,) = refusal(data=stripes, out=tmp_path / "no", augmentation=anonymous, **options | {"workers": 1})
    assert problem.startswith("augmentation: cannot be sent to the processes that load data (")
    assert problem.endswith("; define it with def or class at the top of a file, or set workers=0")
    partial = functools.partial(corner)
    cc.pretrain(stripes, out=tmp_path / "one", augmentation=partial, **options | {"workers": 1})
    cc.pretrain(stripes, out=tmp_path / "none", augmentation=anonymous, **options)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "none")
    assert 'augmentation = "own:lambda"' in (tmp_path / "none" / "config.toml").read_text()


def test_a_device_cannot_run_an_augmentation(stripes, tmp_path):
    """A user's function runs in the workers; set to the device, it is refused."""
    (problem,) = refusal(data=stripes, out=tmp_path / "no", augmentation=corner, augment_on="device", **SMALL)
    assert problem.startswith("augment_on: a custom augmentation runs on the CPU only")


def test_options_of_recipes_have_no_effect(stripes, tmp_path, capsys):
    """How recipes crop and flip means nothing to a user's function, which is reported."""
    cc.pretrain(stripes, out=tmp_path / "run", augmentation=corner, min_crop=0.5, flip=False, **SMALL | {"steps": 1})
    assert "not used by cycle: min_crop, flip" in capsys.readouterr().err


# --- methods


@pytest.mark.parametrize(("name", "method"), [("cycle", CycleContrast), ("byol", BYOL)])
def test_a_built_in_method_can_be_passed_as_a_class(stripes, tmp_path, name, method):
    """Passed as a class, a method of this package gives the same run as by its name."""
    options = SMALL | {"cycle_start": 0.0}  # `auto` decides it by name
    cc.pretrain(stripes, out=tmp_path / "name", method=name, **options)
    cc.pretrain(stripes, out=tmp_path / "class", method=method, **options)
    assert f'method = "own:{method.__name__}"' in (tmp_path / "class" / "config.toml").read_text()
    assert_same_run(tmp_path / "name", tmp_path / "class", 4)


def test_a_method_written_by_hand_computes_the_same(stripes, tmp_path):
    """Written out, the intra-video loss equals the built-in one, and its further part is in the metrics."""
    options = SMALL | {"precision": "fp32", "batch_keys": False}
    by_name, by_hand = tmp_path / "name", tmp_path / "hand"
    cc.pretrain(stripes, out=by_name, method="intra-video", **options)
    cc.pretrain(stripes, out=by_hand, method=ByHand, **options)
    losses = [[row["loss"] for row in rows_of(out)] for out in (by_hand, by_name)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert all(isinstance(row["nearness_loss"], float) for row in rows_of(by_hand))


class WithHead(IntraVideo):
    """A method with weights and a buffer of its own, in its head, which computes with them when it is made."""

    def __init__(self, backbone, options, *world):
        super().__init__(backbone, options, *world)
        self.head = nn.Sequential(nn.Linear(options.projector_dim, 1), nn.BatchNorm1d(1))
        self.largest = self.head[0].weight.abs().max().item()

    def forward(self, batch, info):
        """Add a term that trains the head."""
        losses = super().forward(batch, info)
        return losses._replace(total=losses.total + self.head(self.encode(batch.views[0]).intra).square().mean())


class Untrained(IntraVideo):
    """A method whose layer is outside of its head."""

    def __init__(self, backbone, options, *world):
        super().__init__(backbone, options, *world)
        self.layer = nn.Linear(2, 2)


def test_the_head_of_a_method_is_trained_and_resumed(stripes, tmp_path):
    """Weights and buffers of a head are trained, saved with the run, and the same to the bit when it is resumed."""
    options = SMALL | {"checkpoint_every": 2}
    whole = cc.pretrain(stripes, out=tmp_path / "whole", method=WithHead, **options).folder
    part = copy_until(whole, tmp_path / "part", 2)
    heads = [load_file(state_path(whole, step))["head/0.weight"] for step in (2, 4)]
    assert not torch.equal(*heads)
    cc.pretrain(resume=part, method=WithHead)
    assert_same_run(part, whole, 4)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (corner, "method: a function is neither a name nor a subclass of cyclecontrast.methods.Method; pass a class"),
        (Net, "method: the class Net is neither a name nor a subclass of cyclecontrast.methods.Method; pass a class"),
        (type("Empty", (Method,), {}), "method: Empty has no forward(batch, info) that returns Losses"),
        (Untrained, "method: Untrained has trainable weights outside of encoder and head (layer.weight, layer.bias)"),
        ("intra-vido", "method: input should be 'intra-image', 'intra-video', "),
    ],
    ids=["function", "class", "no forward", "untrained", "name"],
)
def test_a_method_that_cannot_be_used_is_refused(stripes, tmp_path, method, words):
    """What is not a method, or cannot be trained, is one line before anything is written."""
    (problem,) = refusal(data=stripes, out=tmp_path / "run", method=method, **SMALL)
    assert problem.startswith(words)


@pytest.mark.parametrize("bad", ["frames", "loss"])
def test_mistakes_in_a_users_code_keep_their_traceback(stripes, tmp_path, bad):
    """An error in the user's own forward is raised as it is, not as a problem of options or data."""
    kind = type(
        "Broken", (IntraVideo,), {"forward": lambda self, batch, info: batch.views[7 if bad == "frames" else 0]}
    )
    with pytest.raises((IndexError, AttributeError)):
        cc.pretrain(stripes, out=tmp_path / "run", method=kind, **SMALL)
