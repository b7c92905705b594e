"""Folders of images: how they are split into videos, and clear messages where they cannot be read."""

import os
from pathlib import Path

import numpy as np
import pytest

from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases"


def tree(root, *names):
    """Make image files whose bytes are their own names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def listing(store):
    """Every video's id with the content of its frames."""
    return {
        store.video_id(v): [store.read(v, i).decode() for i in range(store.frames_in(v))]
        for v in range(store.num_videos)
    }


def problem_of(path):
    """The single line of the error that opening raises."""
    with pytest.raises(UserError) as caught:
        FrameStore.open(path)
    (line,) = caught.value.problems
    assert "\n" not in line
    assert str(path) in line
    return line


def test_a_leaf_folder_is_a_video_in_natural_order(tmp_path):
    """Frame 2 comes before frame 10, whatever the file system lists first; suffixes may be upper-case."""
    tree(tmp_path, "x/y/frame_10.jpg", "x/y/frame_2.JPG", "x/y/frame_1.PNG", "x/z/1.webp", "ünï cödé/ß 1.jpeg")
    tree(tmp_path, "x/y/.hidden.jpg", ".trash/1.jpg", "x/y/notes.txt", "x/empty.txt")
    store = FrameStore.open(tmp_path)
    assert listing(store) == {
        "x/y": ["x/y/frame_1.PNG", "x/y/frame_2.JPG", "x/y/frame_10.jpg"],
        "x/z": ["x/z/1.webp"],
        "ünï cödé": ["ünï cödé/ß 1.jpeg"],
    }
    assert (store.layout, store.num_videos, store.num_frames) == ("tree of frames", 3, 5)
    assert [store.find(store.video_id(v)) for v in range(3)] == [0, 1, 2]
    assert np.isnan(store.time(0, 0))


def test_links_are_followed_but_not_in_circles(tmp_path):
    """A linked folder is a video, and a link to a parent ends the search there."""
    tree(tmp_path, "far/v/1.jpg", "root/a/1.jpg")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "far" / "v")
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root")
    assert listing(FrameStore.open(tmp_path / "root")) == {"a": ["root/a/1.jpg"], "linked": ["far/v/1.jpg"]}


def test_a_flat_folder_holds_videos_of_one_image(tmp_path):
    """Images directly in the folder are each a video of their own."""
    store = FrameStore.open(tree(tmp_path, "b10.jpg", "b2.png", "notes.txt"))
    assert store.layout == "flat folder of images"
    assert listing(store) == {"b2.png": ["b2.png"], "b10.jpg": ["b10.jpg"]}


@pytest.mark.parametrize("split", ["", "train/"])
def test_r2v2_is_parsed_by_width(tmp_path, split):
    """Ids may hold - and _, folders may be -- or -_, and below train/ the ids say so."""
    names = ["--/--0YwlG-GIM_000149", "--/--0YwlG-GIM_000299", "--/--0YwlG-GIN_000001", "-_/-__-_-_-_-__000150"]
    names += ["AB/AB_00000000_000150", "AB/AB_00000000_000009"]
    store = FrameStore.open(tree(tmp_path, *(f"{split}{name}.jpg" for name in names)))
    assert {key: len(value) for key, value in listing(store).items()} == {
        f"{split}--0YwlG-GIM": 2,
        f"{split}--0YwlG-GIN": 1,
        f"{split}-__-_-_-_-_": 1,
        f"{split}AB_00000000": 2,
    }
    assert store.read(store.find(f"{split}AB_00000000"), 0).endswith(b"_000009.jpg")


def test_r2v2_on_a_disk_without_case(tmp_path):
    """Where AB and ab are one folder, their videos still are two; a stray image does not merge the others."""
    tree(tmp_path, "AB/ABcdefghijk_000001.jpg", "AB/abcdefghijk_000001.jpg", "AB/thumb.jpg")
    assert sorted(listing(FrameStore.open(tmp_path))) == ["AB", "ABcdefghijk", "abcdefghijk"]


def test_folders_without_images_are_reported(tmp_path):
    """An empty folder, one of text, an absent one and a file are each one clear line."""
    assert "holds no images" in problem_of(tmp_path)
    tree(tmp_path, "a/notes.txt")
    assert "holds no images" in problem_of(tmp_path)
    assert "no such folder" in problem_of(tmp_path / "absent")
    assert "no such folder" in problem_of(tmp_path / "a" / "notes.txt")


