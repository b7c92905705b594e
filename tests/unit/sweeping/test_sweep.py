"""Sweeps: the rows that they train, what they do not do twice, what they say, and the files that they write."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future

import cv2
import numpy as np
import pytest
from scipy.stats import ttest_rel

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import PretrainConfig, SweepConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.sweeping import cells, workers
from cyclecontrast.sweeping.outcome import Measured, Sweep, to_json
from cyclecontrast.sweeping.page import render, write_files
from cyclecontrast.sweeping.paired import Gain, gain
from cyclecontrast.sweeping.plan import make_plan
from cyclecontrast.sweeping.plot import draw
from cyclecontrast.sweeping.tables import TABLES, Metric, rows_of, scaled
from cyclecontrast.training.auto_settings import Machine

TINY = {
    **{"small": True, "seeds": 1, "steps": 3, "backbone": "resnet10-small-w8", "image_size": 16, "batch_size": 4},
    **{"flip": False, "jobs": 1, "workers": 0, "device": "cpu"},
}


def make_tracks(root):
    """Write eight videos of colored frames in two classes, half of each in train.txt, half in test.txt."""
    rng, lines = np.random.default_rng(0), {"train": [], "test": []}
    for video in range(8):
        folder = root / "frames" / str(video)
        folder.mkdir(parents=True)
        color = ((200, 40, 40), (40, 40, 200))[video % 2]
        for frame in range(3):
            image = np.clip(color + rng.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{frame}.png"), image)
        lines["train" if video < 4 else "test"].append(f"{video} {video % 2}")
    for name, split in lines.items():
        (root / f"{name}.txt").write_text("\n".join(split) + "\n")
    return root


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    """Eight small videos in two classes."""
    return make_tracks(tmp_path_factory.mktemp("sweep") / "tracks")


@pytest.fixture(scope="module")
def swept(tracks, tmp_path_factory):
    """Table 4 over two seeds, and the folder that it is in."""
    out = tmp_path_factory.mktemp("swept") / "out"
    return cc.sweep("table4", tracks, out=out, **TINY | {"seeds": 2})


def values_of(sweep):
    """Return all that was measured, as plain numbers."""
    return {one.row.key: {title: dict(values) for title, values in one.values.items()} for one in sweep.rows}


def test_a_sweep_is_what_the_single_commands_give(swept, tracks, tmp_path):
    """A cell's metrics are those of pretrain, then evaluate, with the same settings and seed."""
    settings = {name: TINY[name] for name in TINY if name not in ("small", "seeds", "jobs")}
    run = cc.pretrain(tracks, out=tmp_path / "run", method="intra-video", seed=1, **settings)
    knn = cc.evaluate("knn", run.folder, tracks, k=(20,), seed=1, workers=0, device="cpu")
    linear = cc.evaluate("linear", run.folder, tracks, seed=1, workers=0, device="cpu")
    values = values_of(swept)["intra-video"]
    assert values["kNN top-1"][1] == 100 * next(iter(knn.metrics.values()))
    assert values["linear top-1"][1] == 100 * linear.metrics["top1"]


def test_the_table_stands_in_all_files(swept):
    """Rows in the paper's order with its figures beside, as Markdown, HTML and JSON; no plot of settings in words."""
    text = (swept.folder / "table4.md").read_text()
    assert text == f"{swept}\n"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["row", "-" * 13, "intra-image", "intra-video", "full"]
    assert [row.split("|")[-3].strip() for row in rows[2:]] == ["33.0", "33.1", "34.4"]
    assert "paper (ResNet-18, R2V2-S → ImageNet) top-1" in rows[0]
    assert "comparable" in text
    page = (swept.folder / "table4.html").read_text()
    assert all(name in page for name in ("intra-image", "intra-video", "34.4", "Content-Security-Policy"))
    assert "http" not in page.replace("http-equiv", "")
    numbers = json.loads((swept.folder / "table4.json").read_text())
    assert [row["key"] for row in numbers["rows"]] == ["intra-image", "intra-video", "cycle"]
    assert numbers["rows"][2]["percent_by_seed"]["kNN top-1"].keys() == {"0", "1"}
    assert not (swept.folder / "table4.png").exists()


