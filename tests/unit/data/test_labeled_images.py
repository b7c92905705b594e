"""Labeled images: all layouts, labels that mean the same in both splits, and all mistakes reported at once."""

import importlib.util
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclecontrast.data.labeled_images import LabeledImages, imagenet_synsets
from cyclecontrast.errors import UserError

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases"
WNIDS = imagenet_synsets()


def problems_of(root, classes=None):
    """Return the lines of the error that opening raises."""
    with pytest.raises(UserError) as caught:
        LabeledImages.open(root, classes)
    return list(caught.value.problems)


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


def test_lists_may_name_images_with_their_labels(tmp_path):
    """Lines `<image>,<label>` name images in imgs/ or below the root; a folder with a comma in its name stays one."""
    for name in ("a 1.png", "b/2.png", "c.png"):
        write_image(tmp_path / "imgs" / name, 50)
    write_image(tmp_path / "imgs" / "of, more" / "0.png", 70)
    (tmp_path / "train.txt").write_text("a 1.png,0\nb/2.png , 2\nof, more 1")
    (tmp_path / "test.txt").write_text("c.png,1\n")
    data = LabeledImages.open(tmp_path)
    assert data.train.names.to_pylist() == ["imgs/a 1.png", "imgs/b/2.png", "imgs/of, more/0.png"]
    assert data.train.video_ids.to_pylist() == ["a 1.png", "b/2.png", "of, more"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 2, 1], [1])
    (tmp_path / "test.txt").write_text("d.png,1\nc.png,x\n../c.png,1")
    found = "\n".join(problems_of(tmp_path))
    assert "d.png: no such folder of frames, and no such image" in found
    assert "'c.png,x' is not `<video folder> <label>` or `<image>,<label>` with a whole number as label" in found
    assert "leads out of" in found


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


def test_all_mistakes_in_the_lists_are_reported_at_once(tmp_path):
    """Folders that are absent or empty, labels that are not numbers or never trained on, repeated videos."""
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


def test_a_class_that_cannot_be_listed_is_named_with_the_cause(tmp_path, monkeypatch):
    """It is not called empty."""
    root = folders(tmp_path, ["cat/0.png", "dog/0.png"], ["cat/0.png", "dog/0.png"])
    scandir, listdir = os.scandir, os.listdir

    def guarded(function):
        def call(path):
            if str(path).endswith("train/dog"):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return call

    monkeypatch.setattr(os, "scandir", guarded(scandir))
    monkeypatch.setattr(os, "listdir", guarded(listdir))
    assert problems_of(root) == [f"{root}/train/dog: cannot be listed (permission denied)"]


def test_folders_of_the_system_are_no_classes(tmp_path):
    """Thumbnails of network storage are neither a class nor images of one; what is left out is noted."""
    root = folders(tmp_path, ["cat/0.png", "dog/0.png"], ["cat/0.png", "dog/0.png"])
    for name in ("train/@eaDir/cat/0.png", "train/cat/@eaDir/0.jpg", "val/lost+found/0.png", "val/dog/@eaDir/0.png"):
        write_image(root / name)
    write_image(root / "train/cat/2.jpg")
    (root / "train/cat/2.jpg").rename(root / "train/cat/2.JFIF")
    (root / "val/dog/notes.txt").touch()
    data = LabeledImages.open(root)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (3, 2)
    assert data.notes == (
        "left out: 1 file without the suffix of an image, such as val/dog/notes.txt; "
        "2 folders of the system, such as train/cat/@eaDir",
    )


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
def test_a_real_tree_of_network_storage_has_two_classes():
    """Its thumbnails are left out, in both splits."""
    data = LabeledImages.open(CASES / "synology/lab")
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 12, 6)


def test_a_link_to_nowhere_is_one_problem(tmp_path):
    """It does not end the evaluation: the other images are read, and it is an error when it is read."""
    root = folders(tmp_path, ["cat/0.png"], ["cat/0.png"])
    (root / "train/cat/1.jpg").symlink_to("nowhere")
    data = LabeledImages.open(root)
    assert len(data.fingerprint) == 16
    assert len(data.train) == 2
    broken = data.train.names.to_pylist().index("train/cat/1.jpg")
    assert data.train.image(1 - broken).shape == (6, 8, 3)
    with pytest.raises(UserError, match=r"1\.jpg"):
        data.train.image(broken)


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


@pytest.mark.parametrize(
    ("name", "classes", "videos", "images"),
    [
        ("video_frames/gtsrb", 43, (285, 271), 8340),
        ("video_frames/eth80", 8, (24, 24), 1968),
        ("images/cifar10", 10, (10_000, 2000), 12_000),
    ],
)
def test_real_data_has_its_known_size(shared, name, classes, videos, images):
    """Classes, videos and images are counted as the manifest of the data counts them."""
    data = LabeledImages.open(shared / name)
    assert len(data.classes) == classes
    assert (data.train.num_videos, data.test.num_videos) == videos
    assert len(data.train) + len(data.test) == images
    assert data.train.image(0).ndim == 3


