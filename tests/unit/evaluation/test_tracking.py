"""The protocol `tracking` end to end with trackers whose answers are known, in sequences and in videos."""

import json
import os
import zipfile

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cyclecontrast.config import TrackingConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import Result, evaluate, two_steps
from cyclecontrast.evaluation.tracking import protocol
from cyclecontrast.evaluation.tracking.follow import DEPTH, ahead, follow
from cyclecontrast.evaluation.tracking.open_data import open_data
from cyclecontrast.evaluation.tracking.toolkit_files import same_name
from cyclecontrast.evaluation.tracking.tracker import IdentityTracker, PerfectTracker
from cyclecontrast.models.backbone import make_backbone
from tests.make_videos import write_numbered

MODEL = "random:resnet10-small-w8"


def write_frames(folder, num, digits=4, first=1, size=(40, 60)):
    """Write images that are one file on the disk."""
    folder.mkdir(parents=True)
    one = folder / f"{first:0{digits}}.png"
    cv2.imwrite(str(one), np.full((*size, 3), 90, np.uint8))
    for number in range(first + 1, first + num):
        os.link(one, folder / f"{number:0{digits}}.png")


def write_otb(root, name, boxes):
    """Write a sequence as OTB lays it out."""
    write_frames(root / name / "img", len(boxes))
    text = "".join(",".join(f"{number:g}" for number in box) + "\n" for box in boxes)
    (root / name / "groundtruth_rect.txt").write_text(text)


def write_got10k(root, split, name, boxes, cover=None):
    """Write a sequence as GOT-10k lays it out, and name it in the split's list."""
    write_frames(root / split / name, max(len(boxes), len(cover or ())), digits=8)
    text = "".join(",".join(f"{number:.4f}" for number in box) + "\n" for box in boxes)
    (root / split / name / "groundtruth.txt").write_text(text)
    if cover is not None:
        (root / split / name / "cover.label").write_text("".join(f"{value}\n" for value in cover))
    with (root / split / "list.txt").open("a") as file:
        file.write(f"{name}\n")


MOVING = [[5 + 2 * at, 6, 20, 10] for at in range(8)]
STILL = [[8, 9, 12, 10]] * 4


@pytest.fixture
def otb(tmp_path):
    """Return the root of a sequence that moves 2 pixels a frame, and of a shorter one that stays."""
    write_otb(tmp_path / "otb", "Moving", MOVING)
    write_otb(tmp_path / "otb", "Still", STILL)
    return tmp_path / "otb"


@pytest.fixture
def got10k(tmp_path):
    """Return a root whose second sequence is out of sight in the third frame, with a box that means nothing."""
    write_got10k(tmp_path / "got10k", "val", "A", MOVING, [8] * 8)
    write_got10k(tmp_path / "got10k", "val", "B", [[8, 9, 12, 10]] * 2 + [[-1] * 4] + [[14, 9, 12, 10]], [8, 8, 0, 4])
    return tmp_path / "got10k"


def run(data, tmp_path, **settings):
    """Evaluate by the identity tracker, unless told otherwise, into a folder of the test."""
    return evaluate(
        "tracking", MODEL, data, **{"out": tmp_path / "out", "device": "cpu", "tracker": "identity", **settings}
    )