def test_a_name_that_is_not_utf8_is_reported(tmp_path):
    """A name that cannot be written to tables is named, not a traceback."""
    tree(tmp_path, "a/1.jpg")
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(UserError, match=r"caf.*not UTF-8"):
        FrameStore.open(tmp_path)


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path, monkeypatch):
    """A folder that may not be opened is left out, but not in silence; the root itself is refused."""
    tree(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    store = FrameStore.open(tmp_path)
    assert list(listing(store)) == ["a"]
    assert store.notes == ("left out: 1 folder that cannot be listed (permission denied), such as b",)
    with pytest.raises(UserError, match=r"/b: cannot be listed \(Permission denied\)"):
        FrameStore.open(tmp_path / "b")


def test_what_is_no_frame_is_left_out_and_counted(tmp_path):
    """Thumbnails of network storage, videos, other files and images of the root are named in one line."""
    tree(tmp_path, "a/0.jpg", "a/1.jfif", "b/0.png", "a/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/a/9.jpg")
    tree(tmp_path, "train.txt", "test.txt", "classes.txt", "README.md")  # those of a dataset are no news
    tree(tmp_path, "cover.jpg", "a/clip.mp4", "a/0.heic", "b/notes.txt", "LOST+FOUND/#12.jpg", ".@__thumb/0.jpg")
    store = FrameStore.open(tmp_path)
    assert listing(store) == {"a": ["a/0.jpg", "a/1.jfif"], "b": ["b/0.png"]}
    (note,) = store.notes
    assert note == (
        "left out: 2 files without the suffix of an image, such as a/0.heic; "
        "3 folders of the system, such as #recycle; "
        "1 image beside the folders of images, such as cover.jpg; 1 video, such as a/clip.mp4"
    )
    assert FrameStore.open(tree(tmp_path / "flat", "0.jpg", "1.jpg")).notes == ()


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
def test_real_trees_of_network_storage_hold_their_own_images_only():
    """Three videos of four images, not fifteen of thumbnails; five images of the root are counted."""
    store = FrameStore.open(CASES / "synology/frames")
    assert [store.frames_in(video) for video in range(store.num_videos)] == [4, 4, 4]
    assert store.notes == ("left out: 3 folders of the system, such as v0/@eaDir",)
    store = FrameStore.open(CASES / "root-images")
    assert store.num_frames == 9
    assert store.notes == ("left out: 5 images beside the folders of images, such as 0.jpg",)


def test_an_unreadable_frame_is_named(tmp_path):
    """The error of a broken frame says which frame of which video it is."""
    tree(tmp_path, "a/v/1.jpg", "b/1.jpg")
    with pytest.raises(UserError, match="frame 0 of a/v: the image does not decode"):
        FrameStore.open(tmp_path).image(0, 0)
    (tmp_path / "a" / "v" / "1.jpg").unlink()
    (tmp_path / "a" / "v" / "2.jpg").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"frame 0 of a/v: the file no longer exists"):
        FrameStore.open(tmp_path).image(0, 0)


def test_real_tracks_open_in_order(shared):
    """The GTSRB tracks are 556 videos of 15 frames each, decoded to RGB."""
    store = FrameStore.open(shared / "video_frames" / "gtsrb" / "frames")
    assert (store.num_videos, store.num_frames) == (556, 8340)
    assert store.image(3, 14).shape[2] == 3


def test_the_fingerprint_of_a_tree(tmp_path):
    """Moving a tree keeps its fingerprint; other names, another grouping or one frame more change it."""
    seen = {FrameStore.open(tree(tmp_path / name, "a/1.jpg", "b/2.jpg")).fingerprint for name in ("one", "two")}
    assert len(seen) == 1
    for number, names in enumerate((["a/1.jpg", "c/2.jpg"], ["a/1.jpg", "b/3.jpg"], ["a/1.jpg", "b/2.jpg", "b/3.jpg"])):
        seen.add(FrameStore.open(tree(tmp_path / str(number), *names)).fingerprint)
    assert len(seen) == 4
