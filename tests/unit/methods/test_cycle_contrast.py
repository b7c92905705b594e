"""The paper's method: Eq. 1 to 6 over drawn vectors against plain loops in float64, and the split of the candidates."""

import math

import pytest
import torch

from cyclecontrast.methods import Candidates, StepInfo
from tests.unit.loss.test_losses import loop_cycle, loop_nce, unit
from tests.unit.methods.make_methods import (
    INFO,
    NUM_VIDEOS,
    QUEUE,
    draw_batch,
    fill_queue,
    make_method,
    with_features,
)


def prepared(method="cycle", num_views=2, **changes):
    """Return a method with filled queues, a batch, and the drawn vectors of queries and keys."""
    made = make_method(method, **changes)
    for seed, name in enumerate(("intra_queue", "cycle_queue")):
        if hasattr(made, name):
            fill_queue(getattr(made, name), seed)
    return made, *with_features(made, num_views)


def candidates_of(method, queue, key):
    """Return the keys and videos that a query is compared with, and the index of each query's positive."""
    if not method.options.batch_keys:
        return queue.keys, queue.video, None
    video = torch.cat((queue.video, torch.arange(NUM_VIDEOS)))
    return torch.cat((queue.keys, key)), video, QUEUE + torch.arange(NUM_VIDEOS)


def loop_intra(method, query, key, own_video):
    """Eq. 1 or 2, mean over the batch, ignoring positives and, with `own_video`, the query's video."""
    keys, video, positive_index = candidates_of(method, method.intra_queue, key)
    losses = []
    for i in range(NUM_VIDEOS):
        ignore = (video == i) if own_video else torch.zeros(len(video), dtype=torch.bool)
        if positive_index is not None:
            ignore[positive_index[i]] = True
        losses.append(loop_nce(query[i].double(), key[i].double(), keys.double(), 0.2, ignore))
    return sum(losses) / NUM_VIDEOS


