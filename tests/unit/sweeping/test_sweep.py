"""The command `sweep`: what it trains, what it does not repeat, how it resumes, and which mistakes it reports."""

import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np
import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import SweepConfig
from cyclecontrast.errors import UserError
from cyclecontrast.sweeping import trials
from cyclecontrast.sweeping.command import make_plan
from cyclecontrast.training.auto_settings import Machine
from tests import make_videos as make

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
    """Table 4 with one seed; tests that change its folder copy it first."""
    out = tmp_path_factory.mktemp("swept") / "out"
    return cc.sweep("table4", tracks, out=out, **TINY)


@pytest.fixture
def copied(swept, tmp_path):
    """A copy of the sweep's runs, without its tables."""
    shutil.copytree(swept.folder / "runs", tmp_path / "out" / "runs")
    return tmp_path / "out"


@pytest.fixture
def trained(monkeypatch):
    """The names of the runs that are trained from now on."""
    names, train = [], trials.pretrain
    monkeypatch.setattr(
        trials,
        "pretrain",
        lambda config, **rest: names.append((config.resume or config.out).name) or train(config, **rest),
    )
    return names


def values_of(sweep):
    """Return all values as plain numbers."""
    return {one.row.key: {title: dict(values) for title, values in one.values.items()} for one in sweep.rows}


def remove_trials(folder, *rows):
    """Remove the trials of rows from a sweep's folder, as if they had not run yet."""
    for row in rows:
        shutil.rmtree(folder / "runs" / f"{row}-seed0")
        (folder / "runs" / f"{row}-seed0.json").unlink()


def fail_for_the_full_method(monkeypatch, *lines):
    """Let the training of the full method fail with these lines."""
    train = trials.pretrain

    def failing(config, **rest):
        if config.method == "cycle":
            raise UserError(*lines)
        return train(config, **rest)

    monkeypatch.setattr(trials, "pretrain", failing)


# --- results, and resuming


def test_a_sweep_gives_the_results_of_the_single_commands(swept, tracks, tmp_path):
    """The metrics of a trial are those of pretrain, then evaluate, with the same settings and seed."""
    settings = {name: TINY[name] for name in TINY if name not in ("small", "seeds", "jobs")}
    run = cc.pretrain(tracks, out=tmp_path / "run", method="intra-video", **settings)
    knn = cc.evaluate("knn", run.folder, tracks, k=(20,), workers=0, device="cpu")
    linear = cc.evaluate("linear", run.folder, tracks, workers=0, device="cpu")
    values = values_of(swept)["intra-video"]
    assert values["kNN top-1"][0] == 100 * next(iter(knn.metrics.values()))
    assert values["linear top-1"][0] == 100 * linear.metrics["top1"]


def test_the_table_is_written_in_all_formats(swept):
    """Markdown, HTML and JSON have the rows in the paper's order beside its figures; named settings have no chart."""
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
    assert numbers["rows"][2]["percent_by_seed"]["kNN top-1"].keys() == {"0"}
    assert not (swept.folder / "table4.png").exists()


def test_finished_trials_are_not_repeated(swept, tracks, tmp_path, trained):
    """The same command trains and evaluates nothing; one seed more trains that seed only."""
    out = tmp_path / "out"
    shutil.copytree(swept.folder, out)
    files = sorted(out.glob("runs/*/results/*.json"))
    before = [path.stat().st_mtime_ns for path in files]
    again = cc.sweep("table4", tracks, out=out, **TINY)
    assert (str(again), trained) == (str(swept), [])
    assert [path.stat().st_mtime_ns for path in files] == before
    more = cc.sweep("table4", tracks, out=out, **TINY | {"seeds": 2})
    assert trained == ["intra-image-seed1", "intra-video-seed1", "full-seed1"]
    assert [one.seeds for one in more.rows] == [[0, 1]] * 3


