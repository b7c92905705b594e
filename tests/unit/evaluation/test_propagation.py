"""The protocol `propagation`: scores by hand, then end to end on videos with known masks."""

import shutil

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from cyclecontrast.config import PropagationConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation import mask_files, propagation, runner
from cyclecontrast.evaluation.mask_files import decode_mask, encode_mask
from cyclecontrast.evaluation.predictions import Record
from cyclecontrast.evaluation.propagation import Propagation, network_size
from cyclecontrast.models.backbone import Backbone, make_backbone

MODEL = "random:resnet10-w8"
HEIGHT, WIDTH = 96, 128


def square(left, top=32, side=32):
    """Return a mask of one square."""
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


def write_data(root):
    """Write a square that moves by 8 pixels a frame, and two squares of which the second moves the other way."""
    save_video(root, "one", [square(8 + 8 * t) for t in range(7)])
    save_video(root, "two", [np.maximum(square(8 + 8 * t, 8), 2 * square(88 - 8 * t, 56)) for t in range(5)])
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("one\ntwo\n")
    return root


def run(data, out, backbone=None, **settings):
    """Evaluate by `propagation` into a folder of the test."""
    values = {"model": MODEL, "data": data, "out": out, "workers": 0, "device": "cpu", **settings}
    return runner.evaluate("propagation", checked(PropagationConfig, values), backbone)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the two videos; tests do not change them."""
    return write_data(tmp_path_factory.mktemp("propagation") / "davis")


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
    """Return the folder and the result of an evaluation with the default preset."""
    out = tmp_path_factory.mktemp("evaluated")
    return out, run(data, out)


def table_in(out):
    """Return the one record below a folder of results."""
    (path,) = (out / "records").iterdir()
    return Record.load(path).table


def scored(videos):
    """Score videos {name: (predicted, true)}."""
    rows = [
        {"video": name, "frame": f"{index:05d}", "predicted": encode_mask(ours), "truth": encode_mask(theirs)}
        for name, (predicted, truth) in videos.items()
        for index, (ours, theirs) in enumerate(zip(predicted, truth, strict=True))
    ]
    return Propagation(PropagationConfig(model=MODEL, data=".")).score(Record(None, pa.Table.from_pylist(rows)))


@pytest.mark.parametrize(
    ("size", "requested", "multiple", "patch", "expected"),
    [
        ((480, 854), None, 1, 1, (480, 854)),
        ((480, 854), None, 64, 1, (480, 832)),
        ((240, 428), None, 1, 1, (240, 428)),
        ((240, 428), 480, 1, 1, (480, 856)),
        ((1080, 1920), None, 1, 1, (480, 853)),
        ((480, 20), None, 64, 1, (480, 64)),
        ((480, 854), None, 1, 16, (480, 848)),
        ((480, 854), None, 64, 14, (476, 826)),
        ((480, 854), 8, 1, 14, (14, 14)),
    ],
)
def test_frames_have_480_rows_but_are_enlarged_only_on_request(size, requested, multiple, patch, expected):
    """DINO cuts the width down to a multiple of 64; a vision transformer gets whole patches."""
    assert network_size(*size, requested, multiple, patch) == expected


def test_a_perfect_prediction_scores_one():
    """All five metrics are 1, also for an object that is absent in some frames and in their predictions."""
    truth = [square(8), square(12), np.maximum(square(16), 2 * square(90)), square(20), square(24)]
    truth[0] = np.maximum(truth[0], 2 * square(90))
    result = scored({"a": (truth, truth), "b": (truth[::-1], truth[::-1])})
    assert result.metrics == dict.fromkeys(("j_and_f", "j_mean", "j_recall", "f_mean", "f_recall"), 1.0)
    assert result.per_item["a"].keys() == {"1", "2"}
    assert result.per_item["b"].keys() == {"1"}


def test_the_first_and_the_last_frame_are_not_scored():
    """Predictions there change nothing; predictions between them do."""
    truth = [square(8)] * 5
    nothing = np.zeros_like(truth[0])
    assert scored({"a": ([nothing, *truth[1:-1], nothing], truth)}).metrics["j_and_f"] == 1.0
    assert scored({"a": ([*truth[:3], nothing, truth[4]], truth)}).metrics["j_mean"] == pytest.approx(2 / 3)


def test_objects_count_the_same_in_any_video():
    """Two objects of one video weigh twice as much as the one of another; objects that appear later do not count."""
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
    """The masks of DAVIS-2017 take 1.6 GB: a video is scored before the masks of the next are decoded."""
    decoded, seen = [], []
    monkeypatch.setattr(propagation, "decode_mask", lambda file: decoded.append(file) or decode_mask(file))
    score_objects = propagation.score_objects
    monkeypatch.setattr(propagation, "score_objects", lambda *x: seen.append(len(decoded)) or score_objects(*x))
    scored({name: ([square(8)] * 3, [square(8)] * 3) for name in "abc"})
    assert seen == [6, 12, 18]


def test_the_score_of_repeating_the_first_mask_is_noted():
    """Where nothing moves it is 100 %; a square that moves by 16 of 32 columns has a J of a third."""
    assert "j_mean of 100.00 %" in scored({"a": ([square(8)] * 3, [square(8)] * 3)}).notes[0]
    assert "j_mean of 33.33 %" in scored({"a": ([square(8)] * 3, [square(8), square(24), square(8)])}).notes[0]


@pytest.mark.parametrize("preset", ["crw", "vfs", "dino"])
def test_moving_squares_are_followed(data, tmp_path, preset):
    """Even random features separate red from blue: better than standing still, each object by itself."""
    result = run(data, tmp_path, preset=preset)
    assert result.metrics["j_mean"] > 0.55
    assert result.per_item.keys() == {"one", "two"}
    assert result.per_item["two"].keys() == {"1", "2"}
    still = float(result.about.notes[-1].split()[-2]) / 100
    assert result.metrics["j_mean"] > still + 0.15


def test_a_record_holds_the_masks_of_all_frames(evaluated):
    """Truth and prediction are PNG files of object numbers; the first prediction is the given mask."""
    table = table_in(evaluated[0])
    assert table.column_names == ["video", "frame", "predicted", "truth"]
    assert table["video"].to_pylist() == ["one"] * 7 + ["two"] * 5
    assert table["frame"].to_pylist()[:2] == ["00000", "00001"]
    rows = table.to_pylist()
    assert rows[7]["predicted"] == rows[7]["truth"]
    decoded = cv2.imdecode(np.frombuffer(rows[8]["predicted"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.shape == (HEIGHT, WIDTH)
    assert np.unique(decoded).tolist() == [0, 1, 2]


def test_the_result_names_its_variant(evaluated, data, tmp_path):
    """Notes name the year, and frames that were not enlarged; a picture of the masks with a legend is beside it."""
    out, result = evaluated
    assert result.tag == "propagation preset=vfs radius=12 stage=3 height<=480 davis2017"
    assert "height: frames of 2 videos have fewer than 480 rows, and were not enlarged" in result.about.notes
    assert "year: 2017" in result.about.notes
    assert (result.about.data.num_train, result.about.data.num_test) == (0, 2)
    picture = cv2.imread(str(out / f"{result.about.key}.masks.png"))
    assert picture.shape[0] > 2 * 100
    legend = picture[: mask_files.LEGEND_HEIGHT]
    assert (legend[0] == 255).all()
    assert 0.01 < (legend < 100).mean() < 0.2
    named = run(data, tmp_path, height=64, year=2017)
    assert named.tag == "propagation preset=vfs radius=12 stage=3 height=64 davis2017"
    assert len(named.about.notes) == 1


def test_a_denser_map_is_noted(data, tmp_path):
    """A backbone for small images has a cell every 2 pixels, so that its radius is shorter in pixels."""
    result = run(data, tmp_path, model="random:resnet10-small-w8", height=24)
    assert any("stride 2 instead of 8" in note for note in result.about.notes)
    assert any("12 cells is 24 pixels" in note for note in result.about.notes)


def test_patch_tokens_are_followed(data, tmp_path):
    """A vision transformer follows by its patch tokens, at the stride of its patches."""
    result = run(data, tmp_path, model="random:timm:test_vit", height=90, stage=4)
    assert "the feature map has stride 16 instead of 8 as in the papers; the radius of 12 cells is 192 pixels" in (
        result.about.notes
    )
    assert result.metrics["j_mean"] > 0.3


def test_a_map_of_one_cell_is_an_error(data, tmp_path):
    """It is too small to follow an object."""
    with pytest.raises(UserError, match="feature map of 2x1 cells"):
        run(data, tmp_path, height=8)


def test_the_given_backbone_does_not_change(data, tmp_path):
    """No parameter, buffer or stride of the backbone changes, nor its mode."""
    backbone = make_backbone("resnet10-w8").train()
    shape = backbone.feature_map(torch.zeros(1, 3, 64, 64), 3).shape
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    run(data, tmp_path, backbone, height=48)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert backbone.training
    assert backbone.feature_map(torch.zeros(1, 3, 64, 64), 3).shape == shape


@pytest.mark.parametrize("name", ["resnet10-w8", "resnet50-w8"])
def test_the_map_is_dense_without_dilation(data, tmp_path, monkeypatch, name):
    """Unlike in tracking, stages 3 and 4 lose their stride and gain no dilation: a cell every 8 pixels."""
    seen = []
    monkeypatch.setattr(propagation, "follow", lambda backbone, *_: seen.append(backbone) or {"problems": ["none"]})
    with pytest.raises(UserError, match="none of the 2 videos"):
        run(data, tmp_path, model=f"random:{name}")
    convolutions = [module for module in seen[0].modules() if isinstance(module, torch.nn.Conv2d)]
    assert {conv.dilation for conv in convolutions} == {(1, 1)}
    shapes = [seen[0].feature_map(torch.zeros(1, 3, 96, 128), stage).shape[2:] for stage in (1, 2, 3, 4)]
    assert shapes == [(24, 32), (12, 16), (12, 16), (12, 16)]


def test_workers_do_not_change_the_record(evaluated, data, tmp_path):
    """Frames that other processes load give the same record."""
    run(data, tmp_path, workers=1)
    assert table_in(tmp_path).equals(table_in(evaluated[0]))


def test_a_stopped_evaluation_resumes(evaluated, data, tmp_path, monkeypatch):
    """Record and result are those of an evaluation without a stop; a finished video is not followed again."""
    follow, followed = propagation.follow, []

    def stopping(backbone, video, *rest):
        if len(followed) == 1:
            raise KeyboardInterrupt
        followed.append(video.name)
        return follow(backbone, video, *rest)

    monkeypatch.setattr(propagation, "follow", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path)
    assert not list(tmp_path.glob("*.json"))
    monkeypatch.setattr(propagation, "follow", lambda *how: followed.append(how[1].name) or follow(*how))
    again = run(data, tmp_path)
    out, whole = evaluated
    assert followed == ["one", "two"]
    assert (again.metrics, again.per_item) == (whole.metrics, whole.per_item)
    assert table_in(tmp_path).equals(table_in(out))
    assert not (tmp_path / "unfinished").exists()


def test_records_are_scored_again_without_running_the_model(evaluated, data, monkeypatch):
    """--score-only gives the same result from the record; other settings need a record of their own."""
    out, result = evaluated
    monkeypatch.setattr(Backbone, "feature_map", lambda *_: pytest.fail("the model was run"))
    assert run(data, out, score_only=True) == result
    for change in ({"preset": "crw"}, {"height": 64}, {"stage": 4}, {"seed": 1}):
        with pytest.raises(UserError, match="run the command once without --score-only"):
            run(data, out, score_only=True, **change)


@pytest.mark.parametrize("settings", [{"stage": 5}, {"stage": 0}, {"year": 2018}, {"preset": "uvc"}, {"height": 4}])
def test_impossible_options_are_refused(data, tmp_path, settings):
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
def test_a_damaged_video_is_left_out_and_the_rest_is_scored(tmp_path, name, damage, expected):
    """The line names the file; where every video is damaged there is no result."""
    data = write_data(tmp_path / "davis")
    damage(data / name)
    result = run(data, tmp_path / "out", height=48)
    assert result.per_item.keys() == {"two"}
    assert len(result.about.problems) == 1
    assert expected in result.about.problems[0]
    assert (result.about.data.num_train, result.about.data.num_test) == (0, 1)
    (data / "ImageSets/2017/val.txt").write_text("absent\none\n")
    with pytest.raises(UserError, match="none of the 1 videos can be followed") as caught:
        run(data, tmp_path / "out")
    assert "absent: no such folder" in caught.value.problems[1]
    assert expected in caught.value.problems[2]


def test_broken_weights_are_an_error(data, tmp_path):
    """Features that are not finite are not compared."""
    backbone = make_backbone("resnet10-w8")
    with torch.no_grad():
        backbone.network.conv1.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="non-finite"):
        run(data, tmp_path, backbone)


def test_a_real_video_is_followed_though_another_is_damaged(shared, tmp_path):
    """Of two videos of DAVIS-2016 one is cut short; the swan in the other is followed."""
    root = tmp_path / "davis"
    for kind in ("JPEGImages", "Annotations"):
        for name in ("blackswan", "cows"):
            (root / kind / "480p" / name).mkdir(parents=True)
            for path in sorted((shared / "davis" / kind / "480p" / name).iterdir())[:6]:
                shutil.copy(path, root / kind / "480p" / name)
    (root / "ImageSets" / "2016").mkdir(parents=True)
    (root / "ImageSets" / "2016" / "val.txt").write_text("blackswan\ncows\n")
    frame = root / "JPEGImages/480p/cows/00004.jpg"
    frame.write_bytes(frame.read_bytes()[:300])
    result = run(root, tmp_path / "out", model="random:resnet10-w16", height=160)
    assert result.per_item.keys() == {"blackswan"}
    assert [str(frame) in problem for problem in result.about.problems] == [True]
    assert result.metrics["j_mean"] > 0.6