def overlap_of(first, second):
    """Return intersection over union by hand."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def success_of(pairs, bins=21):
    """Return the mean of the success curve by plain loops."""
    values = [overlap_of(*pair) for pair in pairs]
    return sum(sum(value > at / (bins - 1) for value in values) / len(values) for at in range(bins)) / bins


def record_of(tmp_path):
    """Return the table of the one record that was written."""
    (path,) = (tmp_path / "out" / "records").iterdir()
    return pq.read_table(path)


def test_metrics_are_means_over_sequences(otb, tmp_path):
    """A sequence counts as much as another twice as long; the first frame counts."""
    result = run(otb, tmp_path)
    by_sequence = [success_of([(MOVING[0], box) for box in MOVING]), success_of([(STILL[0], box) for box in STILL])]
    assert by_sequence[0] < by_sequence[1] == pytest.approx(20 / 21)
    assert result.metrics["success"] == pytest.approx(sum(by_sequence) / 2)
    assert result.metrics["precision"] == 1
    part = sum(overlap_of(MOVING[0], box) > 0.5 for box in MOVING) / len(MOVING)
    assert result.metrics["success_rate"] == pytest.approx((part + 1) / 2)
    assert result.per_item["sequences"]["Moving"]["success"] == pytest.approx(by_sequence[0])
    assert len(result.per_item["success_curve"]) == 21
    assert len(result.per_item["precision_curve"]) == 51
    assert result.tag == "tracking tracker=identity toolkit=got10k"
    assert (result.about.data.num_train, result.about.data.num_test) == (0, 2)


@pytest.mark.parametrize("toolkit", ["got10k", "official"])
def test_a_perfect_tracker_on_otb_scores_20_of_21(otb, tmp_path, toolkit):
    """No overlap is above the last threshold, whose toolkit it may be."""
    metrics = run(otb, tmp_path, tracker="perfect", toolkit=toolkit).metrics
    assert metrics == pytest.approx({"success": 0.95238, "precision": 1, "success_rate": 1}, abs=1e-5)


def test_a_tracker_that_is_21_pixels_off_has_no_precision(otb, tmp_path, monkeypatch):
    """All frames miss but the first, whose box is the true one."""

    class OffBy21(PerfectTracker):
        def update(self, image):
            return super().update(image) + np.array([21, 0, 0, 0])

    monkeypatch.setattr(protocol, "PerfectTracker", OffBy21)
    metrics = run(otb, tmp_path, tracker="perfect").metrics
    assert metrics["precision"] == pytest.approx((1 / 8 + 1 / 4) / 2)


def test_the_record_has_a_row_for_each_frame(otb, tmp_path):
    """Boxes are stored to three digits beside the true ones; the first is the true one."""
    run(otb, tmp_path)
    rows = record_of(tmp_path).to_pylist()
    assert [(row["sequence"], row["frame"]) for row in rows] == [
        *(("Moving", frame) for frame in range(8)),
        *(("Still", frame) for frame in range(4)),
    ]
    assert [row["true_x"] for row in rows[:8]] == [box[0] for box in MOVING]
    assert {(row["x"], row["y"], row["w"], row["h"]) for row in rows[:8]} == {tuple(MOVING[0])}
    assert {(row["width"], row["height"]) for row in rows} == {(60, 40)}
    assert all(row["seconds"] >= 0 for row in rows)


def test_got10k_counts_what_its_toolkit_counts(got10k, tmp_path):
    """AO and SR are over visible frames but the first, each the same; success over 101 thresholds by sequence."""
    result = run(got10k, tmp_path)
    pairs = {"A": [(MOVING[0], box) for box in MOVING], "B": [(STILL[0], box) for box in (*STILL[:2], [14, 9, 12, 10])]}
    values = [overlap_of(*pair) for name in "AB" for pair in pairs[name][1:]]
    assert result.metrics["ao"] == pytest.approx(sum(values) / 9)
    assert result.metrics["sr_50"] == pytest.approx(sum(value > 0.5 for value in values) / 9)
    assert result.metrics["sr_75"] == pytest.approx(sum(value > 0.75 for value in values) / 9)
    assert 0 < result.metrics["sr_75"] < result.metrics["sr_50"] < 1
    success = [success_of(pairs[name], 101) for name in "AB"]
    assert result.metrics["success"] == pytest.approx(sum(success) / 2)
    assert any("cover 0" in note for note in result.about.notes)


def test_a_perfect_tracker_on_got10k_scores_100_of_101(got10k, tmp_path):
    """Frames in which the target is out of sight do not pull a perfect tracker down."""
    metrics = run(got10k, tmp_path, tracker="perfect").metrics
    assert metrics["success"] == pytest.approx(100 / 101)
    assert metrics["ao"] == pytest.approx(1)
    assert metrics["precision"] == 1


def test_got10k_test_gives_boxes_without_metrics(tmp_path):
    """Where only the first box is known there is no score, but files that the server takes."""
    write_got10k(tmp_path / "data", "test", "T", MOVING[:1])
    write_frames(tmp_path / "data" / "test" / "T" / "more", 1)
    for number in (2, 3):
        os.link(tmp_path / "data/test/T/00000001.png", tmp_path / f"data/test/T/{number:08}.png")
    result = run(tmp_path / "data", tmp_path, subset="test")
    assert result.metrics == {}
    assert "server" in result.about.notes[-1]
    with zipfile.ZipFile(next((tmp_path / "out").glob("*.boxes.zip"))) as archive:
        assert sorted(archive.namelist()) == ["T/T_001.txt", "T/T_time.txt"]
        assert archive.read("T/T_001.txt").decode() == "5.000,6.000,20.000,10.000\n" * 3
    with pytest.raises(UserError, match="perfect needs the box of every frame"):
        run(tmp_path / "data", tmp_path, subset="test", tracker="perfect")


def test_tiger1_is_tracked_both_ways_and_scored_as_the_toolkit_has_it(tmp_path):
    """The authors' code begins at the sixth frame: there a tracker is told the sixth box, not the first."""
    boxes = [[10, 10, 20, 10]] * 5 + [[30, 20, 20, 10]] * 5
    write_otb(tmp_path / "otb", "Tiger1", boxes)
    ours = run(tmp_path / "otb", tmp_path)
    theirs = run(tmp_path / "otb", tmp_path, toolkit="official", score_only=True)
    assert ours.metrics["success_rate"] == 0.5
    assert theirs.metrics["success_rate"] == 1
    assert [result.per_item["sequences"]["Tiger1"]["frames"] for result in (ours, theirs)] == [10, 5]
    assert list(theirs.per_item["sequences"]) == ["Tiger1"]
    assert ours.about.data.num_test == 1


