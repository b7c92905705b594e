"""Readers of OTB and GOT-10k against folders that have all that is odd about them (protocols.md §a)."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from cyclecontrast.data.tracking_sequences import from_official_start, open_got10k, open_otb
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.tracking.data import open_sequences

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases"
FOLDERS = """
Basketball Biker Bird1 Bird2 BlurBody BlurCar1 BlurCar2 BlurCar3 BlurCar4 BlurFace BlurOwl Board Bolt Bolt2 Box Boy
Car1 Car2 Car24 Car4 CarDark CarScale ClifBar Coke Couple Coupon Crossing Crowds Dancer Dancer2 David David2 David3
Deer Diving Dog Dog1 Doll DragonBaby Dudek FaceOcc1 FaceOcc2 Fish FleetFace Football Football1 Freeman1 Freeman3
Freeman4 Girl Girl2 Gym Human2 Human3 Human4 Human5 Human6 Human7 Human8 Human9 Ironman Jogging Jump Jumping KiteSurf
Lemming Liquor Man Matrix Mhyang MotorRolling MountainBike Panda RedTeam Rubik Shaking Singer1 Singer2 Skater Skater2
Skating1 Skating2 Skiing Soccer Subway Surfer Suv Sylvester Tiger1 Tiger2 Toy Trans Trellis Twinnings Vase Walking
Walking2 Woman
""".split()


def write_images(folder, numbers, digits=4, suffix=".jpg", size=(12, 16)):
    """Write images that are one file on the disk: their numbers are what matters."""
    folder.mkdir(parents=True, exist_ok=True)
    first = None
    for number in numbers:
        path = folder / f"{number:0{digits}}{suffix}"
        if first is None:
            first = path
            cv2.imwrite(str(path), np.full((*size, 3), 90, np.uint8))
        else:
            os.link(first, path)


def write_boxes(path, num, separator=",", first=1):
    """Write boxes that move a pixel a frame, with line ends of Windows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(map(str, (first + at, 2, 5, 4))) + "\r\n" for at in range(num)))


def write_sequence(root, name, numbers, rows=None, **kinds):
    """Write a sequence as OTB lays it out."""
    write_images(root / name / "img", numbers, **kinds)
    write_boxes(root / name / "groundtruth_rect.txt", len(numbers) if rows is None else rows)


@pytest.fixture
def otb(tmp_path):
    """Return the root of three short sequences, each with a separator of its own."""
    for name, separator in (("Basketball", ","), ("Crossing", "\t"), ("Car4", "   ")):
        write_sequence(tmp_path, name, range(1, 5))
        write_boxes(tmp_path / name / "groundtruth_rect.txt", 4, separator)
    return tmp_path


def by_name(opened):
    """Return the sequences by their names."""
    return {sequence.name: sequence for sequence in opened.sequences}


def test_boxes_between_commas_tabs_or_spaces_are_the_same(otb):
    """A sequence's separator does not matter."""
    for sequence in open_otb(otb).sequences:
        assert sequence.boxes.dtype == np.float64
        assert sequence.boxes.tolist() == [[1 + at, 2, 5, 4] for at in range(4)]


def test_98_folders_are_100_sequences(tmp_path):
    """Jogging and Skating2 have two targets each, and Human4's first file of boxes is empty."""
    assert len(FOLDERS) == 98
    for name in FOLDERS:
        write_sequence(tmp_path, name, range(1, 3))
    for name in ("Jogging", "Skating2", "Human4"):
        (tmp_path / name / "groundtruth_rect.txt").unlink()
        for number in (1, 2):
            write_boxes(tmp_path / name / f"groundtruth_rect.{number}.txt", 2, first=10 * number)
    (tmp_path / "Human4" / "groundtruth_rect.1.txt").write_text("\n")
    (tmp_path / "readme.txt").write_text("not a sequence")
    (tmp_path / ".cache").mkdir()
    opened = open_otb(tmp_path)
    assert opened.problems == ()
    found = by_name(opened)
    assert len(found) == len(opened) == 100
    assert {"Jogging.1", "Jogging.2", "Skating2.1", "Skating2.2", "Human4"} <= found.keys()
    assert [found[name].boxes[0, 0] for name in ("Jogging.1", "Jogging.2", "Human4")] == [10, 20, 20]


