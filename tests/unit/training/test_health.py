"""Health without labels: the metrics agree with their formulas, measuring leaves no trace, and the verdict is right."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from cyclecontrast.config.seal import sealed
from cyclecontrast.training.health_metrics import Retrieval, deviation
from cyclecontrast.training.open_data import make_health_pairs, make_pairs
from cyclecontrast.training.train_step import train_step
from cyclecontrast.training.training import Hardware, make_training, state_of
from safetensors.torch import load_file

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.store import FrameStore
from cyclecontrast.distributed import World
from cyclecontrast.errors import UserError, checked
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.training import run_folder
from cyclecontrast.training.auto_settings import DataSize, Machine, resolve
from cyclecontrast.training.checkpoints import save_checkpoint
from cyclecontrast.training.health import (
    Measured,
    Watched,
    alignment,
    measure_health,
    rank_me,
    same_video_recall,
    uniformity,
    watch,
)
from cyclecontrast.training.monitor import read_verdict, steps_between
from cyclecontrast.training.pretrain import pretrain
from cyclecontrast.training.progress import _tell
from cyclecontrast.training.setup import split_videos
from cyclecontrast.training.verdict import Known, best_step, chosen_step, is_more, judge
from tests import make_videos as make

TINY = {
    "backbone": "resnet10-small-w8",
    "image_size": 16,
    "batch_size": 8,
    "queue_size": 32,
    "cycle_queue_size": 32,
    "support_size": 8,
    "bn_groups": 2,
    "workers": 0,
    "log_every": 4,
    "seed": 3,
    "holdout": 1 / 3,
    "health_every": 3,
}
FIELDS = (
    *("same_video", "same_video_error", "cycle_closed"),
    *("rank", "deviation", "alignment", "uniformity", "queue_accuracy", "queue_loss"),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames of moving stripes."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


def run(tree, out, **changes):
    """Pretrain for a few steps."""
    return pretrain(PretrainConfig(data=tree, out=out, **(TINY | {"steps": 8} | changes)))


def lines_of(folder):
    """Read metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "data_wait")} for row in rows]


def draw_vectors(num=12, dim=5, seed=0):
    """Draw unit vectors in fp32, as networks give them."""
    vectors = np.random.default_rng(seed).normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_metrics_agree_with_loops():
    """Retrieval, alignment, uniformity and deviation are what plain loops over pairs of vectors give."""
    vectors, video = draw_vectors(), np.tile(np.arange(4), 3)
    exact = [[float(x) for x in row] for row in vectors]
    distance = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in exact] for p in exact]
    nearest = [min((j for j in range(12) if j != i), key=lambda j, i=i: distance[i][j]) for i in range(12)]
    hits = sum(video[i] == video[j] for i, j in enumerate(nearest))
    assert 0 < hits < 12
    assert same_video_recall(vectors, video).rate == hits / 12
    assert alignment(vectors[:6], vectors[6:]) == pytest.approx(sum(distance[i][i + 6] for i in range(6)) / 6, rel=1e-5)
    pairs = [math.exp(-2 * distance[i][j]) for i in range(12) for j in range(i)]
    assert uniformity(vectors) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    columns = [[row[k] for row in exact] for k in range(5)]
    spreads = [math.sqrt(sum((x - sum(c) / 12) ** 2 for x in c) / 12) for c in columns]
    assert deviation(vectors) == pytest.approx(sum(spreads) / 5 * math.sqrt(5), rel=1e-5)


def test_the_error_of_retrieval_is_by_video():
    """Four copies of each of six videos' view say no more than one: by hand, and nothing is known from one video."""
    axes = np.eye(4)
    alone = np.array([[1, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 1], [0, 0, 1, -1], axes[0], axes[2]])
    vectors, video = np.tile(alone, (8, 1)), np.tile(np.arange(6), 8)
    assert same_video_recall(vectors, video) == (1.0, 0.0)
    vectors[video == 5] = vectors[video == 4]  # a third of the videos cannot be told from each other
    rate, error = same_video_recall(vectors, video)
    assert rate == pytest.approx(4 / 6)
    assert error == pytest.approx(math.sqrt((4 * (2 / 6) ** 2 + 2 * (4 / 6) ** 2) / 5 / 6))
    assert same_video_recall(np.repeat(vectors, 4, axis=0), np.repeat(video, 4)) == pytest.approx((rate, error))
    assert math.isnan(same_video_recall(vectors, np.zeros(48, int)).error)


