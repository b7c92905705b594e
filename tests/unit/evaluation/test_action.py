"""The protocol `action`: clips of one augmentation each, two modes of training, and scores from the record alone."""

import copy
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import ActionConfig
from cyclecontrast.data.clips import ClipShape
from cyclecontrast.data.labeled_videos import LabeledVideos
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import action
from cyclecontrast.evaluation.action import Action, ClipClassifier, ClipView, RandomClips, SpreadClips
from cyclecontrast.evaluation.embed import Loading
from cyclecontrast.evaluation.epochs import EpochReader, step_decay
from cyclecontrast.evaluation.image_batches import CenterCrop, load_image_batches
from cyclecontrast.evaluation.protocol import Predictions
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import make_backbone
from tests.make_videos import write_images

MODEL = "random:resnet10-small-w8"
QUICK = {"image_size": 16, "num_frames": 4, "batch_size": 4, "clips_per_video": 2, "num_clips": 3}
SETTINGS = {**QUICK, "epochs": 2, "warmup_epochs": 1, "workers": 0, "device": "cpu"}
LEVELS = {"Bright": 190, "Dark": 60, "Middle": 125}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes that differ in brightness, three videos to train on and two to test, of 6 or 20 noisy frames."""
    root = tmp_path_factory.mktemp("action")
    rng = np.random.default_rng(0)
    lines = {"train": [], "test": []}
    for name, level in LEVELS.items():
        (root / "videos" / name).mkdir(parents=True)
        for number in range(5):
            noise = rng.normal(level, 15, (6 if number == 1 else 20, 24, 32, 3))
            path = root / "videos" / name / f"v_{name}_g{number}.avi"
            write_images(path, list(noise.clip(0, 255).astype(np.uint8)), codec="mpeg4", rate=25)
            lines["train" if number < 3 else "test"].append(f"{name}/{path.name}")
    (root / "annotations").mkdir()
    index = [f"{label} {name}" for label, name in enumerate(LEVELS, start=1)]
    for name, text in (("classInd", index), ("trainlist01", lines["train"]), ("testlist01", lines["test"])):
        (root / "annotations" / f"{name}.txt").write_text("\n".join(text) + "\n")
    return root


def run(data, out, **settings):
    """Evaluate by `action` with quick settings."""
    return cc.evaluate("action", MODEL, data, out=out, **{**SETTINGS, **settings})


def table_of(out):
    """Read the one record below a folder of results."""
    (path,) = (out / "records").glob("*.parquet")
    return pq.read_table(path)


def config_of(data, **settings):
    """Build the options without evaluating."""
    return ActionConfig(model=MODEL, data=data, **{**SETTINGS, **settings})


def make_model(config, num_classes=3):
    """Return a backbone and the classifier around its copy."""
    backbone = make_backbone("resnet10-small-w8", 0, 16)
    return backbone, ClipClassifier(backbone, num_classes, config.dropout, config.seed)


def training_of(data, config, folder):
    """Return what training takes besides the model: videos, options, how to load, and the reader of epochs."""
    loading = Loading.of(config, make_backbone("resnet10-small-w8", 0, 16))
    reader = EpochReader("action", "training videos", config.warmup_epochs + config.epochs, 0, ResumeCache(folder))
    return LabeledVideos.open(data).train, config, loading, reader


def changed(before, module):
    """Return the names of what differs from a state of before."""
    after = module.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_one_augmentation_for_a_whole_clip():
    """A clip of one frame repeated stays that; another clip, epoch or seed looks different."""
    frame = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    clip = np.repeat(frame[None], 5, axis=0)
    views = []
    for view, position in (
        (ClipView(16, True, 2, 0, 0), 3),
        (ClipView(16, True, 2, 0, 0), 4),
        (ClipView(16, True, 2, 0, 1), 3),
        (ClipView(16, True, 2, 1, 0), 3),
    ):
        made = view(clip, position)
        assert made.shape == (5, 16, 16, 3)
        assert (made == made[:1]).all()
        views.append(made[0].tobytes())
    assert len(set(views)) == 4


def test_colors_change_in_every_clip_and_flips_can_be_left_out():
    """The jitter has probability 1; without `flip`, left stays left in each of many clips."""
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = (200, 100, 50)
    clip = image[None]
    flipped = {True: 0, False: 0}
    for flip in (True, False):
        for position in range(60):
            out = ClipView(20, flip, 1, 0, 0)(clip, position)[0].astype(int)
            assert not (out == (200, 100, 50)).all(axis=2).any()
            columns = out.sum(axis=(0, 2))
            flipped[flip] += bool(columns[:4].sum() > columns[-4:].sum())
    assert 15 < flipped[True] < 45
    assert flipped[False] == 0


def test_a_clip_is_a_function_of_seed_epoch_video_and_clip(data):
    """The number of clips per video, the order and the batches do not change what a clip shows."""
    train = LabeledVideos.open(data).train
    shape = ClipShape(4, 16.0)
    few, many = (RandomClips(train, shape, num, 0, 0) for num in (2, 5))
    views = [ClipView(16, True, num, 0, 0) for num in (2, 5)]
    for video, clip in ((0, 1), (2, 0)):
        a, b = video * 2 + clip, video * 5 + clip
        np.testing.assert_array_equal(few.image(a), many.image(b))
        np.testing.assert_array_equal(views[0](few.image(a), a), views[1](many.image(b), b))
    other = RandomClips(train, shape, 2, 0, 1)
    assert any((few.image(position) != other.image(position)).any() for position in range(4))


def test_test_clips_are_center_crops_of_spread_frames(data):
    """Decoded once, scaled on the way, they are crops of the frames that the sampler names."""
    test = LabeledVideos.open(data).test
    clips = SpreadClips(test, ClipShape(4, 16.0), 3, 16)
    (batch,) = load_image_batches(clips, CenterCrop(16), [[1]], 0, "test")
    assert batch.pixels.shape == (1, 12, 3, 16, 16)
    frames = action.spread_clips(action.measure(test.path(1)), ClipShape(4, 16.0), 3)
    assert frames.tolist() == [[0, 1, 3, 4], [6, 7, 9, 10], [14, 15, 17, 18]]
    whole, scaled = (action.read_frames(test.path(1), frames.ravel().tolist(), size) for size in (1000, 18))
    for number in range(12):
        found = batch.pixels[0, number].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, CenterCrop(16)(scaled[number], 0))
        assert np.abs(found.astype(int) - CenterCrop(16)(whole[number], 0)).mean() < 4


def test_features_are_means_over_frames():
    """A clip's vector is the mean of its frames' vectors, one by one; clips do not mix."""
    _, model = make_model(ActionConfig(model=MODEL, data=".", **QUICK))
    model.eval()
    pixels = torch.randint(0, 256, (3, 4, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        singly = [[model.backbone(model.backbone.normalize(frame[None]))[0] for frame in clip] for clip in pixels]
        expected = torch.stack([sum(vectors) / 4 for vectors in singly])
        torch.testing.assert_close(model.features(pixels), expected, rtol=1e-4, atol=1e-5)


def test_the_settings_of_the_protocol():
    """Both modes begin with the numbers of the paper; set options override them."""
    finetune, linear = (ActionConfig(model=MODEL, data=".", mode=mode) for mode in ("finetune", "linear"))
    names = (
        "num_frames",
        "batch_size",
        "clips_per_video",
        "dropout",
        "epochs",
        "warmup_epochs",
        "learning_rate",
        "fps",
    )
    assert [getattr(finetune, name) for name in names] == [32, 32, 5, 0.9, 16, 5, 1e-4, 16.0]
    assert [getattr(linear, name) for name in names] == [8, 64, 10, 0.5, 16, 5, 1e-4, 16.0]
    assert linear.bn == "eval"
    assert ActionConfig(model=MODEL, data=".", mode="linear", dropout=0, num_frames=3).num_frames == 3
    decay = step_decay(16, action.MILESTONES, action.FACTOR)
    expected = [1] * 6 + [0.3] * 4 + [0.09] * 4 + [0.027] * 2
    assert [decay(epoch) for epoch in range(16)] == pytest.approx(expected)


def test_an_option_of_the_other_mode_is_refused(data, tmp_path):
    """Fine-tuning trains BatchNorm in any case; asking for it is a mistake in the mode."""
    with pytest.raises(UserError, match=r"^bn: train needs --mode linear"):
        run(data, tmp_path, mode="finetune", bn="train")


def test_an_epoch_visits_each_clip_once_in_batches_of_nearly_one_size(data, tmp_path):
    """9 videos of 2 clips in batches of at most 4: five batches, no lone clip, another order in the next epoch."""
    videos, config, _, reader = training_of(data, config_of(data), tmp_path)
    orders = []
    for epoch in range(2):
        batches = [batch.positions.tolist() for batch in action._random_clip_batches(videos, config, 16, epoch, reader)]
        assert sorted(map(len, batches)) == [3, 3, 4, 4, 4]
        orders.append([position for batch in batches for position in batch])
        assert sorted(orders[-1]) == list(range(18))
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("settings", "trained", "counted"),
    [
        ({"mode": "linear"}, set(), False),
        ({"mode": "linear", "bn": "train"}, set(), True),
        ({"mode": "finetune"}, {"network.conv1.weight"}, True),
    ],
)
def test_what_is_trained(data, tmp_path, settings, trained, counted):
    """Linear leaves each parameter of the backbone, and with bn=eval each buffer; the given backbone never changes."""
    config = config_of(data, epochs=1, **settings)
    backbone, model = make_model(config)
    before = copy.deepcopy(backbone.state_dict())
    parameters = {name for name, _ in backbone.named_parameters()}
    head = model.head.weight.clone()
    action.train(model, *training_of(data, config, tmp_path))
    assert changed(before, backbone) == set()
    assert backbone.training
    found = changed(before, model.backbone)
    assert found & parameters >= trained
    assert bool(found & parameters) == bool(trained)
    assert bool(found - parameters) == counted
    assert not torch.equal(head, model.head.weight)
    assert not any(module.training for module in model.modules())


def test_the_warm_up_trains_the_last_layer_only(data, tmp_path):
    """Before fine-tuning, BatchNorm counts along, but no parameter of the backbone moves."""
    config = config_of(data)
    backbone, model = make_model(config)
    model.train()
    action._train_stage(model, *training_of(data, config, tmp_path), "warm-up", range(1), False, lambda _: 1.0)
    found = changed(backbone.state_dict(), model.backbone)
    assert found
    assert not found & {name for name, _ in backbone.named_parameters()}
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_without_a_warm_up_training_starts_at_once(data, tmp_path):
    """`warmup_epochs` 0 is a choice like another."""
    result = run(data, tmp_path, warmup_epochs=0, epochs=1)
    assert result.about.details["losses"]["warm-up"] == []
    assert len(result.about.details["losses"]["training"]) == 1


@pytest.mark.parametrize(
    ("settings", "tag"),
    [
        ({"mode": "finetune", "learning_rate": 5e-3, "dropout": 0.1, "epochs": 4}, "action mode=finetune"),
        ({"mode": "linear", "learning_rate": 0.3, "epochs": 4}, "action mode=linear bn=eval"),
        ({"mode": "linear", "bn": "train", "learning_rate": 0.3, "epochs": 4}, "action mode=linear bn=train"),
    ],
)
def test_it_learns_and_the_record_holds_all(data, tmp_path, settings, tag):
    """Classes of different brightness are distinguished, and plain loops over the record find the same accuracies."""
    result = run(data, tmp_path, flip=False, **settings)
    assert result.tag.startswith(f"{tag} ")
    assert result.about.data.num_train == 9
    assert result.about.data.num_test == 6
    rows = table_of(tmp_path).to_pylist()
    assert [(row["id"], row["clip"]) for row in rows] == [
        (path, clip) for path in LabeledVideos.open(data).test.paths for clip in range(3)
    ]
    right, sums, labels = [], {}, {}
    for row in rows:
        probabilities = np.array(row["probabilities"], dtype=np.float64)
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        right.append(int(probabilities.argmax()) == row["label"])
        sums[row["id"]] = sums.get(row["id"], 0) + probabilities
        labels[row["id"]] = row["label"]
    videos = [int(sums[name].argmax()) == labels[name] for name in sums]
    assert result.metrics == {"clip_top1": np.mean(right), "video_top1": np.mean(videos)}
    assert result.metrics["video_top1"] >= 4 / 6
    assert np.trace(result.per_item["confusion"]) == sum(videos)
    assert result.per_item["num_items"] == [2, 2, 2]
    assert run(data, tmp_path, flip=False, score_only=True, **settings).metrics == result.metrics


def test_videos_are_judged_by_the_mean_of_their_softmax(data):
    """Two clips lean a little to the wrong class, one is sure of the right one: the mean is right, a vote is not."""
    tested = {
        "videos": np.array([1, 1, 1, 0, 0, 0]),
        "clips": np.tile(np.arange(3), 2),
        "probabilities": np.float32(
            [[0.5, 0.4, 0.1], [0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5], [1, 0, 0], [0.3, 0.1, 0.6]]
        ),
        "problems": np.array([], str),
    }
    labeled = LabeledVideos.open(data)
    labeled.test.labels[:2] = (2, 1)
    table = action._table(tested, labeled)
    scored = Action(config_of(data)).score(FakeRecord(table, ["a", "b", "c"]))
    assert scored.metrics == {"clip_top1": 3 / 6, "video_top1": 1 / 2}
    assert scored.per_item["confusion"] == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert scored.per_item["accuracy"] == [None, 1.0, 0.0]


class FakeRecord:
    """A table with the classes of its labels."""

    def __init__(self, table, classes):
        self.table = table
        self.about = Predictions(table, "", details={"classes": classes})


def test_top_5_counts_where_there_are_more_than_five_classes(data):
    """With six classes a label ranked fifth counts, one ranked sixth does not."""
    labeled = LabeledVideos.open(data)
    labeled.test.labels[:2] = (4, 5)
    probabilities = np.float32([[0.3, 0.2, 0.2, 0.15, 0.1, 0.05]] * 2)
    tested = {"videos": np.array([0, 1]), "clips": np.zeros(2, int), "probabilities": probabilities}
    scored = Action(config_of(data)).score(FakeRecord(action._table(tested, labeled), list("abcdef")))
    assert scored.metrics == {"clip_top1": 0.0, "video_top1": 0.0, "video_top5": 0.5}


class Stopped(Exception):
    """What ends an evaluation half-way."""


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        ({"mode": "finetune"}, 18 + 5),
        ({"mode": "linear", "bn": "train"}, 3 * 18 - 1),
        ({"mode": "linear"}, 3 * 18 + 3),
    ],
)
def test_a_stopped_evaluation_ends_as_one_that_was_not(data, tmp_path, monkeypatch, settings, after):
    """Stopped in the first epoch after the warm-up, in the last one or in the test, it resumes to the same record."""
    monkeypatch.setattr(action, "VIDEOS_PER_PART", 2)
    uninterrupted = run(data, tmp_path / "whole", **settings)
    calls, measure = [], action.measure

    def measure_or_stop(path):
        calls.append(path)
        if len(calls) == after:
            raise Stopped
        return measure(path)

    monkeypatch.setattr(action, "measure", measure_or_stop)
    with pytest.raises(Stopped):
        run(data, tmp_path / "halves", **settings)
    resumed = run(data, tmp_path / "halves", **settings)
    assert len(calls) <= after + 6 + 18 * (3 - (after - 1) // 18)
    assert resumed.metrics == uninterrupted.metrics
    assert resumed.about.details == uninterrupted.about.details
    whole, halves = (table_of(tmp_path / name) for name in ("whole", "halves"))
    assert whole.equals(halves)
    assert not (tmp_path / "halves" / "unfinished").exists()


def damaged_copy(data, root):
    """Copy data; take one test video away, truncate a train and a test video, cut a line of the train list."""
    shutil.copytree(data, root)
    lists = root / "annotations"
    train, test = ((lists / f"{name}list01.txt").read_text().split("\n") for name in ("train", "test"))
    (root / "videos" / test[0]).unlink()
    for name in (train[1].split()[0], test[2]):
        path = root / "videos" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cut = train[-2][:4]
    (lists / "trainlist01.txt").write_text("\n".join([*train[:-2], cut]))
    return [f"{lists}/trainlist01.txt:{len(train) - 1}: '{cut}'", test[0], train[1].split()[0], test[2]]


def check_damaged(data, root, out):
    """Evaluate a damaged copy: four lines, one each, and a result over the rest, the same with a stop before it."""
    at_fault = damaged_copy(data, root)
    sizes = [len(split) for split in (LabeledVideos.open(data).train, LabeledVideos.open(data).test)]
    result = run(root, out, epochs=1)
    assert len(result.about.problems) == 4
    for line, name in zip(result.about.problems, at_fault, strict=True):
        assert name in line
        assert "\n" not in line
    assert result.about.notes[0] == (
        f"left out: 2 listed videos or lines, 1 of {sizes[0] - 1} training and 1 of {sizes[1] - 1} test videos that "
        "cannot be read"
    )
    assert (result.about.data.num_train, result.about.data.num_test) == (sizes[0] - 2, sizes[1] - 2)
    assert sum(result.per_item["num_items"]) == sizes[1] - 2
    ids = set(table_of(out)["id"].to_pylist())
    assert len(ids) == sizes[1] - 2
    assert not any(name in path for path in ids for name in at_fault)


def test_damage_is_told_and_the_rest_counts(data, tmp_path):
    """A missing, two truncated videos and a cut line: nothing takes their place, and the result says so."""
    check_damaged(data, tmp_path / "copy", tmp_path / "out")


def test_damage_seen_before_a_stop_is_reported_after_it(data, tmp_path, monkeypatch):
    """What the epochs left out is kept with them."""
    damaged_copy(data, tmp_path / "copy")
    whole = run(tmp_path / "copy", tmp_path / "whole")
    test = action._test_part

    def stop(*_):
        raise Stopped

    monkeypatch.setattr(action, "_test_part", stop)
    with pytest.raises(Stopped):
        run(tmp_path / "copy", tmp_path / "halves")
    monkeypatch.setattr(action, "_test_part", test)
    assert run(tmp_path / "copy", tmp_path / "halves").about.problems == whole.about.problems


@pytest.mark.parametrize(("split", "number"), [("train", 9), ("test", 6)])
def test_nothing_that_can_be_read_is_an_error(data, tmp_path, split, number):
    """Where each video of a split is broken, the error names the first of them."""
    root = tmp_path / "copy"
    shutil.copytree(data, root)
    videos = getattr(LabeledVideos.open(root), split)
    for video in range(len(videos)):
        videos.path(video).write_bytes(b"nothing")
    with pytest.raises(UserError, match=rf"^action: none of the {number} {split}\w* videos can be read") as caught:
        run(root, tmp_path / "out", mode="linear", warmup_epochs=0, epochs=1)
    assert caught.value.problems[1].startswith(f"{root}/videos/")


def test_a_class_of_which_nothing_can_be_read_is_named(data, tmp_path):
    """Its test videos still count; the notes say why they are missed."""
    root = tmp_path / "copy"
    shutil.copytree(data, root)
    for number in range(3):
        (root / "videos" / "Dark" / f"v_Dark_g{number}.avi").write_bytes(b"nothing")
    result = run(root, tmp_path / "out", mode="linear", epochs=1)
    assert result.about.notes[1] == "class Dark was not trained: all of its training videos are unreadable"
    assert (result.about.data.num_train, result.about.data.num_test) == (6, 6)
    assert len(result.about.problems) == 3


def test_a_missing_list_ends_with_its_name(data, tmp_path, capsys):
    """On the command line: one line, exit code 2, before anything is computed."""
    root = tmp_path / "copy"
    shutil.copytree(data, root)
    (root / "annotations" / "testlist01.txt").unlink()
    assert main(["evaluate", "action", MODEL, str(root), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{root / 'annotations' / 'testlist01.txt'}: no such file" in line
    assert not (tmp_path / "out").exists()


def test_one_class_is_none_to_tell_apart(data, tmp_path):
    """A classifier of one class would be right in every case."""
    root = tmp_path / "copy"
    shutil.copytree(data, root)
    (root / "annotations" / "classInd.txt").write_text("1 Bright\n")
    with pytest.raises(UserError, match="names one class, Bright"):
        run(root, tmp_path / "out")
