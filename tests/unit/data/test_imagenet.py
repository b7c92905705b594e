"""ImageNet and ImageNet-100 as they are unpacked: lists of classes, the flat validation folder, odd images."""

import contextlib
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

import cyclecontrast as cc
from cyclecontrast.config import KnnConfig
from cyclecontrast.data.labeled import LabeledImages
from cyclecontrast.data.labels.mat_file import MOST_BYTES, read_records
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.knn import Knn

TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def write_image(path, value=0):
    """Write a small JPEG of one gray value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", np.full((8, 8, 3), value, np.uint8))[1].tobytes())


def wnid(number):
    """Return a made-up WordNet id; the order of names is not that of numbers."""
    return f"n{(number * 7919 + 1) % 100003:08d}"


def imagenet(root, num_classes=3, images_of=(2, 3, 1, 1, 2)):
    """Make train/<wnid>, and flat validation images whose gray value is their class's number; ids begin at 1."""
    for number in range(num_classes):
        for image in range(2):
            write_image(root / "train" / wnid(number) / f"{wnid(number)}_{image}.JPEG")
    for image, number in enumerate(images_of, 1):
        write_image(root / "val" / f"ILSVRC2012_val_{image:08d}.JPEG", 50 * number)
    write_synsets(root / "val" / "meta_clsloc.mat", num_classes)
    (root / "val" / TRUTH).write_text("".join(f"{number}\n" for number in images_of))
    return root


def write_synsets(path, num_classes):
    """Write the structure that the development kit has: a row of records with ids, WordNet ids and words."""
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    rows = [(np.uint16(number + 1), wnid(number), f"thing {number}, stuff") for number in range(num_classes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"synsets": np.array(rows, fields)[None], "wnids": np.zeros(1)})


def problems_of(root, classes=None):
    """Return the lines of the error that opening raises."""
    with pytest.raises(UserError) as caught:
        LabeledImages.open(root, classes)
    return list(caught.value.problems)


def class_list(tmp_path, text):
    """Write a list of classes."""
    (tmp_path / "classes.txt").write_text(text)
    return tmp_path / "classes.txt"


def test_flat_validation_images_get_the_classes_of_the_development_kit(tmp_path):
    """Line i of the ground truth is image i; its id names a WordNet id, whose place in the sorted ids is the label."""
    data = LabeledImages.open(imagenet(tmp_path))
    names = [wnid(number) for number in range(3)]
    assert data.classes == tuple(sorted(names))
    assert [data.classes[label] for label in data.train.labels] == [name for name in sorted(names) for _ in range(2)]
    numbers = [names.index(data.classes[label]) + 1 for label in data.test.labels]
    assert [round(int(data.test.image(i)[0, 0, 0]) / 50) for i in range(5)] == numbers
    assert sorted(data.test.names.to_pylist()) == [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 6)]
    assert data.test.num_videos == 5
    assert data.fingerprint == LabeledImages.open(tmp_path).fingerprint
    (tmp_path / "val" / TRUTH).write_text("3\n3\n1\n1\n2\n")
    assert data.fingerprint != LabeledImages.open(tmp_path).fingerprint


@pytest.mark.parametrize("folder", ["val", ".", "devkit/data", "ILSVRC2012_devkit_t12/data"])
@pytest.mark.parametrize("name", ["meta_clsloc.mat", "meta.mat"])
def test_the_two_files_may_lie_where_people_leave_them(tmp_path, folder, name):
    """Beside the images, in the root, or in an unpacked development kit; of 2012 or of later years."""
    expected = LabeledImages.open(imagenet(tmp_path)).test.labels
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "val" / "meta_clsloc.mat").rename(tmp_path / folder / name)
    (tmp_path / "val" / TRUTH).rename(tmp_path / folder / TRUTH)
    assert (LabeledImages.open(tmp_path).test.labels == expected).all()


def test_ids_of_inner_nodes_do_no_harm(tmp_path):
    """The kit of 2012 names 1,860 synsets, of which 1,000 have images."""
    imagenet(tmp_path)
    write_synsets(tmp_path / "val" / "meta_clsloc.mat", 9)
    assert len(LabeledImages.open(tmp_path).classes) == 3


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ("2\n3\n1\n1\n", ": has 4 lines for the 5 images of"),
        ("2\n3\n1\n1\n2\n2\n", ": has 6 lines for the 5 images of"),
        ("2\n3\n4\n1\n2\n", ":3: class 4 is none of the 3 of"),
        ("2\n3\n1\n1\n0\n", ":5: class 0 is none of the 3 of"),
        ("2\nthree\n1\n1\n2\n", ":2: 'three' is no number of a class"),
        ("2\n-3\n1\n1\n2\n", ":2: '-3' is no number of a class"),
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