def test_a_box_that_is_not_positive_fails_success_and_hits_precision_in_official(tmp_path):
    """The authors' code gives such frames -1 for overlap and distance."""
    boxes = [[42 + at, 9, 12, 10] for at in range(3)] + [[0, 0, 0, 0]]
    write_otb(tmp_path / "otb", "Gone", boxes)
    ours = run(tmp_path / "otb", tmp_path, tracker="identity").metrics
    theirs = run(tmp_path / "otb", tmp_path, tracker="identity", toolkit="official", score_only=True).metrics
    assert (ours["precision"], theirs["precision"]) == (0.75, 1)
    assert theirs["success_rate"] == 0.75


@pytest.mark.parametrize(
    ("box", "why"), [([-500, -500, 30, 30], "lies outside of"), ([10, 10, 1e9, 1e9], "is far larger than")]
)
def test_a_first_box_that_shows_nothing_of_the_image_damages_its_sequence(tmp_path, box, why):
    """It is left out with a line, and the result is that of the others."""
    write_otb(tmp_path / "otb", "Absurd", [box] * 3)
    write_otb(tmp_path / "otb", "Sound", [[8, 9, 12, 10]] * 3)
    result = run(tmp_path / "otb", tmp_path, tracker="identity")
    assert result.metrics["precision"] == 1
    assert result.about.data.num_test == 1
    (problem,) = result.about.problems
    assert "Absurd" in problem
    assert why in problem


def test_plots_and_boxes_are_written_beside_the_result(otb, tmp_path):
    """Two pictures and the boxes in the toolkit's format have the name of the result."""
    result = run(otb, tmp_path)
    for kind in ("success", "precision"):
        image = cv2.imread(str(tmp_path / "out" / f"{result.about.key}.{kind}.png"))
        assert image.shape[0] > 400
        assert 20 < (image < 128).sum() < image.size / 2
    with zipfile.ZipFile(tmp_path / "out" / f"{result.about.key}.boxes.zip") as archive:
        assert archive.namelist() == ["Moving.txt", "Still.txt"]
        assert archive.read("Still.txt").decode() == "8.000,9.000,12.000,10.000\n" * 4


