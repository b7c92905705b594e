"""The resumable job `prepare`: what is in a store, that interruptions cannot damage it, and its messages."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data import decode, storage
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import FRAME_SCHEMA, member_name, read_videos, write_rows, write_videos
from cyclecontrast.errors import UserError, checked
from tests import make_videos as make

SCRIPT = """
import sys
from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.prepare import prepare

if __name__ == "__main__":
    try:
        videos, out, workers, *part = sys.argv[1:]
        options = {"workers": int(workers), "part": part[0] if part else None}
        print(prepare(PrepareConfig(videos=videos, out=out, every=5, **options)).line)
    except KeyboardInterrupt as stop:
        sys.exit(str(stop))
"""


def run(videos, out, **options):
    """Prepares in this process with every fifth frame, by default."""
    return prepare(PrepareConfig(videos=videos, out=out, **{"workers": 0, "every": 5, **options}))


def files_of(store):
    """Every file of a store with its bytes, the empty lock file apart."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def rows_of(table):
    """The rows of a table on disk."""
    return pq.read_table(table).to_pylist()


def problems_of(**config):
    """The lines that the user gets to see."""
    with pytest.raises(UserError) as caught:
        run(**config)
    return list(caught.value.problems)


@pytest.fixture
def videos(tmp_path):
    """Three good videos, two of them with the same stem, and two files that are none."""
    root = tmp_path / "videos"
    for name in ("a/clip.mp4", "b/clip.mp4", "ünï/UP 1.MKV"):
        (root / name).parent.mkdir(parents=True)
        make.write_numbered(root / name, num_frames=12)
    (root / "text.mp4").write_text("not a video")
    make.write_sound(root / "sound.mp4")
    return root


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """Eight videos of 0.7 MB, one shard each, and a damaged one."""
    root = tmp_path_factory.mktemp("many")
    for i in range(8):
        make.write_noise(root / f"{i}.mkv", seed=i)
    (root / "3.mkv").write_bytes((root / "3.mkv").read_bytes()[:400_000])
    (root / "text.mp4").write_text("not a video")
    return root


@pytest.fixture(scope="session")
def whole(many, tmp_path_factory):
    """The store of `many`, made without interruption in one process."""
    out = tmp_path_factory.mktemp("whole") / "store"
    run(many, out)
    return out


def test_store_has_a_row_for_every_video_and_every_frame(videos, tmp_path):
    """Tables, settings and summary say what was in the folder, frame for frame."""
    out = tmp_path / "made" / "store"
    summary = run(videos, out)
    assert summary.line == "3 videos, 9 frames, 2 skipped: 1 invalid data, 1 no video stream"
    assert summary.num_new == 5
    assert [
        (row["id"], row["status"], row["reason"], row["num_frames"]) for row in rows_of(out / "videos.parquet")
    ] == [
        ("a/clip.mp4", "ok", "", 3),
        ("b/clip.mp4", "ok", "", 3),
        ("sound.mp4", "skipped", "no video stream", 0),
        ("text.mp4", "skipped", "invalid data", 0),
        ("ünï/UP 1.MKV", "ok", "", 3),
    ]
    first = rows_of(out / "videos.parquet")[0]
    assert (first["path"], first["shard"], first["width"], first["height"]) == ("a/clip.mp4", 0, 64, 48)
    assert first["duration"] == pytest.approx(1.2)
    assert first["size_bytes"] == (videos / "a/clip.mp4").stat().st_size
    frames = rows_of(out / "frames.parquet")
    ids = ["a/clip.mp4", "b/clip.mp4", "ünï/UP 1.MKV"]
    assert [(row["video"], row["index"], row["time"]) for row in frames] == [
        (video_id, i, pytest.approx(i / 2)) for video_id in ids for i in range(3)
    ]