def test_finished_cells_are_not_run_again(swept, tracks, monkeypatch):
    """The same command trains nothing and evaluates nothing, and one seed more trains that seed alone."""
    trained = []
    train = cells.pretrain
    monkeypatch.setattr(cells, "pretrain", lambda config: trained.append(config) or train(config))
    files = sorted(swept.folder.glob("runs/*/results/*.json"))
    before = [path.stat().st_mtime_ns for path in files]
    again = cc.sweep("table4", tracks, out=swept.folder, **TINY | {"seeds": 2})
    assert (str(again), trained) == (str(swept), [])
    assert [path.stat().st_mtime_ns for path in files] == before
    more = cc.sweep("table4", tracks, out=swept.folder, **TINY | {"seeds": 3})
    assert [(config.objective, config.seed) for config in trained] == [
        ("intra-image", 2),
        ("intra-video", 2),
        ("cycle", 2),
    ]
    assert [one.seeds for one in more.rows] == [[0, 1, 2]] * 3


def test_a_stopped_sweep_goes_on_where_it_was(swept, tracks, tmp_path, monkeypatch):
    """Interrupted in the second training, the same command resumes that run and ends with the same table."""
    steps, train_step = itertools.count(), cc.train.pretrain.train_step

    def stopping(*arguments):
        if next(steps) == 4:
            raise KeyboardInterrupt
        return train_step(*arguments)

    monkeypatch.setattr("cyclecontrast.training.pretrain.train_step", stopping)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        cc.sweep("table4", tracks, out=tmp_path / "out", **TINY | {"seeds": 2})
    configs, train = [], cells.pretrain
    monkeypatch.setattr(cells, "pretrain", lambda config: configs.append(config) or train(config))
    done = cc.sweep("table4", tracks, out=tmp_path / "out", **TINY | {"seeds": 2})
    assert [config.resume is not None for config in configs] == [True, False, False, False, False]
    assert values_of(done) == values_of(swept)


def test_a_cell_that_fails_does_not_stop_the_others(tracks, tmp_path, monkeypatch):
    """What failed is told of with its reason, its row is empty, and it is tried again the next time."""
    train = cells.pretrain

    def failing(config):
        if config.objective == "cycle":
            raise UserError("the loss is not finite")
        return train(config)

    monkeypatch.setattr(cells, "pretrain", failing)
    done = cc.sweep("table4", tracks, out=tmp_path / "out", **TINY)
    assert done.problems == ("full, seed 0: the loss is not finite",)
    assert "- not finished: full, seed 0: the loss is not finite" in str(done)
    assert [len(one.seeds) for one in done.rows] == [1, 1, 0]
    assert "0 of 1" in str(done)
    monkeypatch.setattr(cells, "pretrain", train)
    assert [len(one.seeds) for one in cc.sweep("table4", tracks, out=tmp_path / "out", **TINY).rows] == [1, 1, 1]


def test_a_sweep_with_failed_cells_ends_with_exit_code_2(tracks, tmp_path, monkeypatch, capsys):
    """The command writes and prints the table, then one line says which cells are missing, for scripts to notice."""
    train = cells.pretrain

    def failing(config):
        if config.objective == "cycle":
            raise UserError("the loss is not finite", "the disk is slow")
        return train(config)

    monkeypatch.setattr(cells, "pretrain", failing)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if not isinstance(value, bool)]
    command = ["sweep", "table4", str(tracks), f"--out={tmp_path / 'out'}", "--small", "--no-flip", *flags]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "out" / "table4.md").read_text()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: 1 of 3 cells are not finished: full, seed 0; repeat the command to continue")
    monkeypatch.setattr(cells, "pretrain", train)
    assert main(command) == 0
    assert capsys.readouterr().out == (tmp_path / "out" / "table4.md").read_text()


@pytest.fixture
def copied(swept, tmp_path):
    """Return a copy of the sweep's first seed."""
    runs = tmp_path / "out" / "runs"
    for row in ("intra-image", "intra-video", "full"):
        shutil.copytree(swept.folder / "runs" / f"{row}-seed0", runs / f"{row}-seed0")
        shutil.copy(swept.folder / "runs" / f"{row}-seed0.json", runs)
    return tmp_path / "out"