@pytest.mark.parametrize(
    ("name", "images", "kept"),
    [
        ("David", range(1, 771), (300, 770, 471)),
        ("David", range(300, 771), (300, 770, 471)),
        ("Football1", range(1, 81), (1, 74, 74)),
        ("Freeman3", range(1, 465), (1, 460, 460)),
        ("Freeman4", range(1, 298), (1, 283, 283)),
        ("Diving", range(1, 232), (1, 215, 215)),
        ("BlurCar1", range(247, 989), (247, 988, 742)),
        ("BlurCar3", range(3, 360), (3, 359, 357)),
        ("BlurCar4", range(18, 398), (18, 397, 380)),
    ],
)
def test_frames_with_boxes_are_those_of_the_authors(tmp_path, name, images, kept):
    """A folder may hold more images than boxes, and need not begin at 1."""
    first, last, num = kept
    write_sequence(tmp_path, name, images, rows=num)
    (sequence,) = open_otb(tmp_path).sequences
    assert (sequence.files[0], sequence.files[-1]) == (f"{first:04}.jpg", f"{last:04}.jpg")
    assert len(sequence) == len(sequence.boxes) == num


def test_a_shortened_copy_is_read_as_it_is(tmp_path):
    """Images and boxes that belong together are taken, whichever part of the official ones they are."""
    write_sequence(tmp_path, "David", range(300, 320))
    write_sequence(tmp_path, "Diving", range(201, 231))
    assert [len(sequence) for sequence in open_otb(tmp_path).sequences] == [20, 30]


def test_tiger1_both_ways(tmp_path):
    """The GOT-10k toolkit has all 354 frames of Tiger1, the authors' code the 349 from the sixth on."""
    for name in ("Tiger1", "Tiger2"):
        write_sequence(tmp_path, name, range(1, 355))
    assert [len(sequence) for sequence in open_otb(tmp_path).sequences] == [354, 354]
    tiger, other = map(from_official_start, open_otb(tmp_path).sequences)
    assert (len(tiger), tiger.files[0], tiger.boxes[0, 0], len(other)) == (349, "0006.jpg", 6, 354)
    assert len(tiger.boxes) == 349


def test_other_names_of_images(tmp_path):
    """Board has five digits, and KiteSurf may be PNG, alone, beside the JPEGs or in a folder named jpg."""
    write_sequence(tmp_path, "Board", range(1, 12), digits=5)
    write_sequence(tmp_path, "KiteSurf", range(1, 4), suffix=".png")
    write_sequence(tmp_path, "Girl", range(1, 4), suffix=".png")
    write_images(tmp_path / "Girl" / "img", range(1, 4))
    (tmp_path / "Girl" / "img" / "Thumbs.db").write_text("no image")
    (tmp_path / "Girl" / "img" / "._0001.jpg").write_text("no image")
    write_images(tmp_path / "Dog" / "jpg", range(1, 4), suffix=".png")
    write_boxes(tmp_path / "Dog" / "groundtruth_rect.txt", 3)
    found = by_name(open_otb(tmp_path))
    assert (found["Board"].files[0], found["Board"].files[-1]) == ("00001.jpg", "00011.jpg")
    assert found["KiteSurf"].files == ("0001.png", "0002.png", "0003.png")
    assert found["Girl"].files == ("0001.jpg", "0002.jpg", "0003.jpg")
    assert found["Dog"].image(2).shape == (12, 16, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,5,4\n1,2,5,4\n", "Basketball/groundtruth_rect.txt: 2 boxes for 4 images; each image needs one"),
        ("1,2,0,4\n" + "1,2,5,4\n" * 3, "groundtruth_rect.txt: the box of the first frame is 0 x 4"),
        ("1,2,5,4\n" * 3 + "1,two,5,4\n", "groundtruth_rect.txt:4: '1,two,5,4' is not x, y, width and height"),
        ("1,2,5,4\n" * 3 + "1,NaN,5,4\n", "groundtruth_rect.txt:4: '1,NaN,5,4' is not x, y, width and height"),
        ("nan nan nan nan\n" + "1,2,5,4\n" * 3, "groundtruth_rect.txt: the box of the first frame is nan x nan"),
        ("1,2,5,4\n" * 3 + "NaN,NaN\n", "groundtruth_rect.txt:4: 'NaN,NaN' is not x, y, width and height"),
        ("1,2,5\n" * 4, "groundtruth_rect.txt:1: '1,2,5' is not x, y, width and height"),
        ("", "groundtruth_rect.txt: is empty"),
        (None, "groundtruth_rect.txt: no such file"),
    ],
)
def test_a_damaged_sequence_is_reported_and_the_others_are_read(otb, text, message):
    """One line says what is wrong with a sequence, and the rest can be used."""
    path = otb / "Basketball" / "groundtruth_rect.txt"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    opened = open_otb(otb)
    assert [sequence.name for sequence in opened.sequences] == ["Car4", "Crossing"]
    (problem,) = opened.problems
    assert message in problem