def test_rank_by_hand():
    """Equal singular values count each once, and unequal ones by the entropy of their parts."""
    assert rank_me(np.eye(7)) == pytest.approx(7)
    by_hand = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert rank_me(np.diag([3.0, 1.0, 0.0])) == pytest.approx(by_hand)
    assert rank_me(3 * np.diag([3.0, 1.0, 0.0])) == pytest.approx(by_hand)


def test_metrics_of_a_collapse():
    """Vectors that are all the same have rank 1, deviation 0, uniformity 0, and retrieve nothing."""
    same = np.tile(draw_vectors(1), (8, 1))
    assert same_video_recall(same, np.repeat(np.arange(4), 2)) == (0, 0)
    assert rank_me(same) == pytest.approx(1)
    assert (deviation(same), uniformity(same)) == pytest.approx((0, 0), abs=1e-6)


def test_metrics_of_an_even_spread():
    """Many vectors spread evenly have deviation 1, and a rank near their length."""
    vectors = draw_vectors(4000, 16)
    assert deviation(vectors) == pytest.approx(1, abs=0.02)
    assert rank_me(vectors) == pytest.approx(16, abs=0.1)


def test_videos_held_out():
    """A tenth is held out, the same whatever the seed; nothing is in both parts, and little data gives two at least."""
    trained, held_out = split_videos(556, 0.1)
    assert len(held_out) == 56
    assert sorted([*trained, *held_out]) == list(range(556))
    assert np.array_equal(held_out, split_videos(556, 0.1).held_out)
    assert len(split_videos(7, 0.01).held_out) == 2
    assert split_videos(5, 0.0).trained.tolist() == list(range(5))


@pytest.mark.parametrize(("num_videos", "expected"), [(2, 0.0), (49, 0.0), (50, 0.1), (100_000, 0.1)])
def test_auto_holds_out_of_enough(num_videos, expected):
    """`auto` holds out a tenth of 50 videos or more; the presets paper and release train on all."""
    size, machine = DataSize(num_videos, 64), Machine(cpu=True)
    assert resolve(PretrainConfig(data="d", out="o"), size, machine).holdout == expected
    assert resolve(PretrainConfig(data="d", out="o", preset="paper"), size, machine).holdout == 0
    assert resolve(PretrainConfig(data="d", out="o", holdout=0.0), size, machine).holdout == 0


def test_an_older_config_holds_nothing_out(tmp_path):
    """A config.toml from before, run again, trains on all videos as its run did."""
    size, machine = DataSize(1000, 64), Machine(cpu=True)
    run_folder.write_config(tmp_path, resolve(PretrainConfig(data="d", out="o"), size, machine))
    config = tmp_path / "config.toml"
    newer = ("holdout", "health_every", "select")
    config.write_text("\n".join(line for line in config.read_text().splitlines() if not line.startswith(newer)))
    import tomllib

    again = resolve(checked(PretrainConfig, tomllib.loads(config.read_text()) | {"out": "again"}), size, machine)
    assert again.holdout == 0.0


def test_too_much_is_not_held_out(tree, tmp_path):
    """Where fewer than two videos would remain, and where health is to select but is not measured, the run refuses."""
    few = tmp_path / "few"
    for number in range(3):
        shutil.copytree(tree / "group_0" / f"video_{3 * number}", few / str(number))
    with pytest.raises(UserError, match="leaves 1 to train on"):
        run(few, tmp_path / "run")
    with pytest.raises(UserError, match="select health needs measurements"):
        checked(PretrainConfig, {"data": "d", "out": "o", "select": "health", "health_every": 0})
    assert not (tmp_path / "run").exists()


def test_held_out_videos_are_not_trained_on(tree):
    """Training and measuring share no video, and together they use all."""
    config = PretrainConfig(data=tree, out="o", **TINY)
    pairs = make_pairs(config, FrameStore.open(tree))
    watched = watch(make_health_pairs(config, pairs))
    trained = {pairs[position].video for position in range(3 * pairs.num_videos)}
    assert trained | set(watched.video.tolist()) == set(range(12))
    assert not trained & set(watched.video.tolist())
    assert len(watched.video) == 4 * 4  # four pairs of each of four videos
    assert watched.chance == pytest.approx(7 / 31)
    # Cycles end among the four pairs of two videos; the queries of these have one of them beside their own.
    assert watched.cycle_chance == pytest.approx((1 / 9 + 1 / 5) / 2)


def test_what_is_measured_is_two_frames(tree):
    """Health is measured on two frames of a video even where the training may draw one twice."""
    config = PretrainConfig(data=tree, out="o", preset="release", **TINY)
    pairs = make_health_pairs(config, make_pairs(config, FrameStore.open(tree)))
    drawn = [pairs[position].frames for position in range(4 * pairs.num_videos)]
    assert all(first != second for first, second in drawn)