def test_files_that_are_absent_or_damaged_are_named(tmp_path):
    """Both in one error where both are absent; a .mat that is none, or without the structure, is named."""
    imagenet(tmp_path)
    mat = tmp_path / "val" / "meta_clsloc.mat"
    mat.write_bytes(b"not a mat file" * 20)
    assert f"{mat}: cannot be read as synsets with ILSVRC2012_ID and WNID" in problems_of(tmp_path)[0]
    savemat(mat, {"other": np.zeros(3)})
    assert "(it holds no records named synsets)" in problems_of(tmp_path)[0]
    mat.unlink()
    (tmp_path / "val" / TRUTH).unlink()
    assert [line.partition("; ")[0] for line in problems_of(tmp_path)] == [
        f"{mat}: no such file",
        f"{tmp_path / 'val' / TRUTH}: no such file",
    ]


def test_a_class_of_the_flat_folder_that_cannot_be_learned_is_an_error(tmp_path):
    """100 folders to train on and 1,000 classes to test on do not fit; the line says how to choose."""
    imagenet(tmp_path)
    (tmp_path / "train" / wnid(1)).rename(tmp_path / "elsewhere")
    (problem,) = problems_of(tmp_path)
    assert f"class '{wnid(1)}' is not in {tmp_path / 'train'}" in problem
    assert "--classes FILE" in problem
    chosen = class_list(tmp_path, f"{wnid(2)}\n{wnid(0)}\n")
    assert LabeledImages.open(tmp_path, chosen).classes == tuple(sorted((wnid(0), wnid(2))))


@pytest.mark.parametrize("flat", [True, False])
def test_a_hundred_classes_of_more_are_numbered_by_sorted_name(tmp_path, flat):
    """protocols.md §b: 100 unique ids, 50 images each, 5,000 in all; a label is a place among the sorted ids."""
    num, chosen = 103, [wnid(number) for number in range(100)]
    root = imagenet(tmp_path / "data", num, [])
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    truth = np.random.default_rng(0).permutation(np.repeat(np.arange(num), 50))
    for image, number in enumerate(truth, 1):
        folder = root / "val" if flat else root / "val" / wnid(number)
        folder.mkdir(exist_ok=True)
        (folder / f"ILSVRC2012_val_{image:08d}.JPEG").write_bytes(jpeg)
    (root / "val" / TRUTH).write_text("".join(f"{number + 1}\n" for number in truth))
    data = LabeledImages.open(root, class_list(tmp_path, "\n".join(chosen)))
    assert list(data.classes) == sorted(chosen) != chosen
    assert (len(data.train), len(data.test)) == (200, 5000)
    assert np.bincount(data.test.labels).tolist() == [50] * 100
    by_image = {
        int(name[-13:-5]): label for name, label in zip(data.test.names.to_pylist(), data.test.labels, strict=True)
    }
    assert all(data.classes[label] == wnid(truth[image - 1]) for image, label in by_image.items())
    names = data.train.names.to_pylist()
    assert [name.split("/")[1] for name in names] == [data.classes[label] for label in data.train.labels]


def test_mistakes_in_a_list_of_classes_are_named(tmp_path):
    """A class that is absent, listed twice, no class at all, no text and no file: each with its place."""
    root = imagenet(tmp_path / "data")
    path = class_list(tmp_path, f"{wnid(0)}\n\n n99999999 \n{wnid(1)}\r\n")
    for split, line in zip(("train", "val"), problems_of(root, path), strict=True):
        assert line.startswith(f"{path}:3: class 'n99999999' is not in {root / split}")
    class_list(tmp_path, f"{wnid(0)}\n{wnid(1)}\n{wnid(0)}\n")
    assert problems_of(root, path) == [f"{path}:3: class '{wnid(0)}' is listed before, in {path}:1"]
    class_list(tmp_path, "\n \n")
    assert f"{path}: lists no class" in problems_of(root, path)[0]
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: cannot be read as UTF-8 text" in problems_of(root, path)[0]
    assert problems_of(root, tmp_path / "absent") == [f"{tmp_path / 'absent'}: No such file or directory"]