def test_both_toolkits_score_one_record(otb, tmp_path):
    """The toolkit is a setting of the score: another one needs no tracking, and has a result of its own."""
    first = run(otb, tmp_path)
    second = run(otb, tmp_path, toolkit="official", score_only=True)
    assert len(list((tmp_path / "out" / "records").iterdir())) == 1
    assert first.about.key != second.about.key
    assert second.tag == "tracking tracker=identity toolkit=official"


def test_siamfc_on_raw_features_leaves_the_backbone_as_it_is(otb, tmp_path):
    """The tracker of the paper runs by the same protocol, and no weight and no buffer of the model changes."""
    backbone = make_backbone("resnet10-w8", 0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    config = config_of(otb, train=False, out=tmp_path / "out", device="cpu")
    result = two_steps.evaluate(backbone, open_data(config), config)
    assert "tracker=siamfc preset=release" in result.tag
    assert result.per_item["sequences"]["Still"]["success"] > 0.3
    assert len(record_of(tmp_path)) == 12
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_stopped_evaluation_goes_on_where_it_was(otb, tmp_path, monkeypatch):
    """Sequences tracked before a stop are not tracked again, and the record is that of an undisturbed run."""
    updates = []

    class Stopping(IdentityTracker):
        def update(self, image):
            updates.append(1)
            if len(updates) == 9:
                raise KeyboardInterrupt
            return super().update(image)

    whole = run(otb, tmp_path / "whole")
    monkeypatch.setattr(protocol, "IdentityTracker", Stopping)
    with pytest.raises(KeyboardInterrupt):
        run(otb, tmp_path)
    resumed = run(otb, tmp_path)
    assert len(updates) == 9 + 3
    assert not (tmp_path / "out" / "unfinished").exists()
    assert record_of(tmp_path).drop_columns(["seconds"]) == record_of(tmp_path / "whole").drop_columns(["seconds"])
    assert resumed.metrics == whole.metrics


def test_an_image_that_cannot_be_read_costs_its_sequence_alone(otb, tmp_path):
    """The sequence is left out with a line that names the image; the result covers the rest."""
    (otb / "Moving" / "img" / "0005.png").unlink()
    (otb / "Moving" / "img" / "0005.png").write_bytes(b"broken")
    result = run(otb, tmp_path)
    (problem,) = result.about.problems
    assert "Moving/img/0005.png: the image does not decode" in problem
    assert problem.endswith("Moving is left out")
    assert list(result.per_item["sequences"]) == ["Still"]
    (otb / "Still" / "img" / "0002.png").unlink()
    (otb / "Still" / "img" / "0002.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="no sequence could be tracked") as error:
        run(otb, tmp_path)
    assert len(error.value.problems) == 3


def test_a_damaged_sequence_of_the_list_is_told_in_the_result(otb, tmp_path):
    """What the reader left out is told where the result is."""
    (otb / "Moving" / "groundtruth_rect.txt").write_text("1,2,3,4\n")
    result = run(otb, tmp_path)
    assert "1 boxes for 8 images" in result.about.problems[0]
    assert "left out, 1:" in str(result)


def write_boxes(path, boxes, separator=","):
    """Write the boxes of another tracker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(map(str, box)) + "\n" for box in boxes))


def test_other_trackers_are_scored_beside_ours(otb, tmp_path):
    """Their files may be separated and named in any of the known ways, and are scored by the same rules."""
    write_boxes(tmp_path / "others" / "Best" / "moving.txt", [[9, 9, 9, 9], *MOVING[1:]], "\t")
    write_boxes(tmp_path / "others" / "Best" / "Still.txt", STILL, " ")
    write_boxes(tmp_path / "others" / "Half" / "Still.txt", STILL)
    result = run(otb, tmp_path, others=tmp_path / "others")
    best = result.per_item["others"]["Best"]
    assert best["mean"]["success"] == pytest.approx(20 / 21)
    assert best["sequences"].keys() == {"Moving", "Still"}
    assert result.per_item["others"]["Half"]["sequences"].keys() == {"Still"}
    notes = "\n".join(result.about.notes)
    assert "others: Best, 2 of 2 sequences: success 95.24 %" in notes
    assert "Half: has no file for 1 of 2 sequences (Moving)" in notes


def test_other_trackers_files_that_do_not_fit_are_told(otb, tmp_path):
    """A wrong length and a word instead of a number are a line each, naming file and what was expected."""
    write_boxes(tmp_path / "others" / "Bad" / "Moving.txt", MOVING[:5])
    write_boxes(tmp_path / "others" / "Bad" / "Still.txt", [*STILL[:3], ["no", 1, 2, 3]])
    result = run(otb, tmp_path, others=tmp_path / "others")
    notes = "\n".join(result.about.notes)
    assert "Bad/Moving.txt: 5 boxes, expected 8, one for each frame; left out" in notes
    assert "Bad/Still.txt:4: 'no,1,2,3' is not x, y, width and height in numbers" in notes
    assert result.per_item["others"] == {}
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: holds no folders of trackers"):
        run(otb, tmp_path, others=tmp_path / "none")


def test_other_trackers_tiger1_may_have_all_frames_in_official(tmp_path):
    """Rows before the sixth are passed over there; the GOT-10k toolkit wants them."""
    boxes = [[10 + at, 10, 20, 10] for at in range(10)]
    write_otb(tmp_path / "otb", "Tiger1", boxes)
    write_boxes(tmp_path / "others" / "All" / "tiger1.txt", boxes)
    write_boxes(tmp_path / "others" / "Late" / "Tiger1.txt", boxes[5:])
    theirs = run(tmp_path / "otb", tmp_path, others=tmp_path / "others", toolkit="official").per_item["others"]
    assert [theirs[name]["mean"]["success"] for name in ("All", "Late")] == pytest.approx([20 / 21] * 2)
    ours = run(tmp_path / "otb", tmp_path, others=tmp_path / "others").per_item["others"]
    assert list(ours) == ["All"]


def test_results_laid_out_for_got10k_are_found(got10k, tmp_path):
    """The toolkit keeps a folder for each sequence there, with the number of the repetition in the file's name."""
    write_boxes(tmp_path / "others" / "Best" / "A" / "A_001.txt", MOVING)
    write_boxes(tmp_path / "others" / "Best" / "A" / "A_time.txt", [[1]] * 8)
    result = run(got10k, tmp_path, others=tmp_path / "others")
    assert result.per_item["others"]["Best"]["mean"]["ao"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("names", "same"),
    [
        (("Jogging.1", "Jogging-1", "Jogging_1", "jogging-1"), True),
        (("Skating2.2", "Skating2-2", "skating2_2"), True),
        (("Human4", "Human4-2", "Human4_2", "human4"), True),
        (("Basketball", "BasketBall", "basketball"), True),
        (("Jogging.1", "Jogging.2"), False),
        (("Human4", "Human4-1"), False),
        (("Dog", "Dog1"), False),
        (("GOT-10k_Val_000001", "GOT-10k_Val_000011"), False),
    ],
)
def test_spellings_of_a_sequence(names, same):
    """The toolkits' names for a sequence are one, those of two sequences are not."""
    assert len({same_name(name) for name in names}) == (1 if same else len(names))


def config_of(data, **settings):
    """Return the options of an evaluation by SiamFC."""
    return TrackingConfig(model=MODEL, data=data, **settings)


def test_training_sequences_are_found_near_the_data(otb, got10k):
    """A GOT-10k root beside the data trains the head; its val does where it has no train, and both are said."""
    opened = open_data(config_of(otb))
    assert len(opened.train) == 2
    assert f"trained on 2 sequences of {got10k / 'val'}, found near the data" in opened.notes[0]
    assert "no train/list.txt" in opened.notes[1]
    write_got10k(got10k, "train", "T", MOVING, [8] * 8)
    again = open_data(config_of(otb))
    assert [sequence.name for sequence in again.train.sequences] == ["T"]
    assert len(again.notes) == 1
    assert again.fingerprint != opened.fingerprint != open_data(config_of(otb, train=False)).fingerprint


def test_a_got10k_root_trains_its_own_head_by_train_alone(got10k):
    """Evaluating val never trains on val unless told to, and then says that this is no fair test."""
    with pytest.raises(UserError, match="name one with --train-data, or correlate raw features with --no-train"):
        open_data(config_of(got10k))
    assert open_data(config_of(got10k, train=False)).train is None
    told = open_data(config_of(got10k, train_data=got10k))
    assert "2 of the sequences that train the head are evaluated too" in told.notes[-1]
    write_got10k(got10k, "train", "T", MOVING, [8] * 8)
    found = open_data(config_of(got10k))
    assert [sequence.name for sequence in found.train.sequences] == ["T"]
    assert not any("no fair test" in note for note in found.notes)


@pytest.mark.parametrize(("name", "value"), [("box", "1,2,3,4"), ("save", "boxes.mp4")])
def test_options_of_videos_do_not_belong_to_sequences(otb, name, value):
    """A data set has boxes of its own."""
    with pytest.raises(UserError, match=f"{name}: belongs to a video file"):
        open_data(config_of(otb, train=False, **{name: value}))


@pytest.fixture
def video(tmp_path):
    """Return a video of 7 frames of 63 x 48, 10 a second, the last times uneven."""
    return write_numbered(
        tmp_path / "clip.mkv", 7, (63, 48), codec="ffv1", pix_fmt="bgr0", times_ms=[0, 100, 200, 300, 400, 700, 800]
    )


def test_a_video_gives_boxes_without_metrics(video, tmp_path):
    """Every frame has a box, in the record and in the result."""
    result = run(video, tmp_path, box="5,6,20,10.5")
    assert result.metrics == {}
    assert result.per_item["boxes"] == [[5, 6, 20, 10.5]] * 7
    assert len(record_of(tmp_path)) == 7
    assert result.about.data.num_test == 1
    assert any("tracked 7 frames" in note for note in result.about.notes)
    assert Result.load(tmp_path / "out" / f"{result.about.key}.json") == result


def test_the_boxes_are_drawn_into_a_video(video, tmp_path):
    """The new video shows the frames at their times, each with the outline of its box and untouched inside."""
    import av

    run(video, tmp_path, box="11,13,24,16", save=tmp_path / "new" / "out.mp4")
    with av.open(str(tmp_path / "new" / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].codec_context.name == "h264"
    assert [round(frame.time, 3) for frame in frames] == [0, 0.1, 0.2, 0.3, 0.4, 0.7, 0.8]
    last = frames[-1].to_ndarray(format="rgb24").astype(int)
    assert last.shape == (48, 64, 3)
    redness = last[..., 0] - last[..., 1]
    top, left = (redness[place].mean() for place in (np.s_[12, 14:30], np.s_[16:24, 10]))
    assert min(top, left) > 60
    assert abs(redness[18:22, 18:28]).max() < 25
    assert abs(redness[36:, 40:]).max() < 25
    assert abs(last[18:22, 18:28].mean() - 48) < 10
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "out.mp4"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "box: is missing"),
        ({"box": "1,2,3"}, "box: give four numbers, x,y,w,h, not '1,2,3'"),
        ({"box": "1,2,x,4"}, "box: give four numbers"),
        ({"box": "1,2,nan,4"}, "box: give four numbers"),
        ({"box": "1,2,0,4"}, "box: the box needs a width and a height above 0"),
        ({"box": "64,2,10,10"}, "clip.mkv: the box .* lies outside of the image of 63 x 48 pixels"),
        ({"box": "1,-20,10,10"}, "lies outside of the image"),
        ({"box": "1,2,3,4", "save": "out.txt"}, "save: out.txt: a video with boxes is one of .mp4"),
        ({"box": "1,2,3,4", "tracker": "perfect"}, "perfect needs true boxes"),
        ({"box": "1,2,3,4", "others": "."}, "others: "),
        ({"box": "1,2,3,4", "tracker": "siamfc"}, "train_data: no GOT-10k"),
    ],
)
def test_a_video_needs_a_box_inside_of_it(video, tmp_path, settings, message):
    """What is wrong with a request is told in one line before anything is tracked."""
    with pytest.raises(UserError, match=message) as error:
        run(video, tmp_path, **settings)
    assert all("\n" not in problem for problem in error.value.problems)
    assert not (tmp_path / "out").exists()


