"""Frames on disk, however they lie: found by number, read with one read, and clear words where they cannot be."""

import gc
import io
import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cyclecontrast.data import frame_bytes as module
from cyclecontrast.data import table_files
from cyclecontrast.data.folder_walk import natural_order
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.images import decode_image, resize_short_side
from cyclecontrast.errors import UserError


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
    """The single line that opening tells the user."""
    with pytest.raises(UserError) as caught:
        FrameStore.open(path)
    (line,) = caught.value.problems
    assert "\n" not in line
    assert str(path) in line
    return line


# --- folders of images


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


def test_natural_order_is_total():
    """Names that differ in leading zeros only have an order of their own, not that of the file system."""
    names = ["f1", "f01", "f001", "f1a", "f", "f10", "g", "1", "", "٣"]
    assert len({natural_order(name) for name in names}) == len(names)
    backwards = names[::-1]
    assert sorted(names, key=natural_order) == sorted(backwards, key=natural_order)
    assert sorted(["f10", "f2", "f1b", "f1"], key=natural_order) == ["f1", "f1b", "f2", "f10"]


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


def test_folders_without_images_are_told(tmp_path):
    """An empty folder, one of text, an absent one and a file are each one clear line."""
    assert "holds no images" in problem_of(tmp_path)
    tree(tmp_path, "a/notes.txt")
    assert "holds no images" in problem_of(tmp_path)
    assert "no such folder" in problem_of(tmp_path / "absent")
    assert "no such folder" in problem_of(tmp_path / "a" / "notes.txt")


def test_a_name_that_is_not_utf8_is_told(tmp_path):
    """A name that cannot be written to tables is named, not a traceback."""
    tree(tmp_path, "a/1.jpg")
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(UserError, match=r"caf.*not UTF-8"):
        FrameStore.open(tmp_path)


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    """A folder that may not be opened is not left out in silence."""
    tree(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(UserError, match=r"/b: cannot be listed \(Permission denied\)"):
        FrameStore.open(tmp_path)


def test_an_unreadable_frame_is_named(tmp_path):
    """The error of a broken frame says which frame of which video it is."""
    tree(tmp_path, "a/v/1.jpg", "b/1.jpg")
    with pytest.raises(UserError, match="frame 0 of a/v: the image does not decode"):
        FrameStore.open(tmp_path).image(0, 0)
    (tmp_path / "a" / "v" / "1.jpg").unlink()
    (tmp_path / "a" / "v" / "2.jpg").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"frame 0 of a/v: .*No such file"):
        FrameStore.open(tmp_path).image(0, 0)


def test_real_tracks_open_in_order(shared):
    """The GTSRB tracks are 556 videos of 15 frames each, decoded to RGB."""
    store = FrameStore.open(shared / "video_frames" / "gtsrb" / "frames")
    assert (store.num_videos, store.num_frames) == (556, 8340)
    assert store.image(3, 14).shape[2] == 3


# --- prepared stores


def columns():
    """Frames of three videos, as a prepared store of two shards has them."""
    return {
        "video": ["b/2.mp4", "b/2.mp4", "a.avi", "a.avi", "a.avi", "ü.mkv"],
        "index": [0, 1, 0, 1, 2, 0],
        "time": [0.0, 0.5, 0.0, 0.04, 0.08, 0.0],
        "shard": [0, 0, 0, 0, 0, 1],
        "offset": [512 * i for i in (1, 3, 5, 7, 9, 1)],
        "size": [10, 11, 12, 13, 14, 15],
        "width": [3] * 6,
        "height": [2] * 6,
    }


KINDS = {"video": pa.string(), "time": pa.float64(), "offset": pa.int64()}


def write_frames(root, values):
    """Write frames.parquet with these columns."""
    arrays = {name: pa.array(value, KINDS.get(name, pa.int32())) for name, value in values.items()}
    pq.write_table(pa.table(arrays), root / "frames.parquet", row_group_size=2)


def content(row):
    """What the frame of this row holds."""
    values = columns()
    return (f"{row}:" + "x" * 20).encode()[: values["size"][row]]


