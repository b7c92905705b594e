"""Files below folders: which are videos, what is wrong with them, and an order that no file system decides."""

import os

import pytest

from cyclecontrast.data.folders import find_videos, natural_order


def test_natural_order_is_total():
    """Names that differ in leading zeros only have an order of their own, not that of the file system."""
    names = ["f1", "f01", "f001", "f1a", "f", "f10", "g", "1", "", "٣"]
    assert len({natural_order(name) for name in names}) == len(names)
    backwards = names[::-1]
    assert sorted(names, key=natural_order) == sorted(backwards, key=natural_order)
    assert sorted(["f10", "f2", "f1b", "f1"], key=natural_order) == ["f1", "f1b", "f2", "f10"]


def test_find_videos(tmp_path):
    """Suffixes of any case, all depths, unicode names, links; no dotfiles, no other files, sorted by id."""
    root = tmp_path / "videos"
    names = ["b/clip.mp4", "a/clip.mp4", "UP.MP4", "ünï/видео 1.mkv", "x.mp4/inner.webm", "B.avi"]
    for name in [*names, ".hidden.mp4", ".cache/a.mp4", "notes.txt", "a/clip.jpg"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.mov").write_bytes(b"1")
    (root / "link").symlink_to(elsewhere)
    (root / "linked.mp4").symlink_to(elsewhere / "far.mov")
    (root / "a" / "loop").symlink_to(root)
    found = find_videos(root)
    assert [video.id for video in found] == sorted([*names, "link/far.mov", "linked.mp4"])
    assert all(video.path == root / video.id and not video.reason for video in found)
    assert {video.size_bytes for video in found} == {5, 1}


def test_names_and_files_that_cannot_be_opened_are_found_with_a_reason(tmp_path):
    """A name that is not UTF-8, a link to nowhere and a pipe are reported instead of ending the search."""
    try:
        (tmp_path / os.fsdecode(b"bad\xff.mp4")).write_bytes(b"1")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    assert [(video.id, video.reason) for video in find_videos(tmp_path)] == [
        ("bad\\xff.mp4", "the name is not valid UTF-8"),
        ("broken.mp4", "no such file"),
        ("pipe.mp4", "not a regular file"),
    ]