@pytest.mark.parametrize("file", ["run.json", "config.toml"])
def test_a_damaged_file_of_a_run_is_told_with_what_mends_it(file, copied, swept, tracks):
    """A run's own file that was cut is one line that names it; put back as it says, the sweep is what it was."""
    path = copied / "runs" / "full-seed0" / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"{path}.* is damaged.* over it") as error:
        cc.sweep("table4", tracks, out=copied, **TINY)
    assert len(error.value.problems) == 1
    shutil.copy(path.parent / "checkpoints" / "step-00000003" / file, path)
    done = cc.sweep("table4", tracks, out=copied, **TINY)
    assert values_of(done)["cycle"]["kNN top-1"][0] == values_of(swept)["cycle"]["kNN top-1"][0]


def test_a_damaged_backbone_costs_its_cell_alone(copied, tracks):
    """The cell of a network that cannot be read is told of, the others stand in the table."""
    path = copied / "runs" / "full-seed0" / "backbone.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    done = cc.sweep("table4", tracks, out=copied, **TINY)
    assert [len(one.seeds) for one in done.rows] == [1, 1, 0]
    (problem,) = done.problems
    assert problem.startswith(f"full, seed 0: {path}: cannot be read as weights")


def test_damaged_notes_and_results_are_made_anew(copied, swept, tracks, monkeypatch, capsys):
    """A sweep's note and a result that were cut cost no training, and the table is what it was."""
    monkeypatch.setattr(cells, "pretrain", lambda config: pytest.fail("trained again"))
    note = copied / "runs" / "full-seed0.json"
    content = note.read_bytes()
    note.write_bytes(b"")
    (result,) = (copied / "runs" / "full-seed0" / "results").glob("knn-*.json")
    result.write_bytes(result.read_bytes()[:100])
    left = copied / "table4.md.1234.part"
    left.write_text("half")
    done = cc.sweep("table4", tracks, out=copied, **TINY)
    ours, theirs = values_of(done), values_of(swept)
    assert {row: ours[row]["kNN top-1"][0] for row in ours} == {row: theirs[row]["kNN top-1"][0] for row in theirs}
    assert f"{result}: is no result" in capsys.readouterr().err
    assert note.read_bytes() == content
    assert not left.exists()


def test_two_sweeps_do_not_write_into_one_folder(copied, tracks):
    """The second is refused in a line that names the first, and writes nothing."""
    hold = "import sys\nfrom pathlib import Path\nfrom cyclecontrast.files import locked\n"
    hold += "with locked(Path(sys.argv[1]), 'out'):\n    print(flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(copied)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"\n"
        with pytest.raises(UserError, match=rf"out: {copied} is in use by process {first.pid} on"):
            cc.sweep("table4", tracks, out=copied, **TINY)
        first.communicate()
    assert not list(copied.glob("table4*"))
    assert cc.sweep("table4", tracks, out=copied, **TINY).problems == ()


def test_the_table_says_that_more_seeds_are_on_disk(tracks, tmp_path):
    """With fewer seeds than were trained before, the first paragraph says which these are, and that there are more."""
    (tmp_path / "runs" / "full-seed2").mkdir(parents=True)
    (tmp_path / "runs" / "full-seed2.json").write_text("{}")

    def about(seeds):
        return make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path, **TINY | {"seeds": seeds})).about

    assert about(2).endswith(" Seeds: 0, 1; more are in the folder.")
    assert "more are in the folder" not in about(3)


