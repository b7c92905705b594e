"""The proof by kill -9 in short, and that it would notice what is lost."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from faults.cutting import Cut, cut_one, mend
from faults.killing import Ended, Moment, draw_moment, outlives, run
from faults.same import differences

KILL_ANYWHERE = Path(__file__).parents[2] / "faults" / "kill_anywhere.py"
ROW = {"step": 4, "loss": 1.5, "images_per_second": 90.0, "data_wait": 0.1}


@pytest.mark.long
@pytest.mark.parametrize(("command", "kills"), [("prepare", 3), ("pretrain", 1), ("evaluate", 1), ("sweep", 1)])
def test_killed_anywhere_nothing_is_lost(command, kills):
    """Killed and gone on with, each command ends with the same bits as undisturbed, and with no process left."""
    arguments = [command, "--kills", str(kills), "--seed", "5", "--first"]
    done = subprocess.run([sys.executable, KILL_ANYWHERE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{command}: {kills} kills" in done.stdout
    assert "nothing lost, each ended the same" in done.stdout


@pytest.fixture
def folders(tmp_path):
    """Return two folders of the same run."""
    for name in ("expected", "found"):
        (tmp_path / name / "shards").mkdir(parents=True)
        (tmp_path / name / "shards" / "0.tar").write_bytes(b"frames")
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path / "expected", tmp_path / "found"


def test_the_clock_and_locks_may_differ(folders):
    """Throughput, locks and logs are no result."""
    expected, found = folders
    (found / "metrics.jsonl").write_text(json.dumps(ROW | {"images_per_second": 1.0, "data_wait": 0.9}) + "\n")
    (found / ".lock").write_text("process 7")
    (found / "shards" / "0.log").write_text("3 steps")
    assert not list(differences(expected, found))


def test_everything_else_is_noticed(folders):
    """Another bit, another loss, a step twice, a file or a folder that is missing or left over."""
    expected, found = folders
    (found / "shards" / "0.tar").write_bytes(b"framez")
    assert list(differences(expected, found)) == ["shards/0.tar: is not the same"]
    (found / "shards" / "0.tar").unlink()
    (found / "shards" / "0.tar.77.part").touch()
    (found / "unfinished").mkdir()
    (found / "metrics.jsonl").write_text((json.dumps(ROW) + "\n") * 2)
    assert list(differences(expected, found)) == [
        "shards/0.tar: is missing",
        "shards/0.tar.77.part: is left over",
        "unfinished: is left over",
        "metrics.jsonl: is not the same",
    ]
    (found / "metrics.jsonl").write_text(json.dumps(ROW | {"loss": 1.25}) + "\n")
    assert list(differences(expected, found))[-1] == "metrics.jsonl: is not the same"


def test_moments_lie_all_over_a_run():
    """Some before the first change, some right behind a change, some anywhere, none behind the end."""
    whole = Ended(1, 0, (2.0, 2.5, 4.0), 5.0)
    rng = random.Random(0)
    moments = [draw_moment(rng, whole, 0) for _ in range(2000)]
    begins = (0.0, *whole.changes)
    times = [begins[one.num_changes] + one.delay for one in moments]
    assert 0.05 < sum(one.num_changes == 0 for one in moments) / 2000 < 0.15
    assert {one.num_changes for one in moments} == {0, 1, 2, 3}
    assert 0 <= min(times) < 0.5
    assert 4.9 < max(times) <= 5.02
    assert {draw_moment(rng, whole, 2).num_changes for _ in range(100)} == {0, 1}


WRITES = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
for number in range(100):
    Path(sys.argv[1], str(number)).touch()
    time.sleep(0.1)
"""


@pytest.mark.parametrize("whole_group", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_command_is_killed_at_its_moment(tmp_path, whole_group):
    """After so many changes; its children are killed along, or are noticed as left behind."""
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", WRITES, str(out)]
    ended = run(command, out, tmp_path / "log", Moment(3, 0.0), whole_group)
    assert ended.was_killed
    assert len(ended.changes) == 3
    assert 3 <= len(list(out.iterdir())) <= 4
    assert outlives(ended.pid, 60 if whole_group else 0.2) is not whole_group
    assert not outlives(ended.pid, 60)


def test_one_of_the_newest_files_is_cut(tmp_path):
    """It ends at some byte before its end, comes back as it was, and only files that match are taken."""
    for name in ("whole", "half.part"):
        (tmp_path / name).write_bytes(bytes(range(50)))
    cut = cut_one(tmp_path, "*.part", random.Random(0))
    assert cut.path == tmp_path / "half.part"
    assert bytes(range(50)).startswith(cut.path.read_bytes())
    assert cut.path.stat().st_size < 50
    assert mend(f"error: {cut.path}: is damaged", [cut]) == [cut.path]
    assert cut.path.read_bytes() == bytes(range(50))
    assert cut_one(tmp_path, "*.txt", random.Random(0)) is None


def test_a_cut_file_is_mended_as_the_message_says(tmp_path):
    """Where a line names a copy, that takes its place; a message without the file's name mends nothing."""
    copy, file = tmp_path / "copy" / "run.json", tmp_path / "run.json"
    copy.parent.mkdir()
    copy.write_text("copy")
    file.write_text("cu")
    assert mend("error: something: is damaged", [Cut(file, b"cut")]) == []
    assert mend(f"error: {file}: is damaged (x); copy {copy} over it", [Cut(file, b"cut")]) == [file]
    assert file.read_text() == "copy"