@pytest.mark.parametrize("batch_keys", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_the_loss_is_equation_6(batch_keys, mask):
    """The total is Eq. 2 plus λ times Eq. 5, over the queues and, with batch_keys, this step's keys."""
    method, batch, queries, keys = prepared(cycle_weight=0.3, batch_keys=batch_keys, mask_own_video=mask)
    losses = method(batch, INFO)
    query, key = queries[0], keys[1]
    intra = loop_intra(method, query.intra.detach(), key.intra, mask)
    held = Candidates(*candidates_of(method, method.cycle_queue, key.cycle))
    support, negatives, ignore_support, ignore_negatives = method.split(held, batch.video, INFO)
    vectors = (part.detach().double() for part in (query.cycle, key.cycle, support, negatives))
    cycle = loop_cycle(*vectors, 0.2, ignore_support, ignore_negatives)
    assert losses.intra.item() == pytest.approx(intra.item(), rel=1e-4)
    assert losses.cycle.item() == pytest.approx(cycle.item(), rel=1e-4)
    assert losses.total.item() == pytest.approx((intra + 0.3 * cycle).item(), rel=1e-4)


@pytest.mark.parametrize("method_name", ["intra-image", "intra-video"])
@pytest.mark.parametrize("batch_keys", [False, True])
def test_the_intra_losses_are_equations_1_and_2(method_name, batch_keys):
    """Intra-image contrasts with every other key; intra-video leaves out keys of the query's own video."""
    method, batch, queries, keys = prepared(method_name, batch_keys=batch_keys)
    expected = loop_intra(method, queries[0].intra.detach(), keys[1].intra, method_name == "intra-video")
    assert method(batch, INFO).total.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("own_key", [False, True])
def test_cycle_only_is_equation_5(own_key):
    """The total is the cycle loss alone; with k++ each query may use its own k++ and nobody else's."""
    method, batch, queries, keys = prepared("cycle-only", 3 if own_key else 2, query_frame_in_support=own_key)
    losses = method(batch, INFO)
    held = Candidates(method.cycle_queue.keys, method.cycle_queue.video)
    support, negatives, ignore, ignore_negatives = method.split(held, batch.video, INFO)
    if own_key:
        support = torch.cat((support, keys[2].cycle))
        ignore = torch.cat((ignore, ~torch.eye(NUM_VIDEOS, dtype=torch.bool)), dim=1)
    vectors = (part.detach().double() for part in (queries[0].cycle, keys[1].cycle, support, negatives))
    expected = loop_cycle(*vectors, 0.2, ignore, ignore_negatives)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses.intra is None


def test_the_cycle_loss_is_measured_before_it_is_learned():
    """Before cycle_start the cycle loss has its value and leaves no gradient; after it, it leaves one."""
    method, batch, queries, _ = prepared(cycle_start=0.5)
    early, late = (method(batch, StepInfo(step, 10)) for step in (4, 5))
    early.total.backward(retain_graph=True)
    assert queries[0].cycle.grad is None
    assert early.cycle.item() > 0
    late.total.backward()
    assert queries[0].cycle.grad.abs().sum() > 0
    assert [method.cycle_weight(StepInfo(step, 10)) for step in (0, 4, 5, 9)] == [0, 0, 0.1, 0.1]


def test_rates_count_what_wins():
    """A query that equals its positive finds it, one that points away from it does not; no rate without measuring."""
    method, batch, queries, keys = prepared("intra-video")
    for sign, expected in ((1, 1.0), (-1, 0.0)):
        with torch.no_grad():
            queries[0].intra.copy_(sign * keys[1].intra)
        assert method(batch, INFO).intra_accuracy.item() == expected
    assert method(batch, StepInfo(0, 10)).intra_accuracy is None


def test_a_cycle_closes_where_the_neighbor_is_nearest_to_the_positive():
    """Positives that equal the soft nearest neighbors close all cycles; queries without a support do not count."""
    from cyclecontrast.loss import soft_nearest_neighbor

    method, batch, queries, keys = prepared()
    held = Candidates(method.cycle_queue.keys, method.cycle_queue.video)
    support, _, ignore, _ = method.split(held, batch.video, INFO)
    with torch.no_grad():
        keys[1].cycle.copy_(soft_nearest_neighbor(queries[0].cycle, support, 0.2, ignore))
    assert method(batch, INFO).cycle_closed.item() == 1
    method.cycle_queue.video.fill_(0)  # the support of video 0 is empty
    assert method(batch, INFO).cycle_closed.item() <= 1
    only_first = batch._replace(video=torch.zeros(NUM_VIDEOS, dtype=torch.long))
    assert math.isnan(method(only_first, INFO).cycle_closed.item())


# --- the split into support and negatives


def draw_candidates(seed=0, num_videos=6, num_keys=24):
    """Draw keys of a few videos."""
    video = torch.randint(num_videos, (num_keys,), generator=torch.Generator().manual_seed(seed))
    return Candidates(unit(num_keys, 8, seed), video)


def split(candidates, seed=0, **changes):
    """Split candidates for four queries of videos 0 to 3."""
    method = make_method(support_size=8, seed=seed, **changes)
    return method.split(candidates, torch.arange(4), INFO)


@pytest.mark.parametrize("split_by", ["frame", "video"])
def test_support_and_negatives_are_disjoint_and_cover_the_queue(split_by):
    """Every key is in the support or among the negatives, none in both, and a query ignores keys of its own video."""
    for seed in range(3):
        held = draw_candidates(seed)
        support, negatives, ignore_support, ignore_negatives = split(held, seed, split_by=split_by)
        assert len(support) == 8
        assert sorted(map(tuple, torch.cat((support, negatives)).tolist())) == sorted(map(tuple, held.keys.tolist()))
        for part, ignore in ((support, ignore_support), (negatives, ignore_negatives)):
            videos = [held.video[(held.keys == key).all(1)].item() for key in part]
            for row in range(4):
                assert all(ignore[row, column] for column, video in enumerate(videos) if video == row)


def test_split_by_video_keeps_a_video_on_one_side():
    """With split_by video, no video has a frame in the support and a frame among the negatives that count."""
    for seed in range(8):
        held = draw_candidates(seed, num_videos=7)
        support, negatives, _, ignore = split(held, seed, split_by="video", mask_own_video=False)
        video_of = {tuple(key.tolist()): video.item() for key, video in zip(held.keys, held.video, strict=True)}
        counted = negatives[~ignore[0]]
        assert not {video_of[tuple(k.tolist())] for k in support} & {video_of[tuple(k.tolist())] for k in counted}


def test_a_query_ignores_its_positive_wherever_the_draw_puts_it():
    """Without masks, the one key of this step that a query ignores is its own positive."""
    held = draw_candidates()
    held = held._replace(
        video=torch.full_like(held.video, -1), positive_index=torch.tensor([20, 21, 22, 23]), num_batch_keys=4
    )
    support, negatives, *ignores = split(held, mask_own_video=False, split_by="frame")
    keys, ignore = torch.cat((support, negatives)), torch.cat(ignores, dim=1)
    for row in range(4):
        assert torch.equal(keys[ignore[row]], held.keys[20 + row : 21 + row])


def test_every_step_draws_another_support_evenly():
    """Over many steps each key is drawn about equally often, and the same step always draws the same."""
    method, held, counts = make_method(support_size=8), draw_candidates(), torch.zeros(24)
    for step in range(600):
        support = method.split(held, torch.arange(4), StepInfo(step, 600))[0]
        counts += torch.isin(held.keys[:, 0], support[:, 0])
    assert counts.sum() == 600 * 8
    assert (counts - 200).abs().max() < 60
    again = method.split(held, torch.arange(4), StepInfo(3, 600))[0]
    assert torch.equal(again, method.split(held, torch.arange(4), StepInfo(3, 600))[0])


# --- keys


def test_keys_are_encoded_in_shuffled_groups():
    """Each key depends on its own group's images only, keys return in the batch's order, and carry no gradient."""
    method = make_method(bn_groups=2)
    pixels = draw_batch().views[1]
    before = method.encode_keys(pixels, INFO).intra
    assert not before.requires_grad
    changed = pixels.clone()
    changed[3] = 255 - changed[3]
    different = [not torch.equal(a, b) for a, b in zip(before, method.encode_keys(changed, INFO).intra, strict=True)]
    assert different[3]
    assert sum(different) == NUM_VIDEOS // 2, "the three images of its group, and no others"
    one_group = make_method(bn_groups=1)
    normalized = one_group.encoder.backbone.normalize(pixels)
    expected = one_group.momentum_encoder(normalized).cycle
    assert torch.allclose(one_group.encode_keys(pixels, INFO).cycle, expected, atol=1e-5)
    assert make_method(bn_groups=8, projector="mlp").encode_keys(pixels[:1], INFO).intra.shape == (1, 16), (
        "a single image works"
    )


def test_the_momentum_follows_its_schedule():
    """With a ramp it is step / (step + ramp) up to its final value; with momentum_rise it rises to 1 (BYOL)."""
    ramped = make_method(momentum=0.9, momentum_ramp=100)
    assert [ramped.momentum(StepInfo(step, 10_000)) for step in (0, 100, 300, 900, 5000)] == [0, 0.5, 0.75, 0.9, 0.9]
    assert make_method(momentum=0.999).momentum(StepInfo(0, 10)) == 0.999
    rising = make_method(momentum=0.9, momentum_rise=True)
    found = [rising.momentum(StepInfo(step, 6)) for step in (0, 3, 2)]
    assert found == pytest.approx([0.9, 0.95, 1 - 0.1 * 0.75])
