"""Labeled videos: both layouts of lists, labels from folders, and damage reported line by line."""

import shutil

import pytest

from cyclecontrast.data.labeled_videos import LabeledVideos
from cyclecontrast.errors import UserError

CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")


def make_videos(root, names, folder="videos"):
    """Make files that only look like videos: nothing opens them here."""
    for name in names:
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video of " + name.encode())


def make_ucf(root, folder="videos", lists="annotations", end="\n"):
    """Three classes with two train videos and a test video each, in the layout of UCF101."""
    names = {"HandstandPushups": "HandStandPushups"}
    train, test = [], []
    for label, name in enumerate(CLASSES, start=1):
        videos = [f"{name}/v_{names.get(name, name)}_g{g:02d}_c01.avi" for g in (1, 2, 3)]
        make_videos(root, videos, folder)
        train += [f"{video} {label}" for video in videos[1:]]
        test += videos[:1]
    (root / lists).mkdir(parents=True, exist_ok=True)
    index = [f"{label} {name}" for label, name in enumerate(CLASSES, start=1)]
    for file, lines in (("classInd.txt", index), ("trainlist01.txt", train), ("testlist01.txt", test)):
        (root / lists / file).write_bytes(end.join([*lines, ""]).encode())
    return root


def problems_of(root, split=1):
    """Return the lines of the error that opening raises."""
    with pytest.raises(UserError) as caught:
        LabeledVideos.open(root, split)
    return list(caught.value.problems)