@pytest.fixture
def root(tmp_path):
    """A prepared store written by hand."""
    root = tmp_path / "store"
    (root / "shards").mkdir(parents=True)
    (root / "store.json").write_text('{"format": "cyclecontrast-frames", "version": 1, "settings": {}}')
    values = columns()
    write_frames(root, values)
    for shard in (0, 1):
        data = bytearray()
        for row in range(6):
            if values["shard"][row] == shard:
                data[len(data) :] = bytes(values["offset"][row] - len(data)) + content(row)
        (root / "shards" / f"{shard:06d}.tar").write_bytes(data)
    return root


def read_all(store):
    """Every frame's bytes, video after video."""
    return [store.read(v, i) for v in range(store.num_videos) for i in range(store.frames_in(v))]


def test_a_prepared_store_reads_by_number(root):
    """Ids, counts, times and bytes are those of the tables and tars."""
    store = FrameStore.open(root)
    assert [store.video_id(v) for v in range(3)] == ["b/2.mp4", "a.avi", "ü.mkv"]
    assert [store.frames_in(v) for v in range(3)] == [2, 3, 1]
    assert store.num_frames == 6
    assert store.time(1, 2) == 0.08
    assert read_all(store) == [content(row) for row in range(6)]
    assert store.find("ü.mkv") == 2


def test_a_frame_is_one_positioned_read(root, monkeypatch):
    """Reading a frame costs one pread, and a shard is opened once."""
    calls = []
    pread, opened = os.pread, os.open
    monkeypatch.setattr(os, "pread", lambda *args: calls.append("pread") or pread(*args))
    store = FrameStore.open(root)
    monkeypatch.setattr(os, "open", lambda *args, **more: calls.append("open") or opened(*args, **more))
    read_all(store)
    assert calls.count("pread") == 6
    assert calls.count("open") == 2


def num_handles(root):
    """How many of this store's shards the process holds open; other tests' stores may still wait for the collector."""
    opened = [Path(os.path.realpath(f"/proc/self/fd/{handle}")) for handle in os.listdir("/proc/self/fd")]
    return sum(path.suffix == ".tar" and path.is_relative_to(root.resolve()) for path in opened)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_open_handles_are_bounded_and_given_back(root, monkeypatch):
    """A store of very many shards does not use up the process's files, and a dropped store gives them back."""
    monkeypatch.setattr(module, "MOST_HANDLES", 1)
    store = FrameStore.open(root)
    for _ in range(2):
        assert read_all(store) == [content(row) for row in range(6)]
    assert num_handles(root) == 1
    del store
    assert num_handles(root) == 0


