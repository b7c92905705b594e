"""Data sets are found by the names of their files and folders."""

import os

import pytest

from cyclecontrast.data.folders import LeftOut
from cyclecontrast.data.layouts import find_layouts

LAYOUTS = {
    "got10k": ["val/list.txt"],
    "otb": ["Car1/img/0001.jpg", "Car1/groundtruth_rect.txt"],
    "davis": ["JPEGImages/480p/dog/00000.jpg", "Annotations/480p/dog/00000.png"],
    "masks": ["JPEGImages/1.jpg", "SegmentationClass/1.png"],
    "videos": ["UCF-101/Run/a.avi", "ucfTrainTestlist/classInd.txt"],
    "images": ["train/cat/1.jpg", "val/cat/2.jpg"],
}


def make(root, names):
    """Make empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_layout_is_recognized(kind, tmp_path):
    """A folder is known by what it holds."""
    make(tmp_path, LAYOUTS[kind])
    assert list(find_layouts(tmp_path)) == [(kind, tmp_path)]


def test_all_data_sets_below_a_folder_are_found_in_order(tmp_path):
    """Subfolders are searched, hidden ones and what lies inside a data set are not."""
    for number, names in enumerate(LAYOUTS.values()):
        make(tmp_path / "sets" / str(number), names)
    make(tmp_path / ".hidden", LAYOUTS["otb"])
    make(tmp_path / "sets" / "0" / "val" / "inner", LAYOUTS["images"])
    assert [layout.kind for layout in find_layouts(tmp_path)] == list(LAYOUTS)


def test_labeled_frames_with_masks_are_two_data_sets_in_one(tmp_path):
    """Objects can be classified, and cut out."""
    make(tmp_path, ["frames/cup/1/0.png", "masks/cup/1/0.png", "train.txt", "test.txt"])
    assert [layout.kind for layout in find_layouts(tmp_path)] == ["images", "masks"]


def test_the_folders_of_r2v2_are_no_classes(tmp_path):
    """Folders named after the first two letters of video ids hold nothing that could be classified."""
    make(tmp_path, ["train/--/--0YwlG-GIM_000149.jpg", "val/--/--0YwlG-GIM_000149.jpg"])
    assert list(find_layouts(tmp_path)) == []


def test_real_data_is_recognized(shared):
    """The data beside the project is found whole."""
    found = {layout.root.name: layout.kind for layout in find_layouts(shared)}
    assert found["otb"] == "otb"
    assert found["got10k"] == "got10k"
    assert found["davis"] == "davis"
    assert found["gtsrb_clips"] == "videos"
    assert found["cifar10"] == "images"


def test_folders_that_cannot_be_listed_do_not_end_the_search(tmp_path, monkeypatch):
    """The root of a disk has lost+found, which only the system may read; others are reported."""
    make(tmp_path / "sets", LAYOUTS["images"])
    make(tmp_path, ["lost+found/x", "locked/x", "@eaDir/train/a/1.jpg", "@eaDir/val/a/1.jpg"])
    listdir = os.listdir

    def guarded(path):
        if str(path).endswith(("lost+found", "locked")):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", guarded)
    left_out = LeftOut(tmp_path)
    assert list(find_layouts(tmp_path, left_out=left_out)) == [("images", tmp_path / "sets")]
    assert left_out.notes == ("left out: 1 folder that cannot be listed (permission denied), such as locked",)