def test_a_video_never_overwrites_itself(video):
    """The video with boxes is another file."""
    mp4 = video.with_suffix(".mp4")
    video.rename(mp4)
    with pytest.raises(UserError, match="is the video itself"):
        open_data(config_of(mp4, train=False, box="1,2,3,4", save=mp4))


def test_a_file_that_is_no_video_is_refused(tmp_path):
    """One line names the file."""
    (tmp_path / "clip.mp4").write_text("not a video")
    with pytest.raises(UserError, match=r"clip\.mp4: cannot be read as a video"):
        run(tmp_path / "clip.mp4", tmp_path, box="1,2,3,4")


def test_frames_come_in_order_and_errors_where_they_happen():
    """Items made ahead keep their order, and an error comes after all items before it."""

    def items():
        yield from range(DEPTH + 5)
        raise ValueError("at the end")

    seen = []
    with pytest.raises(ValueError, match="at the end"):
        seen.extend(ahead(items()))
    assert seen == list(range(DEPTH + 5))
    assert list(ahead([])) == []


def test_no_more_frames_are_made_ahead_than_fit():
    """Memory stays bounded: a long video is not decoded whole while its first frame is tracked."""
    made = []
    items = ahead(made.append(number) or number for number in range(10 * DEPTH))
    assert next(items) == 0
    items.close()
    assert len(made) <= DEPTH + 1