def test_what_is_measured_is_the_same_for_every_seed(tree):
    """Two runs that differ in their seed are measured on the same views; without any held out, on those trained on."""
    store = FrameStore.open(tree)
    configs = [PretrainConfig(data=tree, out="o", **(TINY | {"seed": seed})) for seed in (1, 2)]
    one, two = (watch(make_health_pairs(config, make_pairs(config, store))) for config in configs)
    assert all(map(torch.equal, one, two))
    config = configs[0].model_copy(update={"holdout": 0.0})
    assert len(set(watch(make_health_pairs(config, make_pairs(config, store))).video.tolist())) == 12


def test_an_unreadable_video_is_not_measured(tree, tmp_path):
    """A video whose frames are damaged is left out, not replaced by a second copy of another."""
    data = tmp_path / "data"
    shutil.copytree(tree, data)
    config = PretrainConfig(data=data, out="o", **TINY)
    store = FrameStore.open(data)
    pairs = make_health_pairs(config, make_pairs(config, store))
    damaged = int(pairs.videos[1])
    for path in (data / store.video_id(damaged)).iterdir():
        path.write_bytes(b"")
    watched = watch(pairs)
    assert sorted(set(watched.video.tolist())) == sorted({*pairs.videos.tolist()} - {damaged})
    assert len(watched.video) == 3 * 4


@pytest.fixture(scope="module")
def watched(tree):
    """Views of the four videos held out."""
    config = PretrainConfig(data=tree, out="o", **TINY)
    return watch(make_health_pairs(config, make_pairs(config, FrameStore.open(tree))))


def make_tiny_training(tree, method="cycle", **changes):
    """Build a training that has not begun."""
    config = PretrainConfig(data=tree, out="o", method=method, **(TINY | {"projector": "mlp-bn"} | changes))
    hardware = Hardware(torch.device("cpu"), "fp32", World(0, 1))
    return make_training(config, make_backbone("resnet10-small-w8"), 10, hardware)


