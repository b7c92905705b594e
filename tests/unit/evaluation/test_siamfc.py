"""The SiamFC tracker: its sizes to the number, its head and losses against plain loops, and that it follows."""

import copy
import math

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from cyclecontrast.config import TrackingConfig
from cyclecontrast.data.tracking_sequences import Sequence, Sequences, open_got10k
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.tracking import fit_head as fitting
from cyclecontrast.evaluation.tracking.dense_features import DenseFeatures, stride_of
from cyclecontrast.evaluation.tracking.fit_head import Plan, decay, fit_head, make_optimizer
from cyclecontrast.evaluation.tracking.head import Head, correlate, make_head, raw_head
from cyclecontrast.evaluation.tracking.presets import RELEASE, SIAMFC, VINCE, head_shape
from cyclecontrast.evaluation.tracking.response_loss import balanced_loss, focal_loss, make_labels
from cyclecontrast.evaluation.tracking.response_peak import WINDOW, find_peak, make_window
from cyclecontrast.evaluation.tracking.siamfc import SiamFC, prepare_tracker
from cyclecontrast.evaluation.unfinished import Unfinished
from cyclecontrast.models.backbone import make_backbone

CPU = torch.device("cpu")


def features_of(name="resnet10-w8"):
    """Return the dense features of a random backbone."""
    return DenseFeatures.of(make_backbone(name), CPU)


def config_of(tmp_path, **settings):
    """Return the options of a short training on the CPU."""
    values = {"model": "in memory", "data": tmp_path, "device": "cpu", "workers": 0, **settings}
    return TrackingConfig(**values)


@pytest.mark.parametrize("name", ["resnet10-w8", "resnet18-w8", "resnet10-small-w8"])
def test_sizes_are_those_of_the_protocol(name):
    """120, 239 and 255 pixels give 15, 30 and 32 cells at stride 8, and responses 16 (train) and 18 (test) wide."""
    features = features_of(name)
    maps = {size: features(torch.zeros(1, 3, size, size, dtype=torch.uint8)) for size in (120, 127, 239, 247, 255)}
    assert {size: made.shape[-1] for size, made in maps.items()} == {120: 15, 127: 16, 239: 30, 247: 31, 255: 32}
    assert all(stride_of(size, made.shape[-1]) == 8 for size, made in maps.items())
    widths = [correlate(maps[z], maps[x]).shape[-1] for z, x in ((120, 239), (120, 255), (120, 247), (127, 255))]
    assert widths == [16, 18, 17, 17]


def test_positives_are_the_protocols():
    """16 pixels are 2 cells: 12 positives where the middle lies between cells, 13 on it; VINCE's 2.5 cells give 21."""
    centred = torch.zeros(1, 2)
    assert int(make_labels(16, RELEASE.positive_distance / 8, centred).sum()) == 12
    assert int(make_labels(15, SIAMFC.positive_distance / 8, centred).sum()) == 13
    vince = make_labels(17, VINCE.positive_distance / 8, centred)
    assert int(vince.sum()) == sum(abs(y) + abs(x) <= 2.5 for y in range(-8, 9) for x in range(-8, 9))


def test_labels_move_with_the_target():
    """The positives of each pair lie around where its target is: down by 3 cells, left by 2."""
    labels = make_labels(17, 1.5, torch.tensor([[3.0, -2.0], [0.0, 0.0]]))
    expected = {(11, 6), (10, 6), (12, 6), (11, 5), (11, 7)}
    assert {tuple(place) for place in labels[0].nonzero().tolist()} == expected
    assert labels[1][8, 8] == 1


def test_head_and_rates_are_the_protocols(tmp_path):
    """2048 → 1024 x 1e-5, 512 → 512 x 1e-3, VINCE 256 x 1e-3; Adam from 1e-3 with γ = 0.91201, no decay of weights."""
    assert head_shape(2048, RELEASE) == (1024, pytest.approx(1e-5))
    assert head_shape(512, RELEASE) == (512, pytest.approx(1e-3))
    assert head_shape(2048, VINCE) == (256, 1e-3)
    plan = Plan.of(config_of(tmp_path))
    assert plan == (RELEASE, 50, 8, 1e-3, 1)
    rates = [decay(plan)(epoch) for epoch in range(51)]
    assert rates[1] == pytest.approx(0.91201, abs=5e-6)
    assert rates[50] == pytest.approx(1e-2)
    vince = Plan.of(config_of(tmp_path, preset="vince"))
    assert [decay(vince)(epoch) for epoch in (0, 9, 10, 20, 30, 39)] == pytest.approx([1, 1, 0.1, 0.01, 1e-3, 1e-3])
    head = make_head(8, RELEASE, 0)
    groups = [
        make_optimizer(head, Plan.of(config_of(tmp_path, preset=name))).param_groups[0]
        for name in ("release", "siamfc")
    ]
    assert [group["weight_decay"] for group in groups] == [0, 5e-4]
    assert (groups[0]["lr"], groups[1]["lr"], groups[1]["momentum"]) == (1e-3, 1e-2, 0.9)


