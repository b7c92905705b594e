"""Labeling an index from a few examples: equal to scikit-learn, tested without leaks between frames of a video."""

import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import unit_vectors
from cyclecontrast.searching import label
from cyclecontrast.searching.index import FrameIndex
from tests.unit.searching.test_explore import VIDEOS, table, write_footage
from tests.unit.searching.test_search import write_index

ABOUT = {"model_fingerprint": "0123456789abcdef", "image_size": "64"}
KINDS = ("cat", "dog", "emu")


def write_kinds(path, num_videos=9, seed=0, about=ABOUT):
    """Write an index of videos of four frames, each of one of three kinds in turn; returns the kind of each row."""
    videos = [f"{number:02}.mp4" for number in range(num_videos) for _ in range(4)]
    kinds = np.arange(len(videos)) // 4 % 3
    noise = np.random.default_rng(seed).standard_normal((len(videos), 5))
    write_index(path, 4 * np.eye(5)[kinds] + 0.5 * noise, videos, about)
    return kinds


def write_labels(path, *lines, header="video,frame,class"):
    """Write a table of examples."""
    path.write_text("\n".join([header, *lines, ""]))
    return path


@pytest.fixture
def kinds(tmp_path):
    """The kind of each row of an index `i.parquet`, and two labeled frames of each kind in `labels.csv`."""
    found = write_kinds(tmp_path / "i.parquet")
    write_labels(tmp_path / "labels.csv", *(f"{number:02}.mp4,1,{KINDS[number % 3]}" for number in range(6)))
    return found


def test_every_frame_gets_its_label(tmp_path, kinds):
    """Labels of frames and videos are right where kinds differ clearly; the examples are marked as given."""
    done = cc.label(tmp_path / "i.parquet", tmp_path / "labels.csv")
    rows = table(done.out / "labels.csv")
    assert [row["class"] for row in rows] == [KINDS[kind] for kind in kinds]
    assert [row["given"] for row in rows] == ["1" if number % 4 == 1 and number < 24 else "0" for number in range(36)]
    assert all(0.4 < float(row["confidence"]) <= 1 for row in rows)
    videos = table(done.out / "videos.csv")
    assert [(row["frames"], row["class"]) for row in videos] == [("4", KINDS[number % 3]) for number in range(9)]
    assert (done.trust.accuracy, done.trust.videos, done.trust.examples) == (1, 6, 6)
    assert done.trust.chance == pytest.approx(1 / 3)
    assert "cross-validation: 100 ± 12 % right on the 6 labeled frames of 6 videos" in str(done)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_probabilities_are_those_of_scikit_learn(tmp_path, num_classes):
    """Also for two classes, for which scikit-learn has one row of weights."""
    write_kinds(tmp_path / "i.npz")
    index = FrameIndex.open(tmp_path / "i.npz")
    lines = [f"{number:02}.mp4,,{KINDS[number % 3]}" for number in range(9) if number % 3 < num_classes]
    examples = label.read_examples(write_labels(tmp_path / "l.csv", *lines), index)
    classifier = label.fit(index, examples, seed=0)
    vectors = index.load_vectors()
    weights = np.full(len(examples.rows), 1 / 4)
    fitted = LogisticRegression(C=classifier.about.strength, max_iter=1000)
    fitted.fit(vectors[examples.rows], examples.labels, sample_weight=weights)
    np.testing.assert_allclose(classifier.probabilities(vectors), fitted.predict_proba(vectors), atol=1e-4)