def test_where_all_cells_fail_there_is_no_table(tracks, tmp_path, monkeypatch):
    """The reasons are an error, and no table is written."""
    monkeypatch.setattr(cells, "pretrain", lambda config: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(UserError, match="intra-image, seed 0: RuntimeError: out of memory"):
        cc.sweep("table4", tracks, out=tmp_path / "out", **TINY)
    assert not list((tmp_path / "out").glob("table4*"))


def test_processes_give_the_same_values_and_die_alone(swept, tracks, tmp_path, monkeypatch):
    """Cells in processes have the values of cells one after the other; one that is killed is a line, no more."""
    monkeypatch.setattr(workers, "_settle", _die_for_the_full_method)
    done = cc.sweep("table4", tracks, out=tmp_path / "out", **TINY | {"jobs": 2})
    ours, theirs = values_of(done), values_of(swept)
    for row in ("intra-image", "intra-video"):
        assert ours[row]["linear top-1"] == {0: theirs[row]["linear top-1"][0]}
        assert ours[row]["kNN top-1"] == {0: theirs[row]["kNN top-1"][0]}
    assert [len(one.seeds) for one in done.rows] == [1, 1, 0]
    assert done.problems == (f"full, seed 0: {workers.DIED}",)
    assert "3 steps on cpu" in (tmp_path / "out" / "runs" / "intra-video-seed0.log").read_text()


def test_a_process_that_is_terminated_ends_no_other(tracks, tmp_path, monkeypatch):
    """A training that ends by SIGTERM, with a checkpoint and SystemExit, costs its cell alone."""

    class Pool:
        def __init__(self, *_, **__): ...

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def submit(self, *_):
            future = Future()
            future.set_exception(SystemExit(143))
            return future

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    plan = make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path / "out", **TINY))
    finished = workers.run_cells(plan.cells, 2, lambda one: None)
    assert len(finished) == 3
    assert all("was terminated; the same command goes on" in problem for one in finished for problem in one.problems)
    assert all(len(one.problems) == 1 for one in finished)


def _die_for_the_full_method(num_threads, log):
    if log.name.startswith("full"):
        os._exit(9)
    workers._settle(num_threads, log)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 4}, "begun with steps 3, not 4; name another folder"),
        ({"steps": None}, r"begun with epochs unset, not \d+, .*steps 3, not unset"),
        ({"flip": True}, "begun with flip False, not True"),
    ],
)
def test_other_settings_do_not_go_into_the_same_folder(swept, tracks, settings, words):
    """A run of other settings is never taken for one of these, not even where the new command leaves one open."""
    with pytest.raises(UserError, match=words) as error:
        cc.sweep("table4", tracks, out=swept.folder, **TINY | settings)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("decides", "choice", "words"),
    [
        ("training.presets._learning_rate", 0.5, r"begun with learning_rate [\d.]+, not 0\.5; name another folder"),
        ("training.presets._epochs", 10**6, r"begun with momentum 0\.99, not 0\.999; name another folder"),
        ("sweeping.plan.pick_precision", "tf32", r"begun with precision \w+, not tf32; name another folder"),
    ],
)
def test_what_auto_decides_otherwise_does_not_go_into_the_same_folder(
    swept, tracks, monkeypatch, decides, choice, words
):
    """Other hardware or another version, whose `auto` decides otherwise, is refused though the same was asked."""
    monkeypatch.setattr(f"cyclecontrast.{decides}", lambda *_: choice)
    with pytest.raises(UserError, match=words) as error:
        cc.sweep("table4", tracks, out=swept.folder, **TINY | {"seeds": 2})
    assert len(error.value.problems) == 1


def test_a_gpus_auto_is_not_a_cpus(tracks, tmp_path, monkeypatch):
    """What `auto` decides on a GPU, another network here, is refused in a folder that was begun on a CPU."""
    open_backbone = {**TINY, "backbone": None}
    plan = make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path / "out", **open_backbone))
    cells.run_cell(plan.cells[0]._replace(evaluations=()))
    monkeypatch.setattr("cyclecontrast.sweeping.plan.Machine", lambda cpu: Machine(cpu=False))
    with pytest.raises(UserError, match="begun with backbone resnet18-small-w16, not resnet18-small, "):
        cc.sweep("table4", tracks, out=tmp_path / "out", **open_backbone)


def test_a_sweep_of_an_older_version_goes_on_where_auto_decides_the_same(swept, tracks, tmp_path, monkeypatch):
    """A note that says only what was asked is completed by the run's config.toml; a run without one is begun anew."""
    out = tmp_path / "out"
    shutil.copytree(swept.folder, out)
    for note in out.glob("runs/*.json"):
        objective, seed = note.stem.replace("full", "cycle").split("-seed")
        asked = {name: TINY[name] for name in ("backbone", "image_size", "batch_size", "steps", "flip")}
        data = json.loads(note.read_text())["data"]
        note.write_text(json.dumps({**asked, "method": objective, "seed": int(seed), "data": data}))
    trained, train = [], cells.pretrain
    monkeypatch.setattr(cells, "pretrain", lambda config: trained.append(config.out.name) or train(config))
    assert values_of(cc.sweep("table4", tracks, out=out, **TINY | {"seeds": 2})) == values_of(swept)
    assert trained == []
    (out / "runs" / "full-seed1" / "config.toml").unlink()
    (out / "runs" / "full-seed1" / "run.json").unlink()
    assert values_of(cc.sweep("table4", tracks, out=out, **TINY | {"seeds": 2})) == values_of(swept)
    assert trained == ["full-seed1"]
    monkeypatch.setattr("cyclecontrast.training.auto_settings._learning_rate", lambda *_: 0.5)
    with pytest.raises(UserError, match=r"begun with learning_rate [\d.]+, not 0\.5; name another"):
        cc.sweep("table4", tracks, out=out, **TINY | {"seeds": 2})