def test_an_interrupted_sweep_resumes(copied, swept, tracks, trained):
    """Interrupted during the second training, the same command resumes that run and ends with the same values."""
    remove_trials(copied, "intra-video", "full")
    steps = []

    def interrupt(optimizer, *_):
        steps.append(optimizer)
        if len(steps) == 1:
            signal.raise_signal(signal.SIGINT)

    hook = register_optimizer_step_post_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
            cc.sweep("table4", tracks, out=copied, **TINY)
        assert trained == ["intra-video-seed0"]
        done = cc.sweep("table4", tracks, out=copied, **TINY)
    finally:
        hook.remove()
    assert trained[1:] == ["intra-video-seed0", "full-seed0"]
    assert len(steps) == 2 * TINY["steps"]
    assert values_of(done) == values_of(swept)


# --- failures


def test_a_failed_trial_does_not_stop_the_others(copied, tracks, monkeypatch, capsys):
    """The table has the other rows, the command ends with exit code 2, and run again it trains the missing trial."""
    out = copied
    remove_trials(out, "full")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if not isinstance(value, bool)]
    command = ["sweep", "table4", str(tracks), f"--out={out}", "--small", "--no-flip", *flags]
    with monkeypatch.context() as patched:
        fail_for_the_full_method(patched, "the loss is not finite", "the disk is slow")
        assert main(command) == 2
        printed = capsys.readouterr()
        done = cc.sweep("table4", tracks, out=out, **TINY)
    assert printed.out == (out / "table4.md").read_text() == f"{done}\n"
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: 1 of 3 trials failed: full, seed 0; run the same command to resume")
    assert done.problems == ("full, seed 0: the loss is not finite", "full, seed 0: the disk is slow")
    assert "- not finished: full, seed 0: the loss is not finite" in str(done)
    assert [len(one.seeds) for one in done.rows] == [1, 1, 0]
    assert "0 of 1" in str(done)
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out == (out / "table4.md").read_text()
    assert "0 of 1" not in (out / "table4.md").read_text()