def test_no_video_is_on_both_sides_of_a_fold():
    """Each class of two or more videos is tested, and learned from others; a class of one video is not tested."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        of_video = rng.integers(0, 4, 14)
        of_video[0] = 4  # the only video of its class
        videos = rng.integers(0, 14, 60)
        labels = np.unique(of_video[videos], return_inverse=True)[1]
        folds, is_tested = label.assign_folds(videos, labels, seed)
        assert all(len(set(folds[videos == video])) == 1 for video in videos)
        for one in np.unique(labels):
            assert is_tested[labels == one].all() == (len(set(videos[labels == one])) > 1)
        for fold in np.unique(folds[is_tested]):
            assert set(labels[is_tested & (folds == fold)]) <= set(labels[folds != fold])


@pytest.mark.parametrize("seed", range(30))
def test_a_rare_class_is_spread_over_folds(seed):
    """A class on two of the six videos of another is tested; alone with classes of one video, nothing is."""
    videos, labels = np.array([0, 1, 2, 3, 4, 5, 4, 5]), np.array([0, 0, 0, 0, 0, 0, 1, 1])
    folds, is_tested = label.assign_folds(videos, labels, seed)
    assert is_tested.all()
    assert np.bincount(folds[:6]).max() <= 2
    one_tested = label.assign_folds(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 2]), seed)[1]
    assert not one_tested.any()


def test_cross_validation_equals_a_plain_loop():
    """Each example is labeled by a classifier that has seen no example of its fold; absent classes get 0."""
    rng = np.random.default_rng(0)
    vectors, labels = unit_vectors(rng.standard_normal((24, 4))).astype(np.float32), np.arange(24) % 3
    videos = np.arange(24) // 2
    weights = label.video_weights(videos)
    assert weights.tolist() == [0.5] * 24
    folds = np.where(labels == 2, 0, videos % 3)
    found = label.cross_validate(vectors, labels, weights, folds, 10.0)
    for row in range(24):
        rest = folds != folds[row]
        fitted = LogisticRegression(C=10.0, max_iter=1000).fit(vectors[rest], labels[rest], weights[rest])
        expected = np.zeros(3)
        expected[fitted.classes_] = fitted.predict_proba(vectors[row : row + 1])[0]
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_trust_counts_each_video_once():
    """A video of three wrong frames weighs as much as one of a single right frame; what is not tested is named."""
    held_out = np.array([[0.8, 0.2, 0], [0.6, 0.4, 0], [0.95, 0.05, 0], [0.3, 0.7, 0], [0, 0, 1]])
    labels = np.array([1, 1, 1, 1, 2])
    examples = label.Examples(np.arange(5), labels, ("a", "b", "c"), labels)
    trust = label.measure_trust(held_out, np.array([0, 0, 0, 1, 2]), examples, np.array([True] * 4 + [False]))
    assert (trust.accuracy, trust.examples, trust.videos, trust.chance) == (0.5, 4, 2, 1)
    assert trust.error == pytest.approx(np.std([0, 1, 1, 0], ddof=1) / 2)
    shares = [(least, round(share, 3), right and round(right, 3)) for least, share, right in trust.by_confidence]
    assert shares == [(0.9, 0.167, 0.0), (0.7, 0.833, 0.6), (0.5, 1.0, 0.5)]
    assert trust.mistakes == (("b", "a", 3),)
    assert trust.untested == ("c",)
    none = label.measure_trust(held_out, np.arange(5), examples, np.zeros(5, bool))
    assert none.lines()[0].startswith("not cross-validated")


def test_a_saved_classifier_labels_other_footage(tmp_path, kinds):
    """It gives the labels that it gave before, and says how far it was to be trusted."""
    first = cc.label(tmp_path / "i.parquet", tmp_path / "labels.csv")
    again = cc.label(tmp_path / "i.parquet", first.out / label.CLASSIFIER, out=tmp_path / "again")
    before, after = table(first.out / "labels.csv"), table(again.out / "labels.csv")
    assert [row["class"] for row in after] == [row["class"] for row in before]
    assert [b["confidence"] for b in before if b["given"] == "0"] == [
        a["confidence"] for a, b in zip(after, before, strict=True) if b["given"] == "0"
    ]
    assert not (again.out / label.CLASSIFIER).exists()
    assert again.trust == first.trust
    other = write_kinds(tmp_path / "j.npz", seed=1)
    done = cc.label(tmp_path / "j.npz", first.out / label.CLASSIFIER)
    assert [row["class"] for row in table(done.out / "labels.csv")] == [KINDS[kind] for kind in other]


def test_a_classifier_refuses_other_networks_and_damaged_files(tmp_path, kinds, capsys):
    """One line says which network it is for, or that the file is not one; nothing is written."""
    path = cc.label(tmp_path / "i.parquet", tmp_path / "labels.csv").out / label.CLASSIFIER
    for about in ({**ABOUT, "model_fingerprint": "f" * 16}, {**ABOUT, "image_size": "32"}, {}):
        write_kinds(tmp_path / "other.npz", about=about)
        assert main(["label", str(tmp_path / "other.npz"), str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "takes the vectors of network 0123456789abcdef at 64 px" in error
    arrays, damaged = load_file(path), tmp_path / "damaged.safetensors"
    about = label.open_classifier(path, FrameIndex.open(tmp_path / "i.parquet")).about
    for change in ({"weight": arrays["weight"][:2]}, {"bias": np.full(3, np.nan, np.float32)}, {"bias": np.eye(3)}):
        save_file(arrays | change, damaged, {"about": about.model_dump_json()})
        with pytest.raises(UserError, match="is not a classifier that `cyclecontrast label` saved"):
            cc.label(tmp_path / "i.parquet", damaged, out=tmp_path / "new")
    absurd = [about.model_dump() for _ in range(4)]
    absurd[0]["trust"]["accuracy"], absurd[1]["trust"]["error"] = 5e300, float("inf")
    absurd[2]["trust"]["by_confidence"], absurd[3]["strength"] = [[0.9, 1, -1]], float("nan")
    for other in ({"classes": "cat"}, {}, *absurd):
        save_file(arrays, damaged, {"about": json.dumps(other)})
        with pytest.raises(UserError, match=r"is not a classifier .*its metadata are not those of one"):
            cc.label(tmp_path / "i.parquet", damaged, out=tmp_path / "new")
    with pytest.raises(UserError, match="no such file"):
        cc.label(tmp_path / "i.parquet", tmp_path / "absent.safetensors", out=tmp_path / "new")
    damaged.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="is not a classifier"):
        cc.label(tmp_path / "i.parquet", damaged, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "other.labels").exists()


def test_a_line_labels_a_frame_a_moment_or_a_video(tmp_path, kinds):
    """Columns in any order, separated by semicolons, as Excel writes them; lines without a class are skipped."""
    lines = ("cat;00.mp4;;2;", "dog;01.mp4;0.9;;", "emu;02.mp4;;;x", ";03.mp4;;;", "cat;00.mp4;;2;")
    path = write_labels(tmp_path / "l.csv", *lines, header="\ufeffLabel;Video;Time;Frame;note")
    examples = label.read_examples(path, FrameIndex.open(tmp_path / "i.parquet"))
    assert examples.rows.tolist() == [2, 4 + 2, 8, 9, 10, 11]  # frames are half a second apart
    assert [examples.classes[number] for number in examples.labels] == ["cat", "dog", "emu", "emu", "emu", "emu"]


def test_a_long_video_is_learned_from_a_few_frames(tmp_path):
    """Evenly spaced ones, its first and its last among them, so that memory does not grow with long videos."""
    write_index(tmp_path / "i.npz", np.eye(2)[[0] * 100 + [1] * 3], ["a"] * 100 + ["b"] * 3, ABOUT)
    path = write_labels(tmp_path / "l.csv", "a,x", "b,y", header="video,class")
    index = FrameIndex.open(tmp_path / "i.npz")
    rows = label.read_examples(path, index).rows
    assert rows.tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 100, 101, 102]
    done = cc.label(index.path, path)
    again = label.read_examples(done.out / "labels.csv", index)
    assert again.rows.tolist() == rows.tolist()


def test_the_label_of_a_video_is_that_of_all_its_frames(tmp_path):
    """In both tables, even where its frames look like another class; a frame cannot be of two classes."""
    kinds = [0] * 20 + [1] * 20 + [0] * 20
    write_index(tmp_path / "i.npz", np.eye(2)[kinds], ["a"] * 20 + ["b"] * 20 + ["c"] * 20, ABOUT)
    path = write_labels(tmp_path / "l.csv", "a,,x", "b,,y", "c,0,y", header="video,frame,class")
    done = cc.label(tmp_path / "i.npz", path)
    rows = table(done.out / "labels.csv")
    assert [row["given"] for row in rows] == ["1"] * 41 + ["0"] * 19
    odd = write_labels(tmp_path / "odd.csv", "a,x", "b,y", "c,y", header="video,class")
    done = cc.label(tmp_path / "i.npz", odd, out=tmp_path / "odd")
    assert [row["class"] for row in table(done.out / "labels.csv")] == ["x"] * 20 + ["y"] * 40
    videos = [(row["video"], row["class"], float(row["confidence"])) for row in table(done.out / "videos.csv")]
    assert videos == [("a", "x", 1), ("b", "y", 1), ("c", "y", 1)]
    write_labels(odd, "a,,x", "b,,y", "b,7,x", header="video,frame,class")
    with pytest.raises(UserError, match=r"a frame of b is x, but y in .*odd\.csv:3"):
        cc.label(tmp_path / "i.npz", odd, out=tmp_path / "new")


def test_predictions_are_no_examples(tmp_path, kinds):
    """The table of labels can be corrected and given again: only lines with given = 1 are learned from."""
    first = cc.label(tmp_path / "i.parquet", tmp_path / "labels.csv")
    index = FrameIndex.open(tmp_path / "i.parquet")
    again = label.read_examples(first.out / "labels.csv", index)
    assert again.rows.tolist() == [1, 5, 9, 13, 17, 21]
    second = cc.label(index.path, first.out / "labels.csv", out=tmp_path / "second")
    assert second.trust == first.trust
    assert (second.out / "labels.csv").read_bytes() == (first.out / "labels.csv").read_bytes()
    lines = (first.out / "labels.csv").read_text().splitlines()
    lines[36] = "08.mp4,3.0,1.5,cat,,1.0"  # as corrected in pandas
    corrected = label.read_examples(write_labels(tmp_path / "l.csv", *lines[1:], header=lines[0]), index)
    assert corrected.rows.tolist() == [*again.rows.tolist(), 35]
    assert corrected.classes[corrected.labels[-1]] == "cat"
    for line, problem in (("00.mp4,0,0,cat,,yes", "given is yes"), ("00.mp4,0,0,cat,,0", "only lines with given = 1")):
        with pytest.raises(UserError, match=problem):
            cc.label(index.path, write_labels(tmp_path / "l.csv", line, header=lines[0]), out=tmp_path / "new")


def test_mistakes_in_the_table_are_told_together(tmp_path, kinds, capsys):
    """Each with its line; then nothing is written."""
    lines = (
        *("00.mp4,1,cat", "00.mp4,1,dog", "0.mp4,1,cat", "01.mp4,9,dog", "01.mp4,-1,dog"),
        "02.mp4,x,emu",
    )
    path = write_labels(tmp_path / "l.csv", *lines)
    assert main(["label", str(tmp_path / "i.parquet"), str(path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [error.partition("l.csv:")[2][:2] for error in errors] == ["3:", "4:", "5:", "6:", "7:"]
    assert "a frame of 00.mp4 is dog, but cat in" in errors[0]
    assert "did you mean 0" in errors[1]
    assert "01.mp4 has no frame 9" in errors[2]
    for text, problem in (
        ("a,b\n1,2\n", "has no columns video and class"),
        ("", "has no columns video and class"),
        ("video,class\n00.mp4,cat\n", "holds labels of two classes at least, found only of cat"),
        ("video,class\n00.mp4,\n", "found none"),
        ('video,class\n00.mp4,"cat\n', "is not CSV"),
        ("video,time,class\n00.mp4,soon,cat\n", "soon is not a time in seconds"),
        ("video,class\n00.mp4,c\x1bat\n", "unprintable"),
        ("video,class\n00.mp4,cat, tom\n", r"l\.csv:2: has 3 cells for 2 columns"),
        ("video,time,class\n00.mp4,99999,cat\n", r"99999 s is not in 00\.mp4; its frames are at 0\.000 to 1\.500 s"),
        ("video,time,class\n00.mp4,-5,cat\n", "-5 s is not in 00"),
        ("video,frame,class\n00.mp4,1.5,cat\n", r"the frame 1\.5 is not a whole number"),
        ("v\0i\0d\0e\0o\0", "^labels: .*save it as CSV in UTF-8"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=problem):
            cc.label(tmp_path / "i.parquet", path)
    path.write_bytes(b"video,class\n\xff\xfe,cat\n")
    with pytest.raises(UserError, match=r"^labels: .*; save it as CSV in UTF-8"):
        cc.label(tmp_path / "i.parquet", path)
    assert not (tmp_path / "i.labels").exists()


def test_tables_of_other_programs_are_read(tmp_path, kinds):
    """Line breaks of old Macs, whole numbers with a point, empty cells at the end, a time just after the last frame."""
    path = tmp_path / "l.csv"
    path.write_bytes(b"video,frame,time,class\r00.mp4,2.0,,cat,,\r01.mp4,,2.0,dog\r")
    assert label.read_examples(path, FrameIndex.open(tmp_path / "i.parquet")).rows.tolist() == [2, 7]


def test_labels_are_written_for_other_tools(tmp_path):
    """A given label is an annotation, a found one a prediction with its confidence."""
    index = write_footage(tmp_path)
    path = write_labels(tmp_path / "l.csv", *(f"{video},0,{video.split('/')[0]}" for video in VIDEOS))
    tools = ("label-studio", "fiftyone", "lightly-studio")
    done = cc.label(index, path, format=tools, out=tmp_path / "my clips" / "labels")
    quoted = shlex.quote(str(tmp_path / "my clips"))
    assert f"DOCUMENT_ROOT={quoted}, take" in str(done)
    assert f"cyclecontrast label INDEX {shlex.quote(str(done.out / label.CLASSIFIER))}\n" in str(done)
    rows = table(done.out / "labels.csv")
    tasks = json.loads((done.out / "label-studio.json").read_text())
    assert len(tasks) == len(rows) == len(list((done.out / "images").iterdir()))
    one = json.loads((done.out / "fiftyone.json").read_text())
    coco = json.loads((done.out / "lightly-studio.json").read_text())
    scores = {box["image_id"]: box.get("score") for box in coco["annotations"]}
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    for number, (task, row) in enumerate(zip(tasks, rows, strict=True)):
        kind = "annotations" if row["given"] == "1" else "predictions"
        (found,) = task[kind]
        assert found["result"][0]["value"] == {"choices": [row["class"]]}
        confidence = None if row["given"] == "1" else pytest.approx(float(row["confidence"]), abs=1e-4)
        assert found.get("score") == confidence == scores[number]
        name = task["data"]["image"].rpartition("/")[2]
        assert (done.out / "images" / name).exists()
        target = one["labels"][name.removesuffix(".png")]
        assert one["classes"][target["label"]] == row["class"] == names[coco["annotations"][number]["category_id"]]
        assert target.get("confidence") == confidence
        assert target["attributes"]["video"] == row["video"]
    assert '<Choice value="blue"/>' in (done.out / "label-studio.xml").read_text()
    assert all(tool in " ".join(done.notes).lower().replace(" ", "-") for tool in tools)
