"""The methods beside ours in a step: which views and keys each compares, and where no gradient may flow."""

import pytest
import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.pairs import Batch
from cyclecontrast.loss.objectives import OBJECTIVES
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.training.distributed import World
from cyclecontrast.training.train_step import _encode, _gather_inputs, _take_share, train_step
from cyclecontrast.training.training import Hardware, make_training, restore, state_of
from tests.unit.loss.test_baseline_losses import loop_multi_positive, loop_nt_xent
from tests.unit.loss.test_losses import dot, loop_cycle, loop_nce

HARDWARE = Hardware(torch.device("cpu"), "fp32", World(0, 1))
NUM_VIDEOS, NUM_VIEWS, QUEUE = 6, 8, 40
NEW = ("cycle-only", "vince", "seco", "simclr", "simsiam", "byol")


def make(objective, **changes):
    """Build a small training by an objective."""
    settings = {
        "projector": "mlp-bn",
        "projector_dim": 16,
        "queue_size": QUEUE,
        "cycle_queue_size": QUEUE,
        "support_size": 12,
        "bn_groups": 2,
        "temperature": 0.2,
        "learning_rate": 0.1,
        "schedule": "cosine",
    }
    config = PretrainConfig(data="d", out="o", method=objective, **(settings | changes))
    return make_training(config, make_backbone("resnet10-small-w8"), 10, HARDWARE)


def draw_batch(seed=0, num_views=NUM_VIEWS):
    """Draw views of six videos; the second view shows the query's frame, the others frames of either half."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_views, NUM_VIDEOS, 16, 16, 3)
    views = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    frames = torch.tensor([[1, 1, 5, 7], [6, 6, 0, 2], [3, 3, 4, 4], [0, 0, 0, 0], [9, 9, 1, 1], [2, 2, 8, 9]])
    return Batch(views[0], views[1], torch.arange(NUM_VIDEOS), 0, tuple(views[2:]), frames)


def see(training, batch=None):
    """Return what the objective sees of the first step, in float64 where it is a key or a query."""
    share = _take_share(training, batch or draw_batch(), 0)
    return _gather_inputs(training, _encode(training, share), share, None, 0)


def loss_of(training, inputs):
    """Compute the objective's losses."""
    return training.objective.losses(inputs)


def doubled(features):
    """The intra vectors of several views in float64."""
    return [feature.intra.detach().double() for feature in features]


# --- each objective against a plain loop


@pytest.mark.parametrize("mask", [False, True])
def test_vince_contrasts_all_frames_with_all_keys(mask):
    """Four queries of a video meet its four keys; negatives are the others' keys and the queue's, masked or not."""
    training = make("vince", mask_own_video=mask)
    train_step(training, draw_batch(1), 0)
    inputs = see(training)
    queries, keys = (torch.cat(doubled(views)) for views in (inputs.encoded.queries, inputs.encoded.keys))
    queue, video = training.intra_queue, torch.arange(NUM_VIDEOS).repeat(4)
    everything, of = torch.cat((queue.keys.double(), keys)), torch.cat((queue.video, video))
    positives = (video[:, None] == of) & (torch.arange(len(of)) >= QUEUE)
    ignore = (video[:, None] == of) & mask
    assert positives.sum() == 4 * 4 * NUM_VIDEOS
    assert (ignore & ~positives).any() == mask, "the queue holds older keys of the videos"
    expected = loop_multi_positive(queries, everything, positives, 0.2, ignore)
    assert loss_of(training, inputs).total.item() == pytest.approx(expected.item(), rel=1e-4)


def test_vince_of_the_batch_itself():
    """The self-batch term adds the contrast of the queries among themselves, at its own temperature."""
    training = make("vince", self_batch=True, self_temperature=0.4)
    inputs = see(training)
    queries, video = torch.cat(doubled(inputs.encoded.queries)), torch.arange(NUM_VIDEOS).repeat(4)
    expected = loop_multi_positive(queries, queries, video == video[:, None], 0.4, None)
    losses = loss_of(training, inputs)
    assert losses.more[0].value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses.total.item() == pytest.approx(losses.intra.item() + expected.item(), rel=1e-4)