def edit(path, old, new):
    """Replace text in a list."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n\r\n"])
@pytest.mark.parametrize(("folder", "lists"), [("videos", "annotations"), ("UCF-101", "ucfTrainTestlist"), (".", ".")])
def test_each_place_and_line_end_gives_the_same_videos(tmp_path, folder, lists, end):
    """Videos and lists are found where UCF101 and its copies have them, and Windows line ends change nothing."""
    data = LabeledVideos.open(make_ucf(tmp_path, folder, lists, end))
    assert data.classes == CLASSES
    assert data.problems == data.notes == ()
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.labels.tolist() == [0, 1, 2]
    assert [data.test.path(i).name for i in range(3)] == [
        "v_ApplyEyeMakeup_g01_c01.avi",
        "v_HandStandPushups_g01_c01.avi",
        "v_YoYo_g01_c01.avi",
    ]
    assert all(data.train.path(number).is_file() for number in range(len(data.train)))


def test_labels_come_from_the_folder_alone(tmp_path):
    """Files of HandstandPushups are named HandStandPushups, and numbers on the lines may be wrong: neither matters."""
    root = make_ucf(tmp_path)
    edit(root / "annotations" / "trainlist01.txt", "g02_c01.avi 2", "g02_c01.avi 3")
    make_videos(root, ["YoYo/v_ApplyEyeMakeup_g09_c01.avi"])
    with (root / "annotations" / "testlist01.txt").open("a") as file:
        file.write("YoYo/v_ApplyEyeMakeup_g09_c01.avi\n")
    data = LabeledVideos.open(root)
    assert data.train.paths[2] == "videos/HandstandPushups/v_HandStandPushups_g02_c01.avi"
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.labels.tolist() == [0, 1, 2, 2]
    assert data.notes == (
        "lines whose number is not that of their folder, which counts: 1; "
        f"{root}/annotations/trainlist01.txt:3: 'HandstandPushups/v_HandStandPushups_g02_c01.avi 3', "
        "but classInd.txt has 2 HandstandPushups",
    )


def test_each_video_in_both_lists_is_named(tmp_path):
    """The first ten, and how many more there are, so that a list can be fixed at once."""
    root = make_ucf(tmp_path)
    extra = [f"YoYo/v_YoYo_g{number}_c01.avi" for number in range(10, 22)]
    for name in ("trainlist01.txt", "testlist01.txt"):
        with (root / "annotations" / name).open("a") as file:
            file.write("".join(f"{video}\n" for video in extra))
    problems = problems_of(root)
    assert len(problems) == 11
    assert problems[1].startswith(f"{root}/annotations/testlist01.txt:5: v_YoYo_g11_c01.avi is also listed in")
    assert problems[-1] == "... and 2 more"


def test_labels_are_places_in_the_index_of_classes_not_in_the_alphabet(tmp_path):
    """The index decides; UCF101's happens to be sorted, another's need not be."""
    root = make_ucf(tmp_path)
    (root / "annotations" / "classInd.txt").write_text("1 YoYo\n2 ApplyEyeMakeup\n3 HandstandPushups\n")
    assert LabeledVideos.open(root).test.labels.tolist() == [1, 2, 0]


def make_hmdb(root, lists):
    """Two classes of HMDB51 with one train, one test and one unused video each."""
    (root / lists).mkdir(parents=True)
    for name in ("wave", "brush_hair"):
        videos = ["#1_b.avi", "a (2).avi", "c.avi"]
        make_videos(root, [f"{name}/{video}" for video in videos])
        for split, codes in ((1, (2, 1, 0)), (2, (0, 2, 1))):
            lines = [f"{video} {code} \r\n" for video, code in zip(videos, codes, strict=True)]
            (root / lists / f"{name}_test_split{split}.txt").write_bytes("".join(lines).encode())
    return root


@pytest.mark.parametrize("lists", ["testTrainMulti_7030_splits", "annotations"])
def test_the_lists_of_hmdb51(tmp_path, lists):
    """1 is train, 2 is test, 0 is neither; classes are sorted, and each split number has lists of its own."""
    root = make_hmdb(tmp_path, lists)
    data = LabeledVideos.open(root)
    assert data.classes == ("brush_hair", "wave")
    assert data.train.paths == ("videos/brush_hair/a (2).avi", "videos/wave/a (2).avi")
    assert data.test.paths == ("videos/brush_hair/#1_b.avi", "videos/wave/#1_b.avi")
    assert data.test.labels.tolist() == [0, 1]
    assert LabeledVideos.open(root, 2).train.paths == ("videos/brush_hair/c.avi", "videos/wave/c.avi")
    (root / lists / "wave_test_split1.txt").unlink()
    assert problems_of(root) == [f"{root / lists / 'wave_test_split1.txt'}: no such file; there are splits 1, 2"]


def test_damage_is_reported_line_by_line_and_the_rest_is_used(tmp_path):
    """A missing video, and lines that are cut, of an unknown class, repeated or not text."""
    root = make_ucf(tmp_path)
    lists = root / "annotations"
    (root / "videos" / "YoYo" / "v_YoYo_g02_c01.avi").unlink()
    edit(lists / "trainlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi 1", "ApplyEyeMa")
    with (lists / "testlist01.txt").open("ab") as file:
        file.write(b"Yoyo/v_YoYo_g04_c01.avi\nYoYo/v_YoYo_g01_c01.avi\nYoYo/\xff\xfe.avi\n")
    data = LabeledVideos.open(root)
    assert (len(data.train), len(data.test)) == (4, 3)
    assert [line.removeprefix(f"{root}/") for line in data.problems] == [
        "annotations/trainlist01.txt:1: 'ApplyEyeMa' is not <class>/<video> with a class of classInd.txt; left out",
        "annotations/testlist01.txt:4: 'Yoyo/v_YoYo_g04_c01.avi' is not <class>/<video> with a class of classInd.txt; "
        "left out",
        f"annotations/testlist01.txt:5: v_YoYo_g01_c01.avi is listed before, in {lists}/testlist01.txt:3; counted once",
        f"videos/YoYo/v_YoYo_g02_c01.avi: no such video; listed in {lists}/trainlist01.txt:5, left out",
        rf"videos/YoYo/\xff\xfe.avi: no such video; listed in {lists}/testlist01.txt:6, left out",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(" ", ","),
        lambda line: line.replace(" ", ", "),
        lambda line: f"/data/UCF-101/{line}",
        lambda line: line.replace("/", "\\"),
        lambda line: f"videos/{line}",
    ],
)
@pytest.mark.parametrize("names", [["trainlist01.txt"], ["trainlist01.txt", "testlist01.txt"]])
def test_lists_in_another_form_name_their_first_line(tmp_path, change, names):
    """Commas, full paths and backslashes: the error begins with a line that was not understood, not with its effect."""
    root = make_ucf(tmp_path)
    for path in (root / "annotations" / name for name in names):
        path.write_text("".join(f"{change(line)}\n" for line in path.read_text().splitlines()))
    line = change("ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi 1")
    expected = f"{root}/annotations/trainlist01.txt:1: {line!r} is not <class>/<video> with a class of classInd.txt"
    assert any(problem.startswith(expected) for problem in problems_of(root)[:2])


def test_damaged_lines_of_hmdb51_are_reported(tmp_path):
    """A line without its number, or with one that has no meaning, is left out; the others stand."""
    root = make_hmdb(tmp_path, "annotations")
    path = root / "annotations" / "wave_test_split1.txt"
    edit(path, "c.avi 0", "c.avi 7")
    with path.open("a") as file:
        file.write("d.avi\n")
    assert LabeledVideos.open(root).problems == (
        f"{path}:3: 'c.avi 7' is not `<video> 0` (unused), 1 (train) or 2 (test); left out",
        f"{path}:4: 'd.avi' is not `<video> 0` (unused), 1 (train) or 2 (test); left out",
    )


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: shutil.rmtree(root), ["{root}: no such folder; expected one with videos/<class> and lists"]),
        (lambda root: shutil.rmtree(root / "annotations"), ["{root}: holds no lists of videos; expected classInd.txt"]),
        (
            lambda root: [(root / "annotations" / f"{x}list01.txt").unlink() for x in ("train", "test")],
            ["{lists}/trainlist01.txt: no such file; there is classInd.txt", "{lists}/testlist01.txt: no such file"],
        ),
        (
            lambda root: (root / "annotations" / "classInd.txt").unlink(),
            ["{lists}/classInd.txt: no such file; there is testlist01.txt, trainlist01.txt"],
        ),
        (
            lambda root: edit(root / "annotations" / "classInd.txt", "2 Handstand", "3 Handstand"),
            ["{lists}/classInd.txt:2: '3 HandstandPushups' is not `2 <class>`"],
        ),
        (lambda root: (root / "annotations" / "classInd.txt").write_text("\n"), ["{lists}/classInd.txt: names no"]),
        (
            lambda root: shutil.rmtree(root / "videos" / "YoYo"),
            ["{root}/videos/YoYo: no videos to train on; expected those that the train list names"],
        ),
        (
            lambda root: [path.unlink() for path in (root / "videos" / "YoYo").iterdir()],
            ["{root}/videos/YoYo: no videos to train on; expected those that"],
        ),
        (
            lambda root: [shutil.rmtree(root / "videos" / name) for name in CLASSES],
            ["{root}/videos: holds none of the 9 listed videos", *["{root}/videos/App"] * 2, "{root}/v", "and 6 more"],
        ),
        (
            lambda root: (root / "annotations" / "testlist01.txt").write_text(""),
            ["{root}/videos: holds no video of the test list"],
        ),
        (
            lambda root: edit(root / "annotations" / "testlist01.txt", "YoYo_g01", "YoYo_g02"),
            ["{lists}/testlist01.txt:3: v_YoYo_g02_c01.avi is also listed in {lists}/trainlist01.txt:5; a video"],
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(tmp_path, damage, expected):
    """Each line begins with the file or folder that is at fault, and says what was expected of it."""
    root = make_ucf(tmp_path / "data")
    damage(root)
    problems = problems_of(root)
    assert len(problems) == len(expected)
    for line, start in zip(problems, expected, strict=True):
        assert line.startswith(start.format(root=root, lists=root / "annotations"))
        assert "\n" not in line


def test_a_split_that_is_not_there_is_named(tmp_path):
    """Asking for split 3 of a copy that has split 1 names both lists, and what there is."""
    root = make_ucf(tmp_path)
    there = "no such file; there is classInd.txt, testlist01.txt, trainlist01.txt"
    lists = root / "annotations"
    assert problems_of(root, 3) == [f"{lists / name}list03.txt: {there}" for name in ("train", "test")]


def test_the_fingerprint_names_the_content(tmp_path):
    """It is the same for a copy elsewhere, and another for another class, list or size of a video."""
    root = make_ucf(tmp_path / "one")
    first = LabeledVideos.open(root).fingerprint
    assert LabeledVideos.open(make_ucf(tmp_path / "two")).fingerprint == first
    assert len(first) == 16
    seen = {first}
    (root / "videos" / "YoYo" / "v_YoYo_g01_c01.avi").write_bytes(b"longer than it was before")
    seen.add(LabeledVideos.open(root).fingerprint)
    (root / "annotations" / "classInd.txt").write_text("1 YoYo\n2 ApplyEyeMakeup\n3 HandstandPushups\n")
    seen.add(LabeledVideos.open(root).fingerprint)
    (root / "videos" / "YoYo" / "v_YoYo_g02_c01.avi").unlink()
    seen.add(LabeledVideos.open(root).fingerprint)
    assert len(seen) == 4


def test_the_real_data_is_whole(shared):
    """The numbers are those of its manifest."""
    for name, numbers in (("weizmann4", (4, 16, 8)), ("gtsrb_clips", (20, 159, 79))):
        data = LabeledVideos.open(shared / "ucf101_layout" / name)
        assert (len(data.classes), len(data.train), len(data.test)) == numbers
        assert data.problems == ()