# --- ImageNet and ImageNet-100 as they are unpacked


TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def imagenet(root, num_classes=3, images_of=(2, 3, 1, 1, 2)):
    """Make train/<wnid>, and flat validation images whose gray value is their class's number; ids begin at 1."""
    for name in WNIDS[:num_classes]:
        for image in range(2):
            write_image(root / "train" / name / f"{name}_{image}.JPEG")
    (root / "val").mkdir(parents=True, exist_ok=True)
    for image, number in enumerate(images_of, 1):
        write_image(root / "val" / f"ILSVRC2012_val_{image:08d}.JPEG", 50 * number)
    (root / "val" / TRUTH).write_text("".join(f"{number}\n" for number in images_of))
    return root


def class_list(tmp_path, text):
    """Write a list of classes."""
    (tmp_path / "classes.txt").write_text(text)
    return tmp_path / "classes.txt"


def test_flat_validation_images_get_the_classes_of_the_development_kit(tmp_path):
    """Line i of the ground truth is image i; its id is a WordNet id, whose place in the sorted ids is the label."""
    data = LabeledImages.open(imagenet(tmp_path))
    names = WNIDS[:3]
    assert data.classes == tuple(sorted(names))
    assert [data.classes[label] for label in data.train.labels] == [name for name in sorted(names) for _ in range(2)]
    numbers = [names.index(data.classes[label]) + 1 for label in data.test.labels]
    assert [round(int(data.test.image(i)[0, 0, 0]) / 50) for i in range(5)] == numbers
    assert sorted(data.test.names.to_pylist()) == [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 6)]
    assert data.test.num_videos == 5
    assert data.fingerprint == LabeledImages.open(tmp_path).fingerprint
    (tmp_path / "val" / TRUTH).write_text("3\n3\n1\n1\n2\n")
    assert data.fingerprint != LabeledImages.open(tmp_path).fingerprint


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ("2\n3\n1\n1\n", ": has 4 lines for the 5 images of"),
        ("2\n3\n1\n1\n2\n2\n", ": has 6 lines for the 5 images of"),
        ("2\n3\n1001\n1\n2\n", ":3: '1001' is not the number of a class, 1 to 1,000"),
        ("2\n3\n1\n1\n0\n", ":5: '0' is not the number of a class"),
        ("2\nthree\n1\n1\n2\n", ":2: 'three' is not the number of a class"),
        ("2\n-3\n1\n1\n2\n", ":2: '-3' is not the number of a class"),
        ("", ": has 0 lines for the 5 images of"),
    ],
)
def test_ground_truth_that_does_not_fit_is_refused(tmp_path, truth, expected):
    """Shifted labels would score as if nothing were wrong: each mistake has one line with its place."""
    imagenet(tmp_path)
    (tmp_path / "val" / TRUTH).write_text(truth)
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(f"{tmp_path / 'val' / TRUTH}{expected}")


def test_images_that_are_missing_do_not_shift_the_labels(tmp_path):
    """As many lines as images, but with a gap in the numbers: refused."""
    imagenet(tmp_path)
    (tmp_path / "val" / "ILSVRC2012_val_00000003.JPEG").rename(tmp_path / "val" / "ILSVRC2012_val_00000006.JPEG")
    assert problems_of(tmp_path) == [f"{tmp_path / 'val'}: image number 3 of 5 is missing; unpack it again"]


def test_a_class_of_the_flat_folder_that_cannot_be_learned_is_an_error(tmp_path):
    """100 folders to train on and 1,000 classes to test on do not fit; the line says how to choose."""
    imagenet(tmp_path)
    (tmp_path / "train" / WNIDS[1]).rename(tmp_path / "elsewhere")
    (problem,) = problems_of(tmp_path)
    assert f"class '{WNIDS[1]}' is not in {tmp_path / 'train'}" in problem
    assert "--classes FILE" in problem
    chosen = class_list(tmp_path, f"{WNIDS[2]}\n{WNIDS[0]}\n")
    assert LabeledImages.open(tmp_path, chosen).classes == tuple(sorted((WNIDS[0], WNIDS[2])))


@pytest.mark.parametrize("flat", [True, False])
def test_a_hundred_classes_of_more_are_numbered_by_sorted_name(tmp_path, flat):
    """100 of 103 classes are used; a label is a place among the sorted ids."""
    num, chosen = 103, [WNIDS[number] for number in range(100)]
    root = imagenet(tmp_path / "data", num, [])
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    truth = np.random.default_rng(0).permutation(np.repeat(np.arange(num), 10))
    for image, number in enumerate(truth, 1):
        folder = root / "val" if flat else root / "val" / WNIDS[number]
        folder.mkdir(exist_ok=True)
        (folder / f"ILSVRC2012_val_{image:08d}.JPEG").write_bytes(jpeg)
    (root / "val" / TRUTH).write_text("".join(f"{number + 1}\n" for number in truth))
    data = LabeledImages.open(root, class_list(tmp_path, "\n".join(chosen)))
    assert list(data.classes) == sorted(chosen) != chosen
    assert (len(data.train), len(data.test)) == (200, 1000)
    assert np.bincount(data.test.labels).tolist() == [10] * 100
    by_image = {
        int(name[-13:-5]): label for name, label in zip(data.test.names.to_pylist(), data.test.labels, strict=True)
    }
    assert all(data.classes[label] == WNIDS[truth[image - 1]] for image, label in by_image.items())
    names = data.train.names.to_pylist()
    assert [name.split("/")[1] for name in names] == [data.classes[label] for label in data.train.labels]


