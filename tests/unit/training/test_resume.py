"""A run that was interrupted anywhere and resumed is the same run, and what cannot be the same is refused."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cyclecontrast as cc
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.training import monitor
from cyclecontrast.training import pretrain as module
from cyclecontrast.training.checkpoints import save_checkpoint
from tests import make_videos as make
from tests.unit.training.test_pretrain import TINY, lines_of, run

STEPS, EVERY = 6, 2


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames: stripes of one width and direction each, which move."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    """A run without any interruption."""
    return train(tree, tmp_path_factory.mktemp("whole") / "run")


def train(tree, out, **changes):
    """Train with everything that a state can hold: both queues, health, and the choice by it."""
    options = {"steps": STEPS, "checkpoint_every": EVERY, "cycle_start": 0.4, "holdout": 0.2}
    return run(tree, out, **(options | {"health_every": 1, "select": "health"} | changes)).folder


def assert_same(one, two):
    """Compare two runs: every tensor of the last state, the backbone that remains, metrics and verdict."""
    assert lines_of(one) == lines_of(two)
    for name in (f"checkpoints/step-{STEPS:08d}/state.safetensors", "backbone.safetensors"):
        first, second = (load_file(folder / name) for folder in (one, two))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (one, two))
    for name in ("verdict", "reason", "selected_step", "status", "data_fingerprint"):
        assert first[name] == second[name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 3])
def test_a_signal_ends_it_between_two_steps(tree, whole, tmp_path, monkeypatch, capfd, number, step):
    """SIGINT and SIGTERM in the middle of any step keep that step, say how to go on, and cost nothing."""
    original = module.train_step

    def signalled(training, batch, at):
        if at == step:
            os.kill(os.getpid(), number)
        return original(training, batch, at)

    monkeypatch.setattr(module, "train_step", signalled)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
        train(tree, tmp_path / "run")
    monkeypatch.undo()
    said = str(ended.value) if number == signal.SIGINT else capfd.readouterr().err
    assert f"step-{step + 1:08d}; --resume {tmp_path / 'run'} goes on from it" in said.replace("\n", " ")
    assert number == signal.SIGINT or ended.value.code == 128 + number
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"].startswith("stopped: ")
    cc.pretrain(resume=tmp_path / "run")
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_whole_group_of_processes_ends_by_a_signal(tree, tmp_path, number, code):
    """A signal to the command and to its workers at once ends it with 128 + the signal's number, a checkpoint written.

    Nothing of the workers' end is seen.
    """
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | {"workers": 2}).items()]
    command = [sys.executable, "-m", "cyclecontrast", "pretrain", str(tree), f"--out={tmp_path / 'run'}", *options]
    with subprocess.Popen(
        [*command, "--steps=100000", "--device=cpu"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, told = process.communicate()
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert "goes on from it" in told
    last = lines_of(tmp_path / "run")[-1]["step"]
    (kept,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(kept.name[5:]) == last


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_heeded_where_nobody_reads(tree, tmp_path, number, code):
    """With the reader of its errors gone, as tee is after Ctrl-C, a checkpoint is written, the exit code the same."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    command = [sys.executable, "-m", "cyclecontrast", "pretrain", str(tree), f"--out={tmp_path / 'run'}", *options]
    with subprocess.Popen([*command, "--steps=100000", "--device=cpu"], stderr=subprocess.PIPE) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
            time.sleep(0.05)
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(number)
    assert process.returncode == code
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("objective", ["byol", "vince", "seco"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # more than CI has cores
@pytest.mark.parametrize("workers", [0, 4])
def test_a_resumed_run_is_the_same_run(tree, tmp_path, objective, workers):
    """Stopped in mid-epoch and resumed, a run of another objective, with workers, ends the same to the bit."""
    uninterrupted = train(tree, tmp_path / "whole", method=objective)
    part = train(tree, tmp_path / "part", method=objective, workers=workers)
    shutil.rmtree(part / "checkpoints" / f"step-{STEPS:08d}")
    (part / "backbone.safetensors").unlink()
    cc.pretrain(resume=part)
    assert_same(part, uninterrupted)


def test_resuming_a_finished_run_does_nothing_more(whole, tmp_path):
    """A run that was complete is complete again, and a copy that somebody made of a checkpoint stays."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000004.bak").mkdir()
    assert cc.pretrain(resume=tmp_path / "run").metrics["step"] == STEPS
    assert_same(tmp_path / "run", whole)
    assert (tmp_path / "run" / "checkpoints" / "step-00000004.bak").exists()


@pytest.mark.parametrize("name", ["state.safetensors", "backbone.safetensors", "metrics.jsonl", "checksums.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, tmp_path, capsys, name, damage):
    """The newest checkpoint, cut anywhere, changed in one bit or lacking a file, is told and passed over at no loss."""
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}" / name
    content, draw = bytearray(path.read_bytes()), random.Random(f"{name} {damage}")
    if damage == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif damage == "changed":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    else:
        path.unlink()
    cc.pretrain(resume=tmp_path / "run")
    assert "step-00000006: is damaged" in capsys.readouterr().err
    assert_same(tmp_path / "run", whole)


def test_a_run_without_a_whole_checkpoint_is_refused(whole, tmp_path):
    """Where every checkpoint is damaged nothing is begun anew in silence: each is named, and all stays as it is."""
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoints/*/state.safetensors"):
        path.write_bytes(b"")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"(?s)step-00000006: is damaged.*step-00000004: is damaged"):
        cc.pretrain(resume=tmp_path / "run")
    before |= {tmp_path / "run" / ".lock": (tmp_path / "run" / ".lock").read_bytes()}
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "unreadable.json", "config.toml", "run.json"])
def test_the_runs_own_files_may_be_cut_anywhere(whole, tmp_path, name):
    """What a checkpoint holds is restored from it; of the others a line says what to copy over them."""
    draw = random.Random(name)
    for number in range(5):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:08d}")
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: draw.randrange(len(content)) if number else 0])
        problems = []
        if attempt(partial(cc.pretrain, resume=folder), problems) is None:
            assert name in ("config.toml", "run.json")
            assert re.search(r"(damaged|was changed).* copy \S+ over it", problems[0])
            shutil.copyfile(folder / "checkpoints" / "step-00000004" / name, folder / name)
            cc.pretrain(resume=folder)
        assert_same(folder, whole)


def test_settings_changed_by_hand_are_refused(whole, tmp_path):
    """A config.toml that differs from that of the last checkpoint would be another run."""
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text().replace("temperature = 0.2", "temperature = 0.3"))
    with pytest.raises(UserError, match=r"was changed: temperature is 0\.2 in the last checkpoint and 0\.3 here"):
        cc.pretrain(resume=tmp_path / "run")


def test_a_run_stopped_before_its_first_checkpoint_begins_again(tree, whole, tmp_path):
    """With config.toml alone, and half-written files beside it, a run begins at its first step."""
    (tmp_path / "run").mkdir()
    shutil.copyfile(whole / "config.toml", tmp_path / "run" / "config.toml")
    (tmp_path / "run" / "run.json.123.part").write_text("{")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "lo')
    cc.pretrain(resume=tmp_path / "run")
    assert_same(tmp_path / "run", whole)
    assert not list((tmp_path / "run").glob("*.part"))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.toml.123.part").write_text("data = ")
    assert_same(train(tree, tmp_path / "new"), whole)


def test_a_checkpoint_is_not_taken_for_its_run(whole, tmp_path):
    """The folder of a checkpoint, which has a config.toml too, is refused with the run's name; nothing is written."""
    shutil.copytree(whole, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"is a checkpoint; name its run, {tmp_path / 'run'}"):
        cc.pretrain(resume=tmp_path / "run" / "checkpoints" / "step-00000004")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_finished_run_without_its_checkpoints_is_refused(whole, tmp_path):
    """Nothing is trained anew in silence over a backbone that is there."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="its checkpoints are gone"):
        cc.pretrain(resume=tmp_path / "run")
    assert lines_of(tmp_path / "run") == lines_of(whole)


def test_an_empty_run_json_is_called_damaged(whole, tmp_path):
    """A run.json that names no data is not taken for one of other data."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json: is damaged.*copy .* over it"):
        cc.pretrain(resume=tmp_path / "run")


def test_checkpoints_that_a_kill_left_over_go(whole, tmp_path):
    """Killed between a checkpoint and the removal of the oldest, a run has the newest two again once it is resumed."""
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(folder / "step-00000004", folder / "step-00000002")
    cc.pretrain(resume=tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000006"]


def test_a_resumed_run_refuses_other_data(tree, tmp_path):
    """Frames that were added since the run began are noticed, and the run is left as it is."""
    data = tmp_path / "data"
    shutil.copytree(tree, data)
    done = run(data, tmp_path / "run", checkpoint_every=2)
    shutil.copytree(data / "group_0", data / "group_9")
    before = {path: path.read_bytes() for path in done.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="not the data"):
        cc.pretrain(resume=done.folder)
    assert {path: path.read_bytes() for path in done.folder.rglob("*") if path.is_file()} == before


def test_a_resumed_run_finds_its_data_where_they_lie_now(tree, tmp_path):
    """Data that were moved are told with the command that names their new place, which then goes on."""
    shutil.copytree(tree, tmp_path / "data")
    done = train(tmp_path / "data", tmp_path / "run")
    shutil.copytree(done, tmp_path / "whole")
    shutil.rmtree(done / "checkpoints" / f"step-{STEPS:08d}")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"is gone; name where it lies now: .* pretrain DATA --resume .*/run$"):
        cc.pretrain(resume=done)
    cc.pretrain(tmp_path / "moved", resume=done)
    assert_same(tmp_path / "whole", done)


@pytest.mark.parametrize(("log_every", "moved_at"), [(1, 3), (100, 3), (100, 5)])
def test_a_run_whose_folder_is_moved_while_it_trains_ends(tree, whole, tmp_path, monkeypatch, log_every, moved_at):
    """A line tells that the folder is gone, nothing is written in its place, and the moved run goes on the same."""
    run_folder, train_step = tmp_path / "run", module.train_step

    def move_then_train(training, batch, step):
        if step == moved_at:
            run_folder.rename(tmp_path / "moved")
        return train_step(training, batch, step)

    monkeypatch.setattr(module, "train_step", move_then_train)
    with pytest.raises(UserError, match="/run is gone, so nothing more is written: if it was moved, --resume"):
        train(tree, run_folder, log_every=log_every, health_every=1 if log_every == 1 else 6)
    monkeypatch.undo()
    assert not run_folder.exists()
    cc.pretrain(resume=tmp_path / "moved")
    if log_every == 1:
        assert_same(whole, tmp_path / "moved")


def test_a_damaged_best_backbone_costs_the_choice_alone(tree, tmp_path, monkeypatch, capsys):
    """Where the one that health chose cannot be read, a line says so, the last remains, and run.json names it."""
    monkeypatch.setattr(monitor, "chosen_step", lambda rows, known: 2)
    done = train(tree, tmp_path / "run")
    shutil.rmtree(done / "checkpoints" / f"step-{STEPS:08d}")
    for best in done.glob("best/*/backbone.safetensors"):
        best.write_bytes(best.read_bytes()[:-1] + b"?")
    cc.pretrain(resume=done)
    said = capsys.readouterr().err
    assert "--select health chose step 2, whose backbone is lost" in said
    assert json.loads((done / "run.json").read_text())["selected_step"] == STEPS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chance", -0.5),
        ("chance", 1.5),
        ("views", 0),
        ("seconds", "long"),
        ("at_start", {"health_same_video": 3}),
        ("at_start", {"health_rank": 1e300}),
        ("at_start", {"health_rank": None}),
    ],
)
def test_what_no_health_can_be_is_told(whole, tmp_path, name, value):
    """Values of run.json that would break the arithmetic of a verdict are a line that names them."""
    shutil.copytree(whole, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["health"][name] = value
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=rf"run.json: is damaged \(in health.{name}.*\); copy .*run.json over it"):
        cc.pretrain(resume=tmp_path / "run")


