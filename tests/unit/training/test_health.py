"""Health without labels: metrics agree with plain loops over their formulas, and measuring leaves no trace."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, ViewDataset
from cyclecontrast.data.images import center_crop
from cyclecontrast.data.store import FrameStore
from cyclecontrast.methods import StepInfo
from cyclecontrast.training import health
from cyclecontrast.training.health import (
    alignment,
    chance_level,
    cycle_chance_level,
    deviation,
    gains,
    health_views,
    measure_health,
    measure_neighbors,
    neighbor_frames,
    rank_me,
    same_video_recall,
    uniformity,
)
from cyclecontrast.training.setup import make_dataset, make_health_dataset
from tests.make_runs import TINY, assert_same_tensors
from tests.unit.methods.make_methods import QUEUE, draw_batch, make_method, make_trainer

NAMES = ("same_video", "same_video_error", "rank", "deviation", "alignment", "uniformity", "cycle_closed")
OF_QUEUE = ("queue_accuracy", "queue_loss")
ACROSS = {"health_mutual_videos", "health_closed_frames", "health_mutual_margin", "health_mutual_kept"}


def draw_vectors(num=12, dim=5, seed=0):
    """Draw unit vectors in fp32, as networks give them."""
    vectors = np.random.default_rng(seed).normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# --- formulas


def test_metrics_agree_with_loops():
    """Retrieval, alignment, uniformity and deviation equal plain loops over pairs of vectors."""
    vectors, video = draw_vectors(), np.tile(np.arange(4), 3)
    exact = [[float(x) for x in row] for row in vectors]
    distance = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in exact] for p in exact]
    nearest = [min((j for j in range(12) if j != i), key=lambda j, i=i: distance[i][j]) for i in range(12)]
    hits = sum(video[i] == video[j] for i, j in enumerate(nearest))
    assert 0 < hits < 12
    assert same_video_recall(vectors, video)[0] == hits / 12
    assert alignment(vectors[:6], vectors[6:]) == pytest.approx(sum(distance[i][i + 6] for i in range(6)) / 6, rel=1e-5)
    pairs = [math.exp(-2 * distance[i][j]) for i in range(12) for j in range(i)]
    assert uniformity(vectors) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    columns = [[row[k] for row in exact] for k in range(5)]
    spreads = [math.sqrt(sum((x - sum(c) / 12) ** 2 for x in c) / 12) for c in columns]
    assert deviation(vectors) == pytest.approx(sum(spreads) / 5 * math.sqrt(5), rel=1e-5)


def test_the_error_of_retrieval_is_over_videos():
    """Copies of a video's view add no certainty: compared with the standard error by hand; one video has none."""
    axes = np.eye(4)
    alone = np.array([[1, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 1], [0, 0, 1, -1], axes[0], axes[2]])
    vectors, video = np.tile(alone, (8, 1)), np.tile(np.arange(6), 8)
    assert same_video_recall(vectors, video) == (1.0, 0.0)
    vectors[video == 5] = vectors[video == 4]  # a third of the videos cannot be told from each other
    rate, error = same_video_recall(vectors, video)
    assert rate == pytest.approx(4 / 6)
    assert error == pytest.approx(math.sqrt((4 * (2 / 6) ** 2 + 2 * (4 / 6) ** 2) / 5 / 6))
    assert same_video_recall(np.repeat(vectors, 4, axis=0), np.repeat(video, 4)) == pytest.approx((rate, error))
    assert math.isnan(same_video_recall(vectors, np.zeros(48, int))[1])


def test_rank_by_hand():
    """Equal singular values count one each, unequal ones by the entropy of their shares, whatever the scale."""
    assert rank_me(np.eye(7)) == pytest.approx(7)
    by_hand = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert rank_me(np.diag([3.0, 1.0, 0.0])) == pytest.approx(by_hand)
    assert rank_me(3 * np.diag([3.0, 1.0, 0.0])) == pytest.approx(by_hand)


def test_metrics_of_a_collapse_and_of_an_even_spread():
    """Equal vectors have rank 1, deviation 0, uniformity 0 and retrieve nothing; many random ones fill the sphere."""
    same = np.tile(draw_vectors(1), (8, 1))
    assert same_video_recall(same, np.repeat(np.arange(4), 2)) == (0, 0)
    assert rank_me(same) == pytest.approx(1)
    assert (deviation(same), uniformity(same)) == pytest.approx((0, 0), abs=1e-6)
    spread = draw_vectors(4000, 16)
    assert deviation(spread) == pytest.approx(1, abs=0.02)
    assert rank_me(spread) == pytest.approx(16, abs=0.1)