def test_a_sequence_that_may_not_be_read_is_reported_and_the_others_are_read(otb, monkeypatch):
    """A folder of another user costs itself only."""
    listdir = os.listdir

    def guarded(path="."):
        if str(path).endswith("Car4/img"):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", guarded)
    opened = open_otb(otb)
    assert [sequence.name for sequence in opened.sequences] == ["Basketball", "Crossing"]
    assert opened.problems == (f"{otb / 'Car4/img'}: permission denied; allow access, or use other data",)


def test_later_boxes_of_no_size_are_kept(otb):
    """A target that is gone has no box; only the first frame needs one."""
    (otb / "Car4" / "groundtruth_rect.txt").write_text("1,2,5,4\n-1 -1 -1 -1\n0\t0\t0\t0\n1,2,5,4")
    assert by_name(open_otb(otb))["Car4"].boxes[1:3].tolist() == [[-1] * 4, [0] * 4]


def test_lines_of_nan_are_frames_without_a_target(otb):
    """UAV123 and LaSOT write them; nothing else of a sequence is lost."""
    (otb / "Car4" / "groundtruth_rect.txt").write_text("1,2,5,4\nNaN,NaN,NaN,NaN\nnan\tnan\tnan\tnan\n1,2,5,4")
    sequence = by_name(open_otb(otb))["Car4"]
    assert sequence.absent.tolist() == [False, True, True, False]
    assert sequence.boxes[3].tolist() == [1, 2, 5, 4]
    assert by_name(open_otb(otb))["Crossing"].absent is None


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
def test_a_real_sequence_with_lines_of_nan_is_read():
    """It has twelve images, and no target in the sixth."""
    (sequence,) = open_otb(CASES / "nan-boxes").sequences
    assert (len(sequence), np.flatnonzero(sequence.absent).tolist()) == (12, [5])


def test_every_sequence_damaged_is_an_error_that_names_each(otb):
    """Where nothing is left, all lines are raised."""
    for name in ("Basketball", "Car4"):
        (otb / name / "groundtruth_rect.txt").write_text("1,2,5,4\n")
    for path in (otb / "Crossing" / "img").iterdir():
        path.unlink()
    with pytest.raises(UserError) as error:
        open_otb(otb)
    assert len(error.value.problems) == 3
    assert "Crossing/img: holds no images" in error.value.problems[2]


def test_an_unreadable_image_is_named(otb):
    """An image that does not decode, or that went away, raises a line with its path."""
    sequence = by_name(open_otb(otb))["Car4"]
    (otb / "Car4" / "img" / "0002.jpg").unlink()
    (otb / "Car4" / "img" / "0002.jpg").write_bytes(b"\xff\xd8broken")
    (otb / "Car4" / "img" / "0003.jpg").unlink()
    assert sequence.image(0).dtype == np.uint8
    for index in (1, 2):
        with pytest.raises(UserError, match=f"Car4/img/000{index + 1}.jpg: "):
            sequence.image(index)


