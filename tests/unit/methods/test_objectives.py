"""The queue, the split into support and negatives, and the sum of the losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cyclecontrast.loss import KeyQueue, cycle_consistency, info_nce
from cyclecontrast.loss.losses import soft_nearest_neighbor
from cyclecontrast.loss.objectives import OBJECTIVES, Candidates, LossSettings, Step, measure, split_candidates
from cyclecontrast.models.encoders import Features
from tests.unit.loss.test_losses import unit

DEFAULT = LossSettings(temperature=0.07, support_size=8, top_k=None, mask_own_video=True, split_by="frame")


def make_step(seed=0, weight=0.1, num_videos=6, queue_size=24, batch=4, **changes):
    """Draw a step whose candidates are keys of a few videos."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(num_videos, (queue_size,), generator=generator)
    queue = Candidates(unit(queue_size, 8, seed), video)
    query, key = (Features(unit(batch, 8, seed + i), unit(batch, 8, seed + 10 + i)) for i in (1, 2))
    return Step(query, key, torch.arange(batch), queue, queue, weight, seed, DEFAULT._replace(**changes))


def with_batch(step):
    """Put the step's own keys behind those of the queue."""
    keys, video = torch.cat((step.intra.keys, step.positive.intra)), torch.cat((step.intra.video, step.video))
    return step._replace(intra=Candidates(keys, video, len(step.intra.keys) + torch.arange(len(step.video))))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.lists(st.integers(1, 20), max_size=8))
def test_the_queue_keeps_the_last_keys_in_order(size, pushes):
    """Whatever the batch sizes, the queue holds exactly the last keys, each once, oldest first, with their videos.

    What was joined to it before a push is still there behind it.
    """
    queue, pushed = KeyQueue(size, 1), []
    before = queue.keys.flatten().tolist()
    for number in pushes:
        keys = torch.arange(len(pushed), len(pushed) + number).float()
        held = queue.keys.flatten().tolist()
        joined, video = queue.joined(keys[:, None], keys.long())
        assert queue.keys.flatten().tolist() == held
        queue.push(keys[:, None], keys.long())
        assert joined.flatten().tolist() == held + keys.tolist()
        assert video.tolist()[size:] == keys.tolist()
        pushed += keys.tolist()
    kept = len(pushed[-size:])
    assert queue.keys.shape == (size, 1)
    assert queue.keys.flatten().tolist() == before[min(size, len(pushed)) :] + pushed[-size:]
    assert queue.video.tolist() == [-1] * (size - kept) + [int(key) for key in pushed[-size:]]


def test_the_queue_is_saved_with_the_run():
    """A queue restored from its state dict holds the same keys and goes on the same way."""
    queue, other = KeyQueue(5, 3, seed=1), KeyQueue(5, 3, seed=2)
    queue.push(unit(3, 3, 0), torch.tensor([4, 5, 6]))
    other.load_state_dict(queue.state_dict())
    for one in (queue, other):
        one.push(unit(4, 3, 1), torch.tensor([7, 8, 9, 10]))
    assert torch.equal(queue.keys, other.keys)
    assert other.video.tolist() == [6, 7, 8, 9, 10]


def test_pushed_keys_carry_no_gradient():
    """No gradient reaches what was enqueued, and later changes of the pushed tensor do not reach the queue."""
    queue, keys = KeyQueue(4, 3), unit(2, 3, 0).requires_grad_()
    queue.push(keys, torch.tensor([0, 1]))
    assert not queue.keys.requires_grad
    with torch.no_grad():
        keys.zero_()
    assert queue.keys[-2:].norm(dim=1).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="2 keys with 1 video"):
        queue.push(keys, torch.tensor([0]))


@pytest.mark.parametrize("split_by", ["frame", "video"])
@pytest.mark.parametrize("seed", range(5))
def test_support_and_negatives_are_disjoint_and_cover_the_queue(split_by, seed):
    """Every key of the queue is in the support or in the negatives, none in both."""
    step = make_step(seed, split_by=split_by)
    split = split_candidates(step)
    assert len(split.support) == 8
    both = torch.cat((split.support, split.negatives))
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, step.cycle.keys.tolist()))


@pytest.mark.parametrize("split_by", ["frame", "video"])
def test_own_video_is_no_candidate(split_by):
    """No query sees a key of its own video in the support or the negatives, unless the mask is switched off."""
    for seed in range(5):
        step = make_step(seed, split_by=split_by)
        split = split_candidates(step)
        for part, ignore in ((split.support, split.ignore_support), (split.negatives, split.ignore_negatives)):
            videos = [step.cycle.video[(step.cycle.keys == key).all(1)].item() for key in part]
            for row, video in enumerate(step.video.tolist()):
                assert all(ignore[row, column] for column, v in enumerate(videos) if v == video)
    open_split = split_candidates(make_step(0, mask_own_video=False))
    assert not open_split.ignore_support.any()
    assert not open_split.ignore_negatives.any()


@pytest.mark.parametrize("split_by", ["frame", "video"])
def test_of_the_batch_a_query_ignores_its_positive_alone(split_by):
    """Without masks, the key that each query ignores of both sides is its own positive, wherever the draw puts it."""
    for seed in range(5):
        step = with_batch(make_step(seed, mask_own_video=False, split_by=split_by)._replace(video=torch.full((4,), -1)))
        step = step._replace(cycle=step.intra)
        split = split_candidates(step)
        keys, ignore = torch.cat(split[:2]), torch.cat(split[2:], dim=1)
        border = ignore.all(dim=0)
        for row, positive in enumerate(step.positive.intra):
            assert torch.equal(keys[ignore[row] & ~border], positive[None])