def test_chance_levels_are_those_of_random_vectors():
    """Four pairs of each of four videos: a view has 7 of 31 others of its video; cycles end among two videos."""
    video = torch.arange(4).repeat(4)
    assert chance_level(video) == pytest.approx(7 / 31)
    # Queries of the videos where cycles end have four other ends, those of the other videos eight.
    assert cycle_chance_level(video) == pytest.approx((1 / 9 + 1 / 5) / 2)
    assert cycle_chance_level(torch.arange(3)) is None


# --- what is measured


@pytest.fixture(scope="module")
def dataset(stripes):
    """Four videos that are held out."""
    config = PretrainConfig(data=stripes, out="o", **(TINY | {"holdout": 1 / 3}))
    return make_health_dataset(config, make_dataset(config, FrameStore.open(stripes)))


@pytest.fixture(scope="module")
def watched(dataset):
    """Four pairs of views of each of them."""
    return health_views(dataset)


def test_few_videos_give_several_pairs_each(dataset, watched):
    """Four videos give four pairs each, in an order of their own."""
    assert len(watched.video) == 16
    assert sorted(watched.video.tolist()) == sorted(4 * dataset.videos.tolist())


def test_an_unreadable_video_is_not_measured(stripes, dataset, tmp_path):
    """A video whose frames are damaged is left out, not replaced by a second copy of another."""
    shutil.copytree(stripes, tmp_path / "data")
    damaged = int(dataset.videos[1])
    for path in (tmp_path / "data" / dataset.store.video_id(damaged)).iterdir():
        path.write_bytes(b"")
    spoiled = ViewDataset(FrameStore.open(tmp_path / "data"), dataset.recipe, 16, dataset.seed, videos=dataset.videos)
    found = health_views(spoiled)
    assert sorted(set(found.video.tolist())) == sorted({*dataset.videos.tolist()} - {damaged})
    assert len(found.video) == 3 * 4


@pytest.mark.parametrize("name", ["cycle", "cycle-only", "simclr", "byol", "seco"])
def test_measuring_leaves_no_trace(watched, name):
    """Measuring changes no tensor, mode or random state, gives the same again, and a step can follow."""
    trainer = make_trainer(name)
    method = trainer.method
    method.encoder.backbone.network.bn1.eval()
    before = {key: value.clone() for key, value in trainer.state_dict().items()}
    modes, state = [module.training for module in method.modules()], torch.random.get_rng_state()
    signals, again = (measure_health(method, watched, 0.2, True)[0] for _ in range(2))
    assert signals == again
    assert_same_tensors(trainer.state_dict(), before)
    assert [module.training for module in method.modules()] == modes
    assert torch.equal(state, torch.random.get_rng_state())
    trainer.train_step(draw_batch({"seco": 4}.get(name, 2)), StepInfo(0, 10))
    names = (*NAMES, *OF_QUEUE) if name in ("cycle", "seco") else NAMES
    assert set(signals) == {f"health_{name}" for name in names}


def vectors_of(method, watched):
    """Return what the networks of a method give for the views: representations, unit vectors, and keys."""
    encoder, follower = method.encoder.eval(), method.momentum_encoder.eval()
    with torch.no_grad():
        images = encoder.backbone.normalize(torch.cat(watched.views))
        features, keys = encoder(images), follower(images[len(watched.video) :]).intra
    return encoder.backbone(images).detach().numpy(), features, keys.double().numpy()


