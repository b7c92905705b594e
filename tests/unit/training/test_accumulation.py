"""A batch that goes through the encoder in parts: the gradient, the losses and the queues are those of the whole."""

import pytest
import torch

from cyclecontrast.cli import main
from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.pairs import Batch
from cyclecontrast.loss.objectives import OBJECTIVES, measure
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.training.distributed import World
from cyclecontrast.training.share import Share
from cyclecontrast.training.train_step import train_step
from cyclecontrast.training.training import Hardware, make_training, state_of
from tests import make_videos as make
from tests.unit.training.test_distributed import asked, ends_of, start_two, steps_of

HARDWARE = Hardware(torch.device("cpu"), "fp32", World(0, 1))
NUM_VIDEOS, NUM_VIEWS = 8, 8
WITHOUT_BATCHNORM = "timm:test_convnext"
IN_PARTS = sorted(name for name, objective in OBJECTIVES.items() if not objective.needs.compares_queries)


def begin(objective, accumulate, backbone=WITHOUT_BATCHNORM, **changes):
    """Build a small training."""
    settings = {"projector_dim": 16, "queue_size": 64, "cycle_queue_size": 64, "support_size": 12, "bn_groups": 2}
    settings |= {"temperature": 0.2, "learning_rate": 0.1, "schedule": "cosine", "projector": "linear"}
    settings |= {"method": objective, "accumulate": accumulate}
    config = PretrainConfig(data="d", out="o", **(settings | changes))
    return make_training(config, make_backbone(backbone, 0), 10, HARDWARE)


def draw_batch(seed=0):
    """Draw views of eight videos, the last of which is that of the first again."""
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_VIEWS, NUM_VIDEOS, 32, 32, 3)
    views = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    frames = torch.tensor([[1, 1, 5, 7], [6, 6, 0, 2]]).repeat(NUM_VIDEOS // 2, 1)
    return Batch(views[0], views[1], torch.tensor([*range(NUM_VIDEOS - 1), 0]), 0, tuple(views[2:]), frames)


def assert_close(one, other):
    """Compare what two trainings hold."""
    for name, values in state_of(one).items():
        for key, value in values.items():
            torch.testing.assert_close(state_of(other)[name][key], value, rtol=1e-4, atol=2e-6, msg=f"{name}/{key}")


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("intra-video", {"batch_keys": True}),
        ("cycle", {}),
        ("cycle", {"batch_keys": True, "top_k": 3, "split_by": "video"}),
        ("cycle-only", {"query_frame_in_support": True}),
        ("seco", {}),
    ],
)
def test_parts_give_the_gradient_of_the_whole(objective, changes):
    """Without BatchNorm a step in four parts changes all weights and queues as one of the whole batch does."""
    whole, parts = (begin(objective, number, **changes) for number in (1, 4))
    results = [train_step(training, draw_batch(), 0) for training in (whole, parts)]
    torch.testing.assert_close(results[1].losses.total, results[0].losses.total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1].gradient_norm, results[0].gradient_norm, rtol=1e-4, atol=1e-6)
    terms = [{name: value.item() for name, value in result.losses.more} for result in results]
    assert terms[1] == pytest.approx(terms[0], rel=1e-4)
    assert_close(whole, parts)


def test_parts_give_the_gradient_of_vince():
    """With one key each per video, the mean over all positives is that of the parts, too."""
    whole, parts = (begin("vince", number) for number in (1, 2))
    batch = draw_batch()._replace(video=torch.arange(NUM_VIDEOS))
    results = [train_step(training, batch, 0) for training in (whole, parts)]
    torch.testing.assert_close(results[1].losses.total, results[0].losses.total, rtol=1e-5, atol=1e-6)
    assert_close(whole, parts)