def test_correlation_equals_a_plain_loop():
    """Each kernel meets its own map, in full; one kernel meets all maps."""
    rng = np.random.default_rng(0)
    kernels, maps = rng.normal(size=(2, 3, 2, 4)), rng.normal(size=(2, 3, 5, 6))

    def slide(kernel, image):
        return [[(kernel * image[:, y : y + 2, x : x + 4]).sum() for x in range(3)] for y in range(4)]

    both, one = (correlate(torch.from_numpy(kernels[:n]), torch.from_numpy(maps)).numpy() for n in (2, 1))
    np.testing.assert_allclose(both, [slide(kernels[0], maps[0]), slide(kernels[1], maps[1])])
    np.testing.assert_allclose(one, [slide(kernels[0], maps[0]), slide(kernels[0], maps[1])])


def test_correlation_has_the_gradients_of_a_convolution():
    """Kernels and maps learn as they would from torch's own grouped convolution."""
    torch.manual_seed(0)
    kernels, maps = torch.randn(2, 3, 2, 2, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 3)
    expected = torch.autograd.grad(
        (nn.functional.conv2d(maps.reshape(1, 6, 4, 4), kernels, groups=2)[0] * weight).sum(), (kernels, maps)
    )
    made = torch.autograd.grad((correlate(kernels, maps) * weight).sum(), (kernels, maps))
    assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(made, expected, strict=True))


def test_the_two_convolutions_are_separate_and_scaled():
    """Exemplar and search crop have weights of their own, from the seed; the response carries the factor."""
    head = make_head(6, RELEASE, 3)
    assert not torch.equal(head.exemplar.weight, head.search.weight)
    assert torch.equal(make_head(6, RELEASE, 3).search.weight, head.search.weight)
    z, x = torch.randn(2, 6, 3, 3), torch.randn(2, 6, 5, 5)
    expected = correlate(head.exemplar(z), head.search(x)) * 0.512 / 6
    assert torch.allclose(head(z, x), expected)
    assert torch.allclose(raw_head(6, RELEASE)(z, x), correlate(z, x) * 0.512 / 6)


def plain_focal(logits, labels):
    """Write the formula of protocols.md §a out, cell by cell."""
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
    """The gradient is that of the whole formula, also of the mean of the weights it is divided by."""
    logits = torch.tensor([[[0.5, -1.0], [2.0, 0.1]]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels), logits)


def test_certainty_is_no_division_by_zero():
    """Responses beyond single precision give loss 0 where they are right, and a finite one where they are wrong."""
    labels = make_labels(5, 1, torch.zeros(1, 2))
    right = (2 * labels - 1) * 1000
    assert float(focal_loss(right, labels)) == 0
    assert np.isfinite(float(focal_loss(-right, labels)))


def test_the_window_sums_to_one():
    """A Hann window of 272 x 272, highest in the middle."""
    assert make_window().shape == (272, 272)
    assert make_window().sum() == pytest.approx(1)
    assert np.unravel_index(WINDOW.argmax(), WINDOW.shape)[0] in (135, 136)