def test_other_frames_do_not_go_into_the_same_folder(swept, tracks, tmp_path):
    """Frames that are not those that the runs were begun with are refused."""
    other = tmp_path / "tracks"
    shutil.copytree(tracks, other)
    shutil.copy(other / "frames" / "0" / "0.png", other / "frames" / "0" / "3.png")
    with pytest.raises(UserError, match=r"begun with data \w+, not \w+; name another folder"):
        cc.sweep("table4", other, out=swept.folder, **TINY | {"seeds": 2})


@pytest.mark.parametrize("file", ["thesis.tex", "runs/full-seed0/thesis.tex", "runs/signs/run.json"])
def test_a_folder_that_is_not_a_sweeps_is_spared(file, tracks, tmp_path):
    """Where something else lies and no sweep, nothing is used, written or removed."""
    mine = tmp_path / "out" / file
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(UserError, match="out holds something else and no sweep; name a new folder"):
        cc.sweep("table4", tracks, out=tmp_path / "out", **TINY)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [mine]


def test_a_run_that_is_not_a_sweeps_is_spared(copied, tracks):
    """A run beside those of a sweep that something else made is neither used nor removed."""
    (copied / "runs" / "full-seed0.json").unlink()
    with pytest.raises(UserError, match="full-seed0 was not made by a sweep"):
        cc.sweep("table4", tracks, out=copied, **TINY)