def test_each_frame_is_one_read_and_the_right_picture(videos, tmp_path):
    """The bytes at (shard, offset, size) are a JPEG of the frame of that time."""
    run(videos, tmp_path / "store", size=24)
    for row in rows_of(tmp_path / "store" / "frames.parquet"):
        with open(tmp_path / "store" / "shards" / f"{row['shard']:06d}.tar", "rb") as shard:
            data = os.pread(shard.fileno(), row["size"], row["offset"])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (row["height"], row["width"], 3) == (24, 32, 3)
        assert make.number_of(image) == round(row["time"] * 10)


def test_shards_are_read_by_tarfile_and_webdataset(videos, tmp_path):
    """Other tools see one sample per frame, with unique keys, and the same bytes."""
    run(videos, tmp_path / "store")
    path = tmp_path / "store" / "shards" / "000000.tar"
    rows = rows_of(tmp_path / "store" / "frames.parquet")
    names = [member_name(row["video"], row["index"]) for row in rows]
    data = path.read_bytes()
    contents = [data[row["offset"] : row["offset"] + row["size"]] for row in rows]
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [(m.name, m.mtime, m.uid, m.gid) for m in members] == [(name, 0, 0, 0) for name in names]
        assert [tar.extractfile(member).read() for member in members] == contents
    source = [{"url": str(path), "stream": io.BytesIO(data)}]
    expanded = webdataset.tariterators.tar_file_expander(source)
    samples = list(webdataset.tariterators.group_by_keys(expanded))
    assert [sample["__key__"] + ".jpg" for sample in samples] == names
    assert [sample["jpg"] for sample in samples] == contents
    assert names[0] == "a%2Fclip%2Emp4/000000.jpg"


def test_long_names_fit_into_a_shard(tmp_path):
    """A name beyond the 100 bytes of the old tar header keeps its offset right."""
    root = tmp_path / "videos"
    root.mkdir()
    make.write_numbered(root / ("ф" * 120 + ".mp4"), num_frames=2)
    run(root, tmp_path / "store", every=1)
    data = (tmp_path / "store/shards/000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [member.offset_data for member in tar.getmembers()] == [
            row["offset"] for row in rows_of(tmp_path / "store/frames.parquet")
        ]


def test_colors_survive_the_jpeg(tmp_path):
    """Red stays red in the stored frame."""
    (tmp_path / "videos").mkdir()
    red = np.full((48, 64, 3), (200, 20, 20), np.uint8)
    make.write_images(tmp_path / "videos/a.mkv", [red], codec="ffv1", pix_fmt="bgr0")
    run(tmp_path / "videos", tmp_path / "store")
    (row,) = rows_of(tmp_path / "store/frames.parquet")
    data = (tmp_path / "store/shards/000000.tar").read_bytes()[row["offset"] :][: row["size"]]
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(image.astype(int) - red).max() < 8


def test_bytes_do_not_depend_on_the_number_of_workers(many, whole, tmp_path, capfd):
    """One process, one worker and two make the same files, and say nothing where there is no terminal."""
    assert len(list((whole / "shards").glob("*.tar"))) == 8
    for workers in (1, 2):
        run(many, tmp_path / str(workers), workers=workers)
        assert files_of(tmp_path / str(workers)) == files_of(whole)
    assert capfd.readouterr() == ("", "")


def test_parts_together_make_the_same_store(many, whole, tmp_path):
    """Three machines in any order, one of them twice: the last joins, and the store is that of one machine."""
    out = tmp_path / "store"
    first = run(many, out, part="3/3")
    assert str(first).startswith("part 3/3: 2 videos, ")
    assert "; the store is complete once the other parts have made 6 shards" in str(first)
    with pytest.raises(UserError, match="is not finished; run the same"):
        FrameStore.open(out)
    assert run(many, out, part="1/3", workers=2).num_left == 3
    assert "part 1/3: nothing new: " in str(run(many, out, part="1/3"))
    last = run(many, out, part="2/3")
    assert (last.num_videos, last.num_frames, last.num_left) == (8, 30, 0)
    assert str(last).startswith("8 videos, 30 frames")
    assert files_of(out) == files_of(whole)