def bump(height, y=8.5, x=8.5):
    """Return a response of 18 x 18 with a peak of this height."""
    places = np.arange(18)
    distance = (places[:, None] - y) ** 2 + (places[None] - x) ** 2
    return (height - 1 + np.exp(-distance / 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("heights", "fixed", "scale"),
    [
        ((1.0, 1.0, 1.02), False, 1),
        ((1.0, 1.0, 1.04), False, 2),
        ((1.04, 1.0, 1.0), False, 0),
        ((-1.02, -1.0, -1.01), False, 2),
        ((-1.02, -1.0, -1.01), True, 1),
        ((-1.0, -1.0, -0.9), True, 2),
    ],
)
def test_a_change_of_scale_must_be_worth_it(heights, fixed, scale):
    """The factor 0.9745 keeps the scale; on negative peaks it changes it, unless `fix_scale_penalty`."""
    assert find_peak(np.stack([bump(height) for height in heights]), fixed).scale == scale


def test_the_peak_is_found_where_it_is():
    """A response two cells down and one left lies 2·272/18 and 272/18 pixels from the middle of the upsampled one."""
    peak = find_peak(np.stack([bump(1, 10.5, 7.5)] * 3))
    # The window draws the peak towards the middle by a few pixels.
    np.testing.assert_allclose([peak.dy, peak.dx], [2 * 272 / 18, -272 / 18], atol=4)


class Fixed:
    """Features whose response is known: all search crops give one map with one cell, the exemplar is that cell."""

    backbone = None

    device = CPU

    def __init__(self, y, x):
        self.y, self.x = y, x

    def __call__(self, pixels):
        """Return a map of 32 cells whose correlation with the exemplar's 15 peaks at (y, x) of 18."""
        cells = pixels.shape[-1] // 8 + (pixels.shape[-1] % 8 > 0)
        maps = torch.zeros(len(pixels), 1, cells, cells)
        if cells == 15:
            maps[:, 0, 7, 7] = 1
        else:
            maps[:, 0, 7 + self.y - 1 : 7 + self.y + 2, 7 + self.x - 1 : 7 + self.x + 2] = 0.5
            maps[:, 0, 7 + self.y, 7 + self.x] = 1
        return maps


def test_a_cell_is_as_many_pixels_as_the_geometry_says():
    """The release moves by 8/16 = 0.5 pixels per upsampled pixel, `exact_geometry` by 18·8/272 = 0.529."""
    image, box = np.zeros((300, 300, 3), np.uint8), np.array([101.0, 121, 40, 20])
    moves = []
    for exact in (False, True):
        tracker = SiamFC(Fixed(12, 6), Head(nn.Identity(), nn.Identity(), 1.0), 120, exact_geometry=exact)
        tracker.init(image, box)
        moves.append(tracker.update(image) - box)
    np.testing.assert_allclose(moves[1][:2] / moves[0][:2], 18 * 8 / 272 / 0.5)
    # x_sz = sqrt((40 + 30)(20 + 30)) · 255/120, the search crop has 255 pixels, the peak lies 2.5 and 3.5 cells off.
    cell = 0.5 * 272 / 18 * math.sqrt(70 * 50) / 120
    np.testing.assert_allclose(moves[0], [-2.5 * cell, 3.5 * cell, 0, 0], atol=0.25 * cell)


def test_a_step_is_measured_in_the_crop_of_its_scale():
    """The same place in the response of a larger crop is 1.0375 times as far away."""
    image, box, moves = np.zeros((300, 300, 3), np.uint8), np.array([101.0, 121, 41, 41]), []
    for heights in ((1.0, 1.0, 1.0), (1.0, 1.0, 1.5)):
        tracker = SiamFC(Fixed(9, 9), Head(nn.Identity(), nn.Identity(), 1.0), 120)
        tracker.init(image, box)
        responses = torch.from_numpy(np.stack([bump(height, 12.5, 8.5) for height in heights]))
        tracker._head.respond = lambda kernels, maps, responses=responses: responses
        moved = tracker.update(image)
        moves.append(moved[1] + (moved[3] - 1) / 2 - (121 + 20))
    assert moves[0] > 5
    assert moves[1] / moves[0] == pytest.approx(1.0375)


def test_the_size_follows_the_scale():
    """A larger scale that fits best grows the target, and the search region with it, by 0.41 + 0.59 · 1.0375."""
    tracker = SiamFC(Fixed(9, 9), Head(nn.Identity(), nn.Identity(), 1.0), 120)
    image = np.zeros((300, 300, 3), np.uint8)
    tracker.init(image, np.array([101.0, 121, 40, 20]))
    tracker._head.respond = lambda kernels, maps: torch.from_numpy(np.stack([bump(1.0), bump(1.0), bump(1.5)]))
    side = tracker._side
    box = tracker.update(image)
    growth = 0.41 + 0.59 * 1.0375
    assert box[2:] == pytest.approx([40 * growth, 20 * growth])
    assert tracker._side == pytest.approx(side * growth)


def moving_square(num_frames, growth=1.0):
    """Yield frames and boxes of a textured square that moves over a calm background."""
    rng = np.random.default_rng(0)
    calm = rng.integers(90, 166, (15, 20, 3)).astype(np.uint8)
    background = cv2.resize(calm, (320, 240), interpolation=cv2.INTER_CUBIC)
    texture = rng.integers(0, 255, (5, 5, 3)).astype(np.uint8)
    for number in range(num_frames):
        x, y, side = 80 + 5 * number, 120 + 40 * math.sin(number / 6), 44 * growth**number
        left, top, size = round(x - side / 2), round(y - side / 2), round(side)
        frame = background.copy()
        frame[top : top + size, left : left + size] = cv2.resize(texture, (size, size), interpolation=cv2.INTER_NEAREST)
        yield frame, np.array([left + 1.0, top + 1, size, size])


def overlap(a, b):
    """Return the intersection over union of two boxes."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    common = np.prod(np.maximum(sides, 0))
    return common / (np.prod(a[2:]) + np.prod(b[2:]) - common)


@pytest.mark.parametrize(("growth", "least"), [(1.0, 0.75), (0.985, 0.6)])
def test_a_moving_square_is_followed(tmp_path, growth, least):
    """Raw features of a random backbone follow a square that moves, or shrinks too; the first box loses it."""
    config = config_of(tmp_path, train=False, exact_geometry=True)
    prepared = prepare_tracker(make_backbone("resnet18-w8"), config, None, Unfinished(tmp_path))
    assert prepared.tag == "tracking tracker=siamfc preset=release head=raw geometry=exact"
    (first, start), *frames = moving_square(20, growth)
    prepared.tracker.init(first, start)
    followed = [overlap(prepared.tracker.update(frame), box) for frame, box in frames]
    identity = [overlap(start, box) for _, box in frames]
    assert np.mean(followed) > least > np.mean(identity) + 0.4
    assert min(followed) > 0.4


def test_init_forgets_the_target_before(tmp_path):
    """A tracker that served another sequence gives the same boxes as a new one."""
    config = config_of(tmp_path, train=False)
    (first, start), *frames = moving_square(4)
    boxes = []
    for uses in (1, 2):
        tracker = prepare_tracker(make_backbone("resnet10-w8"), config, None, Unfinished(tmp_path)).tracker
        for _ in range(uses):
            tracker.init(first, start)
            boxes.append([tracker.update(frame) for frame, _ in frames])
    assert np.array_equal(boxes[0], boxes[1])
    assert np.array_equal(boxes[0], boxes[2])


def test_broken_weights_are_named(tmp_path):
    """Features that are not finite are an error of one line, not a box that is no number."""
    backbone = make_backbone("resnet10-w8")
    backbone.network.layer4[0].bn2.bias.data[0] = float("nan")
    tracker = prepare_tracker(backbone, config_of(tmp_path, train=False), None, Unfinished(tmp_path)).tracker
    (first, start), (second, _) = moving_square(2)
    tracker.init(first, start)
    with pytest.raises(UserError, match="not finite; its weights are broken"):
        tracker.update(second)


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


SHORT = {"epochs": 3, "batch_size": 2, "pairs_per_sequence": 5}


def test_training_lowers_the_loss_and_leaves_the_backbone_alone(tmp_path, train):
    """The head learns; not one bit of the backbone changes, nor do its mode and its gradients."""
    backbone = make_backbone("resnet10-w8").train()
    before = copy.deepcopy(backbone.state_dict())
    prepared = prepare_tracker(backbone, config_of(tmp_path, **SHORT), train, Unfinished(tmp_path / "u"))
    losses = prepared.details["losses"]
    assert losses[-1] < losses[0]
    assert prepared.notes == (
        "the head was trained for 15 steps, in the release for 58,300; raise pairs_per_sequence or epochs",
    )
    assert prepared.tag == "tracking tracker=siamfc preset=release head=trained epochs=3"
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("preset", ["release", "siamfc", "vince"])
def test_a_training_that_was_stopped_ends_the_same(tmp_path, train, preset, monkeypatch):
    """Stopped in the second epoch and run again, the head has the same bits."""
    settings = {**SHORT, "preset": preset, "epochs": 2, "pairs_per_sequence": 1}
    whole = fit_head(features_of(), train, config_of(tmp_path, **settings), Unfinished(tmp_path / "whole"))
    original = fitting._batches

    def stopping(features, pairs, *rest):
        if pairs.epoch == 1:
            raise KeyboardInterrupt
        yield from original(features, pairs, *rest)

    monkeypatch.setattr(fitting, "_batches", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit_head(features_of(), train, config_of(tmp_path, **settings), Unfinished(tmp_path / "halves"))
    monkeypatch.setattr(fitting, "_batches", original)
    torch.manual_seed(5)
    halves = fit_head(features_of(), train, config_of(tmp_path, **settings), Unfinished(tmp_path / "halves"))
    assert halves.losses == whole.losses
    states = whole.head.state_dict(), halves.head.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_few_sequences_fill_an_epoch(tmp_path, train):
    """Pairs per sequence are raised to 50 steps an epoch, and it is noted; a number that was asked for is not."""
    fitted = fit_head(features_of(), train, config_of(tmp_path, epochs=1, batch_size=3), Unfinished(tmp_path / "u"))
    assert fitted.plan.pairs_per_sequence == 75
    assert fitted.num_steps == 50
    assert "pairs_per_sequence: 75 instead of 1" in fitted.notes[0]
    asked = config_of(tmp_path, epochs=1, batch_size=3, pairs_per_sequence=1)
    with pytest.raises(UserError, match="pairs_per_sequence: 1 of 2 sequences fill no batch of 3; ask for 2"):
        fit_head(features_of(), train, asked, Unfinished(tmp_path / "v"))


def test_an_epoch_is_whole_batches_in_its_own_order(tmp_path, train, monkeypatch):
    """What is left of a batch is dropped; no pair comes twice in an epoch, and each epoch has another order."""
    asked = []
    load = fitting.load_image_batches
    monkeypatch.setattr(
        fitting,
        "load_image_batches",
        lambda pairs, crop, batches, *rest: asked.append(batches) or load(pairs, crop, batches, *rest),
    )
    fit_head(
        features_of(), train, config_of(tmp_path, **{**SHORT, "epochs": 2, "batch_size": 4}), Unfinished(tmp_path / "u")
    )
    assert [[len(batch) for batch in batches] for batches in asked] == [[4, 4], [4, 4]]
    assert all(len({place for batch in batches for place in batch}) == 8 for batches in asked)
    assert asked[0] != asked[1]


def test_sequences_that_cannot_be_used_are_noted(tmp_path, train):
    """One without two usable frames is noted, an image that cannot be read is named; none at all is an error."""
    small = Sequence("b", train.sequences[1].folder, train.sequences[1].files, train.sequences[1].boxes / 4)
    away = Sequence("c", tmp_path / "away", train.sequences[1].files, train.sequences[1].boxes)
    some = Sequences(train.root, "got10k", (train.sequences[0], small, away))
    fitted = fit_head(features_of(), some, config_of(tmp_path, epochs=1, batch_size=2), Unfinished(tmp_path / "u"))
    assert any("2 of 3 training sequences have fewer than two usable frames" in note for note in fitted.notes)
    assert len(fitted.problems) == 1
    assert "away/00000001.png" in fitted.problems[0]
    none = Sequences(train.root, "got10k", (small,))
    with pytest.raises(UserError, match="none of the 1 sequences has two frames to train on"):
        fit_head(features_of(), none, config_of(tmp_path), Unfinished(tmp_path / "v"))


def test_options_of_training_without_training_are_named(tmp_path):
    """What did nothing is said, as for every protocol."""
    config = config_of(tmp_path, train=False, epochs=4, fix_scale_penalty=True)
    prepared = prepare_tracker(make_backbone("resnet10-w8"), config, None, Unfinished(tmp_path))
    assert prepared.notes == ("epochs did nothing: no head is trained",)
    assert prepared.tag.endswith("head=raw scale_penalty=fixed")


def test_a_network_that_is_no_resnet_is_refused(tmp_path):
    """Strides of other networks cannot be changed: an error of one line."""
    with pytest.raises(UserError, match="is no ResNet"):
        prepare_tracker(make_backbone("timm:resnet10t"), config_of(tmp_path, train=False), None, Unfinished(tmp_path))


def test_the_loss_falls_on_real_pairs(tmp_path, shared):
    """Three epochs on the sequences of GOT-10k lower the loss of the head."""
    if not (shared / "tracking" / "got10k" / "val").is_dir():
        pytest.skip("no tracking/got10k/val in the shared data")
    train = open_got10k(shared / "tracking" / "got10k", "val")
    config = config_of(tmp_path, epochs=3, batch_size=4)
    fitted = fit_head(features_of(), train, config, Unfinished(tmp_path / "u"))
    assert fitted.losses[-1] < fitted.losses[0]