def test_seco_is_the_sum_of_three():
    """Three positives each against the queue, the own frame against each other frame, and the order, summed."""
    training = make("seco")
    train_step(training, draw_batch(1), 0)
    inputs = see(training)
    query, keys, queue = inputs.encoded.queries[0], inputs.encoded.keys, training.intra_queue
    own = queue.video == inputs.video[:, None]
    inter = [
        loop_nce(query.intra[i].detach().double(), key.intra[i].double(), queue.keys.double(), 0.2, own[i])
        for key in keys
        for i in range(NUM_VIDEOS)
    ]
    intra = []
    for place, key in ((2, keys[1]), (3, keys[2])):
        rows = [i for i in range(NUM_VIDEOS) if inputs.frames[i, 0] != inputs.frames[i, place]]
        terms = [-_log_share(query.cycle[i], keys[0].cycle[i], key.cycle[i]) for i in rows]
        intra.append(sum(terms) / len(terms))
    is_after = {0: 0, 1: 1, 2: 0, 4: 1, 5: 0}
    order = [-inputs.answers[0][i].detach().double().log_softmax(0)[after] for i, after in is_after.items()]
    losses = loss_of(training, inputs)
    parts = sum(inter) / len(inter), sum(intra) / 2, sum(order) / len(order)
    assert [losses.intra.item(), *(term.value.item() for term in losses.more)] == pytest.approx(
        [part.item() for part in parts], rel=1e-4
    )
    assert losses.total.item() == pytest.approx(sum(parts).item(), rel=1e-4)


def _log_share(query, same, other):
    up, down = (torch.exp(dot(query.detach().double(), key.double()) / 0.2) for key in (same, other))
    return torch.log(up / (up + down))


@pytest.mark.parametrize("objective", ["vince", "seco"])
def test_keys_of_the_step_are_no_negatives_of_their_video(objective):
    """With nothing masked, a query ignores the keys that its video has in this step, and its older ones count."""
    training = make(objective, mask_own_video=False, batch_keys=True)
    train_step(training, draw_batch(1), 0)
    inputs = see(training)
    ignored = training.objective.ignored(inputs)
    keys = len(inputs.encoded.keys)
    own = inputs.intra.video == inputs.video[:, None]
    assert (own[:, :QUEUE].sum(1) == keys).all()
    assert not ignored[:, :QUEUE].any()
    assert torch.equal(ignored[:, QUEUE:], own[:, QUEUE:])
    assert (ignored.sum(1) == keys).all()


def test_simclr_is_nt_xent_of_both_views():
    """Both views come from the encoder itself, and there is no momentum encoder and no queue."""
    training = make("simclr")
    inputs = see(training)
    expected = loop_nt_xent(*doubled(inputs.encoded.queries), 0.2)
    assert loss_of(training, inputs).total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert training.momentum_encoder is None
    assert len(training.intra_queue.keys) == 0


@pytest.mark.parametrize("objective", ["simsiam", "byol"])
def test_predictors_foretell_the_other_view(objective):
    """The loss is the mean of minus the cosine both ways, of the prediction from a view and the other's target."""
    training = make(objective)
    inputs = see(training)
    targets = doubled(inputs.encoded.queries)[::-1] if objective == "simsiam" else doubled(inputs.encoded.keys)
    predictions = [answer.detach().double() for answer in inputs.answers]
    cosines = [
        sum(dot(p, t) for p, t in zip(prediction, target, strict=True)) / NUM_VIDEOS
        for prediction, target in zip(predictions, targets, strict=True)
    ]
    assert loss_of(training, inputs).total.item() == pytest.approx(-sum(cosines).item() / 2, rel=1e-4, abs=1e-6)


def test_byol_predicts_the_momentum_encoders_view_of_the_other():
    """The target of the first view's prediction is the second view seen by the momentum encoder, and vice versa."""
    training, batch = make("byol", bn_groups=1), draw_batch()
    inputs = see(training, batch)
    normalise = training.encoder.backbone.normalise
    for target, images in zip(inputs.encoded.keys, (batch.positive, batch.query), strict=True):
        assert torch.allclose(target.intra, training.momentum_encoder(normalise(images)).intra, atol=1e-5)


@pytest.mark.parametrize("own_key", [False, True])
def test_cycle_only_is_equation_5(own_key):
    """The total is the cycle loss alone; with its own key in the support each query may use that key and no other's."""
    training = make("cycle-only", query_frame_in_support=own_key, cycle_weight=0.0, cycle_start=1.0)
    train_step(training, draw_batch(1), 0)
    inputs = see(training)
    from cyclecontrast.loss.objectives import split_candidates

    split = split_candidates(inputs._replace(encoded=inputs.encoded._replace(keys=inputs.encoded.keys[:1])))
    support, ignore = split.support.double(), split.ignore_support
    if own_key:
        support = torch.cat((support, inputs.encoded.keys[1].cycle.double()))
        ignore = torch.cat((ignore, ~torch.eye(NUM_VIDEOS, dtype=torch.bool)), dim=1)
    vectors = inputs.query.cycle.detach().double(), inputs.positive.cycle.double(), support, split.negatives.double()
    expected = loop_cycle(*vectors, 0.2, ignore, split.ignore_negatives)
    losses = loss_of(training, inputs)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses.cycle is losses.total
    assert losses.intra.isnan()


# --- where the gradient flows


