"""Prepared stores: frames by number with one read each, and clear messages for tables and shards that do not fit."""

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

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data import store as store_module
from cyclecontrast.data import tables
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError


def tree(root, *names):
    """Make image files whose bytes are their own names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def problem_of(path):
    """The single line of the error that opening raises."""
    with pytest.raises(UserError) as caught:
        FrameStore.open(path)
    (line,) = caught.value.problems
    assert "\n" not in line
    assert str(path) in line
    return line


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
    monkeypatch.setattr(store_module, "MAX_HANDLES", 1)
    store = FrameStore.open(root)
    for _ in range(2):
        assert read_all(store) == [content(row) for row in range(6)]
    assert num_handles(root) == 1
    del store
    assert num_handles(root) == 0


def test_a_copy_of_a_store_is_independent(root):
    """A pickle holds the numbers themselves, and nobody can write to those that workers share."""
    store = FrameStore.open(root)
    with pytest.raises(ValueError, match="read-only"):
        store.starts[0] = 1
    copy = pickle.loads(pickle.dumps(store))
    del store
    assert copy.starts.tolist() == [0, 2, 5, 6]


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
    """A video may continue in the next batch of rows; wrong order between two batches is an error."""
    monkeypatch.setattr(tables, "ROWS_PER_BATCH", rows)
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


def test_a_table_that_changes_while_in_use_is_reported(root):
    """Times are read on first use, and are never those of other frames."""
    store = FrameStore.open(root)
    write_frames(root, {name: column[:5] for name, column in columns().items()})
    with pytest.raises(UserError, match=r"frames.parquet: has changed since it was opened; run"):
        store.time(0, 0)
    (root / "frames.parquet").unlink()
    with pytest.raises(UserError, match=r"frames.parquet: No such file or directory; run `cyclecontrast prepare"):
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
    ("spoil", "message"),
    [
        (change("offset", -1), "frames.parquet: has numbers below 0 in offset"),
        (change("size", -5), "frames.parquet: has numbers below 0 in size"),
        (change("size", 10_000), "000000.tar: frames.parquet points outside of it (byte 12,560 of 4,622)"),
        (change("offset", 2**63 - 1), "points outside of it (byte 9,223,372,036,854,775,819 of 4,622)"),
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
def test_wrong_tables_are_reported(root, spoil, message):
    """Whatever is wrong in frames.parquet is one line that says where, never other frames' pixels."""
    values = columns()
    spoil(values)
    write_frames(root, values)
    assert message in problem_of(root)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("offset", pa.string()), ("offset", pa.float64()), ("size", pa.int64()), ("time", pa.int32()), ("video", None)],
)
def test_wrong_types_are_reported(root, name, kind):
    """A column of another type is one line, though its values could be cast."""
    write_frames(root, columns())
    table = pq.read_table(root / "frames.parquet")
    column = pa.array([0] * 6) if kind is None else table[name].cast(kind, safe=False)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), root / "frames.parquet")
    assert f"frames.parquet: has {column.type} for {KINDS.get(name, pa.int32())} in {name};" in problem_of(root)


def test_times_may_be_unknown_and_run_backwards(root):
    """Keyframes have no time in some videos, and restart where recordings were joined."""
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
def test_wrong_descriptions_are_reported(root, text):
    """A store.json that is broken, of another version or something else is one line."""
    (root / "store.json").write_bytes(text.encode("latin-1"))
    assert "store.json: is not of a frame store of version 1" in problem_of(root)


def test_a_store_without_its_description_is_no_folder_of_images(root):
    """Where only store.json is missing, reading and `prepare` name it."""
    (root / "store.json").unlink()
    line = f"{root / 'store.json'} is missing; restore this file, or prepare the videos into a new folder"
    assert problem_of(root) == line
    (root.parent / "videos").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"store\.json is missing; restore this file"):
        prepare(PrepareConfig(videos=root.parent / "videos", out=root))


def test_unfinished_and_damaged_stores_are_reported(root):
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


def test_a_shard_cut_while_in_use_is_reported(root):
    """A shard that shrinks after opening gives an error, not half a frame."""
    store = FrameStore.open(root)
    (root / "shards" / "000001.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"000001.tar: frame 0 of ü.mkv: is shorter than frames.parquet says"):
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


def test_store_json_needs_only_its_two_words(root):
    """Whatever else store.json says does not matter to reading."""
    (root / "store.json").write_text(json.dumps({"version": 1, "format": "cyclecontrast-frames"}))
    assert FrameStore.open(root).num_frames == 6