def test_parts_at_once_make_the_same_store(many, whole, tmp_path):
    """Two processes that begin together, one of which is killed and begun again."""
    out = tmp_path / "store"
    one, two = (start(many, out, 1, f"{number}/2") for number in (1, 2))
    wait_for(one, out, "shards/*.tar")
    with pytest.raises(UserError, match=r"part: .* is in use by process \d+ on "):
        run(many, out, part="1/2")
    one.kill()
    one.communicate()
    assert two.communicate()[1] == ""
    assert "8 videos, 30 frames" in str(run(many, out, part="1/2"))
    assert files_of(out) == files_of(whole)


def test_all_of_a_store_is_refused_while_a_part_is_made(many, tmp_path):
    """A command without --part would write the same shards; it names the process that makes a part."""
    out = tmp_path / "store"
    process = start(many, out, 0, "1/2")
    wait_for(process, out, "shards/*.part")
    with pytest.raises(UserError, match=rf"out: {out} is in use by process {process.pid}"):
        run(many, out)
    process.kill()
    process.communicate()
    assert run(many, out).num_videos == 8
    assert not list(out.glob(".lock-*"))


@pytest.mark.parametrize("part", ["0/2", "3/2", "1/0", "1", "1/2/3", "-1/2", "a/b"])
def test_a_part_is_one_of_all(videos, tmp_path, part):
    """Parts are counted from 1 to their number, or refused before anything is written."""
    with pytest.raises(UserError, match=r"^part: "):
        checked(PrepareConfig, {"videos": videos, "out": tmp_path / "store", "part": part})