def num_shared():
    """How many handles of memory that is shared the process holds."""
    return sum("memfd" in os.path.realpath(f"/proc/self/fd/{handle}") for handle in os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_the_memory_of_a_dropped_store_is_given_back(root):
    """What workers share goes with the last store that uses it, and nobody can write to it."""
    gc.collect()
    before = num_shared()
    store = FrameStore.open(root)
    assert num_shared() > before
    with pytest.raises(ValueError, match="read-only"):
        store.starts[0] = 1
    copy = pickle.loads(pickle.dumps(store))
    del store
    assert copy.starts.tolist() == [0, 2, 5, 6]
    del copy
    assert num_shared() == before


def send_all(store, pipe):
    """What a worker process does."""
    pipe.send((store.fingerprint, read_all(store)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_store_works_in_workers(root, method):
    """A store whose shards are already open reads the same in forked and in spawned processes."""
    store = FrameStore.open(root)
    expected = (store.fingerprint, read_all(store))
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    worker = context.Process(target=send_all, args=(store, there))
    worker.start()
    assert here.poll(60)
    assert here.recv() == expected
    worker.join()
    assert (store.fingerprint, read_all(store)) == expected


def test_a_store_survives_pickling(root, tmp_path):
    """A copy reads the same frames through handles of its own."""
    tree(tmp_path / "tree", "a/1.jpg", "b/2.jpg")
    for place in (root, tmp_path / "tree"):
        store = FrameStore.open(place)
        frames = read_all(store)
        copy = pickle.loads(pickle.dumps(store))
        assert (copy.fingerprint, read_all(copy)) == (store.fingerprint, frames)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_a_table_is_read_in_any_number_of_batches(root, monkeypatch, rows):
    """A video may go on in the next batch of rows, and what is out of order between two batches is told."""
    monkeypatch.setattr(table_files, "ROWS_PER_BATCH", rows)
    store = FrameStore.open(root)
    assert [store.frames_in(v) for v in range(3)] == [2, 3, 1]
    assert read_all(store) == [content(row) for row in range(6)]
    assert [store.time(1, index) for index in range(3)] == [0.0, 0.04, 0.08]
    for row in range(6):
        for name, value in (("index", 7), ("video", "b/2.mp4" if row > 2 else "ü.mkv")):
            values = columns()
            values[name][row] = value
            write_frames(root, values)
            assert "not in order" in problem_of(root), (name, row)


def test_groups_without_rows_are_passed_over(root):
    """A table may have been written in parts, some of them empty."""
    table = pq.read_table(root / "frames.parquet")
    with pq.ParquetWriter(root / "frames.parquet", table.schema) as writer:
        for part in (table[:0], table[:3], table[:0], table[3:], table[:0]):
            writer.write_table(part)
    assert read_all(FrameStore.open(root)) == [content(row) for row in range(6)]


@pytest.mark.parametrize("offset", [2**32 - 512, 2**32, 2**32 + 512, 2**32 + 513, 2**41 + 1])
def test_shards_may_be_large(root, offset):
    """A frame is found beyond 4 GB of a shard, at the border of a block of a tar or not."""
    values = columns()
    values["offset"][4] = offset
    write_frames(root, values)
    with open(root / "shards" / "000000.tar", "r+b") as shard:
        shard.seek(offset)
        shard.write(content(4))
    store = FrameStore.open(root)
    assert read_all(store) == read_all(pickle.loads(pickle.dumps(store))) == [content(row) for row in range(6)]


def test_a_video_may_have_no_name(root):
    """Ids are any texts, the empty one too."""
    write_frames(root, {name: column[5:] for name, column in columns().items()} | {"video": [""]})
    store = FrameStore.open(root)
    assert (store.video_id(0), store.find(""), read_all(store)) == ("", 0, [content(5)])


def test_a_table_that_changes_while_in_use_is_told(root):
    """Times are read when they are asked for, and are never those of other frames."""
    store = FrameStore.open(root)
    write_frames(root, {name: column[:5] for name, column in columns().items()})
    with pytest.raises(UserError, match=r"frames.parquet: has changed since it was opened; give"):
        store.time(0, 0)
    (root / "frames.parquet").unlink()
    with pytest.raises(UserError, match=r"frames.parquet: No such file or directory; prepare the videos again"):
        store.time(0, 0)


def test_absent_videos_and_frames(root):
    """Numbers out of range are IndexError, unknown ids KeyError; negative numbers do not wrap."""
    store = FrameStore.open(root)
    for video, index in ((0, 2), (0, -1), (3, 0), (-1, 0)):
        with pytest.raises(IndexError):
            store.read(video, index)
        with pytest.raises(IndexError):
            store.time(video, index)
    with pytest.raises(KeyError):
        store.find("absent")


def change(name, value, row=2):
    """Give a function that changes one value of the table."""
    return lambda values: values[name].__setitem__(row, value)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (change("offset", -1), "frames.parquet: has numbers below 0 in offset"),
        (change("size", -5), "frames.parquet: has numbers below 0 in size"),
        (change("size", 10_000), "000000.tar: frames.parquet points outside of it (byte 12,560 of 4,622)"),
        (change("offset", 2**63 - 1), "points outside of it (byte 9,223,372,036,854,775,819 of 4,622)"),
        (change("offset", 512 * 3 + 4), "000000.tar: frames.parquet gives some of its bytes to two frames"),
        (change("shard", -3), "frames.parquet: has numbers below 0 in shard"),
        (change("shard", 2**31 - 1), "2147483647.tar: is missing"),
        (change("time", -np.inf), "frames.parquet: has infinite numbers in time"),
        (change("shard", 7), "000007.tar: is missing"),
        (change("video", "b/2.mp4", 5), "not in order"),
        (change("index", 5), "not in order"),
        (change("video", None), "gaps in video"),
        (change("offset", None), "gaps in offset"),
        (lambda values: values.pop("offset"), "lacks offset"),
        (lambda values: [values.pop(name) for name in ("video", "time")], "lacks video, time"),
        (lambda values: [column.clear() for column in values.values()], "holds no frames"),
    ],
)
def test_wrong_tables_are_told(root, spoil, told):
    """Whatever is wrong in frames.parquet is one line that says where, never other frames' pixels."""
    values = columns()
    spoil(values)
    write_frames(root, values)
    assert told in problem_of(root)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("offset", pa.string()), ("offset", pa.float64()), ("size", pa.int64()), ("time", pa.int32()), ("video", None)],
)
def test_wrong_types_are_told(root, name, kind):
    """A column of another type is one line, though its values could be cast."""
    write_frames(root, columns())
    table = pq.read_table(root / "frames.parquet")
    column = pa.array([0] * 6) if kind is None else table[name].cast(kind, safe=False)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), root / "frames.parquet")
    assert f"frames.parquet: has {column.type} for {KINDS.get(name, pa.int32())} in {name};" in problem_of(root)