def test_where_all_trials_fail_there_is_no_table(tracks, tmp_path, monkeypatch):
    """The reasons are the error."""
    monkeypatch.setattr(trials, "pretrain", lambda config, **rest: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(UserError, match="intra-image, seed 0: RuntimeError: out of memory"):
        cc.sweep("table4", tracks, out=tmp_path / "out", **TINY)
    assert not list((tmp_path / "out").glob("table4*"))


@pytest.mark.parametrize("file", ["run.json", "config.toml"])
def test_a_damaged_file_of_a_run_is_reported(file, copied, tracks):
    """One line names the file, and nothing is trained or written."""
    path = copied / "runs" / "full-seed0" / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{path}") as error:
        cc.sweep("table4", tracks, out=copied, **TINY)
    assert len(error.value.problems) == 1
    assert not list(copied.glob("table4*"))


def test_a_damaged_backbone_fails_its_trial_only(copied, tracks):
    """The trial whose weights cannot be read is reported, the others are in the table."""
    path = copied / "runs" / "full-seed0" / "backbone.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    done = cc.sweep("table4", tracks, out=copied, **TINY)
    assert [len(one.seeds) for one in done.rows] == [1, 1, 0]
    (problem,) = done.problems
    assert problem.startswith(f"full, seed 0: {path}: cannot be read as a file of weights")


def test_damaged_notes_and_results_are_written_again(copied, swept, tracks, trained):
    """An empty note and a truncated result cost no training; leftovers are removed; the values stay the same."""
    note = copied / "runs" / "full-seed0.json"
    content = note.read_bytes()
    note.write_bytes(b"")
    (result,) = (copied / "runs" / "full-seed0" / "results").glob("knn-*.json")
    result.write_bytes(result.read_bytes()[:100])
    leftover = copied / "table4.md.1234.part"
    leftover.write_text("half")
    done = cc.sweep("table4", tracks, out=copied, **TINY)
    assert values_of(done) == values_of(swept)
    assert trained == []
    assert note.read_bytes() == content
    assert not leftover.exists()


def test_a_run_that_stopped_before_its_first_step_is_trained_again(copied, swept, tracks, trained):
    """A run without config.toml has not started yet."""
    for file in ("config.toml", "run.json"):
        (copied / "runs" / "full-seed0" / file).unlink()
    assert values_of(cc.sweep("table4", tracks, out=copied, **TINY)) == values_of(swept)
    assert trained == ["full-seed0"]


def test_two_sweeps_cannot_use_one_folder_at_once(copied, tracks):
    """The second is refused with a line that names the first, and writes nothing."""
    hold = "import sys\nfrom pathlib import Path\nfrom cyclecontrast.files import locked\n"
    hold += "with locked(Path(sys.argv[1]), 'out'):\n    print(flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(copied)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"\n"
        with pytest.raises(UserError, match=rf"out: {copied} is in use by process {first.pid} on"):
            cc.sweep("table4", tracks, out=copied, **TINY)
        first.communicate()
    assert not list(copied.glob("table4*"))


# --- several processes


def test_a_trial_in_its_own_process_gives_the_same_values(swept, tracks, tmp_path):
    """Its progress goes to a log beside the run."""
    plan = make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path / "out", **TINY))
    (finished,) = trials.run_trials(plan.trials[1:2], 2, lambda one: None)
    expected = values_of(swept)["intra-video"]
    for metric in plan.table.metrics[:2]:
        assert metric.pick(finished.metrics) == expected[metric.title][0]
    assert "3 steps of 4 videos, on cpu" in (tmp_path / "out" / "runs" / "intra-video-seed0.log").read_text()


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (SystemExit(143), "its process was terminated; the same command resumes it"),
        (BrokenProcessPool(), trials.KILLED),
    ],
    ids=["SIGTERM", "SIGKILL"],
)
def test_a_process_that_ends_early_fails_its_trial_only(tracks, tmp_path, monkeypatch, error, problem):
    """SIGTERM ends a training with a checkpoint and SystemExit, SIGKILL at once; other trials go on."""

    class Pool:
        def __init__(self, *_, **__): ...

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def submit(self, run, trial):
            future = Future()
            if trial.row == "full":
                future.set_exception(error)
            else:
                future.set_result({"knn": {"top1_k20": 0.5}})
            return future

    monkeypatch.setattr(trials, "ProcessPoolExecutor", Pool)
    plan = make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path / "out", **TINY))
    finished = {one.trial.row: one.problems for one in trials.run_trials(plan.trials, 2, lambda one: None)}
    assert finished == {"intra-image": (), "intra-video": (), "full": (problem,)}


def test_sigterm_reaches_every_trial(tmp_path, monkeypatch):
    """A sweep that is terminated terminates the processes of its trials, waits for them, and starts no other."""
    started, ended = threading.Event(), []

    def run_forever(trial, at_once):
        process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        process.start()
        started.set()
        process.join()
        ended.append(process.exitcode)
        return {}

    def terminated(futures):
        started.wait()
        raise SystemExit(143)

    monkeypatch.setattr(trials, "_run_in_process", run_forever)
    monkeypatch.setattr(trials, "as_completed", terminated)
    planned = [trials.Trial(f"{row}", 0, tmp_path / f"{row}", tmp_path, "", {}, {}) for row in range(3)]
    with pytest.raises(SystemExit):
        trials.run_trials(planned, 1, print, num_processes=2)
    assert ended == [-signal.SIGTERM]


def test_only_rank_0_prepares_the_videos(tracks, tmp_path, monkeypatch):
    """The others would wait for its lock, or for each other's."""
    (tmp_path / "videos").mkdir()
    make.write_numbered(tmp_path / "videos" / "0.mp4", num_frames=3)
    prepared = []
    monkeypatch.setattr("cyclecontrast.sweeping.command.prepare_videos", prepared.append)
    config = SweepConfig(table="table4", data=tmp_path / "videos", on=tracks, out=tmp_path / "out", **TINY)
    with pytest.raises(UserError, match="frames"):
        make_plan(config, 2, prepares=False)
    assert not prepared