def test_simsiams_target_is_frozen():
    """No gradient reaches the features that serve as targets; through the predictions it reaches head and backbone."""
    training = make("simsiam")
    batch = draw_batch()
    share = _take_share(training, batch, 0)
    views = _encode(training, share)
    for features in views.encoded.queries:
        features.intra.retain_grad()
    inputs = _gather_inputs(training, views, share, None, 0)
    loss_of(training, inputs).total.backward()
    assert all(features.intra.grad is None for features in views.encoded.queries)
    assert all(parameter.grad.abs().sum() > 0 for parameter in training.head.parameters())
    assert training.encoder.backbone.network.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("objective", ["cycle-only", "vince", "seco", "byol"])
def test_momentum_encoders_are_frozen(objective):
    """A step moves encoder and head by the gradient, the momentum encoder by following alone."""
    training = make(objective, momentum=0.75)
    before = {name: {k: v.clone() for k, v in part.items()} for name, part in state_of(training).items()}
    train_step(training, draw_batch(), 0)
    weight = "backbone.network.layer1.0.conv1.weight"
    learned = training.encoder.state_dict()[weight]
    followed = 0.75 * before["momentum_encoder"][weight] + 0.25 * learned
    assert not torch.equal(learned, before["encoder"][weight])
    assert torch.allclose(training.momentum_encoder.state_dict()[weight], followed, atol=1e-7)
    assert all(parameter.grad is None for parameter in training.momentum_encoder.parameters())
    assert all(not torch.equal(p, before["head"][name]) for name, p in training.head.named_parameters())


@pytest.mark.parametrize("objective", NEW)
def test_an_objective_changes_no_state(objective):
    """Computing losses twice gives the same numbers and leaves every tensor of the training as it was."""
    training = make(objective)
    inputs = see(training)
    before = {name: {k: v.clone() for k, v in part.items()} for name, part in state_of(training).items()}
    first, second = (loss_of(training, inputs).total.item() for _ in range(2))
    assert first == second
    for name, part in state_of(training).items():
        assert all(torch.equal(value, before[name][key]) for key, value in part.items())


# --- queues, schedules, state


@pytest.mark.parametrize(("objective", "keys"), [("vince", 4), ("seco", 3), ("cycle-only", 1)])
def test_every_key_of_the_objective_is_enqueued(objective, keys):
    """VINCE enqueues four keys of a video, SeCo three, the cycle its positive but not k++, with their videos."""
    training = make(objective, **({"query_frame_in_support": True} if objective == "cycle-only" else {}))
    train_step(training, draw_batch(), 0)
    queue = training.cycle_queue if objective == "cycle-only" else training.intra_queue
    pushed = keys * NUM_VIDEOS
    assert queue.video.tolist() == [-1] * (QUEUE - pushed) + list(range(NUM_VIDEOS)) * keys


def test_simsiams_predictor_keeps_its_rate():
    """The predictor learns at the full rate to the end while the encoder's falls; BYOL's falls with it."""
    for objective, expected in (("simsiam", 0.1), ("byol", None)):
        training = make(objective)
        train_step(training, draw_batch(), 9)
        of_encoder, of_head = (group["lr"] for group in training.optimizer.param_groups)
        assert of_encoder < 0.01
        assert of_head == (expected or of_encoder)


def test_the_momentum_rises_to_one():
    """With momentum_rise the momentum encoder follows by 1 - m at first and hardly at all in the last step."""
    training = make("byol", momentum=0.5, momentum_rise=True)
    weight = training.momentum_encoder.backbone.network.conv1.weight
    moved = []
    for step in (0, 9):
        before = weight.clone()
        train_step(training, draw_batch(), step)
        gap = (training.encoder.backbone.network.conv1.weight - before).norm()
        moved.append(((weight - before).norm() / gap).item())
    assert moved == pytest.approx([0.5, 0.5 * (1 + torch.cos(torch.tensor(0.9 * torch.pi)).item()) / 2], rel=1e-3)


@pytest.mark.parametrize("objective", NEW)
def test_restoring_goes_on_to_the_bit(objective):
    """Steps behind a restored state give the same bits as steps that were never interrupted."""
    whole, part = make(objective), make(objective, seed=9)
    train_step(whole, draw_batch(1), 0)
    restore(part, {name: {k: v.clone() for k, v in values.items()} for name, values in state_of(whole).items()})
    object.__setattr__(part, "config", whole.config)
    results = [train_step(training, draw_batch(2), 1) for training in (whole, part)]
    assert results[0].losses.total.item() == results[1].losses.total.item()
    for name, values in state_of(whole).items():
        assert all(torch.equal(value, state_of(part)[name][key]) for key, value in values.items())


def test_every_objective_says_what_it_is():
    """The registry, the option and the words for the report name the same objectives."""
    options = PretrainConfig.model_fields["objective"].annotation.__args__
    assert set(OBJECTIVES) == set(options)
    assert len({objective.learns_from for objective in OBJECTIVES.values()}) == len(OBJECTIVES)
