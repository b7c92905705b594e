"""Labeled images: both layouts, labels that mean the same in both splits, and every mistake told at once."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclecontrast.data.labeled import LabeledImages
from cyclecontrast.errors import UserError

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"


def write_image(path, value=0):
    """Write a small image of one gray value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((6, 8, 3), value, np.uint8))


def folders(root, train, val):
    """Make train/<class> and val/<class>."""
    for split, names in (("train", train), ("val", val)):
        for name in names:
            write_image(root / split / name)
    return root


def frame_tree(root, train, test, frames="frames"):
    """Make the lists, and two frames for each video that they name."""
    for text in (train, test):
        for line in text.decode().split("\n"):
            if line.strip():
                for index in (10, 2):
                    write_image(root / frames / line.strip().rsplit(maxsplit=1)[0] / f"{index}.png", index)
    root.mkdir(exist_ok=True)
    (root / "train.txt").write_bytes(train)
    (root / "test.txt").write_bytes(test)
    return root


def problems_of(root):
    """Return the lines of the error that opening raises."""
    with pytest.raises(UserError) as caught:
        LabeledImages.open(root)
    return list(caught.value.problems)


def test_labels_are_places_in_the_sorted_class_names(tmp_path):
    """Both splits number the classes alike, images below subfolders count, and hidden or other files do not."""
    files = ["zebra/1.png", "ant/deep/2.PNG", "ant/10.png", "ant/9.png", "ant/.hidden.png"]
    folders(tmp_path, files, ["ant/x.png", "zebra/y.png"])
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    data = LabeledImages.open(tmp_path)
    assert data.classes == ("ant", "zebra")
    assert data.train.names.to_pylist() == [
        "train/ant/9.png",
        "train/ant/10.png",
        "train/ant/deep/2.PNG",
        "train/zebra/1.png",
    ]
    assert data.train.labels.tolist() == [0, 0, 0, 1]
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.videos.tolist() == [0, 1, 2, 3]
    assert data.train.video_labels.tolist() == [0, 0, 0, 1]


def test_a_class_may_be_a_link_to_a_folder(tmp_path):
    """ImageNet-100 is often a tree of links; they are followed, and a loop among them ends."""
    folders(tmp_path / "data", ["a/1.png"], ["a/1.png", "b/1.png"])
    write_image(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "train" / "b").symlink_to(tmp_path / "elsewhere")
    assert LabeledImages.open(tmp_path / "data").train.names.to_pylist() == ["train/a/1.png", "train/b/2.png"]


def test_splits_with_other_classes_are_refused_with_the_difference(tmp_path):
    """Each class that one split lacks is named, and so is a class without images."""
    folders(tmp_path, ["a/1.png", "b/1.png", "c/1.png"], ["a/1.png", "d/1.png"])
    (tmp_path / "val" / "c").mkdir()
    (tmp_path / "val" / "c" / "notes.txt").write_text("no image")
    problems = problems_of(tmp_path)
    assert len(problems) == 3
    assert "class 'b' is not in" in problems[0]
    assert "class 'd' is not in" in problems[1]
    assert problems[2] == f"{tmp_path / 'val' / 'c'}: holds no images"


@pytest.mark.parametrize("make", ["", "train", "frames", "train.txt"])
def test_a_folder_of_another_shape_is_refused(tmp_path, make):
    """A folder that is neither layout, or only half of one, gets one line that says what belongs there."""
    if make.endswith(".txt"):
        (tmp_path / make).write_text("")
    elif make:
        (tmp_path / make).mkdir()
    assert all(str(tmp_path) in line for line in problems_of(tmp_path))
    assert "no such folder" in problems_of(tmp_path / "absent")[0]


@pytest.mark.parametrize("frames", ["frames", "."])
def test_lists_of_videos_are_read_as_people_write_them(tmp_path, frames):
    """Mark of byte order, CR-LF, blank lines, tabs and spaces within names are all understood."""
    train = b"\xef\xbb\xbfday one/a b 7\r\n\r\n  c\t3  \r\n"
    root = frame_tree(tmp_path, b"day one/a b 7\nc 3\n", b"d 3", frames)
    (root / "train.txt").write_bytes(train)
    data = LabeledImages.open(root)
    assert data.classes == ("3", "7")
    assert data.train.video_ids.to_pylist() == ["day one/a b", "c"]
    assert data.train.labels.tolist() == [1, 1, 0, 0]
    assert data.train.videos.tolist() == [0, 0, 1, 1]
    assert [data.train.image(i)[0, 0, 0] for i in range(4)] == [2, 10, 2, 10]
    assert data.test.labels.tolist() == [0, 0]