@pytest.mark.parametrize("kind", ["link", "file", "folder.part", "no checksums"])
def test_strange_things_among_the_checkpoints_are_no_checkpoints(whole, tmp_path, kind):
    """A dead link, a file or a folder of such a name is no checkpoint, and no reason for a traceback."""
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    shutil.rmtree(folder / f"step-{STEPS:08d}")
    if kind == "link":
        (folder / "step-00000099").symlink_to("/nowhere")
    elif kind == "file":
        (folder / "step-00000099").write_text("no checkpoint")
    elif kind == "folder.part":
        (tmp_path / "run" / "x.part").mkdir()
        (folder / "x.part").write_text("left over")
    else:
        (folder / "step-00000099").mkdir()
        (folder / "step-00000099" / "checksums.json").write_text("{}")
    cc.pretrain(resume=tmp_path / "run")
    assert_same(whole, tmp_path / "run")


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "2>&- >&- <&-"])
def test_a_training_needs_nobody_who_listens(tree, tmp_path, where):
    """Where what it says cannot be written, or nowhere, a training ends as well as any."""
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in TINY.items())
    command = f"{sys.executable} -m cyclecontrast pretrain {tree} --out {tmp_path / 'run'} --steps 2 {options} {where}"
    assert subprocess.run(command, shell=True).returncode == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_a_resumed_run_keeps_its_frames(tmp_path):
    """A run on a folder of videos is resumed on the frames it began with, though a video was added since."""
    videos = tmp_path / "videos"
    for number in range(3):
        videos.mkdir(exist_ok=True)
        make.write_numbered(videos / f"{number}.mp4", num_frames=10)
    done = run(videos, tmp_path / "run", steps=2, checkpoint_every=1)
    shutil.rmtree(done.folder / "checkpoints" / "step-00000002")
    make.write_numbered(videos / "9.mp4", num_frames=10)
    assert cc.pretrain(resume=done.folder).metrics["step"] == 2
    videos.rename(tmp_path / "moved")
    assert cc.pretrain(resume=done.folder).metrics["step"] == 2
    (tmp_path / "moved" / "0.mp4").rename(tmp_path / "moved" / "other.mp4")
    with pytest.raises(UserError, match=r"is not the data that .* 1 of its 3 videos are not there, such as 0.mp4"):
        cc.pretrain(tmp_path / "moved", resume=done.folder)
    with pytest.raises(UserError, match="resume: settings must stay as they are; out"):
        cc.pretrain(resume=done.folder, out=tmp_path / "other")