# --- the folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 4}, "started with steps 3, not 4; name another folder"),
        ({"steps": None}, r"started with epochs unset, not \d+, .*steps 3, not unset"),
        ({"flip": True}, "started with flip False, not True"),
    ],
)
def test_other_settings_are_refused(swept, tracks, settings, words):
    """The folder of a sweep accepts no other settings, not even where the new command leaves one open."""
    with pytest.raises(UserError, match=words) as error:
        cc.sweep("table4", tracks, out=swept.folder, **TINY | settings)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("decides", "choice", "words"),
    [
        ("training.auto_settings._learning_rate", 0.5, r"started with learning_rate [\d.]+, not 0\.5"),
        ("training.auto_settings._epochs", 10**6, r"started with momentum 0\.99, not 0\.999"),
        ("sweeping.command.pick_precision", "tf32", r"started with precision \w+, not tf32"),
    ],
)
def test_other_decisions_of_auto_are_refused(swept, tracks, monkeypatch, decides, choice, words):
    """The same options on other hardware or in another version may mean other settings."""
    monkeypatch.setattr(f"cyclecontrast.{decides}", lambda *_: choice)
    with pytest.raises(UserError, match=words) as error:
        cc.sweep("table4", tracks, out=swept.folder, **TINY)
    assert len(error.value.problems) == 1


def test_a_sweep_of_a_cpu_is_not_resumed_with_the_settings_of_a_gpu(tracks, tmp_path, monkeypatch):
    """`auto` picks another network on a GPU."""
    open_backbone = {**TINY, "backbone": None}
    plan = make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path / "out", **open_backbone))
    trials.run_trial(plan.trials[0]._replace(evaluations=()))
    monkeypatch.setattr("cyclecontrast.sweeping.command.Machine", lambda cpu: Machine(cpu=False))
    with pytest.raises(UserError, match="started with backbone resnet18-small-w16, not resnet18-small, "):
        cc.sweep("table4", tracks, out=tmp_path / "out", **open_backbone)


def test_other_frames_are_refused(swept, tracks, tmp_path):
    """The frames must be those that the runs were started with."""
    other = tmp_path / "tracks"
    shutil.copytree(tracks, other)
    shutil.copy(other / "frames" / "0" / "0.png", other / "frames" / "0" / "3.png")
    with pytest.raises(UserError, match=r"started with data \w+, not \w+; name another folder"):
        cc.sweep("table4", other, out=swept.folder, **TINY)


@pytest.mark.parametrize("file", ["thesis.tex", "runs/full-seed0/thesis.tex", "runs/signs/run.json"])
def test_a_folder_with_other_files_is_left_alone(file, tracks, tmp_path):
    """Where the folder holds something else and no sweep, nothing is used, written or removed."""
    mine = tmp_path / "out" / file
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(UserError, match="out is not empty and not a sweep; name a new folder"):
        cc.sweep("table4", tracks, out=tmp_path / "out", **TINY)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [mine]


def test_a_run_that_no_sweep_made_is_left_alone(copied, tracks):
    """A run beside those of a sweep that something else made is neither used nor removed."""
    (copied / "runs" / "full-seed0.json").unlink()
    with pytest.raises(UserError, match="full-seed0 was not made by a sweep"):
        cc.sweep("table4", tracks, out=copied, **TINY)


def test_the_leftovers_of_a_killed_sweep_are_accepted(tracks, tmp_path):
    """Frames, a lock, a log and half-written notes."""
    runs = tmp_path / "out" / "runs"
    runs.mkdir(parents=True)
    (tmp_path / "out" / "frames").mkdir()
    for path in (tmp_path / "out" / ".lock", runs / "full-seed0.log", runs / "full-seed0.json.12.part"):
        path.touch()
    assert make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path / "out", **TINY)).trials


