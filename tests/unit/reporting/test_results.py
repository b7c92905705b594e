"""Tables of results compare only what may be compared."""

import pytest

from cyclecontrast.reporting.results import list_all, summarize
from cyclecontrast.reporting.runs import read_runs
from tests.make_reports import BACKBONE, write_frames, write_result, write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two videos."""
    return write_frames(tmp_path_factory.mktemp("data") / "tree", ["a", "b"])


def texts(table):
    """The texts of all rows of a table, None for empty cells."""
    return [[cell and cell.text for cell in row.cells] for row in table.rows]


def test_results_beside_their_baseline(data, tmp_path):
    """The baseline comes first, the best value is marked, and the full table has all metrics and notes."""
    run = write_run(tmp_path / "run0", data)
    write_result(run, {"top1": 0.625, "top5": 0.875}, notes=("a note",))
    write_result(run, {"top1": 0.375, "top5": 0.5}, model=BACKBONE)
    runs = read_runs([run], with_data=False)
    table = summarize(runs, [0])
    assert [(row.name, row.color) for row in table.rows] == [("random weights", None), ("run0", 0)]
    assert texts(table) == [["37.5 %"], ["62.5 %"]]
    assert [row.cells[0].is_best for row in table.rows] == [False, True]
    (full,) = list_all(runs, [0])
    assert full.caption == "knn level=frame on /data/labeled, 100 train and 50 test"
    assert texts(full) == [["37.5 %", "50.0 %"], ["62.5 %", "87.5 %"]]
    assert full.notes == ("run0: a note",)


def test_a_run_beside_its_start(data, tmp_path):
    """Random weights, the start and the run follow each other, and a note says how far the run is from its start."""
    run = write_run(
        tmp_path / "run0", data, init="/runs/first", about={"start": {"model": "x", "fingerprint": "f" * 16}}
    )
    write_result(run, {"top1": 0.25}, baseline={"top1": 0.75})
    write_result(run, {"top1": 0.75}, start="f" * 16)
    write_result(run, {"top1": 0.125}, model=BACKBONE)
    table = summarize(read_runs([run], with_data=False), [0])
    assert [(row.name, row.color) for row in table.rows] == [
        ("random weights", None),
        ("start (/runs/first)", None),
        ("run0", 0),
    ]
    assert texts(table) == [["12.5 %"], ["75.0 %"], ["25.0 %"]]
    assert table.notes == ("run0, knn level=frame top1 on labeled: -50.0 points against its start (forgotten)",)


def test_a_run_that_kept_its_start_has_its_own_results(data, tmp_path):
    """Two runs with the same weights are two rows, each with the results in its own folder."""
    runs = [write_run(tmp_path / name / "run0", data) for name in ("a", "b")]
    write_result(runs[0], {"top1": 0.5})
    write_result(runs[1], {"top1": 0.5})
    write_result(runs[1], {"top1": 0.75}, data="other")
    table = summarize(read_runs(runs, with_data=False), [0, 1])
    assert [row.name for row in table.rows][:2] == ["a/run0", "b/run0"]
    assert texts(table)[:2] == [["50.0 %", None], ["50.0 %", "75.0 %"]]


def test_results_that_may_not_be_compared(data, tmp_path):
    """Different tags, and different data of one name, never share a column."""
    run = write_run(tmp_path / "run1", data, seed=1)
    write_result(run, {"top1": 0.1}, tag="linear probe=sgd")
    write_result(run, {"top1": 0.2}, tag="linear probe=lbfgs", protocol="linear")
    write_result(run, {"top1": 0.3}, tag="linear probe=lbfgs", protocol="linear", data="other/labeled")
    table = summarize(read_runs([run], with_data=False), [0])
    ((cells),) = texts(table)
    assert sorted(cells) == ["10.0 %", "20.0 %", "30.0 %"]
    assert len({column.data for column in table.columns if column.tag == "linear probe=lbfgs"}) == 2
    assert not any(cell.is_best for cell in table.rows[0].cells)


def test_two_runs_of_one_seed_have_no_mean(data, tmp_path):
    """They are one seed, whose first run counts where there are others."""
    folders = [write_run(tmp_path / name, data, seed) for name, seed in (("a0", 0), ("b5", 5), ("c1", 1))]
    config = (folders[1] / "config.toml").read_text()
    (folders[1] / "config.toml").write_text(config.replace("seed = 5", "seed = 0"))
    for run, value in zip(folders, (0.5, 0.1, 0.7), strict=True):
        write_result(run, {"top1": value})
    runs = read_runs(folders, with_data=False)
    assert [row.name for row in summarize(runs[:2], [0, 0]).rows] == ["a0", "b5"]
    table = summarize(runs, [0, 0, 0])
    assert [row.name for row in table.rows] == ["a0", "b5", "c1", "mean of 2 seeds"]
    assert texts(table)[3] == ["60.0 % ± 14.1"]


def test_seeds_have_a_mean(data, tmp_path):
    """Runs that differ in their seed are followed by their mean and standard deviation, other runs are not."""
    folders = [write_run(tmp_path / f"run{seed}", data, seed) for seed in (0, 1)]
    folders.append(write_run(tmp_path / "run2", data, 2, method="intra-video"))
    for run, value in zip(folders, (0.5, 0.7, 0.2), strict=True):
        write_result(run, {"top1": value}, data="labeled" if run != folders[2] else "other")
    table = summarize(read_runs(folders, with_data=False), [0, 0, 1])
    assert [row.name for row in table.rows] == ["run0", "run1", "mean of 2 seeds", "run2"]
    assert texts(table) == [["50.0 %", None], ["70.0 %", None], ["60.0 % ± 14.1", None], [None, "20.0 %"]]
    assert [row.is_mean for row in table.rows] == [False, False, True, False]
    assert summarize(read_runs([write_run(tmp_path / "run3", data, 3)], with_data=False), [0]) is None
