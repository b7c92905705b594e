"""The protocol `propagation`: context, softmax and neighborhood by hand, then end to end on videos that are known."""

import shutil

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from cyclecontrast.config import PropagationConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import evaluate, mask_files, two_steps
from cyclecontrast.evaluation.mask_files import decode_mask, encode_mask
from cyclecontrast.evaluation.propagation import labels as spread
from cyclecontrast.evaluation.propagation import protocol
from cyclecontrast.evaluation.propagation import score as scoring
from cyclecontrast.evaluation.propagation.labels import Propagation, labels_of_mask, mask_of_labels, propagate
from cyclecontrast.evaluation.propagation.presets import PRESETS, context_frames, preset_for
from cyclecontrast.evaluation.propagation.score import score
from cyclecontrast.evaluation.propagation.videos import network_size
from cyclecontrast.evaluation.predictions import Record
from cyclecontrast.models.backbone import Backbone, make_backbone

MODEL = "random:resnet10-w8"
SETTINGS = {"workers": 0, "device": "cpu"}
HEIGHT, WIDTH = 96, 128


def square(left, top=32, side=32):
    """Where a square is."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def save_video(root, name, masks):
    """Write frames in which object 1 is red, object 2 green, on one noisy blue background."""
    background = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3)) + np.array([0, 40, 150])
    for index, mask in enumerate(masks):
        image = background.copy()
        image[mask == 1] = (240, 30, 20)
        image[mask == 2] = (30, 240, 60)
        for folder, suffix, pixels in (("JPEGImages", "jpg", image), ("Annotations", "png", mask)):
            path = root / folder / "480p" / name / f"{index:05d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(pixels.astype(np.uint8))
            if suffix == "png":
                picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
            picture.save(path)


@pytest.fixture
def data(tmp_path):
    """A square that moves by 8 pixels a frame, and two squares of which the second goes the other way."""
    root = tmp_path / "davis"
    save_video(root, "one", [square(8 + 8 * t) for t in range(7)])
    save_video(root, "two", [np.maximum(square(8 + 8 * t, 8), 2 * square(88 - 8 * t, 56)) for t in range(5)])
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("one\ntwo\n")
    return root


def run(data, tmp_path, model=MODEL, **settings):
    """Evaluate by `propagation` into a folder of the test."""
    return evaluate("propagation", model, data, **{"out": tmp_path / "out", **SETTINGS, **settings})


def table_of(out):
    """Return the one record below a folder of results."""
    (path,) = (out / "records").iterdir()
    return Record.load(out, path.stem).table


def record_of(videos):
    """Return a record of videos {name: (predicted, true)}."""
    rows = [
        {"video": name, "frame": f"{index:05d}", "predicted": encode_mask(ours), "truth": encode_mask(theirs)}
        for name, (predicted, truth) in videos.items()
        for index, (ours, theirs) in enumerate(zip(predicted, truth, strict=True))
    ]
    return Record(None, pa.Table.from_pylist(rows))


def scored(videos):
    """Score predictions that are given."""
    return score(record_of(videos), PropagationConfig(model=MODEL, data="."))


def unit_features(num_frames, height, width, seed=0, dim=5):
    """Random unit vectors in single precision."""
    features = torch.from_numpy(np.random.default_rng(seed).normal(size=(num_frames, height, width, dim))).float()
    return torch.nn.functional.normalize(features, dim=3)


def by_hand(query, keys, values, preset):
    """Propagate with loops over cells, in double precision."""
    query, keys, values = (np.asarray(x, dtype=float) for x in (query, keys, values))
    height, width, _ = query.shape
    found = np.zeros((height, width, values.shape[-1]))
    for y, x in np.ndindex(height, width):
        candidates = []
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            for v, u in np.ndindex(height, width):
                if preset.neighborhood == "circle":
                    is_near = ((v - y) ** 2 + (u - x) ** 2) ** 0.5 < preset.radius
                else:
                    is_near = abs(v - y) <= preset.radius and abs(u - x) <= preset.radius
                if is_near or (number == 0 and preset.first_everywhere):
                    candidates.append((float(query[y, x] @ key[v, u]), value[v, u]))
        best = sorted(candidates, key=lambda pair: -pair[0])[: preset.top_k]
        weights = [np.exp(similarity / preset.temperature) for similarity, _ in best]
        found[y, x] = sum(w * value for w, (_, value) in zip(weights, best, strict=True)) / sum(weights)
    return found


def test_presets_are_the_table_of_the_protocol():
    """protocols.md §g: frames of context, top-k, temperature, shape and radius of the neighborhood."""
    found = {
        name: (p.num_preceding, p.top_k, p.temperature, p.neighborhood, p.radius, p.bottleneck_radius)
        for name, p in PRESETS.items()
    }
    assert found == {
        "crw": (20, 10, 0.05, "circle", 12, 12),
        "vfs": (20, 10, 0.07, "circle", 12, 18),
        "dino": (7, 5, 0.1, "square", 12, 12),
    }
    assert [name for name, preset in PRESETS.items() if preset.first_everywhere] == ["crw"]
    assert PropagationConfig(model=MODEL, data=".").stage == 3


@pytest.mark.parametrize(("name", "radius"), [("resnet10-w8", 12), ("resnet18-w8", 12), ("resnet50-w8", 18)])
def test_bottlenecks_search_further(name, radius):
    """VFS has a radius of 12 cells for ResNet-18 and 18 for ResNet-50; CRW has 12 for all."""
    backbone = make_backbone(name)
    assert preset_for("vfs", backbone).radius == radius
    assert preset_for("crw", backbone).radius == 12


@pytest.mark.parametrize(
    ("name", "frame", "expected"),
    [
        ("crw", 1, [0] * 21),
        ("crw", 5, [0] * 17 + [1, 2, 3, 4]),
        ("crw", 30, [0, *range(10, 30)]),
        ("vfs", 1, [0, 0]),
        ("vfs", 5, [0, 0, 1, 2, 3, 4]),
        ("vfs", 20, [0, *range(20)]),
        ("vfs", 21, [0, *range(1, 21)]),
        ("vfs", 30, [0, *range(10, 30)]),
        ("dino", 1, [0]),
        ("dino", 5, [0, 1, 2, 3, 4]),
        ("dino", 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("dino", 30, [0, *range(23, 30)]),
    ],
)
def test_the_context_is_that_of_the_paper(name, frame, expected):
    """CRW repeats the first frame in place of frames before it, VFS counts it twice, DINO once."""
    assert context_frames(PRESETS[name], frame) == expected


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("radius", [3, 12])
def test_labels_spread_as_by_hand(name, radius):
    """The top k of the neighborhood share in a softmax; tiles and their windows change nothing."""
    preset = PRESETS[name]._replace(radius=radius)
    height, width = (14, 19) if radius == 12 else (10, 17)
    query, *keys = unit_features(4, height, width)
    values = torch.from_numpy(np.random.default_rng(1).dirichlet((1, 1, 1), (3, height, width))).float()
    found = propagate(query, keys, list(values), preset).numpy()
    expected = by_hand(query, torch.stack(keys), values, preset)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    other = by_hand(query, torch.stack(keys), values, preset._replace(radius=radius - 1, first_everywhere=False))
    assert np.abs(found - other).max() > 0.1


def test_tiles_of_any_size_give_the_same(monkeypatch):
    """The side of the tiles bounds memory, and is no part of the result."""
    query, *keys = unit_features(3, 13, 11)
    values = list(unit_features(2, 13, 11, seed=1))
    whole = propagate(query, keys, values, PRESETS["vfs"])
    monkeypatch.setattr(spread, "TILE", 3)
    torch.testing.assert_close(propagate(query, keys, values, PRESETS["vfs"]), whole)


def test_fewer_cells_than_top_k_are_enough():
    """On a map of two by two cells all of them share."""
    query, key = unit_features(2, 2, 2)
    values = torch.rand(2, 2, 3)
    found = propagate(query, [key], [values], PRESETS["vfs"])
    np.testing.assert_allclose(found, by_hand(query, [key], [values], PRESETS["vfs"]), atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_a_square_of_its_own_color_is_followed_to_the_cell(name):
    """Features that tell two squares and the ground apart carry the first labels through 30 frames without an error."""
    frames = torch.zeros(31, 12, 45, dtype=torch.long)
    for t in range(31):
        frames[t, 2:6, 1 + t : 5 + t] = 1
        frames[t, 7:11, 38 - t : 42 - t] = 2
    features = torch.eye(3)[frames]
    propagation = Propagation(PRESETS[name], features[0], features[0].clone())
    for t in range(1, 31):
        torch.testing.assert_close(propagation.advance(features[t]), features[t])


@pytest.mark.parametrize("name", PRESETS)
def test_a_long_video_keeps_what_its_context_needs_and_no_more(name):
    """After 30 frames the first and those of the window are held; each step takes the right ones."""
    preset = PRESETS[name]
    features = unit_features(31, 3, 4)
    first = torch.eye(12).reshape(3, 4, 12)
    propagation = Propagation(preset, features[0], first)
    labels = [first]
    for frame in range(1, 31):
        labels.append(propagation.advance(features[frame]))
        context = context_frames(preset, frame)
        expected = propagate(features[frame], [features[i] for i in context], [labels[i] for i in context], preset)
        assert torch.equal(labels[frame], expected)
    assert sorted(propagation.memory) == [0, *range(31 - preset.num_preceding, 31)]


@pytest.mark.parametrize("size", [(96, 128), (97, 131), (50, 33)])
def test_the_first_mask_is_brought_to_the_map_as_the_papers_do(size):
    """`nearest` is Pillow's, `bilinear` is OpenCV's of each object's mask."""
    mask = np.random.default_rng(0).integers(0, 3, size).astype(np.uint8)
    height, width = (-(-side // 8) for side in size)
    grid = torch.empty(height, width, 1)
    nearest = labels_of_mask(torch.from_numpy(mask), grid, "nearest").numpy()
    assert np.array_equal(nearest.argmax(axis=2), np.asarray(Image.fromarray(mask).resize((width, height), 0)))
    assert np.array_equal(np.unique(nearest), [0, 1])
    bilinear = labels_of_mask(torch.from_numpy(mask), grid, "bilinear")
    one_hot = (mask[..., None] == np.arange(3)).astype(np.float32)
    expected = cv2.resize(one_hot, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(bilinear, expected, atol=1e-4)


def test_labels_are_stretched_before_they_compete():
    """A faint object wins where it is at its strongest in the frame; without stretching it never does."""
    faint = torch.zeros(4, 6)
    faint[1:3, 2:4] = 0.3
    labels = torch.stack([1 - faint, faint, torch.zeros(4, 6)], dim=2)
    assert mask_of_labels(labels, 4, 6, stretch=True).tolist() == (faint > 0).long().tolist()
    assert not mask_of_labels(labels, 4, 6, stretch=False).any()
    assert mask_of_labels(labels, 40, 61, stretch=True).shape == (40, 61)
    assert not mask_of_labels(torch.eye(3)[torch.zeros(4, 6, dtype=int)], 4, 6, stretch=True).any()


@pytest.mark.parametrize(
    ("size", "asked", "multiple", "expected"),
    [
        ((480, 854), None, 1, (480, 854)),
        ((480, 854), None, 64, (480, 832)),
        ((240, 428), None, 1, (240, 428)),
        ((240, 428), 480, 1, (480, 856)),
        ((1080, 1920), None, 1, (480, 853)),
        ((480, 20), None, 64, (480, 64)),
    ],
)
def test_frames_have_480_rows_but_are_not_enlarged_unasked(size, asked, multiple, expected):
    """DINO cuts the width down to a multiple of 64."""
    assert network_size(*size, asked, multiple) == expected


def test_a_perfect_prediction_scores_one():
    """All five metrics are 1, also for an object that is gone in some frames, and is said to be."""
    truth = [square(8), square(12), np.maximum(square(16), 2 * square(90)), square(20), square(24)]
    truth[0] = np.maximum(truth[0], 2 * square(90))
    result = scored({"a": (truth, truth), "b": (truth[::-1], truth[::-1])})
    assert result.metrics == dict.fromkeys(("j_and_f", "j_mean", "j_recall", "f_mean", "f_recall"), 1.0)
    assert result.per_item["a"].keys() == {"1", "2"}
    assert result.per_item["b"].keys() == {"1"}


def test_the_first_and_the_last_frame_are_not_scored():
    """What is predicted there changes nothing; what is predicted between them does."""
    truth = [square(8)] * 5
    nothing = np.zeros_like(truth[0])
    assert scored({"a": ([nothing, *truth[1:-1], nothing], truth)}).metrics["j_and_f"] == 1.0
    assert scored({"a": ([*truth[:3], nothing, truth[4]], truth)}).metrics["j_mean"] == pytest.approx(2 / 3)


def test_objects_count_alike_whatever_their_video():
    """Two objects of one video weigh twice as much as the one of another; an object not in the first mask is none."""
    one, two = square(8), np.maximum(square(8), 2 * square(60))
    late = np.maximum(one, 3 * square(90))
    result = scored({"a": ([two] * 4, [two] * 4), "b": ([one * 0] * 4, [one, late, late, one])})
    assert result.metrics["j_mean"] == pytest.approx(2 / 3)
    assert result.metrics["f_recall"] == pytest.approx(2 / 3)
    assert result.per_item["b"] == {"1": {"j_mean": 0.0, "j_recall": 0.0, "f_mean": 0.0, "f_recall": 0.0}}


def test_scores_are_means_over_frames_by_hand():
    """Squares shifted by 0, 8, 16 and 24 of 32 columns: J is (32 - shift) / (32 + shift), above one half in two."""
    truth = [square(40)] * 6
    shifts = (0, 8, 16, 24)
    result = scored({"a": ([truth[0], *(square(40 + shift) for shift in shifts), truth[0]], truth)})
    js = [(32 - shift) / (32 + shift) for shift in shifts]
    assert result.metrics["j_mean"] == pytest.approx(np.mean(js))
    assert result.metrics["j_recall"] == np.mean([j > 0.5 for j in js]) == 0.5
    assert result.metrics["j_and_f"] == pytest.approx((result.metrics["j_mean"] + result.metrics["f_mean"]) / 2)


def test_masks_of_one_video_at_a_time_are_decoded(monkeypatch):
    """All of DAVIS-2017 would be 1.6 GB: a video is scored before the masks of the next are there."""
    decoded, seen = [], []
    monkeypatch.setattr(scoring, "decode_mask", lambda file: decoded.append(file) or decode_mask(file))
    score_objects = scoring.score_objects
    monkeypatch.setattr(scoring, "score_objects", lambda *x: seen.append(len(decoded)) or score_objects(*x))
    scored({name: ([square(8)] * 3, [square(8)] * 3) for name in "abc"})
    assert seen == [6, 12, 18]


def test_the_picture_says_what_its_colours_mean(data, tmp_path):
    """Words on white stand above the first video."""
    result = run(data, tmp_path)
    picture = cv2.imread(str(tmp_path / "out" / f"{result.about.key}.masks.png"))
    strip = picture[: mask_files.LEGEND_HEIGHT]
    assert (strip[0] == 255).all()
    assert 0.01 < (strip < 100).mean() < 0.2


def test_what_repeating_the_first_mask_gives_is_said():
    """Where nothing moves it is 100 %; a square that moves on by 16 of 32 columns has a J of a third."""
    assert "j_mean of 100.00 %" in scored({"a": ([square(8)] * 3, [square(8)] * 3)}).notes[0]
    assert "j_mean of 33.33 %" in scored({"a": ([square(8)] * 3, [square(8), square(24), square(8)])}).notes[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_moving_squares_are_followed(data, tmp_path, preset):
    """Even random features tell red from blue: better than standing still, each object by itself."""
    result = run(data, tmp_path, preset=preset)
    assert result.metrics["j_mean"] > 0.55
    assert result.per_item.keys() == {"one", "two"}
    assert result.per_item["two"].keys() == {"1", "2"}
    still = float(result.about.notes[-1].split()[-2]) / 100
    assert result.metrics["j_mean"] > still + 0.15


def test_a_record_holds_the_masks_of_all_frames(data, tmp_path):
    """Truth and prediction are PNG files of object numbers; the first prediction is the mask that was given."""
    run(data, tmp_path)
    table = table_of(tmp_path / "out")
    assert table.column_names == ["video", "frame", "predicted", "truth"]
    assert table["video"].to_pylist() == ["one"] * 7 + ["two"] * 5
    assert table["frame"].to_pylist()[:2] == ["00000", "00001"]
    rows = table.to_pylist()
    assert rows[7]["predicted"] == rows[7]["truth"]
    decoded = cv2.imdecode(np.frombuffer(rows[8]["predicted"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.shape == (HEIGHT, WIDTH)
    assert np.unique(decoded).tolist() == [0, 1, 2]


def test_the_result_says_what_it_is_the_result_of(data, tmp_path):
    """Small frames are not enlarged in silence, the year is named, and a picture of the masks lies beside it."""
    result = run(data, tmp_path)
    assert result.tag == "propagation preset=vfs radius=12 stage=3 height<=480 davis2017"
    assert "height: frames of 2 videos have fewer than 480 rows, and were not enlarged" in result.about.notes
    assert "year: 2017" in result.about.notes
    assert (result.about.data.num_train, result.about.data.num_test) == (0, 2)
    picture = cv2.imread(str(tmp_path / "out" / f"{result.about.key}.masks.png"))
    assert picture.shape[0] > 2 * 100
    asked = run(data, tmp_path, height=64, year=2017)
    assert asked.tag == "propagation preset=vfs radius=12 stage=3 height=64 davis2017"
    assert len(asked.about.notes) == 1


def test_a_denser_map_is_allowed_and_said(data, tmp_path):
    """A backbone for small images has a cell every 2 pixels, so that its radius is shorter in pixels."""
    result = run(data, tmp_path, model="random:resnet10-small-w8", height=24)
    assert any("a cell every 2 pixels where the papers have 8" in note for note in result.about.notes)
    assert any("12 cells is 24 pixels" in note for note in result.about.notes)


def test_a_map_of_one_cell_is_an_error(data, tmp_path):
    """Nothing can be followed on it."""
    with pytest.raises(UserError, match="feature map of 2x1 cells"):
        run(data, tmp_path, height=8)


def test_frozen_means_frozen(data, tmp_path):
    """No parameter and no BatchNorm buffer changes by one bit, and the strides stay."""
    backbone = make_backbone("resnet10-w8").train()
    shape = backbone.feature_map(torch.zeros(1, 3, 64, 64), 3).shape
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    config = PropagationConfig(model="in memory", data=data, out=tmp_path / "out", **SETTINGS)
    two_steps.evaluate(backbone, protocol.open_data(config), config)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert backbone.training
    assert backbone.feature_map(torch.zeros(1, 3, 64, 64), 3).shape == shape


@pytest.mark.parametrize("name", ["resnet10-w8", "resnet50-w8"])
def test_the_map_is_dense_without_dilation(data, tmp_path, monkeypatch, name):
    """Unlike in tracking, stages 3 and 4 lose their stride and gain no dilation: a cell every 8 pixels."""
    seen = []
    monkeypatch.setattr(protocol, "follow", lambda backbone, *_: seen.append(backbone) or {"problems": ["none"]})
    with pytest.raises(UserError, match="none of the 2 videos"):
        run(data, tmp_path, model=f"random:{name}")
    convolutions = [module for module in seen[0].modules() if isinstance(module, torch.nn.Conv2d)]
    assert {conv.dilation for conv in convolutions} == {(1, 1)}
    shapes = [seen[0].feature_map(torch.zeros(1, 3, 96, 128), stage).shape[2:] for stage in (1, 2, 3, 4)]
    assert shapes == [(24, 32), (12, 16), (12, 16), (12, 16)]


def test_workers_change_nothing(data, tmp_path):
    """Frames that other processes load give the same record."""
    run(data, tmp_path / "none")
    run(data, tmp_path / "one", workers=1)
    assert table_of(tmp_path / "one" / "out").equals(table_of(tmp_path / "none" / "out"))


def test_a_stopped_evaluation_goes_on_where_it_was(data, tmp_path, monkeypatch):
    """The record and the result are those of one that was not stopped; what was done is not done again."""
    whole = run(data, tmp_path / "whole")
    follow, followed = protocol.follow, []

    def stopping(backbone, video, how):
        if len(followed) == 1:
            raise KeyboardInterrupt
        followed.append(video.name)
        return follow(backbone, video, how)

    monkeypatch.setattr(protocol, "follow", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "stopped")
    assert not list((tmp_path / "stopped" / "out").glob("*.json"))
    monkeypatch.setattr(protocol, "follow", lambda *how: followed.append(how[1].name) or follow(*how))
    again = run(data, tmp_path / "stopped")
    assert followed == ["one", "two"]
    assert (again.metrics, again.per_item) == (whole.metrics, whole.per_item)
    assert table_of(tmp_path / "stopped" / "out").equals(table_of(tmp_path / "whole" / "out"))
    assert not (tmp_path / "stopped" / "out" / "unfinished").exists()


def test_records_are_scored_again_without_running_the_model(data, tmp_path, monkeypatch):
    """--score-only gives the same result from the record, and the network is not called."""
    result = run(data, tmp_path)
    monkeypatch.setattr(Backbone, "feature_map", lambda *_: pytest.fail("the model was run"))
    assert run(data, tmp_path, score_only=True) == result


@pytest.mark.parametrize("change", [{"preset": "crw"}, {"height": 64}, {"stage": 4}, {"seed": 1}])
def test_no_score_is_reported_for_another_setting(data, tmp_path, change):
    """Each has a key of its own, so that --score-only cannot find the record of another."""
    run(data, tmp_path)
    with pytest.raises(UserError, match="run it once without --score-only"):
        run(data, tmp_path, score_only=True, **change)


@pytest.mark.parametrize("settings", [{"stage": 5}, {"stage": 0}, {"year": 2018}, {"preset": "uvc"}, {"height": 4}])
def test_options_that_cannot_be_are_refused(data, tmp_path, settings):
    """The error names the option."""
    with pytest.raises(UserError, match=next(iter(settings))):
        run(data, tmp_path, **settings)


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("JPEGImages/480p/one/00003.jpg", lambda path: path.write_bytes(path.read_bytes()[:50]), "00003.jpg"),
        ("Annotations/480p/one/00003.png", lambda path: path.write_bytes(b""), "00003.png"),
        (
            "JPEGImages/480p/one/00003.jpg",
            lambda path: Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path),
            "00003.jpg: is 64x48, its mask 128x96",
        ),
    ],
)
def test_a_damaged_video_is_left_out_and_the_rest_is_scored(data, tmp_path, name, damage, expected):
    """The line names the file; where no video is left there is no result."""
    damage(data / name)
    result = run(data, tmp_path)
    assert result.per_item.keys() == {"two"}
    assert len(result.about.problems) == 1
    assert expected in result.about.problems[0]
    assert (result.about.data.num_train, result.about.data.num_test) == (0, 1)
    (data / "ImageSets/2017/val.txt").write_text("absent\none\n")
    with pytest.raises(UserError, match="none of the 1 videos can be followed") as caught:
        run(data, tmp_path)
    assert "absent: no such folder" in caught.value.problems[1]
    assert expected in caught.value.problems[2]


def test_weights_that_are_broken_are_an_error(data, tmp_path):
    """Features that are not finite are not compared."""
    backbone = make_backbone("resnet10-w8")
    with torch.no_grad():
        backbone.network.conv1.weight.fill_(torch.nan)
    config = PropagationConfig(model="in memory", data=data, out=tmp_path / "out", **SETTINGS)
    with pytest.raises(UserError, match="not finite"):
        two_steps.evaluate(backbone, protocol.open_data(config), config)


def test_real_video_is_followed_though_another_is_damaged(shared, tmp_path):
    """Two videos of DAVIS-2016, of which one is cut short: the swan is followed better than by standing still."""
    root = tmp_path / "davis"
    for kind in ("JPEGImages", "Annotations"):
        for name in ("blackswan", "cows"):
            for path in sorted((shared / "davis" / kind / "480p" / name).iterdir())[:10]:
                (root / kind / "480p" / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, root / kind / "480p" / name)
    (root / "ImageSets" / "2016").mkdir(parents=True)
    (root / "ImageSets" / "2016" / "val.txt").write_text("blackswan\ncows\n")
    frame = root / "JPEGImages/480p/cows/00004.jpg"
    frame.write_bytes(frame.read_bytes()[:300])
    result = run(root, tmp_path, model="random:resnet10-w16", height=160)
    assert result.per_item.keys() == {"blackswan"}
    assert [str(frame) in problem for problem in result.about.problems] == [True]
    assert result.metrics["j_mean"] > 0.7