# --- the plan


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tabel4", "{data}"], "did you mean table4?"),
        (["table4"], "data is missing"),
        (["table4", "{data}", "--on", "nowhere"], "on: nowhere: no such f"),
        (["table2", "{data}"], "has no labels for table2; name with --on an OTB root"),
        (["table10", "{data}"], "name with --on a UCF101 or HMDB51 root"),
        (["table4", "{data}/frames"], "name with --on a folder with train/<class>"),
        (["table4", "{data}", "--device", "cuda:99"], "device cuda:99"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_reported_before_anything_is_written(arguments, words, tracks, tmp_path, monkeypatch, capsys):
    """Lines that start with error:, exit code 2, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *(word.format(data=tracks) for word in arguments)]) == 2
    messages = capsys.readouterr().err
    assert words in messages
    assert all(line.startswith("error: ") for line in messages.splitlines())
    assert not list(tmp_path.iterdir())


def test_each_table_has_its_protocol(shared, tmp_path):
    """Table 2 tracks on OTB, Table 10 trains a linear layer on actions; both pretrain on DATA."""
    data, root = shared / "video_frames" / "gtsrb", shared / "tracking"
    tracking = make_plan(SweepConfig(table="table2", data=data, on=root / "otb", out=tmp_path, **TINY))
    ((protocol, settings),) = tracking.trials[0].evaluations
    config = trials.evaluation_config(protocol, settings, tmp_path, 0)
    assert (protocol, config.data, config.train) == ("tracking", root / "otb", True)
    actions = shared / "ucf101_layout" / "gtsrb_clips"
    action = make_plan(SweepConfig(table="table10", data=data, on=actions, out=tmp_path, **TINY))
    config = trials.evaluation_config(*action.trials[0].evaluations[0], tmp_path, 0)
    assert (config.mode, config.num_frames, config.flip) == ("linear", 8, False)
    assert action.trials[0].data == data


def test_without_small_the_preset_is_the_papers(tracks, tmp_path):
    """Or the one given; --small leaves it to auto and scales the queue."""

    def first(**settings):
        plan = make_plan(SweepConfig(table="table6", data=tracks, out=tmp_path / "out", **settings))
        return plan.trials[0].pretraining

    assert (first().preset, first().support_size, first().cycle_queue_size) == ("paper", 256, 65_536)
    assert (first(preset="release").preset, first(preset="release").cycle_queue_size) == ("release", 81_920)
    small = first(small=True)
    assert (small.preset, small.support_size, small.cycle_queue_size) == ("auto", 4, 1024)
    assert not (tmp_path / "out").exists()


def test_a_queue_longer_than_the_frames_is_reported(tracks, tmp_path):
    """The first paragraph suggests --small."""
    plan = make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path / "out", **TINY | {"small": False}))
    assert "The queue of 65,536 keys is longer than the 24 frames; --small scales it." in plan.about


def test_fewer_seeds_than_on_disk_are_reported(tracks, tmp_path):
    """The first paragraph says which seeds the table has, and that the folder has more."""
    (tmp_path / "runs" / "full-seed2").mkdir(parents=True)
    (tmp_path / "runs" / "full-seed2.json").write_text("{}")

    def about(seeds):
        return make_plan(SweepConfig(table="table4", data=tracks, out=tmp_path, **TINY | {"seeds": seeds})).about

    assert about(2).endswith(" Seeds: 0, 1; more are in the folder.")
    assert "more are in the folder" not in about(3)


def test_trainings_log_as_the_sweep_is_told(tracks, tmp_path, monkeypatch):
    """Each training gets the option log_to, which is not one of its settings; a missing package is reported first."""
    both = ("tensorboard", "wandb")
    options = {"table": "table4", "data": tracks, "out": tmp_path / "out", **TINY}
    plan = make_plan(SweepConfig(**options, log_to=both))
    assert {trial.pretraining.log_to for trial in plan.trials} == {both}
    assert [trial.settings for trial in plan.trials] == [
        trial.settings for trial in make_plan(SweepConfig(**options)).trials
    ]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="log_to: wandb is not installed"):
        make_plan(SweepConfig(**options, log_to=both))
    assert not (tmp_path / "out").exists()
