"""The resumable job `prepare`: what is in a store, that interruptions cannot damage it, and its messages."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import member_name
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
    """Below the summary stand a line on other files, with an example, and one on equal files."""
    for name in ("a/cover.jpg", "a/@eaDir/clip.mp4/thumb.jpg", "b/notes.txt"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    shutil.copy(videos / "a" / "clip.mp4", videos / "b" / "copy.mp4")
    make.write_numbered(videos / "b" / "clip.mp4", num_frames=7)
    summary = run(videos, tmp_path / "store")
    assert summary.num_videos == 4
    assert str(summary).splitlines()[-2:] == [
        "  left out: 1 file without the suffix of a video, such as b/notes.txt; "
        "1 folder of the system, such as a/@eaDir; 1 image, such as a/cover.jpg",
        "  same bytes as another video: 1 video, such as b/copy.mp4 and a/clip.mp4",
    ]
    assert "such as notes.txt" in problems_of(videos=text_only(tmp_path), out=tmp_path / "other")[1]


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


def test_a_damaged_store_is_named(videos, tmp_path):
    """A table that is not Parquet is an error with its name."""
    run(videos, tmp_path / "store")
    (tmp_path / "store" / "videos.parquet").write_bytes(b"damaged")
    (problem,) = problems_of(videos=videos, out=tmp_path / "store")
    assert "videos.parquet is damaged" in problem


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
        (root / f"{i}.mp4").write_text("not a video")
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
    if "culprit" in str(file):
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