def test_a_sweep_that_was_killed_at_once_goes_on(tracks, tmp_path):
    """Frames, a lock, a log and half-written notes are what a killed sweep leaves, and no one else's."""
    runs = tmp_path / "out" / "runs"
    runs.mkdir(parents=True)
    (tmp_path / "out" / "frames").mkdir()
    for path in (tmp_path / "out" / ".lock", runs / "full-seed0.log", runs / "full-seed0.json.12.part"):
        path.touch()
    assert make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path / "out", **TINY)).cells


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tabel4", "{data}"], "did you mean table4?"),
        (["table4"], "data is missing"),
        (["table4", "{data}", "--on", "nowhere"], "on: nowhere: no such folder"),
        (["table2", "{data}"], "holds no labels for table2; name with --on an OTB root"),
        (["table10", "{data}"], "name with --on a UCF101 or HMDB51 root"),
        (["table4", "{data}/frames"], "name with --on a folder with train/<class>"),
        (["table4", "{data}", "--device", "cuda:99"], "device cuda:99"),
        (["table4", "{data}", "--backbone", "timm:nothing"], "timm:nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_told_before_anything_is_written(arguments, words, tracks, tmp_path, monkeypatch, capsys):
    """Each ends in lines that start with error:, exit code 2, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *(word.format(data=tracks) for word in arguments)]) == 2
    messages = capsys.readouterr().err
    assert words in messages
    assert all(line.startswith("error: ") for line in messages.splitlines())
    assert not list(tmp_path.iterdir())


def test_the_papers_sizes_are_the_papers_without_small():
    """Tables 5 to 8 change exactly the options that the paper varies, at the paper's sizes."""
    knobs = {
        table: [{name: value for name, value in row.settings.items() if name != "objective"} for row in rows_of(table)]
        for table in ("table5", "table6", "table7", "table8")
    }
    assert [one["support_size"] for one in knobs["table5"]] == [128, 256, 512, 16384, 256]
    assert [one["query_frame_in_support"] for one in knobs["table5"]] == [True, True, True, True, False]
    assert {row.settings["objective"] for row in rows_of("table5")} == {"cycle-only"}
    assert knobs["table6"] == [{"support_size": size} for size in (256, 1024, 4096, 16384)]
    assert [one.get("top_k") for one in knobs["table7"]] == [8, 16, 32, 128, 256, None]
    assert {one["support_size"] for one in knobs["table7"]} == {16384}
    assert knobs["table8"] == [{"cycle_weight": weight} for weight in (0.05, 0.1, 0.3, 0.5, 0.7, 1.0)]
    assert [row.settings for row in rows_of("table4")] == [
        {"method": name} for name in ("intra-image", "intra-video", "cycle")
    ]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("queue", [None, 1024, 2048, 65_536])
def test_rows_are_distinct_and_can_be_trained(table, queue):
    """At any size of the data, no two rows are the same training or share a folder, and each is a valid config."""
    rows = rows_of(table, queue)
    preset = {"preset": "paper"} if queue is None else {}
    configs = [checked(PretrainConfig, {"data": "d", "out": "o", **preset, **row.settings}) for row in rows]
    for a, b in itertools.combinations(range(len(rows)), 2):
        assert configs[a] != configs[b]
        assert rows[a].folder != rows[b].folder
    if queue == 65_536:
        assert [row.settings | {"cycle_queue_size": 0} for row in rows] == [
            row.settings | {"cycle_queue_size": 0} for row in rows_of(table)
        ]


@pytest.mark.parametrize("share", [1.0, 0.5, 1 / 64, 1 / 100, 1 / 4000, 1e-9])
@pytest.mark.parametrize("sizes", [(128, 256, 512, 16_384), (8, 16, 32, 128, 256)])
def test_scaled_sizes_keep_their_order(sizes, share):
    """Shares are exact where whole, never below 1, and stay as many as they were."""
    small = scaled(sizes, share)
    assert small[0] >= 1
    assert len(set(small)) == len(sizes)
    assert sorted(small) == list(small)
    if share == 1 / 64 and sizes[0] == 128:
        assert small == (2, 4, 8, 256)
    if share == 1.0:
        assert small == sizes


def test_protocols_follow_the_table(shared, tmp_path):
    """Table 2 tracks on OTB, Table 10 trains the last layer on actions, and both learn from what DATA names."""
    data, root = shared / "video_frames" / "gtsrb", shared / "tracking"
    tracking = make_plan(SweepConfig(table="table2", data=data, on=root / "otb", out=tmp_path, **TINY))
    (evaluation,) = tracking.cells[0].evaluations
    config = evaluation.config(tmp_path, 0)
    assert (evaluation.protocol, config.data, config.train) == ("tracking", root / "otb", True)
    actions = shared / "ucf101_layout" / "gtsrb_clips"
    action = make_plan(SweepConfig(table="table10", data=data, on=actions, out=tmp_path, **TINY))
    config = action.cells[0].evaluations[0].config(tmp_path, 0)
    assert (config.mode, config.num_frames, config.flip) == ("linear", 8, False)
    assert action.cells[0].data == data


def test_without_small_the_rest_is_the_papers(tracks, tmp_path):
    """The preset is paper, or the one asked for; --small leaves it to auto and scales the queue."""

    def first(**settings):
        return (
            make_plan(SweepConfig(table="table6", data=tracks, out=tmp_path / "out", **settings)).cells[0].pretraining
        )

    assert (first().preset, first().support_size, first().cycle_queue_size) == ("paper", 256, 65_536)
    assert (first(preset="release").preset, first(preset="release").cycle_queue_size) == ("release", 81_920)
    small = first(small=True)
    assert (small.preset, small.support_size, small.cycle_queue_size) == ("auto", 4, 1024)
    assert not (tmp_path / "out").exists()


def test_a_queue_longer_than_the_frames_is_told(tracks, tmp_path):
    """It is said of the queue only what is true however short the training is."""
    plan = make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path / "out", **TINY | {"small": False}))
    assert "The queue of 65,536 keys is longer than the 24 frames; --small scales it." in plan.about


def made(values, table="table4", num_seeds=None):
    """Make a sweep of measured values {row key: {seed: percent}} by one metric."""
    rows = tuple(Measured(row, {"kNN top-1": values.get(row.key, {})}) for row in rows_of(table, 1024))
    seeds = num_seeds or max(map(len, values.values()))
    return Sweep(TABLES[table], rows, seeds, "about <b>", (), None)