def start(videos, out, workers, part=None):
    """Prepares in a process, and process group, of its own, which Ctrl-C reaches even where the tests are shielded."""
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    arguments = [sys.executable, str(script), str(videos), str(out), str(workers), *([part] if part else [])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(arguments, start_new_session=True, preexec_fn=heed, **pipes)


def wait_for(process, out, pattern):
    """Until a file of that name is there, or the process has ended."""
    while process.poll() is None and not list(out.glob(pattern)):
        time.sleep(0.0005)


@pytest.mark.long
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(many, whole, tmp_path):
    """kill -9 while planning, writing, committing and joining; the last run ends as if nothing had been."""
    out = tmp_path / "store"
    moments = ["videos.parquet", "shards/000001.frames.parquet", "shards/000005.tar", "frames.parquet*"]
    for workers, moment in enumerate(moments):
        process = start(many, out, workers % 3)
        wait_for(process, out, moment)
        process.kill()
        process.communicate()
    last = start(many, out, 2)
    stdout, stderr = last.communicate()
    assert (last.returncode, stderr) == (0, "")
    assert "8 videos, 30 frames" in stdout
    assert files_of(out) == files_of(whole)


def test_interrupt_ends_cleanly_and_says_how_to_resume(many, whole, tmp_path):
    """Ctrl-C, which reaches the workers too, leaves one line and a store that the same command completes."""
    out = tmp_path / "store"
    process = start(many, out, 2)
    wait_for(process, out, "shards/*.part")
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate() == ("", "stopped; the same command resumes it\n")
    assert process.returncode == 1
    run(many, out)
    assert files_of(out) == files_of(whole)


def test_a_second_run_does_nothing_or_adds_what_is_new(videos, tmp_path):
    """Old shards keep their bytes; new and repaired videos go into new shards; changed ones are named."""
    out = tmp_path / "store"
    run(videos, out)
    before = files_of(out)
    assert run(videos, out).line.startswith("nothing new: 3 videos, 9 frames, 2 skipped")
    assert files_of(out) == before
    for name, number in (("a/new.mp4", 6), ("text.mp4", 7)):
        make.write_numbered(videos / name, num_frames=number)
    make.write_numbered(videos / "b" / "clip.mp4", num_frames=20)
    summary = run(videos, out)
    assert summary.line == "5 videos, 13 frames, 1 skipped: 1 no video stream"
    assert (summary.num_new, summary.changed) == (2, ("b/clip.mp4",))
    assert str(summary).splitlines() == [
        summary.line,
        "  skipped  sound.mp4: no video stream",
        "  kept     b/clip.mp4: changed since it was prepared; create a new store to include the new version",
    ]
    after = files_of(out)
    assert all(after[name] == data for name, data in before.items() if name.startswith("shards/000000"))
    assert [(row["id"], row["shard"]) for row in rows_of(out / "videos.parquet")] == [
        ("a/clip.mp4", 0),
        ("b/clip.mp4", 0),
        ("sound.mp4", 0),
        ("ünï/UP 1.MKV", 0),
        ("a/new.mp4", 1),
        ("text.mp4", 1),
    ]
    assert len(rows_of(out / "frames.parquet")) == 13


def test_what_is_left_out_and_what_is_there_twice_is_said(videos, tmp_path):
    """Below the summary stand a line on equal files, which are used once, and one on other files, with an example."""
    for name in ("a/cover.jpg", "a/@eaDir/clip.mp4/thumb.jpg", "b/notes.txt", "b/RECORDING"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    shutil.copy(videos / "a" / "clip.mp4", videos / "b" / "copy.mp4")
    make.write_numbered(videos / "b" / "clip.mp4", num_frames=7)
    (videos / "text.mp4").unlink()
    summary = run(videos, tmp_path / "store")
    assert summary.num_videos == 3
    assert str(summary).splitlines()[-2:] == [
        "  skipped  1 copy, such as b/copy.mp4: same bytes as another video (a/clip.mp4); to use all: prepare "
        "--keep-duplicates",
        "  left out: 2 files without the suffix of a video, such as b/RECORDING; "
        "1 folder of the system, such as a/@eaDir; 1 image, such as a/cover.jpg",
    ]
    assert summary.line.endswith("2 skipped: 1 no video stream, 1 same bytes as another video")
    assert "such as notes.txt" in problems_of(videos=text_only(tmp_path), out=tmp_path / "other")[1]


def test_copies_that_come_later_are_left_out_and_used_on_request(videos, tmp_path):
    """A copy is left out also if its name sorts first, stays so in a rebuilt store, and is used on request."""
    out = tmp_path / "store"
    run(videos, out)
    shutil.copy(videos / "b" / "clip.mp4", videos / "a" / "again.mp4")
    summary = run(videos, out)
    assert (summary.num_videos, summary.num_new) == (3, 1)
    assert [(note.id, note.reason) for note in summary.skipped] == [
        ("a/again.mp4", "same bytes as another video (b/clip.mp4)"),
        ("sound.mp4", "no video stream"),
        ("text.mp4", "invalid data"),
    ]
    before = files_of(out)
    (out / "shards" / "000001.tar").unlink()
    assert run(videos, out).repaired == ("shards/000001.tar: was missing",)
    assert files_of(out) == before
    (out / "videos.parquet").unlink()
    assert run(videos, out).num_new == 0
    assert files_of(out) == before
    assert run(videos, out, keep_duplicates=True).num_videos == 4
    assert run(videos, out).num_videos == 4  # what a store has stays
    shutil.copy(videos / "b" / "clip.mp4", videos / "third.mp4")
    assert run(videos, out).num_videos == 4


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_copy_is_used_when_its_original_is_lost(tmp_path, monkeypatch, is_interrupted):
    """A copy stays left out while the frames of its original are in the store; where they are lost, it is used."""
    videos, out = tmp_path / "videos", tmp_path / "store"
    videos.mkdir()
    for name in ("b.mp4", "c.mp4"):
        make.write_numbered(videos / name, num_frames=6)
    shutil.copy(videos / "b.mp4", videos / "e.mp4")
    with monkeypatch.context() as patch:
        if is_interrupted:
            patch.setattr("cyclecontrast.data.prepare.write_shards", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError) if is_interrupted else contextlib.nullcontext():
            run(videos, out)
    (videos / "b.mp4").unlink()
    if not is_interrupted:
        assert run(videos, out).line.startswith("nothing new: 2 videos")
        os.truncate(out / "shards" / "000000.tar", 100)
    notes = [(note.id, note.reason) for note in run(videos, out).skipped]
    assert notes == [("b.mp4", "no such file")]
    assert [row.id for row in read_videos(out / "videos.parquet") if row.status == "ok"] == ["c.mp4", "e.mp4"]
    assert run(videos, out).line.startswith("nothing new: 2 videos")


def test_what_has_no_frames_is_no_original(videos, tmp_path):
    """A file that was skipped and is now a copy is left out; so a file that replaced a video is not taken for it."""
    out = tmp_path / "store"
    run(videos, out)
    shutil.copy(videos / "b" / "clip.mp4", videos / "text.mp4")
    summary = run(videos, out)
    assert (summary.num_videos, summary.num_new) == (3, 1)
    assert "same bytes as another video (b/clip.mp4)" in [note.reason for note in summary.skipped]
    make.write_numbered(videos / "b" / "clip.mp4", num_frames=20)
    shutil.copy(videos / "b" / "clip.mp4", videos / "new.mp4")
    assert run(videos, out).num_videos == 4, "the store has the former frames of b/clip.mp4"


def test_a_store_of_copies_that_was_interrupted_has_the_same_bytes(videos, tmp_path, monkeypatch):
    """Copies that were found before an interruption are the same ones after it."""
    shutil.copy(videos / "b" / "clip.mp4", videos / "a" / "again.mp4")
    run(videos, tmp_path / "whole")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cyclecontrast.data.prepare.write_shards", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(videos, tmp_path / "parts")
    run(videos, tmp_path / "parts")
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_store_names_the_folder_of_its_videos(videos, tmp_path):
    """As a path from the store, which follows videos that have moved."""
    run(videos, tmp_path / "stores" / "one")
    header = json.loads((tmp_path / "stores" / "one" / "store.json").read_text())
    assert header["videos"] == "../../videos"
    videos.rename(tmp_path / "moved")
    run(tmp_path / "moved", tmp_path / "stores" / "one")
    assert json.loads((tmp_path / "stores" / "one" / "store.json").read_text()) == header | {"videos": "../../moved"}


def text_only(tmp_path):
    """A folder without videos."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").touch()
    return tmp_path / "texts"


def test_changed_settings_are_refused_one_by_one(videos, tmp_path):
    """Every difference is shown, nothing is written, and the number of workers does not count."""
    out = tmp_path / "store"
    run(videos, out)
    before = files_of(out)
    problems = problems_of(videos=videos, out=out, size=128, every=None, fps=3.0)
    assert [problem.split(";")[0] for problem in problems] == [
        "fps: none in the store, 3.0 requested",
        "every: 5 in the store, none requested",
        "size: 256 in the store, 128 requested",
    ]
    assert files_of(out) == before
    run(videos, out, workers=1)


@pytest.mark.parametrize("harm", ["removed", "cut", "overwritten"])
@pytest.mark.parametrize(
    "name", ["shards/000002.tar", "shards/000002.frames.parquet", "shards/000002.videos.parquet", "frames", "videos"]
)
def test_a_damaged_store_is_rebuilt(many, whole, tmp_path, name, harm):
    """A shard or table that is missing, cut or overwritten is written again, to the same bytes; others are not."""
    out = tmp_path / "store"
    shutil.copytree(whole, out)
    path = out / (name if "." in name else f"{name}.parquet")
    data = path.read_bytes()
    path.unlink()
    if harm != "removed":
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else b"damaged")
    others = {other: other.stat().st_mtime_ns for other in out.rglob("*.tar") if other.name != "000002.tar"}
    summary = run(many, out)
    assert files_of(out) == files_of(whole)
    assert others == {other: other.stat().st_mtime_ns for other in others}
    assert summary.num_new == 0
    assert summary.line.endswith("1 damaged file rebuilt")
    assert re.search(rf"\n  rebuilt  {name}\S* (was|had)", str(summary))
    assert run(many, out).line.startswith("nothing new")


def test_a_store_without_any_table_is_rebuilt(many, whole, tmp_path):
    """What is missing is found by whatever is still there, also in a part and after an interrupted repair."""
    out = tmp_path / "store"
    shutil.copytree(whole, out)
    for path in (*out.glob("*.parquet"), out / "shards/000003.tar", out / "shards/000004.frames.parquet"):
        path.unlink()
    assert "the store is complete once the other parts have made 1 shard" in str(run(many, out, part="1/2"))
    run(many, out)
    assert files_of(out) == files_of(whole)


def test_a_rebuilt_shard_takes_what_is_still_there(videos, tmp_path):
    """A video of a damaged shard that is gone is listed as skipped, and taken when it is there again."""
    out = tmp_path / "store"
    run(videos, out)
    (out / "shards/000000.tar").unlink()
    (videos / "a/clip.mp4").rename(tmp_path / "clip.mp4")
    assert "  skipped  a/clip.mp4: no such file" in str(run(videos, out))
    (tmp_path / "clip.mp4").rename(videos / "a/clip.mp4")
    assert run(videos, out).num_videos == 3


# --- errors of the storage


@pytest.fixture
def fail(monkeypatch):
    """Lets some reads of some files fail with an error of the system."""
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    pread, paths = os.pread, {}

    def opened(path, *args, **kwargs):
        handle = os_open(path, *args, **kwargs)
        paths[handle] = str(path)
        return handle

    os_open = os.open

    def begin(number, name, times=10**9, after=0):
        left = [times]

        def read(handle, size, position):
            if name in paths.get(handle, "") and position >= after and left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return pread(handle, size, position)

        monkeypatch.setattr(os, "open", opened)
        monkeypatch.setattr(os, "pread", read)

    return begin


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN])
def test_a_passing_error_leaves_the_video_pending(many, whole, tmp_path, fail, number):
    """It is not recorded as a property of the video: all others are prepared, and the same command adds it."""
    out = tmp_path / "store"
    fail(number, "5.mkv", after=200_000)
    (problem,) = problems_of(videos=many, out=out)
    assert f"{many}/5.mkv: {os.strerror(number).lower()}; tried 3 times in 0 s; " in problem
    assert "run the same command again, it resumes" in problem
    assert sorted(path.name for path in (out / "shards").glob("*.tar")) == [
        f"00000{n}.tar" for n in (0, 1, 2, 3, 4, 6, 7)
    ]
    fail(number, "5.mkv", times=0)
    assert run(many, out).num_videos == 8
    assert files_of(out) == files_of(whole)


def test_an_error_that_passes_in_time_changes_nothing(many, whole, tmp_path, fail):
    """Reads that fail once or twice are repeated, with the same bytes in the end."""
    fail(errno.EIO, ".mkv", times=2)
    run(many, tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(whole)


def test_a_broken_disk_ends_the_work(many, tmp_path, fail):
    """After three shards that fail, the remaining ones are not tried, each with all its pauses."""
    fail(errno.EIO, ".mkv")
    assert [problem.split(":")[0][-5:] for problem in problems_of(videos=many, out=tmp_path / "store")] == [
        "0.mkv",
        "1.mkv",
        "2.mkv",
    ]


def test_folders_that_fail_are_not_taken_for_empty(videos, tmp_path, monkeypatch):
    """An error of listing a folder, or of looking up a file, ends the command before anything is written."""
    monkeypatch.setattr(storage, "PAUSES", (0.0,))
    scandir = os.scandir

    def failing(path):
        if str(path).endswith("b"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    (problem,) = problems_of(videos=videos, out=tmp_path / "store")
    assert "cannot be read: Input/output error; tried 2 times" in problem
    assert not (tmp_path / "store").exists()


def test_lack_of_memory_is_not_a_property_of_a_video(videos, tmp_path, monkeypatch):
    """Memory that is refused while decoding leaves the video pending; a video that asks for too much is skipped."""

    def refused(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(decode.Scaler, "rgb", refused)
        assert "cannot allocate memory; free memory" in problems_of(videos=videos, out=tmp_path / "store")[0]
    assert run(videos, tmp_path / "store").num_videos == 3
    error = av.MemoryError(errno.ENOMEM, "Cannot allocate memory")
    assert decode._reason(error) == "needs too much memory"
    monkeypatch.setattr(storage, "is_memory_short", lambda: True)
    with pytest.raises(MemoryError):
        decode._reason(error)


def test_what_was_skipped_for_a_passing_reason_is_tried_again(many, whole, tmp_path):
    """Videos that an earlier version skipped or cut because the storage failed are prepared by the same command."""
    out = tmp_path / "store"
    shutil.copytree(whole, out)
    rows = read_videos(out / "videos.parquet")
    skipped = {"status": "skipped", "reason": "input/output error", "num_frames": 0}
    cut = {"reason": "stopped at 1.0 s: stale file handle"}
    for shard, change in ((1, skipped), (2, cut)):
        (row,) = (row for row in rows if row.shard == shard and row.status == "ok")
        rows[rows.index(row)] = row._replace(**change)
        write_videos(out / f"shards/{shard:06}.videos.parquet", [row._replace(**change)])
    write_videos(out / "videos.parquet", rows)
    write_rows(out / "shards/000001.frames.parquet", [], FRAME_SCHEMA)
    (out / "shards/000001.tar").write_bytes(bytes(1024))
    summary = run(many, out)
    assert (summary.num_videos, summary.num_new) == (8, 1)
    assert summary.repaired == ("shards/000002.tar: lacked a part of 2.mkv (stopped at 1.0 s: stale file handle)",)
    assert (out / "shards/000008.tar").read_bytes() == (whole / "shards/000001.tar").read_bytes()
    assert not [row for row in read_videos(out / "videos.parquet") if "handle" in row.reason or "error" in row.reason]
    assert run(many, out).line.startswith("nothing new")


def test_mistakes_are_found_before_anything_is_written(videos, tmp_path):
    """Wrong folders for videos or output end in one line each, and leave no trace."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "store.json").write_text("[]")
    before = files_of(tmp_path)
    out = tmp_path / "new" / "store"
    cases = {
        "is not a folder": {"videos": tmp_path / "absent", "out": out},
        "no video file": {"videos": tmp_path / "empty", "out": out},
        "is inside": {"videos": videos, "out": videos / "store"},
        "holds the folder of videos": {"videos": videos / "a", "out": videos},
        "not a frame store": {"videos": videos, "out": tmp_path / "other"},
        "is not of a frame store": {"videos": videos, "out": tmp_path / "foreign"},
        "is a file": {"videos": videos, "out": tmp_path / "other" / "thesis.txt"},
    }
    for text, config in cases.items():
        (problem,) = problems_of(**config)
        assert text in problem
        assert "\n" not in problem
    assert files_of(tmp_path) == before
    assert not out.parent.exists()


def test_a_folder_of_unreadable_videos_leaves_nothing(tmp_path):
    """Where not one video can be read the reasons are listed and the output is taken back."""
    root = tmp_path / "videos"
    root.mkdir()
    for i in range(7):
        (root / f"{i}.mp4").write_text(f"not a video {i}")
    problems = problems_of(videos=root, out=tmp_path / "new" / "store")
    assert "not one of 7 files" in problems[0]
    assert problems[1:] == [*(f"{i}.mp4: invalid data" for i in range(5)), "and 2 more"]
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]
    (tmp_path / "mine").mkdir()
    problems_of(videos=root, out=tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_two_at_once_are_refused(videos, tmp_path):
    """A second prepare on a store that is being written is turned away and changes nothing."""
    out = tmp_path / "store"
    hold = (
        "import sys, time; from pathlib import Path; from cyclecontrast.files import locked\n"
        "with locked(Path(sys.argv[1]), 'out'): print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(out)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        before = files_of(out)
        (problem,) = problems_of(videos=videos, out=out)
        assert f"in use by process {holder.pid}" in problem
        assert files_of(out) == before
        holder.kill()
    assert run(videos, out).num_videos == 3


CRASHES = """
import av, os, signal
av_open = av.open
def crashing_open(file, *args, **kwargs):
    if "culprit" in file.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return av_open(file, *args, **kwargs)
av.open = crashing_open
"""


def test_a_crashing_decoder_costs_one_video(videos, tmp_path, monkeypatch):
    """A video that takes its process down becomes a row; all others are prepared."""
    make.write_numbered(videos / "a" / "culprit.mp4", num_frames=6)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(CRASHES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    summary = run(videos, tmp_path / "store", workers=2)
    assert summary.num_videos == 3
    assert {video.id: video.reason for video in summary.skipped} == {
        "a/culprit.mp4": "the decoder crashed",
        "sound.mp4": "no video stream",
        "text.mp4": "invalid data",
    }
    assert not list((tmp_path / "store").rglob("*.part"))


def test_a_process_killed_for_lack_of_memory_costs_no_video(videos, tmp_path, monkeypatch):
    """A video whose process the system kills, even alone, stays pending, and the line names it."""
    make.write_numbered(videos / "a" / "culprit.mp4", num_frames=6)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(CRASHES.replace("SIGSEGV", "SIGKILL"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    (problem,) = problems_of(videos=videos, out=tmp_path / "store", workers=1)
    assert problem.startswith(f"{videos}/a/culprit.mp4: its process was killed; free memory")
    monkeypatch.delenv("PYTHONPATH")
    assert run(videos, tmp_path / "store").num_videos == 4


def test_a_script_without_main_guard_gets_a_message(videos, tmp_path):
    """Workers that cannot start end in a line that says what to do, not in a hang."""
    (tmp_path / "script.py").write_text(
        "from cyclecontrast.config import PrepareConfig\n"
        "from cyclecontrast.data.prepare import prepare\n"
        f"prepare(PrepareConfig(videos={str(videos)!r}, out={str(tmp_path / 'store')!r}, workers=1))\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "UserError: workers: processes cannot be started" in done.stderr


def test_policies_and_default(videos, tmp_path):
    """Two frames per second unless a policy is named; each policy reaches the decoder."""
    counts = {"fps": 12 / 5, "frames_per_video": 2, "every": 4, "keyframes": True}
    numbers = {}
    for name, value in counts.items():
        numbers[name] = run(videos, tmp_path / name, **{"every": None, name: value}).num_frames
    numbers["none"] = run(videos, tmp_path / "none", every=None).num_frames
    assert numbers == {"fps": 9, "frames_per_video": 6, "every": 9, "keyframes": 3, "none": 9}


def test_full_disk_is_reported(videos, tmp_path, monkeypatch):
    """A failing write is one line without a traceback, and the job can resume."""
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    (problem,) = problems_of(videos=videos, out=tmp_path / "store")
    assert "no space left on device" in problem
    monkeypatch.setattr(os, "fsync", real)
    assert run(videos, tmp_path / "store").num_videos == 3


def test_a_name_that_cannot_be_stored_is_tried_once(tmp_path):
    """A video whose name is not UTF-8 is skipped with its reason, and a second run leaves the store as it is."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    make.write_numbered(videos / "good.mp4", num_frames=4)
    try:
        shutil.copy(videos / "good.mp4", os.fsencode(videos) + b"/bad\xff.mp4")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert "1 skipped: 1 the name is not valid UTF-8" in run(videos, out).line
    before = files_of(out)
    assert run(videos, out).line.startswith("nothing new")
    assert files_of(out) == before


def test_a_store_of_other_videos_is_refused(tmp_path):
    """A folder that shares no video with the store is another folder, and the store is left as it is."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make.write_numbered(tmp_path / name / f"{name}.mp4", num_frames=4)
    run(tmp_path / "a", tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(UserError, match="holds other videos: none of its 1 is in"):
        run(tmp_path / "b", tmp_path / "out")
    assert files_of(tmp_path / "out") == before