def test_names_of_classes_come_from_their_file(tmp_path):
    """classes.txt gives the labels in use their names; a label it does not name is an error."""
    root = frame_tree(tmp_path, b"a 0\nb 2\n", b"c 2\n")
    (root / "classes.txt").write_text("0 stop sign\n1 yield\n2 no entry\n")
    assert LabeledImages.open(root).classes == ("stop sign", "no entry")
    (root / "classes.txt").write_text("0 stop sign\nyield\n")
    assert [line.partition(": ")[2] for line in problems_of(root)] == [
        "'yield' is not `<label> <name>`",
        "names no class for label 2",
    ]


def test_all_mistakes_in_the_lists_are_told_at_once(tmp_path):
    """Folders that are absent or empty, labels that are no numbers or not to be learned, and videos listed twice."""
    root = frame_tree(tmp_path, b"a 0\nb 1\n", b"c 1\n")
    (root / "frames" / "empty").mkdir()
    (root / "train.txt").write_text("a 0\nb one\nlonely\nabsent 0\nempty 0\na 0\n")
    (root / "test.txt").write_text("c 5\n./a/ 0\nb -1\n")
    problems = problems_of(root)
    expected = {
        "train.txt:2": "'b one' is not",
        "train.txt:3": "'lonely' is not",
        "train.txt:4": "no such folder",
        "train.txt:5": "holds no images",
        "train.txt:6": "'a' is listed before, in",
        "test.txt:1": "label 5 has no video in",
        "test.txt:2": "'a' is listed before, in",
        "test.txt:3": "'b -1' is not",
    }
    assert len(problems) == len(expected)
    for where, what in expected.items():
        assert sum(line.startswith(str(root / where)) and what in line for line in problems) == 1, where


def test_many_mistakes_fit_one_screen(tmp_path):
    """Ten lines, then how many more there are."""
    root = frame_tree(tmp_path, b"a 0\n", b"b 0\n")
    (root / "train.txt").write_text("a 0\n" + "".join(f"absent{i} 0\n" for i in range(25)))
    problems = problems_of(root)
    assert len(problems) == 11
    assert problems[-1] == "... and 15 more"


def test_a_list_that_is_no_text_is_refused(tmp_path):
    """A binary file in place of a list is named."""
    root = frame_tree(tmp_path, b"a 0\n", b"b 0\n")
    (root / "test.txt").write_bytes(b"\xff\xfe\x00b")
    assert any("test.txt: cannot be read as UTF-8 text" in line for line in problems_of(root))


def test_an_image_that_does_not_decode_is_named(tmp_path):
    """The line names the file."""
    data = LabeledImages.open(folders(tmp_path, ["a/1.png"], ["a/1.png"]))
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train/a/1\.png: the image does not decode"):
        data.train.image(0)
    (tmp_path / "train" / "a" / "1.png").unlink()
    with pytest.raises(UserError, match=r"train/a/1\.png: No such file"):
        data.train.image(0)


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    """The same data elsewhere has the same fingerprint; another label, split, name or file size has another."""
    train, test = b"a 0\nb 1\n", b"c 1\n"
    seen = {LabeledImages.open(frame_tree(tmp_path / "same", train, test)).fingerprint}
    again = LabeledImages.open(frame_tree(tmp_path / "again", train, test))
    assert again.fingerprint in seen
    variants = [(b"a 1\nb 0\n", test), (b"a 0\nb 1\nc 1\n", b"d 1\n"), (b"a 0\ne 1\n", test), (train, b"c 0\n")]
    for number, (one, other) in enumerate(variants):
        seen.add(LabeledImages.open(frame_tree(tmp_path / str(number), one, other)).fingerprint)
    with (tmp_path / "again" / "frames" / "a" / "2.png").open("ab") as file:
        file.write(b"\0")
    seen.add(LabeledImages.open(tmp_path / "again").fingerprint)
    assert len(seen) == 2 + len(variants)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_any_labels_become_places_among_the_sorted_ones(tmp_path_factory, labels):
    """Labels may start anywhere and leave gaps: items of equal label stay together, in the order of the numbers."""
    root = tmp_path_factory.mktemp("tree")
    lines = [f"v{i} {label}" for i, label in enumerate(labels)]
    data = LabeledImages.open(frame_tree(root, "\n".join(lines).encode(), f"t {labels[0]}".encode()))
    assert [int(data.classes[label]) for label in data.train.video_labels] == labels
    assert list(data.classes) == [str(label) for label in sorted(set(labels))]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("name", "classes", "videos", "images"),
    [
        ("video_frames/gtsrb", 43, (285, 271), 8340),
        ("video_frames/eth80", 8, (24, 24), 1968),
        ("images/cifar10", 10, (10_000, 2000), 12_000),
    ],
)
def test_real_data_has_its_known_size(name, classes, videos, images):
    """Classes, videos and images are counted as the manifest of the data counts them."""
    data = LabeledImages.open(SHARED / name)
    assert len(data.classes) == classes
    assert (data.train.num_videos, data.test.num_videos) == videos
    assert len(data.train) + len(data.test) == images
    assert data.train.image(0).ndim == 3