def test_times_may_be_unknown_and_run_backwards(root):
    """Keyframes have no time in some videos, and begin anew where a recording was joined to another."""
    values = columns()
    values["time"] = [np.nan, 3.0, 1.0, 2.0, -0.5, np.nan]
    write_frames(root, values)
    store = FrameStore.open(root)
    assert np.isnan(store.time(0, 0))
    assert store.time(1, 2) == -0.5


def test_the_order_of_shards_is_free(root):
    """Videos may stand in another order than their bytes, as in a table that somebody has sorted."""
    values = columns()
    write_frames(root, {name: [*column[5:], *column[:5]] for name, column in values.items()})
    store = FrameStore.open(root)
    assert [store.video_id(v) for v in range(3)] == ["ü.mkv", "b/2.mp4", "a.avi"]
    assert read_all(store) == [content(row) for row in (5, 0, 1, 2, 3, 4)]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', '{"format": "cyclecontrast-frames", "version": 2}', "ÿ"]
)
def test_wrong_descriptions_are_told(root, text):
    """A store.json that is broken, of another version or something else is one line."""
    (root / "store.json").write_bytes(text.encode("latin-1"))
    assert "store.json: is not of a frame store of version 1" in problem_of(root)


def test_unfinished_and_damaged_stores_are_told(root):
    """A cut or missing shard, garbage for a table and an unfinished store are each one line with what to do."""
    shard = root / "shards" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "points outside of it (byte 4,622 of 4,621)" in problem_of(root)
    shard.unlink()
    assert "000000.tar: is missing" in problem_of(root)
    (root / "frames.parquet").write_bytes(b"PAR1 not really")
    assert "cannot be read" in problem_of(root)
    (root / "frames.parquet").write_bytes(b"")
    assert "cannot be read" in problem_of(root)
    (root / "frames.parquet").unlink()
    assert "not finished; run the same `cyclecontrast prepare` again" in problem_of(root)


def test_many_missing_shards_fit_on_one_screen(root):
    """A folder without its thousand shards does not print a thousand lines."""
    values = columns()
    values = {name: [column[0]] * 1000 for name, column in values.items()}
    values |= {"shard": list(range(2, 1002)), "video": [f"v{i}" for i in range(1000)]}
    write_frames(root, values)
    with pytest.raises(UserError) as caught:
        FrameStore.open(root)
    assert len(caught.value.problems) == 11
    assert "990 other shards" in caught.value.problems[-1]