def test_signals_are_those_of_the_networks(watched):
    """Retrieval uses the backbone, the rest the projectors, and the queue's signals the momentum encoder, by loops."""
    method, temperature = make_method(), 1.0
    signals, cycles, _ = measure_health(method, watched, temperature, True)
    representation, features, keys = vectors_of(method, watched)
    vectors, cycle = features.intra.numpy(), features.cycle.double().numpy()
    video = watched.video.tile(2).numpy()
    found = same_video_recall(representation, video)
    assert (signals["health_same_video"], signals["health_same_video_error"]) == pytest.approx(found)
    assert signals["health_rank"] == pytest.approx(rank_me(vectors), rel=1e-4)
    assert signals["health_alignment"] == pytest.approx(alignment(vectors[:16], vectors[16:]), rel=1e-4)
    losses, firsts, homes = [], [], []
    numbers = sorted(set(video.tolist()))
    for i, query in enumerate(vectors[:16].astype(np.float64)):
        logits = np.array([query @ key for key in (keys[i], *method.intra_queue.keys.double().numpy())]) / temperature
        losses.append(np.log(np.exp(logits).sum()) - logits[0])
        firsts.append(logits[0] > logits[1:].max())
        others = [j for j in range(16) if video[j] != video[i]]
        support = [cycle[16 + j] for j in others if numbers.index(video[j]) % 2 == 0]
        negatives = [cycle[16 + j] for j in others if numbers.index(video[j]) % 2 == 1]
        weights = np.exp([cycle[i] @ vector / temperature for vector in support])
        neighbor = sum(w * vector for w, vector in zip(weights, support, strict=True))
        homes.append(all(neighbor @ cycle[16 + i] > neighbor @ negative for negative in negatives))
    assert signals["health_queue_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert signals["health_queue_accuracy"] == pytest.approx(np.mean(firsts))
    assert signals["health_cycle_closed"] == pytest.approx(np.mean(homes))
    assert cycles.closed(temperature).tolist() == homes
    assert cycles.frames.tolist() == watched.frames.tolist()


@pytest.mark.parametrize("masked", [True, False])
def test_keys_of_the_own_video_are_masked_as_in_training(watched, masked):
    """If a measured video is trained on too, its keys in the queue are negatives only if they are in the training."""
    method = make_method()
    _, features, keys = vectors_of(method, watched)
    nearer = torch.from_numpy(keys).float() + 0.1 * features.intra[:16]
    method.intra_queue.push(torch.nn.functional.normalize(nearer), watched.video)
    queue, of = method.intra_queue.keys.double().numpy(), method.intra_queue.video.tolist()
    losses, firsts = [], []
    queries = features.intra[:16].double().numpy()
    for query, key, video in zip(queries, keys, watched.video.tolist(), strict=True):
        rivals = [query @ queue[j] for j in range(QUEUE) if not (masked and of[j] == video)]
        losses.append(math.log(sum(math.exp(x) for x in (query @ key, *rivals))) - query @ key)
        firsts.append(query @ key > max(rivals))
    signals = measure_health(method, watched, 1.0, masked)[0]
    assert signals["health_queue_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    if masked:
        assert signals["health_queue_accuracy"] == pytest.approx(np.mean(firsts))
    else:
        assert signals["health_queue_accuracy"] == 0, "a key of the video in the queue is nearer than the positive"


@pytest.mark.parametrize("num_videos", [2, 3, 4])
def test_cycles_of_few_videos_are_not_measured(watched, num_videos):
    """With fewer than four videos some cycles cannot close, or cannot fail to: there are no cycles and no rate."""
    chosen = torch.isin(watched.video, watched.video.unique()[:num_videos])
    few = Batch(tuple(view[chosen] for view in watched.views), watched.video[chosen], watched.frames[chosen])
    signals, cycles, _ = measure_health(make_method(), few, 0.2, True)
    is_enough = num_videos == 4
    assert ("health_cycle_closed" in signals, cycles is not None) == (is_enough, is_enough)
    assert (cycle_chance_level(few.video) is not None) == is_enough
    assert "health_same_video" in signals


def test_a_network_that_overflows_has_no_signals(watched):
    """Weights that give no finite vectors leave the signals out, and raise nothing."""
    method = make_method(projector="linear")
    with torch.no_grad():
        method.encoder.backbone.network.layer4[0].conv2.weight.fill_(torch.finfo(torch.float32).max)
    signals, cycles, _ = measure_health(method, watched, 0.2, True)
    assert not {"health_rank", "health_same_video"} & signals.keys()
    assert cycles is None


# --- neighbors across videos


@pytest.fixture(scope="module")
def trained(stripes):
    """The twelve videos as a training dataset."""
    config = PretrainConfig(data=stripes, out="o", **(TINY | {"holdout": 0.0}))
    return make_dataset(config, FrameStore.open(stripes))


def test_neighbors_are_sought_among_frames_of_all_training_videos(trained, monkeypatch):
    """Each video gives as many frames, spread over its time and cropped as in an evaluation; many are thinned out."""
    frames, video = neighbor_frames(trained)
    assert video.tolist() == [number for number in range(12) for _ in range(4)]
    image = center_crop(trained.store.image(2, 3), 16)
    assert np.array_equal(frames[2 * 4 + 3].permute(1, 2, 0).numpy(), image)
    monkeypatch.setattr(health, "MAX_FRAMES", 24)
    frames, video = neighbor_frames(trained)
    assert video.tolist() == [number for number in range(12) for _ in range(2)]
    assert np.array_equal(frames[5].permute(1, 2, 0).numpy(), center_crop(trained.store.image(2, 3), 16))
    monkeypatch.setattr(health, "MAX_FRAMES", 5)
    assert neighbor_frames(replace(trained, videos=np.arange(1, 12)))[1].tolist() == [1, 3, 6, 8, 11]


def test_a_video_without_readable_frames_has_no_neighbors(stripes, trained, tmp_path):
    """A damaged frame is replaced by the next one of its video; a video of damaged frames is left out."""
    shutil.copytree(stripes, tmp_path / "data")
    spoiled = replace(trained, store=FrameStore.open(tmp_path / "data"))
    for path in (tmp_path / "data" / trained.store.video_id(3)).iterdir():
        path.write_bytes(b"")
    sorted((tmp_path / "data" / trained.store.video_id(5)).iterdir())[0].write_bytes(b"")
    frames, video = neighbor_frames(spoiled)
    assert video.tolist() == [number for number in range(12) if number != 3 for _ in range(4)]
    assert torch.equal(*frames[video == 5][:2])


def test_neighbors_across_videos_agree_with_loops(trained):
    """Mutual videos, their margin, the share kept and closed cycles of frames equal loops over centered features."""
    method, (frames, video) = make_method(), neighbor_frames(trained)
    backbone = method.encoder.backbone
    before = {key: value.clone() for key, value in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    signals, pairs = measure_neighbors(method, frames, video, {"0-1", "2-3"})
    assert_same_tensors(method.state_dict(), before)
    assert [module.training for module in method.modules()] == modes
    backbone.eval()
    with torch.no_grad():
        vectors = backbone(backbone.normalize(frames)).double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors -= vectors.mean(axis=0)
    means = vectors.reshape(12, 4, -1).mean(axis=1)

    def order(rows, i, of):
        similar = [rows[i] @ row / np.linalg.norm(rows[i]) / np.linalg.norm(row) for row in rows]
        return sorted(((similar[j], j) for j in range(len(rows)) if of[j] != of[i]), reverse=True)

    best = [order(means, i, range(12)) for i in range(12)]
    nearest = [found[0][1] for found in best]
    expected = [(i, j) for i, j in enumerate(nearest) if i < j and nearest[j] == i]
    assert pairs == {f"{i}-{j}" for i, j in expected}
    assert 0 < len(expected) < 6
    of_frames = video.tolist()
    to = [order(vectors, i, of_frames)[0][1] for i in range(48)]
    margins = [min(best[i][0][0] - best[i][1][0], best[j][0][0] - best[j][1][0]) for i, j in expected]
    assert signals == pytest.approx(
        {
            "health_mutual_videos": 2 * len(expected) / 12,
            "health_mutual_margin": float(np.median(margins)),
            "health_mutual_kept": len({"0-1", "2-3"} & pairs) / 2,
            "health_closed_frames": sum(of_frames[to[j]] == of_frames[i] for i, j in enumerate(to)) / 48,
        },
        abs=1e-4,
    )
    again, same = measure_neighbors(method, frames, video)
    assert (again, same) == ({k: v for k, v in signals.items() if k != "health_mutual_kept"}, pairs)
    assert measure_neighbors(method, frames, video, pairs)[0]["health_mutual_kept"] == 1


def test_neighbors_need_videos_and_finite_features(trained):
    """Three videos, or features that are not finite, give no metrics and no pairs."""
    method, (frames, video) = make_method(), neighbor_frames(trained)
    assert measure_neighbors(method, frames[:12], video[:12], {"0-1"}) == ({}, set())
    with torch.no_grad():
        method.encoder.backbone.network.layer4[0].conv2.weight.fill_(math.nan)
    assert measure_neighbors(method, frames, video, {"0-1"}) == ({}, set())


def test_gains_count_the_videos_that_they_rest_on():
    """A video without moments far apart is not counted; a gain of one video has no error, one of none is left out."""
    nan = float("nan")
    now = {"same_video": [1.0, 0.5, 1.0], "far_video": [1.0, nan, nan], "none": [nan] * 3}
    start = {"same_video": [0.5, 0.5, 0.0], "far_video": [0.5, 1.0, nan], "none": [nan] * 3}
    found = gains(now, start)
    assert found.pop("same_video_gain_error") == pytest.approx(0.5 / 3**0.5)
    assert found == {
        **{"far_video_gain": 0.5, "far_video_gain_videos": 1, "none_gain_videos": 0},
        **{"same_video_gain": 0.5, "same_video_gain_videos": 3},
    }