@pytest.mark.parametrize("objective", ["cycle", "cycle-only", "simclr", "byol", "seco"])
def test_measuring_leaves_no_trace(tree, watched, objective):
    """No parameter, no buffer, no mode and no random number changes, a step can follow, and it can be repeated."""
    training = make_tiny_training(tree, objective)
    training.encoder.backbone.network.bn1.eval()
    before = {f"{a}/{b}": value.clone() for a, part in state_of(training).items() for b, value in part.items()}
    modes = [module.training for module in training.encoder.modules()]
    drawn = torch.random.get_rng_state()
    signals = measure_health(training, watched).signals
    assert signals == measure_health(training, watched).signals
    after = {f"{a}/{b}": value for a, part in state_of(training).items() for b, value in part.items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [module.training for module in training.encoder.modules()] == modes
    assert torch.equal(drawn, torch.random.get_rng_state())
    pairs = make_pairs(training.config, FrameStore.open(tree))
    from cyclecontrast.data.dataset import collate

    train_step(training, collate([pairs[position] for position in range(8)]), 0)
    with_queue = objective in ("cycle", "seco")
    assert set(signals) == {f"health_{name}" for name in FIELDS if with_queue or "queue" not in name}


def test_signals_are_those_of_the_networks(tree, watched):
    """Retrieval is the backbone's, the rest the projector's, and the queue's the momentum encoder's, by loops."""
    training = make_tiny_training(tree, temperature=1.0)
    signals = measure_health(training, watched).signals
    encoder, follower = training.encoder.eval(), training.momentum_encoder.eval()
    views = torch.cat((watched.query, watched.positive))
    with torch.no_grad():
        images = encoder.backbone.normalise(views)
        representation, vectors = encoder.backbone(images).numpy(), encoder(images).intra.numpy()
        cycle = encoder(images).cycle.double().numpy()
        keys = follower(images[16:]).intra.double().numpy()
    video = watched.video.tile(2).numpy()
    found = same_video_recall(representation, video)
    assert (signals["health_same_video"], signals["health_same_video_error"]) == found
    assert signals["health_rank"] == pytest.approx(rank_me(vectors), rel=1e-4)
    assert signals["health_alignment"] == pytest.approx(alignment(vectors[:16], vectors[16:]), rel=1e-4)
    queue = training.intra_queue.keys.double().numpy()
    losses, firsts, homes = [], [], []
    numbers = sorted(set(video.tolist()))
    for i, query in enumerate(vectors[:16].astype(np.float64)):
        logits = np.array([query @ keys[i], *(query @ key for key in queue)]) / training.config.temperature
        losses.append(np.log(np.exp(logits).sum()) - logits[0])
        firsts.append(logits[0] > logits[1:].max())
        others = [j for j in range(16) if video[j] != video[i]]
        support = [cycle[16 + j] for j in others if numbers.index(video[j]) % 2 == 0]
        negatives = [cycle[16 + j] for j in others if numbers.index(video[j]) % 2 == 1]
        weights = np.exp([cycle[i] @ vector / training.config.temperature for vector in support])
        neighbor = sum(w * vector for w, vector in zip(weights, support, strict=True))
        homes.append(all(neighbor @ cycle[16 + i] > neighbor @ negative for negative in negatives))
    assert signals["health_queue_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert signals["health_queue_accuracy"] == pytest.approx(np.mean(firsts))
    assert signals["health_cycle_closed"] == pytest.approx(np.mean(homes))


@pytest.mark.parametrize("masked", [True, False])
def test_own_keys_in_the_queue_are_masked_as_in_training(tree, watched, masked):
    """Where a video is trained on too, its keys in the queue are no rivals, unless the training has them as such."""
    training = make_tiny_training(tree, mask_own_video=masked, temperature=1.0)
    encoder, follower = training.encoder.eval(), training.momentum_encoder.eval()
    normalise = encoder.backbone.normalise
    with torch.no_grad():
        queries = encoder(normalise(watched.query)).intra.double().numpy()
        keys = follower(normalise(watched.positive)).intra
    training.intra_queue.push(keys, watched.video)
    queue, of = training.intra_queue.keys.double().numpy(), training.intra_queue.video.tolist()
    losses, firsts = [], []
    for query, key, video in zip(queries, keys.double().numpy(), watched.video.tolist(), strict=True):
        rivals = [query @ queue[j] for j in range(32) if not (masked and of[j] == video)]
        losses.append(math.log(sum(math.exp(x) for x in (query @ key, *rivals))) - query @ key)
        firsts.append(query @ key > max(rivals))
    signals = measure_health(training, watched).signals
    assert signals["health_queue_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert masked == (signals["health_queue_accuracy"] > 0)  # a positive does not come before itself
    assert not masked or signals["health_queue_accuracy"] == np.mean(firsts)


@pytest.mark.parametrize("num_videos", [2, 3, 4])
def test_cycles_of_few_videos_are_not_measured(tree, watched, num_videos):
    """Below four videos some cycles cannot close, or cannot fail to: there is neither a rate nor a chance of them."""
    chosen = torch.isin(watched.video, watched.video.unique()[:num_videos])
    few = Watched(*(part[chosen] for part in watched))
    signals = measure_health(make_tiny_training(tree), few).signals
    assert ("health_cycle_closed" in signals, few.cycle_chance is not None) == (num_videos == 4,) * 2
    assert "health_same_video" in signals


def test_a_network_that_overflows_is_not_measured(tree, watched):
    """Weights that give no finite vectors leave the signals out, and raise nothing."""
    training = make_tiny_training(tree, projector="linear")
    with torch.no_grad():
        training.encoder.backbone.network.layer4[0].conv2.weight.fill_(torch.finfo(torch.float32).max)
    assert not {"health_rank", "health_same_video"} & measure_health(training, watched).signals.keys()


def test_measurements_by_default():
    """There are about twenty in a long run, none closer than 25 steps, and 0 is none."""
    assert [steps_between(None, num) for num in (10, 300, 4000, 100_001)] == [25, 25, 200, 5001]
    assert (steps_between(7, 4000), steps_between(0, 4000)) == (7, 0)


def test_weights_do_not_depend_on_measuring(tree, tmp_path):
    """With health measured often, seldom or not at all, the last state is the same to the bit, and so is each line."""
    runs = [run(tree, tmp_path / str(every), health_every=every) for every in (1, 5, 0)]
    states = [load_file(done.folder / "checkpoints/step-00000008/state.safetensors") for done in runs]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(value, state[name]) for name, value in states[0].items())
    often, seldom, never = ({row["step"]: row for row in lines_of(done.folder)} for done in runs)
    assert (list(often), list(seldom), list(never)) == (list(range(1, 9)), [4, 5, 8], [4, 8])
    for lines in (often, seldom):
        plain = {k: v for k, v in lines[8].items() if not k.startswith("health_")}
        assert plain == never[8]
    assert runs[2].verdict is None
    assert "health" not in str(runs[2])


def test_what_a_run_writes_of_its_health(tree, tmp_path):
    """Each measurement is in its line; run.json has the verdict, its reason and what it rests on; the text tells it."""
    done = run(tree, tmp_path / "run")
    lines = lines_of(done.folder)
    assert [row["step"] for row in lines] == [3, 4, 6, 8]
    assert [{f"health_{name}" for name in FIELDS} <= row.keys() for row in lines] == [True, False, True, True]
    about = json.loads((done.folder / "run.json").read_text())
    assert (about["verdict"], about["reason"]) == done.verdict
    assert str(done).startswith(f"health: {about['verdict']}: {about['reason']}\n")
    assert about["num_held_out"] == 4
    health = about["health"]
    assert (health["held_out"], health["videos"], health["views"]) == (True, 4, 32)
    assert set(health["at_start"]) == {f"health_{name}" for name in FIELDS}
    assert health["seconds"] > 0


def test_a_resumed_run_is_the_same_run(tree, tmp_path):
    """Stopped anywhere and resumed, a run with health ends with the same lines, verdict and selected backbone."""
    whole = run(tree, tmp_path / "whole", checkpoint_every=4, select="health", health_every=1)
    part = tmp_path / "part"
    shutil.copytree(whole.folder, part)
    shutil.rmtree(part / "checkpoints" / "step-00000008")
    (part / "backbone.safetensors").unlink()
    again = cc.pretrain(resume=part)
    assert lines_of(part) == lines_of(whole.folder)
    assert again.verdict == whole.verdict
    abouts = [json.loads((folder / "run.json").read_text()) for folder in (whole.folder, part)]
    assert abouts[0]["health"]["at_start"] == abouts[1]["health"]["at_start"]
    assert (part / "backbone.safetensors").read_bytes() == (whole.folder / "backbone.safetensors").read_bytes()


def test_few_videos_are_judged_without_cycles(tree, tmp_path):
    """A run with two videos held out has a verdict, and its page every chart of health but the one of cycles."""
    done = run(tree, tmp_path / "run", holdout=0.01)
    assert done.verdict is not None
    assert not any("health_cycle_closed" in row for row in lines_of(done.folder))
    assert json.loads((done.folder / "run.json").read_text())["health"]["cycle_chance"] is None
    page = cc.report(done.folder).path.read_text()
    assert "through half of the other videos" not in page
    assert "Rank (RankMe)" in page


def test_a_run_from_before_errors_were_written_is_shown(tree, tmp_path):
    """Without the errors in its files a run has a page, and the same verdict as with them."""
    whole = run(tree, tmp_path / "whole", checkpoint_every=4, select="health")
    older = whole.folder
    rows = [json.loads(line) for line in (older / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("health_same_video_error", None)
    (older / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    health = run_folder.read_about(older)["health"]
    del health["at_start"]["health_same_video_error"]
    run_folder.change_about(older, health=health)
    assert "Same-video retrieval" in cc.report(older).path.read_text()
    assert cc.pretrain(resume=older).verdict.word == whole.verdict.word


def test_a_verdict_names_its_step(tree, tmp_path):
    """Resumed without measuring, a run ends with a verdict that says of which step it is, on its page too."""
    run(tree, tmp_path / "run", checkpoint_every=3, steps=3)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    config = tmp_path / "run" / "config.toml"
    config.write_text(sealed(config.read_text().partition("\n")[2].replace("steps = 3", "steps = 8")))
    done = cc.pretrain(resume=tmp_path / "run", health_every=0)
    assert done.metrics["step"] == 8
    assert str(done).startswith(f"health (at step 3 of 8): {about['verdict']}: {about['reason']}\n")
    assert re.search(r"\d% at step 3 \(chance", str(done))
    assert re.search(r"\d% at step 3 \(chance", cc.report(done.folder).path.read_text())


def test_the_best_backbone_remains(tree, tmp_path, monkeypatch):
    """With --select health the exported backbone is that of the best measurement, though a later checkpoint exists."""
    from cyclecontrast.training import monitor

    values = iter([0.1, 0.3, 0.5, 0.5, 0.4, 0.2, 0.2, 0.5, 0.1])
    ranks = iter([1, 1, 3, 4, 5, 5, 5, 2, 1])
    fake = lambda *_: Measured({"health_same_video": next(values), "health_rank": next(ranks)}, None)  # noqa: E731
    monkeypatch.setattr(monitor, "measure_health", fake)
    done = run(tree, tmp_path / "run", select="health", health_every=1, checkpoint_every=1, steps=8)
    assert "step 3 of 8" in done.backbone.source
    monkeypatch.undo()
    assert [path.name for path in (done.folder / "best").iterdir()] == ["step-00000003"]
    assert json.loads((done.folder / "run.json").read_text())["selected_step"] == 3
    kept, last = load_backbone(done.folder), load_backbone(done.folder / "checkpoints" / "step-00000008")
    best = load_backbone(done.folder / "best" / "step-00000003")
    weight = "layer4.0.conv1.weight"
    states = [backbone.network.state_dict()[weight] for backbone in (kept, best, last)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_bests_of_kept_checkpoints_stay(tmp_path):
    """A backbone that was the best at a checkpoint that is kept stays; those behind the resumed step are dropped."""
    backbone = make_backbone("resnet10-small-w4")
    for step in (1, 2, 5, 7):
        run_folder.save_best(tmp_path, step, backbone)
    state = {"x": torch.zeros(1)}
    for name in ("config.toml", "run.json", "metrics.jsonl", "unreadable.json"):
        (tmp_path / name).touch()
    for step in (4, 6):
        save_checkpoint(tmp_path, step, state, backbone)
    run_folder.forget_bests(tmp_path, 4)
    names = lambda: sorted(int(path.name[5:]) for path in (tmp_path / "best").iterdir())  # noqa: E731
    assert names() == [2, 5, 7]
    run_folder.cut_bests(tmp_path, 6)
    assert names() == [2, 5]
    save_checkpoint(tmp_path, 8, state, backbone)
    run_folder.forget_bests(tmp_path, 6)
    assert names() == [5]


def test_the_bar_shows_health():
    """The progress line tells the last measurement beside the loss."""
    row = {"step": 10, "loss": 5.0, "intra_loss": 5.0, "cycle_loss": None, "images_per_second": 9.0, "data_wait": 0.0}
    assert "same video" not in _tell(row)
    assert "same video 12% rank 3 " in _tell(row | {"health_same_video": 0.123, "health_rank": 3.42})


KNOWN = Known(512, 1 / 511, {"health_same_video": 0.1, "health_rank": 12.0}, num_keys=256, temperature=0.2)


def curve(retrieval, rank=20.0, deviation=0.9, accuracy=0.3, queue_loss=3.0):
    """Lines of metrics every 100 steps; a number stands for a constant."""
    num = len(retrieval)
    columns = [c if isinstance(c, list) else [c] * num for c in (rank, deviation, accuracy, queue_loss)]
    names = ("health_rank", "health_deviation", "intra_accuracy", "health_queue_loss")
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    found = zip(rows, retrieval, strict=True)
    return [row | {"step": 100 * i, "health_same_video": r} for i, (row, r) in enumerate(found, start=1)]


RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.6, 0.61, 0.61]
VERDICTS = {
    "rises and levels off": (curve(RISING), "healthy"),
    "the loss rises at first": (
        curve(RISING, queue_loss=[0.5, 2.0, 4.0, 5.4, 5.3, 5.0, 4.5, 4.0, 3.5, 3.0]),
        "healthy",
    ),
    "accuracy falls from one at first": (curve(RISING, accuracy=[1.0, 0.8, 0.4, *[0.1] * 7]), "healthy"),
    "same vectors at first": (
        curve(RISING, deviation=[0.01, 0.05, *[0.9] * 8], rank=[1.1, 1.4, *[20.0] * 8]),
        "healthy",
    ),
    "a bend that is noise": (curve([*RISING[:-1], 0.58], accuracy=[*[0.3] * 5, *[0.6] * 5]), "healthy"),
    "nothing learned": (curve([0.1] * 10), "under-trained"),
    "worse than before": (curve([0.1] * 9 + [0.04]), "under-trained"),
    "near guessing": (curve(RISING, queue_loss=5.3), "under-trained"),
    "still rising": (curve([0.05 * i for i in range(1, 11)]), "under-trained"),
    "all the same": (curve([0.1] * 9 + [0.0], rank=1.0, deviation=0.0), "collapsed"),
    "on a line": (curve([0.1] * 9 + [0.0], rank=1.2, deviation=0.7), "collapsed"),
    "says nothing of the video": (curve([*RISING[:8], 0.1, 0.002]), "collapsed"),
    "losing dimensions": (curve([*RISING, 0.5, 0.3], rank=[*[20.0] * 10, 12.0, 6.0]), "collapsing"),
    "training only": (curve([*RISING, 0.5, 0.4], accuracy=[0.3] * 10 + [0.9] * 2), "over-fitting the queue"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_of_curves(name):
    """Each course of a run gets its word, with a reason of one line that names retrieval before and now."""
    rows, word = VERDICTS[name]
    verdict = judge(rows, KNOWN)
    assert verdict.word == word
    assert "10% before training" in verdict.reason
    assert "\n" not in verdict.reason


@pytest.mark.parametrize(
    ("before", "is_given", "retrieval", "word"),
    [
        (0.985, False, [0.99, 0.995, 1.0, 1.0], "healthy"),
        (0.985, False, [0.9, 0.7, 0.6, 0.6], "under-trained"),
        (0.9, False, [0.9, 0.9, 0.9, 0.9], "under-trained"),
        (0.9, True, [0.9, 0.9, 0.9, 0.9], "healthy"),
        (0.9, True, [0.9, 0.7, 0.6, 0.6], "under-trained"),
    ],
    ids=["at the ceiling", "fallen from it", "no gain", "given and good", "given and spoiled"],
)
def test_what_is_good_before_need_not_rise(before, is_given, retrieval, word):
    """Retrieval that cannot rise clearly, or that given weights brought, is to stay what it was, and no more."""
    known = KNOWN._replace(at_start=KNOWN.at_start | {"health_same_video": before}, is_given=is_given)
    assert judge(curve(retrieval, queue_loss=1.0), known).word == word


@pytest.mark.parametrize(
    ("last", "signals", "words"),
    [
        (0.12, {}, "retrieval is not clearly better than before training (the difference is within the noise of 512"),
        (0.1, {}, "retrieval is not better than before training; "),
        (0.08, {}, "retrieval is not better than before training; "),
        (0.1, {"rank": 1.0, "deviation": 0.986}, "all vectors lie on one line, rank 1.0; "),
        (0.1, {"rank": 1.0, "deviation": 0.01}, "all videos get nearly the same vector, deviation 0.010 of 1; "),
    ],
)
def test_a_reason_says_what_was_seen(last, signals, words):
    """A gain within the noise is told as such, a loss is none, and a rank is not called a deviation."""
    assert judge(curve([0.1, last], **signals), KNOWN).reason.startswith(words)


def test_few_videos_are_no_ceiling():
    """A rate of which little is known is not taken for one that cannot rise: that it fell is not called healthy."""
    at_start = KNOWN.at_start | {"health_same_video": 0.66, "health_same_video_error": 0.17}
    rows = [row | {"health_same_video_error": 0.11} for row in curve([0.69, 0.5, 0.44], queue_loss=1.0)]
    assert judge(rows, KNOWN._replace(num_views=32, at_start=at_start)).word == "under-trained"


@pytest.mark.parametrize(
    ("num_keys", "temperature", "loss", "word"),
    [
        (256, 0.2, 4.3, "healthy"),
        (256, 0.2, 4.5, "under-trained"),
        (65_536, 0.5, 9.2, "healthy"),
        (65_536, 0.5, 10.8, "under-trained"),
        (65_536, 0.07, 8.2, "healthy"),
        (65_536, 0.07, 9.0, "under-trained"),
    ],
)
def test_a_loss_is_near_guessing_by_what_can_be_reached(tmp_path, num_keys, temperature, loss, word):
    """Orthogonal keys cost the more the higher the temperature is: 65,536 of them at .5 cost 9.09, without guessing."""
    config = PretrainConfig(data="d", out="o", queue_size=num_keys, temperature=temperature)
    run_folder.write_about(tmp_path, {"health": {"views": 512, "chance": 1 / 511, "at_start": KNOWN.at_start}})
    for row in curve(RISING, queue_loss=loss):
        run_folder.append_metrics(tmp_path, row)
    assert read_verdict(tmp_path, config).word == word


def test_a_run_that_began_with_given_weights_is_known(tmp_path):
    """With --init a network that stays as good as it was is healthy, without one it has learned nothing."""
    at_start = KNOWN.at_start | {"health_same_video": 0.9}
    run_folder.write_about(tmp_path, {"health": {"views": 512, "chance": 1 / 511, "at_start": at_start}})
    run_folder.append_metrics(tmp_path, curve([0.9], queue_loss=1.0)[0])
    words = [read_verdict(tmp_path, PretrainConfig(data="d", out="o", init=init)).word for init in ("runs/a", None)]
    assert words == ["healthy", "under-trained"]


@pytest.mark.parametrize("until", range(1, 11))
def test_no_alarm_while_the_queue_fills(until):
    """At no time of a normal run, with its rising loss and falling accuracy, is a collapse or over-fitting reported."""
    loss, accuracy = [0.5, 2.0, 4.0, 5.4, 5.3, 5.0, 4.5, 4.0, 3.5, 3.0], [1.0, 0.8, 0.3, 0.05, *[0.1] * 6]
    rows = curve(RISING, queue_loss=loss, accuracy=accuracy, rank=[12.0 + i for i in range(10)])[:until]
    assert judge(rows, KNOWN).word in ("under-trained", "healthy")


def test_nothing_measured_is_no_verdict():
    """Without a measurement there is neither a verdict nor a best step; without a queue the rest still judges."""
    assert judge([{"step": 1, "intra_accuracy": 0.5}], KNOWN) is None
    assert best_step([{"step": 1}]) is None
    rows = [{"step": 100 * i, "health_same_video": r} for i, r in enumerate(RISING, start=1)]
    assert judge(rows, Known(512, 1 / 511, {})).word == "healthy"


def test_the_best_step():
    """The best retrieval wins, of equals the highest rank, then the first."""
    assert best_step(curve([0.1, 0.5, 0.5, 0.4, 0.5], rank=[9.0, 3.0, 4.0, 9.0, 4.0])) == 300


def test_a_lucky_measurement_is_not_chosen():
    """The best step remains only where it is clearly better than the last, else the last does."""
    assert chosen_step(curve([0.1, 0.3, 0.28]), KNOWN) == 300
    assert chosen_step(curve([0.1, 0.5, 0.28]), KNOWN) == 200
    assert chosen_step(curve([0.1, 0.5, 0.28]), KNOWN._replace(num_views=16)) == 300


@pytest.mark.parametrize(("error", "word", "step"), [(0.01, "healthy", 200), (0.1, "under-trained", 300)])
def test_errors_by_video_decide(error, word, step):
    """What 512 independent views would prove, few videos do not: neither that it learned nor which step is best."""
    rows = [row | {"health_same_video_error": error} for row in curve([0.24, 0.4, 0.25])]
    known = KNOWN._replace(at_start=KNOWN.at_start | {"health_same_video_error": error})
    assert judge([row | {"step": step} for row in rows[:1] for step in (100, 200)], known).word == word
    assert chosen_step(rows, known) == step


@pytest.mark.parametrize("num_videos", [5, 25])
def test_equal_networks_are_seldom_called_better(num_videos):
    """Of pairs of measurements that differ by the luck of videos alone, about 2.5 % are "more", not every eighth."""
    rng, more = np.random.default_rng(0), []
    for _ in range(1000):
        hits = rng.binomial(8, rng.beta(0.7, 1.6, (2, num_videos))) / 8
        after, before = (Retrieval(one.mean(), one.std(ddof=1) / math.sqrt(num_videos)) for one in hits)
        more.append(is_more(after, before, 8 * num_videos))
    assert 0 < np.mean(more) < 0.05


TRAINING = {
    "backbone": "resnet10-small-w8",
    "image_size": 16,
    "method": "intra-video",
    "projector": "linear",
    "augmentation": "moco-v1",
    "min_crop": 0.5,
    "batch_size": 12,
    "queue_size": 64,
    "bn_groups": 2,
    "temperature": 0.2,
    "momentum": 0.9,
    "steps": 120,
    "health_every": 20,
    "log_every": 20,
    "workers": 0,
    "seed": 3,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"learning_rate": 1e-9}, "under-trained"),
        ({"learning_rate": 0.3, "temperature": 1e4, "weight_decay": 0.1, "momentum": 0.0}, "collapsed"),
        ({"learning_rate": 0.1, "weight_decay": 1.0, "momentum": 0.0, "batch_keys": False}, "collapsed"),
    ],
    ids=["no steps to speak of", "no negatives: a flat softmax", "all weights decay"],
)
def test_verdicts_of_trainings(tree, tmp_path, capsys, changes, word):
    """A run that is made to collapse is called so, and one that cannot learn is under-trained."""
    done = pretrain(PretrainConfig(data=tree, out=tmp_path / "run", **(TRAINING | changes)))
    assert done.verdict.word == word, done.verdict
    assert (f": {word}: " in capsys.readouterr().err) == (word == "collapsed")  # told while it goes on


def test_a_training_whose_loss_rises_is_no_alarm(tree, tmp_path):
    """While keys replace the random vectors of the queue the loss rises by half, and no measurement sounds an alarm."""
    changes = {"learning_rate": 0.03, "queue_size": 600, "steps": 50, "log_every": 5, "health_every": 5}
    done = pretrain(PretrainConfig(data=tree, out=tmp_path / "run", **(TRAINING | changes)))
    rows = lines_of(done.folder)
    assert rows[-1]["loss"] > rows[0]["loss"] + 0.5
    health = json.loads((done.folder / "run.json").read_text())["health"]
    known = Known(health["views"], health["chance"], health["at_start"], num_keys=600, temperature=0.2)
    words = {judge(rows[:number], known).word for number in range(1, len(rows) + 1)}
    assert words <= {"healthy", "under-trained"}
