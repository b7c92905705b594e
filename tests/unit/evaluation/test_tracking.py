"""The protocol `tracking` end to end, with trackers whose answers are known: scores, files, resuming."""

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
from cyclecontrast.evaluation import runner
from cyclecontrast.evaluation.tracking import protocol
from cyclecontrast.evaluation.tracking.scores import plot_scores, same_name
from cyclecontrast.evaluation.tracking.tracker import IdentityTracker, PerfectTracker
from cyclecontrast.models.backbone import make_backbone
from tests.make_sequences import write_frames, write_got10k, write_otb

MODEL = "random:resnet10-w8"
MOVING = [[5 + 2 * at, 6, 20, 10] for at in range(8)]
STILL = [[8, 9, 12, 10]] * 4


def run(data, tmp_path, backbone=None, **settings):
    """Evaluate into a folder of the test, by the identity tracker by default."""
    values = {"tracker": "identity", "out": tmp_path / "out", "device": "cpu", **settings}
    return runner.evaluate("tracking", TrackingConfig(model=MODEL, data=data, **values), backbone)


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch):
    """Leave out the plots, which take longer than the evaluations; `evaluated` has them."""
    monkeypatch.setattr(protocol, "plot_scores", lambda scores: {})


@pytest.fixture
def otb(tmp_path):
    """Return the root of a sequence that moves 2 pixels a frame, and of a shorter one that stays."""
    write_otb(tmp_path / "otb", "Moving", MOVING)
    write_otb(tmp_path / "otb", "Still", STILL)
    return tmp_path / "otb"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Return the folder and the result of the identity tracker on the two sequences."""
    folder = tmp_path_factory.mktemp("identity")
    write_otb(folder / "otb", "Moving", MOVING)
    write_otb(folder / "otb", "Still", STILL)
    return folder, run(folder / "otb", folder)


@pytest.fixture
def got10k(tmp_path):
    """Return a root whose second sequence has no visible target in the third frame, with an invalid box."""
    write_got10k(tmp_path / "got10k", "val", "A", MOVING, [8] * 8)
    write_got10k(tmp_path / "got10k", "val", "B", [[8, 9, 12, 10]] * 2 + [[-1] * 4] + [[14, 9, 12, 10]], [8, 8, 0, 4])
    return tmp_path / "got10k"


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


def record_of(folder):
    """Return the table of the one record that was written."""
    (path,) = (folder / "out" / "records").iterdir()
    return pq.read_table(path)


def test_metrics_are_means_over_sequences(evaluated):
    """A sequence counts as much as another twice as long; the first frame counts."""
    _, result = evaluated
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
def test_frames_without_a_box_are_not_scored(tmp_path, toolkit):
    """UAV123 and LaSOT have NaN where the target is absent: the sequence is scored on its other frames."""
    boxes = [box if at not in (2, 7) else [float("nan")] * 4 for at, box in enumerate(MOVING)]
    write_otb(tmp_path / "otb", "Moving", boxes)
    result = run(tmp_path / "otb", tmp_path, toolkit=toolkit)
    scored = [box for at, box in enumerate(MOVING) if at not in (2, 7)]
    assert result.metrics["success"] == pytest.approx(success_of([(MOVING[0], box) for box in scored]))
    assert not result.about.problems
    assert "frames without a target, not scored: 2, such as in Moving" in result.about.notes
    perfect = run(tmp_path / "otb", tmp_path, toolkit=toolkit, tracker="perfect")
    assert perfect.metrics["success"] == pytest.approx(20 / 21)


def test_a_perfect_tracker_on_otb_scores_20_of_21_with_both_toolkits(otb, tmp_path):
    """No overlap is above the last threshold. Both toolkits score the same record, and have their own results."""
    first = run(otb, tmp_path, tracker="perfect")
    second = run(otb, tmp_path, tracker="perfect", toolkit="official", score_only=True)
    for result in (first, second):
        assert result.metrics == pytest.approx({"success": 0.95238, "precision": 1, "success_rate": 1}, abs=1e-5)
    assert len(list((tmp_path / "out" / "records").iterdir())) == 1
    assert first.about.key != second.about.key
    assert second.tag == "tracking tracker=perfect toolkit=official"


def test_another_toolkit_tracks_nothing_again(otb, tmp_path, monkeypatch, capsys):
    """Predictions are computed once for all settings of scoring, except where they are to be computed again."""
    first = run(otb, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "follow", None)
        second = run(otb, tmp_path, toolkit="official")
        assert run(otb, tmp_path) == first
    assert "scoring the predictions of an earlier evaluation" in capsys.readouterr().err
    assert (first.tag, second.tag) == (
        "tracking tracker=identity toolkit=got10k",
        "tracking tracker=identity toolkit=official",
    )
    anew = run(otb, tmp_path / "anew", toolkit="official")
    assert (second.metrics, second.per_item) == (anew.metrics, anew.per_item)
    config = TrackingConfig(model=MODEL, data=otb, tracker="identity", out=tmp_path / "out", device="cpu")
    monkeypatch.setattr(protocol, "follow", lambda *_: pytest.fail("tracked"))
    with pytest.raises(pytest.fail.Exception):
        runner.evaluate_alone("tracking", config)


def test_predictions_that_left_something_out_or_are_damaged_are_computed_again(otb, tmp_path, capsys):
    """A sequence that could not be read may be readable now; damage is reported."""
    image = otb / "Moving" / "img" / "0005.png"
    whole = image.read_bytes()
    image.write_bytes(b"x" * len(whole))
    assert len(run(otb, tmp_path).about.problems) == 1
    image.write_bytes(whole)
    complete = run(otb, tmp_path, toolkit="official")
    assert complete.about.problems == ()
    (path,) = (tmp_path / "out" / "records").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert run(otb, tmp_path, toolkit="official").metrics == complete.metrics
    assert f"{path}: is damaged; computing the predictions again" in capsys.readouterr().err


def test_a_tracker_that_is_21_pixels_off_has_no_precision(otb, tmp_path, monkeypatch):
    """All frames miss but the first, whose box is the true one."""

    class OffBy21(PerfectTracker):
        def update(self, image):
            return super().update(image) + np.array([21, 0, 0, 0])

    monkeypatch.setattr(protocol, "PerfectTracker", OffBy21)
    metrics = run(otb, tmp_path, tracker="perfect").metrics
    assert metrics["precision"] == pytest.approx((1 / 8 + 1 / 4) / 2)


def test_the_record_has_a_row_for_each_frame(evaluated):
    """Boxes are stored to three digits beside the true ones; the first is the true one."""
    rows = record_of(evaluated[0]).to_pylist()
    assert [(row["sequence"], row["frame"]) for row in rows] == [
        *(("Moving", frame) for frame in range(8)),
        *(("Still", frame) for frame in range(4)),
    ]
    assert [row["true_x"] for row in rows[:8]] == [box[0] for box in MOVING]
    assert {(row["x"], row["y"], row["w"], row["h"]) for row in rows[:8]} == {tuple(MOVING[0])}
    assert {(row["width"], row["height"]) for row in rows} == {(60, 40)}
    assert all(row["seconds"] >= 0 for row in rows)


def test_got10k_counts_the_frames_of_its_toolkit(got10k, tmp_path):
    """AO, SR and the curve of 101 thresholds are over visible frames but the first, all sequences together.

    So does ExperimentGOT10k of the toolkit. It has no precision, which is OTB's: a mean over sequences.
    """
    result = run(got10k, tmp_path)
    pairs = {"A": [(MOVING[0], box) for box in MOVING], "B": [(STILL[0], box) for box in (*STILL[:2], [14, 9, 12, 10])]}
    values = [overlap_of(*pair) for name in "AB" for pair in pairs[name][1:]]
    assert result.metrics["ao"] == pytest.approx(sum(values) / 9)
    assert result.metrics["sr_50"] == pytest.approx(sum(value > 0.5 for value in values) / 9)
    assert result.metrics["sr_75"] == pytest.approx(sum(value > 0.75 for value in values) / 9)
    assert 0 < result.metrics["sr_75"] < result.metrics["sr_50"] < 1
    assert result.metrics["success"] == pytest.approx(success_of([*pairs["A"][1:], *pairs["B"][1:]], 101))
    assert result.metrics["success_rate"] == result.metrics["sr_50"]
    assert result.metrics["precision"] == 1
    by_sequence = [result.per_item["sequences"][name]["success"] for name in "AB"]
    assert by_sequence == pytest.approx([success_of(pairs[name][1:], 101) for name in "AB"])
    assert len(result.per_item["success_curve"]) == 101
    assert any("cover 0" in note for note in result.about.notes)


def test_a_sequence_whose_target_is_gone_after_the_first_frame_has_no_success(tmp_path):
    """The toolkit counts none of its frames; the other sequence has its metrics as if it were alone."""
    write_got10k(tmp_path / "got10k", "val", "A", MOVING, [8] * 8)
    write_got10k(tmp_path / "got10k", "val", "B", STILL, [8, 0, 0, 0])
    result = run(tmp_path / "got10k", tmp_path)
    assert result.per_item["sequences"]["B"] == {"precision": 1, "frames": 4}
    assert result.metrics["success"] == result.per_item["sequences"]["A"]["success"]
    assert plot_scores({"none": {**result.per_item, "mean": {"precision": 1}}}) == {}


def test_a_perfect_tracker_on_got10k_scores_100_of_101(got10k, tmp_path):
    """Frames without a visible target do not lower the score of a perfect tracker."""
    metrics = run(got10k, tmp_path, tracker="perfect").metrics
    assert metrics["success"] == pytest.approx(100 / 101)
    assert metrics["ao"] == pytest.approx(1)
    assert metrics["precision"] == 1


def test_got10k_test_gives_boxes_without_metrics(tmp_path):
    """Where only the first box is known there are no metrics, but files that the server takes."""
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


def test_tiger1_is_scored_as_each_toolkit_does(tmp_path):
    """The authors' code begins at the sixth frame with the sixth box; the GOT-10k toolkit at the first."""
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
    ours = run(tmp_path / "otb", tmp_path).metrics
    theirs = run(tmp_path / "otb", tmp_path, toolkit="official", score_only=True).metrics
    assert (ours["precision"], theirs["precision"]) == (0.75, 1)
    assert theirs["success_rate"] == 0.75