@pytest.mark.parametrize("objective", IN_PARTS)
def test_what_is_measured_is_measured_on_the_whole_batch(objective):
    """The step that accuracy is measured on has all queries of the batch, in order, and all candidates."""
    batch = draw_batch()
    whole, parts = (train_step(begin(objective, number), batch, 0) for number in (1, 4))
    assert parts.inputs.video.tolist() == batch.video.tolist()
    assert parts.inputs.frames.tolist() == batch.frames.tolist()
    torch.testing.assert_close(parts.inputs.query.intra, whole.inputs.query.intra, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.inputs.intra.keys, whole.inputs.intra.keys, rtol=1e-4, atol=1e-5)
    assert not parts.inputs.query.intra.requires_grad
    rates = [measure(result.inputs, OBJECTIVES[objective]) for result in (whole, parts)]
    assert rates[0] == pytest.approx(rates[1], nan_ok=True)


def test_batchnorm_sees_the_parts():
    """With BatchNorm each part is normalised by itself: the running mean is that of a step for each part."""
    training = begin("cycle", 2, "resnet10-small-w8")
    seen = []
    training.encoder.backbone.network.bn1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    train_step(training, draw_batch(), 0)
    assert [len(part) for part in seen] == [NUM_VIDEOS // 2] * 2
    mean = torch.zeros(8)
    for part in seen:
        mean = 0.9 * mean + 0.1 * part.mean(dim=(0, 2, 3))
    torch.testing.assert_close(training.encoder.backbone.network.bn1.running_mean, mean.detach())


def test_parts_of_a_share_know_their_place():
    """Parts are equal, in order, and each knows where in the batch of all processes it begins."""
    share = Share({0: torch.arange(6)}, (), torch.arange(6), torch.zeros(6, 2), 12)
    parts = list(share.parts(3))
    assert [part.video.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [part.pixels[0].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [part.first for part in parts] == [12, 14, 16]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames: stripes of one width and direction each, which move."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


PLAIN = {"backbone": WITHOUT_BATCHNORM, "image-size": 32, "projector": "linear", "precision": "fp32", "warmup": 0}


def test_two_processes_in_two_parts_each_do_what_one_does(tree, tmp_path):
    """Parts and processes together compute the losses of one process with the whole batch, to rounding."""
    changes = PLAIN | {"steps": 4, "cycle-start": 0}
    assert main(["pretrain", *asked(tree, tmp_path / "one", **changes)]) == 0
    codes, said = ends_of(start_two(asked(tree, tmp_path / "two", **changes, accumulate=2)))
    assert codes == [0, 0], said
    for row, other in zip(steps_of(tmp_path / "one"), steps_of(tmp_path / "two"), strict=True):
        assert other == pytest.approx(row, rel=1e-4)


def test_a_resumed_run_in_parts_is_the_same_run(tree, tmp_path):
    """Begun again at its checkpoint, a run in parts ends with the same bits; another number of parts is refused."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    for out in (whole, part):
        assert main(["pretrain", *asked(tree, out, steps=6, accumulate=2)]) == 0
    (part / "checkpoints" / "step-00000006").rename(part / "checkpoints" / "away")
    assert main(["pretrain", f"--resume={part}", "--accumulate=4"]) == 2
    assert main(["pretrain", f"--resume={part}"]) == 0
    assert steps_of(part) == steps_of(whole)
    states = [out / "checkpoints" / "step-00000006" / "state.safetensors" for out in (whole, part)]
    assert states[0].read_bytes() == states[1].read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"accumulate": 3}, "batch_size: 8 does not give each of 3 parts equally many videos"),
        ({"accumulate": 8}, "batch_size: 8 does not give each of 8 parts"),
        ({"accumulate": 2, "method": "simclr"}, "accumulate: objective simclr compares the queries of a whole"),
        ({"accumulate": 0}, "accumulate: "),
    ],
)
def test_what_parts_cannot_do_is_refused(tree, tmp_path, capsys, changes, told):
    """A batch that does not divide, and a loss that compares the queries with each other, are a line at the start."""
    assert main(["pretrain", *asked(tree, tmp_path / "run", steps=1, **changes)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "run").exists()


def test_self_batch_is_refused(tree, tmp_path, capsys):
    """VINCE's contrast of the queries among themselves wants the whole batch."""
    options = asked(tree, tmp_path / "run", steps=1, accumulate=2, method="vince", **{"queue-size": 32})
    assert main(["pretrain", *options, "--self-batch"]) == 2
    assert "accumulate: --self-batch compares the queries" in capsys.readouterr().err