def write_got10k(root, split="val", names=("A", "B"), num=4, rows=None):
    """Write sequences of GOT-10k; the target is gone in the last frame."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / split / "list.txt").write_text("".join(f"{name}\n" for name in names))
    for name in names:
        folder = root / split / name
        write_images(folder, range(1, num + 1), digits=8)
        (folder / "groundtruth.txt").write_text("1.5000,2.0000,5.2500,4.0000\n" * (num if rows is None else rows))
        if split != "test":
            (folder / "cover.label").write_text("8\n" * (num - 1) + "0\n")
            (folder / "absence.label").write_text("0\n" * (num - 1) + "1\n")
    return root


def test_got10k_has_boxes_cover_and_absence(tmp_path):
    """Sequences come in the order of the list, with the labels of each frame."""
    opened = open_got10k(write_got10k(tmp_path, names=("B", "A")), "val")
    assert [sequence.name for sequence in opened.sequences] == ["B", "A"]
    first = opened.sequences[0]
    assert first.boxes.tolist() == [[1.5, 2, 5.25, 4]] * 4
    assert first.cover.tolist() == [8, 8, 8, 0]
    assert first.absent.tolist() == [False, False, False, True]
    assert first.images[3] == tmp_path / "val" / "B" / "00000004.jpg"


def test_got10k_test_has_the_first_box_alone(tmp_path):
    """The test split annotates one frame; the other splits must annotate all."""
    (sequence,) = open_got10k(write_got10k(tmp_path, "test", ("A",), rows=1), "test").sequences
    assert (sequence.boxes.shape, len(sequence), sequence.cover) == ((1, 4), 4, None)
    with pytest.raises(UserError, match=r"groundtruth\.txt: 1 boxes for 4 images"):
        open_got10k(write_got10k(tmp_path, "val", ("A",), rows=1), "val")


def test_got10k_damage_is_reported_by_sequence(tmp_path):
    """A folder that is missing and labels of another number are lines, the rest is read."""
    write_got10k(tmp_path, names=("A", "B", "C"))
    (tmp_path / "val" / "list.txt").write_text("A\nmissing\nB\nC\n")
    (tmp_path / "val" / "B" / "cover.label").write_text("8\n8\n")
    opened = open_got10k(tmp_path, "val")
    assert [sequence.name for sequence in opened.sequences] == ["A", "C"]
    assert "val/missing: no such folder, but list.txt names it" in opened.problems[0]
    assert "B/cover.label: 2 labels for 4 images" in opened.problems[1]


@pytest.mark.parametrize(("text", "message"), [(None, "list.txt: no such file"), ("\n", "list.txt: names no sequence")])
def test_got10k_without_a_list(tmp_path, text, message):
    """The list must be there and name something."""
    write_got10k(tmp_path)
    path = tmp_path / "val" / "list.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message):
        open_got10k(tmp_path, "val")


def test_the_layout_is_seen(otb, tmp_path_factory):
    """A root with splits is GOT-10k, one with folders of sequences OTB, and others are refused in one line."""
    got10k = write_got10k(tmp_path_factory.mktemp("got10k"))
    assert open_sequences(otb).layout == "otb"
    assert open_sequences(got10k, "val").layout == "got10k"
    with pytest.raises(UserError, match=r"is one split of GOT-10k; name .* and --subset val"):
        open_sequences(got10k / "val")
    with pytest.raises(UserError, match="holds no sequences; an OTB root has"):
        open_sequences(tmp_path_factory.mktemp("empty"))


def test_the_fingerprint_names_boxes_images_and_labels(otb):
    """Another box, another image size, or another label is other data; the same files are the same."""
    seen = {open_otb(otb).fingerprint}
    assert open_otb(otb).fingerprint in seen
    write_boxes(otb / "Car4" / "groundtruth_rect.txt", 4, first=2)
    seen.add(open_otb(otb).fingerprint)
    (otb / "Car4" / "img" / "0004.jpg").unlink()
    cv2.imwrite(str(otb / "Car4" / "img" / "0004.jpg"), np.zeros((30, 40, 3), np.uint8))
    seen.add(open_otb(otb).fingerprint)
    got10k = write_got10k(otb / "got")
    seen.add(open_got10k(got10k, "val").fingerprint)
    (got10k / "val" / "A" / "cover.label").write_text("8\n7\n8\n0\n")
    seen.add(open_got10k(got10k, "val").fingerprint)
    assert len(seen) == 5


def test_real_sequences(shared):
    """Shortened copies of OTB and GOT-10k's val are read whole."""
    found = by_name(open_otb(shared / "tracking" / "otb"))
    assert len(found) == 7
    assert (found["David"].files[0], len(found["David"])) == ("0300.jpg", 250)
    assert found["Jogging.2"].boxes[0].tolist() == [180, 79, 37, 114]
    got10k = open_got10k(shared / "tracking" / "got10k", "val")
    assert [len(sequence) for sequence in got10k.sequences] == [67, 150, 60, 150]
    assert all(len(sequence.cover) == len(sequence.absent) == len(sequence) for sequence in got10k.sequences)
    assert got10k.sequences[0].image(66).shape == (360, 640, 3)