def test_a_shard_cut_while_in_use_is_told(root):
    """A shard that shrinks after opening gives an error, not half a frame."""
    store = FrameStore.open(root)
    (root / "shards" / "000001.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"000001.tar is shorter than frames.parquet says"):
        store.image(2, 0)


def test_the_fingerprint_names_the_content(root, tmp_path):
    """Moving a store keeps its fingerprint; other ids, counts or places change it."""
    seen = {FrameStore.open(root).fingerprint}
    moved = shutil.copytree(root, tmp_path / "moved")
    assert FrameStore.open(moved).fingerprint in seen
    for name, value, row in (("video", "c", 5), ("offset", 600, 5), ("size", 9, 0), ("shard", 1, 4)):
        values = columns()
        values[name][row] = value
        (root / "shards" / "000001.tar").write_bytes(bytes(5000))
        write_frames(root, values)
        seen.add(FrameStore.open(root).fingerprint)
    write_frames(root, {name: column[:5] for name, column in columns().items()})
    seen.add(FrameStore.open(root).fingerprint)
    assert len(seen) == 6


def test_the_fingerprint_stays_what_it_is(root, tmp_path):
    """It names the data in runs and results, so a store has the same one in any version of this program."""
    assert FrameStore.open(root).fingerprint == "a7b261294bae2ebf"
    assert FrameStore.open(tree(tmp_path / "tree", "a/1.jpg", "b/2.jpg")).fingerprint == "d899e410632c2d7c"


def test_the_fingerprint_of_a_tree(tmp_path):
    """Moving a tree keeps its fingerprint; other names, another grouping or one frame more change it."""
    seen = {FrameStore.open(tree(tmp_path / name, "a/1.jpg", "b/2.jpg")).fingerprint for name in ("one", "two")}
    assert len(seen) == 1
    for number, names in enumerate((["a/1.jpg", "c/2.jpg"], ["a/1.jpg", "b/3.jpg"], ["a/1.jpg", "b/2.jpg", "b/3.jpg"])):
        seen.add(FrameStore.open(tree(tmp_path / str(number), *names)).fingerprint)
    assert len(seen) == 4


def test_store_json_needs_only_its_two_words(root):
    """Whatever else store.json says does not matter to reading."""
    (root / "store.json").write_text(json.dumps({"version": 1, "format": "cyclecontrast-frames"}))
    assert FrameStore.open(root).num_frames == 6


# --- pixels


def encoded(image, kind, **options):
    """An image file written by Pillow."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RGB = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_images_decode_to_rgb(kind):
    """Red stays red: channels come in the order R, G, B."""
    assert np.array_equal(decode_image(encoded(Image.fromarray(RGB), kind)), RGB)


def test_other_depths_and_channels_decode_to_rgb():
    """Gray becomes three equal channels, 16 bits become 8, alpha and palettes are resolved."""
    gray = RGB[..., 0]
    for data in (
        encoded(Image.fromarray(gray), "PNG"),
        encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"),
        encoded(Image.fromarray(gray), "JPEG", quality=100),
    ):
        image = decode_image(data)
        assert (image.dtype, image.shape) == (np.uint8, (5, 8, 3))
        assert np.abs(image.astype(int) - gray[..., None]).max() <= 2
    alpha = Image.fromarray(np.dstack([RGB, np.full((5, 8), 99, np.uint8)]))
    assert np.array_equal(decode_image(encoded(alpha, "PNG")), RGB)
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode_image(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))


def test_a_rotated_jpeg_stands_upright():
    """The orientation in EXIF is applied."""
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None, None], (32, 16, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(encoded(Image.fromarray(np.ascontiguousarray(ramp)), "JPEG", exif=exif, quality=100))
    assert image.shape == (16, 32, 3)
    assert image[:, 0].mean() > 240
    assert image[:, -1].mean() < 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0, 1, 20, 0.5, 0.9])
def test_broken_bytes_are_a_value_error(kind, kept):
    """Empty, cut and foreign bytes do not decode to something."""
    data = encoded(Image.fromarray(np.tile(RGB, (20, 20, 1))), kind)
    with pytest.raises(ValueError, match="image"):
        decode_image(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(ValueError, match="does not decode"):
        decode_image(b"GIF of a cat" * 10)


@pytest.mark.parametrize(("shape", "expected"), [((40, 60), (20, 30)), ((60, 40), (30, 20)), ((10, 10), (20, 20))])
def test_the_short_side_is_resized(shape, expected):
    """The short side gets the size asked for, the other follows; a constant image stays constant."""
    image = resize_short_side(np.full((*shape, 3), 77, np.uint8), 20)
    assert image.shape == (*expected, 3)
    assert (image == 77).all()


def test_shrinking_averages_and_nothing_is_done_at_size():
    """A fine checkerboard becomes gray, not noise; an image of the size comes back as it is."""
    board = (np.indices((40, 40)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.abs(resize_short_side(board, 20).astype(int) - 127.5).max() <= 1
    assert resize_short_side(board, 40) is board
    assert resize_short_side(np.zeros((1, 500, 3), np.uint8), 3).shape == (3, 1500, 3)