def test_split_by_video_keeps_a_video_on_one_side():
    """With split_by video, no video has a frame in the support and a frame among the negatives that count."""
    for seed in range(20):
        step = make_step(seed, split_by="video", mask_own_video=False, num_videos=7)
        split, queue = split_candidates(step), step.cycle
        video_of = {tuple(key.tolist()): video.item() for key, video in zip(queue.keys, queue.video, strict=True)}
        support = {video_of[tuple(key.tolist())] for key in split.support}
        counted = split.negatives[~split.ignore_negatives[0]]
        assert not support & {video_of[tuple(key.tolist())] for key in counted}


def test_every_step_draws_another_support_evenly():
    """Over many steps each key is drawn about equally often, and the same step always draws the same."""
    step = make_step()
    counts = torch.zeros(24)
    for seed in range(600):
        drawn = split_candidates(step._replace(seed=seed)).support
        counts += torch.isin(step.cycle.keys[:, 0], drawn[:, 0])
    assert counts.sum() == 600 * 8
    assert (counts - 200).abs().max() < 60
    again = split_candidates(step._replace(seed=3)).support
    assert torch.equal(again, split_candidates(step._replace(seed=3)).support)


def test_cycle_is_equation_6():
    """The full objective is the intra-video loss plus λ times the cycle loss over the same split."""
    step = make_step(weight=0.3)
    losses, split = OBJECTIVES["cycle"].losses(step), split_candidates(step)
    own = step.intra.video == step.video[:, None]
    intra = info_nce(step.query.intra, step.positive.intra, step.intra.keys, 0.07, own)
    loss = cycle_consistency(step.query.cycle, step.positive.cycle, *split[:2], 0.07, *split[2:])
    assert losses.intra.item() == pytest.approx(intra.item())
    assert losses.cycle.item() == pytest.approx(loss.item())
    assert losses.total.item() == pytest.approx(intra.item() + 0.3 * loss.item())


def test_without_weight_the_cycle_is_measured_but_not_learned():
    """Before λ is switched on, the cycle loss has its value and leaves no gradient."""
    step = make_step(weight=0.0)
    query = Features(*(part.clone().requires_grad_() for part in step.query))
    losses = OBJECTIVES["cycle"].losses(step._replace(query=query))
    losses.total.backward()
    assert losses.cycle.item() > 0
    assert query.cycle.grad is None
    assert query.intra.grad.abs().sum() > 0


def test_intra_image_masks_nothing():
    """The intra-image objective contrasts with every other key, of the own video too, as MoCo does."""
    step = make_step()
    expected = info_nce(step.query.intra, step.positive.intra, step.intra.keys, 0.07)
    assert OBJECTIVES["intra-image"].losses(step).total.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("objective", ["intra-image", "intra-video"])
def test_a_positive_is_never_its_own_negative(objective):
    """With the batch's keys among the candidates, each query ignores its own positive, masks or not."""
    step = with_batch(make_step(mask_own_video=False))
    losses = []
    for row in range(4):
        others = [i for i in range(len(step.intra.keys)) if i != len(step.intra.keys) - 4 + row]
        args = step.query.intra[row : row + 1], step.positive.intra[row : row + 1], step.intra.keys[others]
        losses.append(info_nce(*args, 0.07).item())
    assert OBJECTIVES[objective].losses(step).total.item() == pytest.approx(sum(losses) / 4)


def test_rates_count_what_wins():
    """A query that equals its positive wins; one that points away from it loses, in both rates."""
    step = make_step(mask_own_video=False)
    good = step._replace(query=step.positive)
    assert measure(good, OBJECTIVES["cycle"]).intra_accuracy == 1
    bad = step._replace(query=Features(-step.positive.intra, -step.positive.cycle))
    assert measure(bad, OBJECTIVES["intra-image"]).intra_accuracy == 0
    neighbor = step.cycle.keys[split_candidates(step).support[0] @ step.cycle.keys.T > 0.999]
    closing = step._replace(
        query=Features(step.query.intra, neighbor.expand(4, -1)),
        positive=Features(step.positive.intra, neighbor.expand(4, -1)),
    )
    assert measure(closing, OBJECTIVES["cycle"]).cycle_closed == 1


def test_queries_without_a_support_have_no_cycle():
    """Closed cycles are counted among the queries that have a candidate in the support; of none there is no rate."""
    step = make_step(queue_size=9)
    negative = split_candidates(step).negatives[0]
    of_queue = torch.where((step.cycle.keys == negative).all(dim=1), 2, 1)  # the support is all of video 1
    step = step._replace(cycle=step.cycle._replace(video=of_queue), video=torch.tensor([0, 1, 0, 1]))
    neighbor = soft_nearest_neighbor(step.query.cycle, split_candidates(step).support, 0.07)
    closing = step._replace(positive=Features(step.positive.intra, neighbor))
    assert measure(closing, OBJECTIVES["cycle"]).cycle_closed == 1
    without = closing._replace(video=torch.ones(4, dtype=torch.long))
    assert math.isnan(measure(without, OBJECTIVES["cycle"]).cycle_closed)