def test_mistakes_in_a_list_of_classes_are_named(tmp_path):
    """A class that is absent, listed twice, no class at all, no text and no file: each with its place."""
    root = imagenet(tmp_path / "data")
    path = class_list(tmp_path, f"{WNIDS[0]}\n\n n99999999 \n{WNIDS[1]}\r\n")
    for split, line in zip(("train", "val"), problems_of(root, path), strict=True):
        assert line.startswith(f"{path}:3: class 'n99999999' is not in {root / split}")
    class_list(tmp_path, f"{WNIDS[0]}\n{WNIDS[1]}\n{WNIDS[0]}\n")
    assert problems_of(root, path) == [f"{path}:3: class '{WNIDS[0]}' is listed before, in {path}:1"]
    class_list(tmp_path, "\n \n")
    assert f"{path}: lists no class" in problems_of(root, path)[0]
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: cannot be read as UTF-8 text" in problems_of(root, path)[0]
    assert problems_of(root, tmp_path / "absent") == [f"{tmp_path / 'absent'}: no such file"]


def test_classes_that_are_not_listed_may_be_broken(tmp_path):
    """Empty folders and classes of one split alone do not matter where they are not listed."""
    root = tmp_path / "data"
    for name in ("train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/a/1.jpg", "val/b/1.jpg"):
        write_image(root / name)
    (root / "val" / "empty").mkdir()
    assert len(problems_of(root)) == 2
    data = LabeledImages.open(root, class_list(tmp_path, "b\na\n"))
    assert data.classes == ("a", "b")
    assert "c" not in str(data.train.names.to_pylist())
    (root / "val" / "a" / "1.jpg").unlink()
    assert problems_of(root, tmp_path / "classes.txt") == [f"{root / 'val' / 'a'}: holds no images"]


def test_a_frame_tree_is_restricted_too(tmp_path):
    """Classes go by the names of classes.txt, and keep the order of their numbers."""
    for video in "abcd":
        write_image(tmp_path / "data" / "frames" / video / "1.jpg")
    root = tmp_path / "data"
    (root / "train.txt").write_text("a 0\nb 1\nc 2\n")
    (root / "test.txt").write_text("d 2\n")
    (root / "classes.txt").write_text("0 zebra\n1 yak\n2 ant\n")
    data = LabeledImages.open(root, class_list(tmp_path, "ant\nzebra\n"))
    assert data.classes == ("zebra", "ant")
    assert (data.train.video_ids.to_pylist(), data.test.labels.tolist()) == (["a", "c"], [1])
    problem = f"{tmp_path / 'classes.txt'}:1: class 'gnu' is not in {root / 'train.txt'}"
    assert problems_of(root, class_list(tmp_path, "gnu\nant"))[0].startswith(problem)


@pytest.mark.parametrize("folder", ["val", ".", "devkit/data", "ILSVRC2012_devkit_t12/data"])
def test_the_ground_truth_may_lie_where_people_leave_it(tmp_path, folder):
    """Beside the images, in the root, or in an unpacked development kit; where it is absent, it is named."""
    expected = LabeledImages.open(imagenet(tmp_path)).test.labels
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "val" / TRUTH).rename(tmp_path / folder / TRUTH)
    assert (LabeledImages.open(tmp_path).test.labels == expected).all()
    (tmp_path / folder / TRUTH).unlink()
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(f"{tmp_path / 'val' / TRUTH}: no such file; ")


def test_the_ids_of_imagenet_are_the_official_ones():
    """The first validation images are a sea snake, an alp, a Shetland sheepdog, a soup bowl and a cradle, by id."""
    first = {490: "n01751748", 361: "n09193705", 171: "n02105855", 822: "n04263257", 297: "n03125729"}
    assert {number: WNIDS[number - 1] for number in first} == first
    timm = importlib.util.find_spec("timm")
    if timm is not None:
        assert (
            sorted(WNIDS)
            == Path(timm.origin).with_name("data").joinpath("_info/imagenet_synsets.txt").read_text().split()
        )


def test_the_fingerprint_names_the_classes_that_are_chosen(tmp_path):
    """The same classes from a list in another order are the same data; other classes are other data."""
    root = imagenet(tmp_path / "data")
    chosen = [[0, 1], [1, 0], [0, 2]]
    lists = ["\n".join(WNIDS[number] for number in numbers) for numbers in chosen]
    one, other, third = (LabeledImages.open(root, class_list(tmp_path, text)).fingerprint for text in lists)
    assert one == other != third