def test_a_first_box_outside_the_image_leaves_out_its_sequence(tmp_path):
    """Boxes outside of the image, or far larger, are a line each; the result is that of the other sequences."""
    write_otb(tmp_path / "otb", "Away", [[-500, -500, 30, 30]] * 3)
    write_otb(tmp_path / "otb", "Huge", [[10, 10, 1e9, 1e9]] * 3)
    write_otb(tmp_path / "otb", "Sound", [[8, 9, 12, 10]] * 3)
    result = run(tmp_path / "otb", tmp_path)
    assert result.metrics["precision"] == 1
    assert result.about.data.num_test == 1
    away, huge = result.about.problems
    assert "Away" in away
    assert "lies outside of" in away
    assert "Huge" in huge
    assert "is far larger than" in huge


def test_plots_and_boxes_are_written_beside_the_result(evaluated):
    """Two pictures and the boxes in the toolkit's format have the name of the result."""
    folder, result = evaluated
    for kind in ("success", "precision"):
        image = cv2.imread(str(folder / "out" / f"{result.about.key}.{kind}.png"))
        assert image.shape[0] > 400
        assert 20 < (image < 128).sum() < image.size / 2
    with zipfile.ZipFile(folder / "out" / f"{result.about.key}.boxes.zip") as archive:
        assert archive.namelist() == ["Moving.txt", "Still.txt"]
        assert archive.read("Still.txt").decode() == "8.000,9.000,12.000,10.000\n" * 4


