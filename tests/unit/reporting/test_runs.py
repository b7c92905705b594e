"""A run folder is read as its files say; what is missing is reported."""

import shutil

import pytest

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.reporting.runs import by_data, one_per_settings, read_run, read_runs
from cyclecontrast.training import run_folder
from tests.make_reports import write_frames, write_run
from tests.make_videos import write_numbered


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two videos."""
    return write_frames(tmp_path_factory.mktemp("data") / "tree", ["a", "b"])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run."""
    return write_run(tmp_path_factory.mktemp("runs") / "run", data)


def test_data_that_changed_or_are_gone(tmp_path):
    """The run says if its data are not those of the training, or no longer there."""
    data = write_frames(tmp_path / "data", ["a", "b"])
    run = write_run(tmp_path / "run", data)
    run_folder.change_about(run, data_fingerprint=FrameStore.open(data).fingerprint)
    assert read_run(run, "run").store_problem == ""
    write_frames(data, ["c"])
    assert "has changed since the run" in read_run(run, "run").store_problem
    shutil.rmtree(data)
    assert f"cannot be shown: {data}: no such folder" in read_run(run, "run").store_problem


def test_skipped_videos(tmp_path):
    """Videos that could not be prepared are read with the reason, from the store in the run folder."""
    (tmp_path / "videos").mkdir()
    for number in range(2):
        write_numbered(tmp_path / "videos" / f"{number}.mp4", 5 + number)
    (tmp_path / "videos" / "no video.mp4").write_text("text")
    run = write_run(tmp_path / "run", tmp_path / "videos")
    prepare(PrepareConfig(videos=tmp_path / "videos", out=run / "frames", frames_per_video=2, workers=0))
    read = read_run(run, "run")
    ((name, reason),) = read.skipped
    assert name == "no video.mp4"
    assert len(reason) > 10
    assert read.store.num_videos == 2


@pytest.mark.parametrize("missing", ["config.toml", "run.json"])
def test_folders_that_are_not_runs(tmp_path, finished, missing):
    """All folders that are not runs are reported at once."""
    for name in ("one", "two"):
        shutil.copytree(finished, tmp_path / name)
        (tmp_path / name / missing).unlink()
    with pytest.raises(UserError) as caught:
        read_runs([tmp_path / "one", tmp_path / "two"])
    assert [f"has no {missing}" in problem for problem in caught.value.problems] == [True, True]


@pytest.mark.parametrize("name", ["config.toml", "run.json", "metrics.jsonl"])
def test_a_damaged_file(tmp_path, finished, name):
    """A file of the run that does not parse is an error of one line that names the run."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / name).write_text("{damaged\n")
    with pytest.raises(UserError, match=f"{run}.*damaged") as caught:
        read_run(run, "run")
    assert len(caught.value.problems) == 1


def test_names_are_as_long_as_needed(data, tmp_path):
    """Runs are called by the last part of their path, or by as many parts as tell them apart; none is read twice."""
    runs = [write_run(tmp_path / name / "run", data) for name in ("one", "two")]
    assert [run.name for run in read_runs(runs[:1])] == ["run"]
    assert [run.name for run in read_runs(runs)] == ["one/run", "two/run"]
    with pytest.raises(UserError, match="named twice"):
        read_runs([runs[0], runs[0]])


def test_groups_of_runs(data, tmp_path):
    """Runs that differ only in the seed are of one method; copies of the same data are one group."""
    copy = shutil.copytree(data, tmp_path / "copy")
    other = write_frames(tmp_path / "other", ["a", "b", "c"])
    folders = [
        write_run(tmp_path / "0", data),
        write_run(tmp_path / "1", data, seed=1),
        write_run(tmp_path / "2", copy, temperature=0.3),
        write_run(tmp_path / "3", other, method="intra-video"),
    ]
    runs = read_runs(folders)
    assert [run.name for run in one_per_settings(runs)] == ["0", "2", "3"]
    assert [[run.name for run in group] for group in by_data(runs)] == [["0", "1", "2"], ["3"]]