def test_boxes_that_are_not_finite_are_an_error():
    """A tracker gone wrong is told at the frame, not scored."""

    class Broken(IdentityTracker):
        def update(self, image):
            return np.full(4, np.nan)

    with pytest.raises(UserError, match="frame 2: the tracker's box is not finite"):
        follow(Broken(), [np.zeros((9, 9, 3), np.uint8)] * 3, np.array([1.0, 1, 4, 4]))


def test_real_sequences_by_identity(shared, tmp_path):
    """On real OTB sequences the record scored by plain loops gives the result."""
    root = shared / "tracking" / "otb"
    (tmp_path / "otb").mkdir()
    for name in ("Crossing", "DragonBaby"):
        (tmp_path / "otb" / name).symlink_to(root / name)
    result = run(tmp_path / "otb", tmp_path)
    boxes = {}
    for row in record_of(tmp_path).to_pylist():
        pair = [[row[prefix + name] for name in "xywh"] for prefix in ("", "true_")]
        boxes.setdefault(row["sequence"], []).append(pair)
    assert {name: len(pairs) for name, pairs in boxes.items()} == {"Crossing": 120, "DragonBaby": 113}
    expected = sum(success_of(pairs) for pairs in boxes.values()) / 2
    assert result.metrics["success"] == pytest.approx(expected)
    assert 0.05 < expected < 0.5
    assert json.loads((tmp_path / "out" / f"{result.about.key}.json").read_text())["metrics"] == result.metrics