def test_a_clear_lead_is_marked():
    """The best row is bold where it is significantly above every other, seed by seed, though the seeds differ a lot."""
    base = {0: 20.0, 1: 40.0, 2: 60.0}
    sweep = made(
        {
            "intra-image": {seed: value - 5 + 0.2 * seed for seed, value in base.items()},
            "intra-video": base,
            "cycle": {seed: value + 2 + 0.1 * seed for seed, value in base.items()},
        }
    )
    assert [line.best for line in sweep.lines()][2][1]
    assert str(sweep).count("**42.1 ± 20.1**") == 1
    assert "- first by kNN top-1: full, clearly" in str(sweep)
    assert "- full against intra-video: kNN top-1 +2.1 ± 0.1 (significant), over 3 seeds" in str(sweep)


def test_noise_is_called_noise():
    """Where the seeds disagree nothing is bold, and a lead of another row than the full method is said openly."""
    sweep = made(
        {
            "intra-image": {0: 10.0, 1: 11.0, 2: 12.0},
            "intra-video": {0: 50.0, 1: 54.0, 2: 52.0},
            "cycle": {0: 52.0, 1: 50.0, 2: 51.0},
        }
    )
    assert "**" not in str(sweep)
    assert "first by kNN top-1: intra-video, within the noise of full; not full, which the paper finds best" in str(
        sweep
    )
    assert "full against intra-video: kNN top-1 -1.0 ± 3.0 (not significant), over 3 seeds" in str(sweep)


def test_rows_that_are_tied_are_all_named():
    """Rows with the same mean at the digits shown share the first place, and none of them is bold."""
    low, high = {0: 10.0, 1: 11.0, 2: 12.0}, {0: 50.0, 1: 54.0, 2: 52.0}
    above = {seed: value + 0.01 + 0.001 * seed for seed, value in high.items()}
    assert gain(above, high).is_significant
    text = str(made({"intra-image": low, "intra-video": high, "cycle": above}))
    assert "- tied first by kNN top-1: full, intra-video\n" in text
    assert "**" not in text
    text = str(made({"intra-image": high, "intra-video": high, "cycle": low}))
    assert "- tied first by kNN top-1: intra-image, intra-video; not full, which the paper finds best\n" in text
    assert "- tied first by kNN top-1: intra-image, intra-video, full\n" in str(
        made({"intra-image": {0: 50.0}, "intra-video": {0: 50.0}, "cycle": {0: 50.0}})
    )
    near = {0: 54.0, 1: 50.0, 2: 51.0}
    text = str(made({"intra-image": near, "intra-video": high, "cycle": high}))
    assert "- tied first by kNN top-1: intra-video, full, within the noise of all others\n" in text


def test_one_seed_proves_nothing():
    """With a single seed nothing is marked, judged or called clear."""
    text = str(made({"intra-image": {0: 10.0}, "intra-video": {0: 50.0}, "cycle": {0: 90.0}}))
    assert "one seed proves nothing" in text
    assert not any(word in text.split("Mean ±")[0] for word in ("**", "clearly", "significant"))


def test_a_row_alone_leads_nobody():
    """Where the other rows failed, nothing is bold and nothing is clear."""
    text = str(made({"cycle": {0: 50.0, 1: 51.0}}))
    assert "- first by kNN top-1: full\n" in text
    assert "**" not in text


def test_only_shared_seeds_are_compared():
    """A row with a failed seed is compared over the seeds that it has, and says how many those are."""
    values = {"intra-image": {0: 1.0, 1: 1.5}, "intra-video": {1: 50.0}, "cycle": {0: 10.0, 1: 60.0}}
    text = str(made(values))
    assert "full against intra-video: kNN top-1 +10.0 (one seed proves nothing), over 1 seed" in text
    assert "1 of 2" in text


def test_rows_are_ranked_over_the_seeds_that_all_have():
    """A row whose hard seeds are not finished does not lead for that, nor is it called clear or bold."""
    hard = {0: 60.0, 1: 62.0, 2: 20.0}
    values = {"intra-image": {0: 50.0, 1: 53.0}, "intra-video": {0: 59.0, 1: 61.9}, "cycle": hard}
    text = str(made(values))
    assert "- first by kNN top-1: full, within the noise of intra-video, over 2 of 3 seeds\n" in text
    assert "**" not in text
    text = str(made(values | {"intra-video": {0: 61.0}}))
    assert "- first by kNN top-1: intra-video, over 1 of 3 seeds; not full, which the paper finds best\n" in text


