"""Files below folders: which are videos, what is wrong with them, and an order that no file system decides."""

import os
from pathlib import Path

import pytest

from cyclecontrast.data.decode import SpreadEvenly, open_video
from cyclecontrast.data.folders import LeftOut, find_videos, mark_copies, natural_order

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases"


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


def test_what_is_no_video_is_counted_with_an_example(tmp_path):
    """Folders of the system, images and unknown suffixes are left out in one line; hidden files are no news."""
    names = ["a.mp4", "b/c.webm", "@eaDir/a.mp4/thumb.mp4", "b/$RECYCLE.BIN/x.mp4", "__MACOSX/a.mp4"]
    for name in [
        *names,
        "b/2.jpg",
        "b/10.jpg",
        "notes.txt",
        "noextension",
        "README",
        "train.txt",
        ".hidden.mp4",
        "system volume information/1",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    left_out = LeftOut(tmp_path)
    assert [video.id for video in find_videos(tmp_path, left_out)] == ["a.mp4", "b/c.webm"]
    assert left_out.notes == (
        "left out: 2 files without the suffix of a video, such as noextension; "
        "4 folders of the system, such as @eaDir; 2 images, such as b/2.jpg",
    )
    assert LeftOut(tmp_path).notes == ()


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
def test_playable_files_are_found_whatever_their_suffix():
    """Raw streams, recordings and rare names of usual containers are videos, and they decode."""
    found = find_videos(CASES / "suffix")
    assert [Path(video.id).suffix for video in found] == [".hevc", ".obu", ".m2t", ".h264", ".mpeg4", ".3gpp"]
    for video in found:
        with open_video(video.path, 10**6) as opened:
            assert len(list(opened.frames(SpreadEvenly(4), 64))) == 4


def test_copies_are_found_by_their_bytes(tmp_path):
    """Equal size, equal ends and equal names do not make a copy; equal bytes do, whatever the name."""
    middle = bytes(300_000)
    contents = {"a.mp4": b"12", "b/a.mp4": b"34", "c.mp4": b"12", "d.mp4": b"12", "e.mp4": middle, "f.mp4": b""}
    contents |= {"g.mp4": middle[:150_000] + b"1" + middle[150_001:], "h.mp4": b"", "i.mp4": middle}
    (tmp_path / "b").mkdir()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    videos = find_videos(tmp_path)
    copies = {video.id: video.reason for video in mark_copies(videos) if video.reason != ""}
    assert {name: copies[name] for name in ("c.mp4", "d.mp4", "i.mp4")} == {
        "c.mp4": "same bytes as another video (a.mp4)",
        "d.mp4": "same bytes as another video (a.mp4)",
        "i.mp4": "same bytes as another video (e.mp4)",
    }
    assert sum("same bytes" in reason for reason in copies.values()) == 3
    known = {video.id: video.reason for video in mark_copies(videos, known=["d.mp4"])}
    assert (known["a.mp4"], known["d.mp4"]) == ("same bytes as another video (d.mp4)", "")