def test_siamfc_on_raw_features_does_not_change_the_backbone(tmp_path):
    """The tracker of the paper runs by the same protocol, and no weight and no buffer of the model changes."""
    write_otb(tmp_path / "otb", "Still", STILL)
    backbone = make_backbone("resnet10-w8", 0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    settings = {"tracker": "siamfc", "train": False, "epochs": 4, "fix_scale_penalty": True, "exact_geometry": True}
    result = run(tmp_path / "otb", tmp_path, backbone, **settings)
    tag = "tracking tracker=siamfc preset=release head=raw geometry=exact scale_penalty=fixed toolkit=got10k"
    assert result.tag == tag
    assert result.about.notes[0] == "epochs had no effect: no head is trained"
    assert result.metrics["success"] > 0.3
    assert len(record_of(tmp_path)) == 4
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_siamfc_trains_its_head(tmp_path, capsys):
    """The sequences beside the data train the head; a line says so first, with its cost, then tag and details."""
    write_otb(tmp_path / "otb", "Still", STILL)
    write_got10k(tmp_path / "got10k", "train", "T", [[5, 6, 21, 20], [6, 6, 21, 20]], [8] * 2)
    settings = {"epochs": 1, "pairs_per_sequence": 2, "batch_size": 2, "workers": 0}
    result = run(tmp_path / "otb", tmp_path, tracker="siamfc", **settings)
    assert result.tag.startswith("tracking tracker=siamfc preset=release head=trained epochs=1 ")
    assert (result.about.data.num_train, result.about.data.num_test) == (1, 1)
    assert result.about.details["num_steps"] == 1
    first = f"first, a head is trained on 1 sequences of {tmp_path / 'got10k'} found near the data: 1 steps of 2 pairs"
    assert capsys.readouterr().err.startswith(f"{first}; --epochs N shortens it, --no-train")
    assert len(result.about.details["losses"]) == 1


def test_a_stopped_evaluation_resumes(otb, tmp_path, monkeypatch, evaluated):
    """Sequences tracked before a stop are not tracked again, and the record is that of an undisturbed run."""
    updates = []

    class Stopping(IdentityTracker):
        def update(self, image):
            updates.append(1)
            if len(updates) == 9:
                raise KeyboardInterrupt
            return super().update(image)

    monkeypatch.setattr(protocol, "IdentityTracker", Stopping)
    with pytest.raises(KeyboardInterrupt):
        run(otb, tmp_path)
    resumed = run(otb, tmp_path)
    assert len(updates) == 9 + 3
    assert not (tmp_path / "out" / "unfinished").exists()
    folder, whole = evaluated
    assert record_of(tmp_path).drop_columns(["seconds"]) == record_of(folder).drop_columns(["seconds"])
    assert resumed.metrics == whole.metrics


def test_an_unreadable_image_leaves_out_its_sequence(otb, tmp_path):
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


def test_a_damaged_sequence_of_the_list_is_reported_in_the_result(otb, tmp_path):
    """What the reader left out is in the result."""
    (otb / "Moving" / "groundtruth_rect.txt").write_text("1,2,3,4\n")
    result = run(otb, tmp_path)
    assert "1 boxes for 8 images" in result.about.problems[0]
    assert "left out, 1:" in str(result)


def write_boxes(path, boxes, separator=","):
    """Write the boxes of another tracker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(map(str, box)) + "\n" for box in boxes))


def test_other_trackers_are_scored_beside_ours(otb, tmp_path):
    """Their files may have any known separator and name, and are scored by the same rules.

    A wrong length, and a word in place of a number, are a line each that names the file.
    """
    write_boxes(tmp_path / "others" / "Best" / "moving.txt", [[9, 9, 9, 9], *MOVING[1:]], "\t")
    write_boxes(tmp_path / "others" / "Best" / "Still.txt", STILL, " ")
    write_boxes(tmp_path / "others" / "Half" / "Still.txt", STILL)
    write_boxes(tmp_path / "others" / "Bad" / "Moving.txt", MOVING[:5])
    write_boxes(tmp_path / "others" / "Bad" / "Still.txt", [*STILL[:3], ["no", 1, 2, 3]])
    result = run(otb, tmp_path, others=tmp_path / "others")
    others = result.per_item["others"]
    assert list(others) == ["Best", "Half"]
    assert others["Best"]["mean"]["success"] == pytest.approx(20 / 21)
    assert others["Best"]["sequences"].keys() == {"Moving", "Still"}
    assert others["Half"]["sequences"].keys() == {"Still"}
    notes = "\n".join(result.about.notes)
    assert "others: Best, 2 of 2 sequences: success 95.24 %" in notes
    assert "Half: has no file for 1 of 2 sequences (Moving)" in notes
    assert "Bad/Moving.txt: 5 boxes, expected 8, one for each frame; left out" in notes
    assert "Bad/Still.txt:4: 'no,1,2,3' is not x, y, width and height in numbers" in notes


def test_results_of_tiger1_may_begin_at_the_first_frame(tmp_path):
    """The official toolkit ignores rows before the sixth frame; the GOT-10k toolkit needs them."""
    boxes = [[10 + at, 10, 20, 10] for at in range(10)]
    write_otb(tmp_path / "otb", "Tiger1", boxes)
    write_boxes(tmp_path / "others" / "All" / "tiger1.txt", boxes)
    write_boxes(tmp_path / "others" / "Late" / "Tiger1.txt", boxes[5:])
    theirs = run(tmp_path / "otb", tmp_path, others=tmp_path / "others", toolkit="official").per_item["others"]
    assert [theirs[name]["mean"]["success"] for name in ("All", "Late")] == pytest.approx([20 / 21] * 2)
    ours = run(tmp_path / "otb", tmp_path, others=tmp_path / "others", score_only=True).per_item["others"]
    assert list(ours) == ["All"]


def test_results_laid_out_for_got10k_are_found(got10k, tmp_path):
    """There the toolkit has a folder for each sequence, with the number of the repetition in the file's name."""
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
    """The toolkits' names for a sequence are equal, those of two sequences are not."""
    assert len({same_name(name) for name in names}) == (1 if same else len(names))


def test_a_real_sequence_by_identity(shared, tmp_path):
    """On the first frames of a real OTB sequence, the record scored by plain loops gives the result."""
    source, num = shared / "tracking" / "otb" / "Crossing", 30
    (tmp_path / "otb" / "Crossing" / "img").mkdir(parents=True)
    for image in sorted((source / "img").iterdir())[:num]:
        (tmp_path / "otb" / "Crossing" / "img" / image.name).symlink_to(image)
    lines = (source / "groundtruth_rect.txt").read_text().splitlines()[:num]
    (tmp_path / "otb" / "Crossing" / "groundtruth_rect.txt").write_text("\n".join(lines))
    result = run(tmp_path / "otb", tmp_path)
    rows = record_of(tmp_path).to_pylist()
    pairs = [[[row[prefix + name] for name in "xywh"] for prefix in ("", "true_")] for row in rows]
    assert len(pairs) == num
    expected = success_of(pairs)
    assert result.metrics["success"] == pytest.approx(expected)
    assert 0.05 < expected < 0.7
    assert json.loads((tmp_path / "out" / f"{result.about.key}.json").read_text())["metrics"] == result.metrics