def test_a_second_process_is_refused(whole, tmp_path):
    """A run that another process trains is named with that process, and not touched."""
    shutil.copytree(whole, tmp_path / "run")
    hold = (
        "import sys, time; from pathlib import Path; from cyclecontrast.files import locked\n"
        "with locked(Path(sys.argv[1]), 'out'): print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "run")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on"):
            cc.pretrain(resume=tmp_path / "run")
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
        holder.kill()
    cc.pretrain(resume=tmp_path / "run")


def test_a_full_disk_costs_nothing(tree, whole, tmp_path):
    """On a disk that fills up the run ends with a line, its last checkpoint is whole, and it goes on elsewhere."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (whole / "checkpoints").rglob("*") if path.is_file())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        with pytest.raises(UserError, match=r"No space left on device.*--resume"):
            train(tree, disk / "run")
        shutil.copytree(disk / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert list((tmp_path / "run").glob("checkpoints/*/checksums.json"))
    cc.pretrain(resume=tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_the_checkpoint_before_stays_until_the_new_one_is_whole(whole, tmp_path, monkeypatch):
    """Killed while it writes a checkpoint, a run has the one before, and the half-written one does not count."""
    shutil.copytree(whole, tmp_path / "run")
    from cyclecontrast.training import checkpoints as files

    def killed(path: Path):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "sync", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "run", 8, {"x": torch.zeros(1)}, cc.load_backbone(whole))
    assert files.find_whole(tmp_path / "run").step == STEPS
    assert (tmp_path / "run" / "checkpoints" / "step-00000008.part").exists()
    monkeypatch.undo()
    cc.pretrain(resume=tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.part"))