def test_rows_without_a_common_seed_are_not_ranked():
    """Where each row has other seeds, none is first, none is bold, and the table says why."""
    values = {"intra-image": {0: 1.0, 1: 2.0}, "intra-video": {1: 40.0, 2: 41.0}, "cycle": {0: 9.0, 2: 99.0}}
    text = str(made(values, num_seeds=3))
    assert "- not ranked by kNN top-1: the rows have no seed in common\n" in text
    assert "first by" not in text
    assert "**" not in text


@pytest.mark.parametrize("seed", range(20))
def test_significance_is_the_paired_t_test(seed):
    """The verdict is scipy's at 5 %, over two to six seeds."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(1, 1, (2, 2 + seed % 5)) * [[1], [0.5]]
    found = gain(dict(enumerate(ours)), dict(enumerate(theirs)))
    assert found.is_significant == (ttest_rel(ours, theirs).pvalue < 0.05)
    assert found.mean == pytest.approx(np.mean(ours - theirs))
    assert found.deviation == pytest.approx(np.std(ours - theirs, ddof=1))


def test_equal_rows_are_not_significant():
    """No difference is none, nor are two that are equal to the digit; without common seeds there is nothing."""
    assert not gain({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).is_significant
    assert not gain({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0}).is_significant
    assert not Gain(5.0, None, 1).is_significant
    assert gain({0: 1.0}, {1: 1.0}) is None


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    """A mean of -0.04 is shown as 0.0, one of -0.06 as -0.1."""
    assert str(Gain(-0.04, 11.8, 3)) == "0.0 ± 11.8 (not significant)"
    assert str(Gain(0.04, None, 1)) == "0.0 (one seed proves nothing)"
    assert str(Gain(-0.06, 11.8, 3)).startswith("-0.1 ")


def test_settings_that_are_numbers_are_drawn():
    """Tables 5 to 8 have a plot, also where a row is missing and with one seed; the page holds it and escapes text."""
    for table in ("table5", "table6", "table7", "table8"):
        sweep = made({row.key: {0: 50.0, 1: 51.0} for row in rows_of(table)[1:]}, table)
        image = cv2.imdecode(np.frombuffer(draw(sweep), np.uint8), cv2.IMREAD_COLOR)
        assert image.shape[1] > image.shape[0] > 300
        assert image.std() > 10
    page = render(sweep, draw(sweep))
    assert "data:image/png;base64," in page
    assert "about &lt;b&gt;" in page
    assert draw(made({"cycle": {0: 50.0}})) is None


def test_all_numbers_are_in_the_json(tmp_path):
    """The JSON holds values by seed, means, deviations, gains and the paper's figures, and no NaN."""
    sweep = made({"0.1": {0: 50.0, 1: 54.0}, "0.3": {0: 49.0}}, "table8")
    write_files(Sweep(sweep.table, sweep.rows, 2, "about", (), tmp_path))
    numbers = json.loads((tmp_path / "table8.json").read_text())
    best = next(row for row in numbers["rows"] if row["key"] == "0.1")
    assert best["percent_by_seed"] == {"kNN top-1": {"0": 50.0, "1": 54.0}}
    assert best["mean"]["kNN top-1"] == 52.0
    assert best["deviation"]["kNN top-1"] == pytest.approx(8**0.5)
    assert [figure["percent"] for figure in best["paper"]] == [58.48, 83.50]
    other = next(row for row in numbers["rows"] if row["key"] == "0.3")
    assert other["papers_best_minus_this"]["kNN top-1"]["mean"] == 1.0
    assert to_json(sweep)["rows"][0]["mean"] == {"kNN top-1": None}


def test_a_metric_is_found_whatever_k_is_behind_it():
    """kNN clips k to the number of training images; top5 is no top5 of another name."""
    assert Metric("knn", "top1", "").pick({"top1_k7": 0.5, "top5_k7": 0.75}) == 50.0
    assert Metric("linear", "top5", "").pick({"top1": 0.5}) is None