def test_classes_that_are_not_listed_may_be_broken(tmp_path):
    """Empty folders and classes of one split alone do not matter where they are not asked for."""
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


def test_a_list_is_known_by_what_it_chooses(tmp_path):
    """The same classes from another file are the same evaluation; other classes are another."""
    root = imagenet(tmp_path / "data")
    keys = {}
    texts = {"one": [0, 1], "other": [1, 0], "third": [0, 2]}
    for name, numbers in texts.items():
        (tmp_path / name).write_text("\n".join(wnid(number) for number in numbers))
        settings = {"image_size": 8, "workers": 0, "device": "cpu", "k": (1,), "out": tmp_path / "out"}
        result = cc.evaluate("knn", "random:resnet10-small-w8", root, classes=tmp_path / name, **settings)
        keys[name] = result.about.key
        assert result.per_item["classes"] == sorted(wnid(number) for number in numbers)
    assert keys["one"] == keys["other"] != keys["third"]
    one = class_list(tmp_path, wnid(0))
    with pytest.raises(UserError, match="holds one class"):
        Knn(KnnConfig(model="m", data=root, classes=one)).open()


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB", "P", "RGBA", "LA", "I;16"])
def test_odd_images_are_decoded_to_rgb(tmp_path, mode):
    """ILSVRC has JPEGs in CMYK and gray, and a PNG that is called .JPEG: all give RGB as Pillow does."""
    rows = np.linspace(0, 255, 24)
    pixels = np.stack([np.add.outer(rows, 0 * rows), np.add.outer(0 * rows, rows), np.full((24, 24), 60.0)], axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8))
    path = tmp_path / "data" / "train" / "a" / "n1.JPEG"
    for name in ("train/b/1.JPEG", "val/a/1.JPEG", "val/b/1.JPEG"):
        write_image(tmp_path / "data" / name)
    path.parent.mkdir()
    if mode == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path, "PNG")
        expected = np.asarray(image.convert("L").convert("RGB"))
    else:
        converted = image.convert(mode)
        converted.save(path, "JPEG" if mode in ("CMYK", "L") else "PNG")
        expected = np.asarray(Image.open(path).convert("RGB"))
    decoded = LabeledImages.open(tmp_path / "data").train.image(0)
    assert (decoded.shape, decoded.dtype) == ((24, 24, 3), np.uint8)
    assert np.abs(decoded.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("is_compressed", [False, True])
def test_records_of_matlab_are_those_that_scipy_reads(tmp_path, is_compressed):
    """Numbers of any width and texts, with fields of other kinds between them, of one record and of many."""
    fields = [(name, object) for name in ("id", "WNID", "words", "children", "height")]
    rows = [(np.uint16(n), wnid(n), "a é " * n, np.arange(n), np.float64(n) / 2) for n in range(1, 40)]
    path = tmp_path / "meta.mat"
    for num in (1, len(rows)):
        savemat(
            path, {"other": np.ones(3), "synsets": np.array(rows[:num], fields)[None]}, do_compression=is_compressed
        )
        expected = np.atleast_1d(loadmat(path, simplify_cells=True)["synsets"])
        for found, row in zip(read_records(path, "synsets"), expected, strict=True):
            assert (found["id"], found["WNID"], found["height"]) == (row["id"], row["WNID"], row["height"])
            assert found["words"].strip() == row["words"].strip()


def test_a_file_of_matlab_that_is_damaged_anywhere_is_refused_or_read(tmp_path):
    """Cut at any byte or with any byte changed it is no crash, and one that unfolds to too much is refused."""
    path = tmp_path / "meta.mat"
    write_synsets(path, 2)
    data = path.read_bytes()
    for place in range(128, len(data)):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]):
            path.write_bytes(damaged)
            with contextlib.suppress(ValueError):
                assert isinstance(read_records(path, "synsets"), list)
    bomb = zlib.compress(bytes(MOST_BYTES + 1))
    path.write_bytes(data[:128] + (15).to_bytes(4, "little") + len(bomb).to_bytes(4, "little") + bomb)
    with pytest.raises(ValueError, match="more than 67,108,864 bytes"):
        read_records(path, "synsets")
