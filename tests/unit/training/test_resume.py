"""A run that was interrupted anywhere and resumed is the same run; what would make it another one is refused."""

import os
import random
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone, open_model, save_backbone
from cyclecontrast.training import run_folder
from cyclecontrast.training.trainer import Trainer
from tests import make_videos as make
from tests.make_runs import assert_same_run, copy_until, files_of, rows_of, run, state_path

STEPS = 6


def train(data, out, **changes):
    """Train with everything that a state can have: both queues, health, and the choice by it."""
    options = {"steps": STEPS, "checkpoint_every": 2, "cycle_start": 0.4, "holdout": 0.2}
    return run(data, out, **(options | {"health_every": 1, "select": "health"} | changes)).folder


@pytest.fixture(scope="module")
def whole(stripes, tmp_path_factory):
    """A run without any interruption."""
    return train(stripes, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of this finished run."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def part(whole, tmp_path):
    """A copy of this run as if it had been killed after step 4."""
    return copy_until(whole, tmp_path / "part", 4)


def test_a_resumed_run_is_the_same_run(whole, part):
    """Resumed in the middle of an epoch, with other workers, a run ends with the same bits."""
    cc.pretrain(resume=part, workers=2)
    assert_same_run(part, whole, STEPS)


@pytest.mark.parametrize("step", [0, 2])
def test_a_resumed_run_keeps_its_start(whole, stripes, tmp_path, monkeypatch, step):
    """Also where it was stopped before its first checkpoint, and named its start from another folder."""
    monkeypatch.chdir(whole.parent)
    first = train(stripes, tmp_path / "first", init="run", steps=3)
    part = copy_until(first, tmp_path / "part", step)
    run_folder.change_about(part, status="running")
    cc.pretrain(resume=part)
    assert_same_run(part, first, 3)
    starts = [run_folder.read_about(folder)["start"] for folder in (part, first)]
    assert starts[0] == starts[1] == {"model": str(whole), "fingerprint": fingerprint(load_backbone(whole))}


def test_another_start_is_refused(whole, stripes, tmp_path, monkeypatch):
    """Before the first checkpoint, a start with other weights is refused; so is a relative path from elsewhere."""
    start = tmp_path / "start"
    start.mkdir()
    save_backbone(make_backbone("resnet10-small-w8", 7), start)
    part = copy_until(train(stripes, tmp_path / "first", init=start, steps=2), tmp_path / "part", 0)
    run_folder.change_about(part, status="running")
    path = part / "config.toml"
    path.write_text(path.read_text().replace(f'init = "{start}"', 'init = "start"'))  # as older versions wrote it
    assert 'init = "start"' in path.read_text()
    with pytest.raises(UserError, match=rf"init is {start} in the run and {whole} requested"):
        cc.pretrain(resume=part, init=whole)
    save_backbone(make_backbone("resnet10-small-w8", 8), start)
    before = files_of(part)
    with pytest.raises(UserError, match=rf"^resume: {start} is not the start that {part} began with \(fingerprint"):
        cc.pretrain(resume=part)
    assert files_of(part) == before
    save_backbone(make_backbone("resnet10-small-w8", 7), start)
    monkeypatch.chdir(tmp_path)
    assert cc.pretrain(resume=part, init="start").folder == part


def test_a_resumed_run_of_micro_batches_is_the_same_run(stripes, tmp_path):
    """So does a run whose batches are split into micro-batches, whose number cannot change."""
    whole = train(stripes, tmp_path / "whole", method="seco", accumulate=2)
    part = copy_until(whole, tmp_path / "part", 4)
    with pytest.raises(UserError, match="accumulate is 2 in the run and 4 requested"):
        cc.pretrain(resume=part, accumulate=4)
    cc.pretrain(resume=part)
    assert_same_run(part, whole, STEPS)


def test_a_resumed_classification_of_videos_is_the_same_run(stripes, tmp_path):
    """So does a run whose method has a row of weights for each video that is not held out."""
    whole = train(stripes, tmp_path / "whole", method="diet")
    part = copy_until(whole, tmp_path / "part", 4)
    assert load_file(state_path(part, 4))["head/weight"].shape == (10, 64)
    cc.pretrain(resume=part)
    assert_same_run(part, whole, STEPS)


def test_a_resumed_distillation_is_the_same_run(stripes, tmp_path):
    """So does one with a teacher, which may have been moved; another or a missing one is refused."""
    teacher = save_backbone(make_backbone("resnet10-small-w4", 7), tmp_path)
    whole = train(stripes, tmp_path / "whole", method="distill", teacher=str(teacher))
    part = copy_until(whole, tmp_path / "part", 4)
    assert not any(key.startswith("teacher/network") for key in load_file(state_path(part, 4)))
    (tmp_path / "other").mkdir()
    other, moved = (
        save_backbone(make_backbone("resnet10-small-w4", 8), tmp_path / "other"),
        tmp_path / "moved.safetensors",
    )
    before = files_of(part)
    with pytest.raises(UserError, match=r"^teacher: \S+ is not the teacher that the run began with; restore it, or"):
        cc.pretrain(resume=part, teacher=other)
    teacher.rename(moved)
    with pytest.raises(UserError, match=r"^teacher: model \S+: no such file .*; if it was moved, name its new place"):
        cc.pretrain(resume=part)
    assert files_of(part) == before
    cc.pretrain(resume=part, teacher=moved)
    assert_same_run(part, whole, STEPS)


def test_resuming_a_finished_run_trains_no_step(whole, copied):
    """A complete run is complete again, with the same metrics, however often it is resumed at another place."""
    for _ in range(2):
        assert cc.pretrain(resume=copied).metrics["step"] == STEPS
    assert_same_run(copied, whole, STEPS)


def test_a_damaged_checkpoint_is_reported_and_passed_over(whole, copied, capsys):
    """If the newest checkpoint is damaged, its config.toml too, the one before is used, at no loss."""
    for path in (copied / "checkpoints" / f"step-{STEPS:08d}").glob("*.toml"):
        path.write_text(path.read_text().replace("temperature = 0.2", "temperature = 0.6"))
    cc.pretrain(resume=copied)
    assert re.search(r"step-00000006: is damaged \(.*config.toml.*\): using", capsys.readouterr().err)
    assert_same_run(copied, whole, STEPS)


def test_without_a_whole_checkpoint_a_run_is_refused(copied):
    """If all checkpoints are damaged each is named, and every file stays as it is."""
    for path in copied.glob("checkpoints/*/state.safetensors"):
        path.write_bytes(b"")
    before = files_of(copied)
    with pytest.raises(UserError, match=r"(?s)step-00000006: is damaged.*step-00000004: is damaged"):
        cc.pretrain(resume=copied)
    assert files_of(copied) == before


def test_a_finished_run_without_its_checkpoints_is_refused(whole, copied):
    """A backbone that exists is not trained anew."""
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="its checkpoints no longer exist"):
        cc.pretrain(resume=copied)
    assert rows_of(copied) == rows_of(whole)


@pytest.mark.parametrize("name", ["metrics.jsonl", "unreadable.json", "config.toml", "run.json"])
def test_the_files_of_a_run_may_be_cut_anywhere(whole, part, tmp_path, name):
    """A file that the checkpoint holds is restored from it; for the others a line says what to copy over them."""
    content, draw = (part / name).read_bytes(), random.Random(name)
    for length in (0, draw.randrange(len(content))):
        folder = shutil.copytree(part, tmp_path / str(length))
        (folder / name).write_bytes(content[:length])
        problems = []
        if attempt(partial(cc.pretrain, resume=folder), problems) is None:
            assert name in ("config.toml", "run.json")
            copy = folder / "checkpoints" / "step-00000004" / name
            assert re.search(rf"(damaged|was changed).* copy {copy} over it", problems[0])
            shutil.copyfile(copy, folder / name)
            cc.pretrain(resume=folder)
        assert_same_run(folder, whole, STEPS)


def test_settings_cannot_change(copied):
    """Neither an option nor a config.toml edited by hand makes a run another run; what only costs time may change."""
    with pytest.raises(UserError, match=r"temperature is 0\.2 in the run and 0\.3 requested"):
        cc.pretrain(resume=copied, temperature=0.3)
    with pytest.raises(UserError, match="the settings of a run cannot change: out is"):
        cc.pretrain(resume=copied, out=copied.parent / "other")
    path = copied / "config.toml"
    path.write_text(path.read_text().replace("log_every = 1", "log_every = 2"))
    cc.pretrain(resume=copied)
    path.write_text(path.read_text().replace("temperature = 0.2", "temperature = 0.3"))
    with pytest.raises(
        UserError,
        match=r"was changed since the last checkpoint: temperature is 0\.2 in the .*and 0\.3 in this file; restore it",
    ):
        cc.pretrain(resume=copied)


def test_before_its_first_checkpoint_a_run_starts_again(stripes, whole, tmp_path):
    """With config.toml alone, and unfinished files beside it, a run begins at its first step."""
    (tmp_path / "run").mkdir()
    shutil.copyfile(whole / "config.toml", tmp_path / "run" / "config.toml")
    (tmp_path / "run" / "run.json.123.part").write_text("{")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "lo')
    cc.pretrain(resume=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole, STEPS)
    assert not list((tmp_path / "run").glob("*.part"))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.toml.123.part").write_text("data = ")
    assert train(stripes, tmp_path / "new", steps=1)


def test_a_checkpoint_is_not_taken_for_its_run(copied):
    """The folder of a checkpoint, which has a config.toml too, is refused with the name of its run."""
    before = files_of(copied)
    with pytest.raises(UserError, match=rf"is a checkpoint; name its run, {copied}"):
        cc.pretrain(resume=copied / "checkpoints" / "step-00000004")
    assert files_of(copied) == before


def test_changes_of_hardware_are_reported(part, capsys):
    """A run may continue on another device, processor or number of threads; a line says what decides the bits.

    On the same machine, and for a run of a version that did not record it, there is no such line.
    """
    about = run_folder.read_about(part)
    now = {name: about[name] for name in ("processor", "instructions", "threads")}
    assert now["threads"] == torch.get_num_threads()
    assert torch.backends.cpu.get_cpu_capability() in now["instructions"]
    copy, older = (shutil.copytree(part, part.with_name(name)) for name in ("copy", "older"))
    run_folder.write_about(older, {name: value for name, value in about.items() if name not in now})
    for folder in (copy, older):
        cc.pretrain(resume=folder)
    assert "bit-identical" not in capsys.readouterr().err
    changed = {"device": "cuda (H200)", "processes": 4, "processor": "Epyc", "instructions": "AVX2", "threads": 64}
    run_folder.change_about(part, **changed, versions=about["versions"] | {"torch": "2.0"})
    cc.pretrain(resume=part)
    text = capsys.readouterr().err
    assert "resuming after step 4" in text
    expected = (
        r"from here on, results are not bit-identical to an uninterrupted run: device was cuda \(H200\), now cpu \(.*"
        rf"processor was Epyc, now {re.escape(now['processor'])}; instructions was AVX2, now {now['instructions']}; "
        rf"threads was 64, now {now['threads']}; processes was 4, now 1; versions was {{"
    )
    assert re.search(expected, text)


def test_a_checkpoint_of_an_older_version_is_read(stripes, tmp_path):
    """Checkpoints of older versions have queues that the method does not use."""
    whole = run(stripes, tmp_path / "whole", method="intra-video", checkpoint_every=2).folder
    part = copy_until(whole, tmp_path / "part", 2)
    state = load_file(state_path(part, 2))
    unused = {
        name.replace("intra", "cycle"): value[:1].clone()
        for name, value in state.items()
        if name.startswith("intra_queue")
    }
    save_file(state | unused, state_path(part, 2))
    checksums = part / "checkpoints" / "step-00000002" / "checksums.json"
    digest = subprocess.run(["sha256sum", state_path(part, 2)], capture_output=True, text=True).stdout.split()[0]
    checksums.write_text(re.sub(r'("state.safetensors": ")\w+', rf"\g<1>{digest}", checksums.read_text()))
    cc.pretrain(resume=part)
    assert_same_run(part, whole, 4)


# --- data


def test_other_data_are_refused(stripes, tmp_path):
    """Frames that were added since the run began are noticed, before what else is wrong with them."""
    data = shutil.copytree(stripes, tmp_path / "data")
    folder = run(data, tmp_path / "run", steps=1, holdout=0.2).folder
    shutil.copytree(data / "group_0", data / "group_9")
    shutil.copytree(data / "group_0", tmp_path / "few" / "group_0")
    before = files_of(folder)
    for other in ({}, {"data": tmp_path / "few"}):
        with pytest.raises(UserError) as error:
            cc.pretrain(resume=folder, **other)
        (problem,) = error.value.problems
        assert "is not the data that" in problem
    assert files_of(folder) == before


def test_data_may_move(stripes, whole, tmp_path):
    """If its data were moved a line says which command names their new place, and that resumes the run."""
    data = shutil.copytree(stripes, tmp_path / "data")
    part = copy_until(train(data, tmp_path / "run"), tmp_path / "part", 4)
    data.rename(tmp_path / "moved")
    words = rf"no longer exists; if it was moved: cyclecontrast pretrain DATA --resume {part}$"
    with pytest.raises(UserError, match=words):
        cc.pretrain(resume=part)
    cc.pretrain(tmp_path / "moved", resume=part)
    assert_same_run(part, whole, STEPS)


def test_a_run_on_videos_keeps_its_frames(tmp_path):
    """A run on video files continues on the frames it began with, even if the videos changed or were moved."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        make.write_numbered(videos / f"{number}.mp4", num_frames=10)
    whole = run(videos, tmp_path / "run", steps=2, checkpoint_every=1).folder
    part = copy_until(whole, tmp_path / "part", 1)
    make.write_numbered(videos / "9.mp4", num_frames=10)
    assert cc.pretrain(resume=part).metrics["step"] == 2
    videos.rename(tmp_path / "moved")
    assert cc.pretrain(resume=part).metrics["step"] == 2
    (tmp_path / "moved" / "0.mp4").rename(tmp_path / "moved" / "other.mp4")
    with pytest.raises(UserError, match=r"is not the data that .* 1 of its 3 videos are missing, such as 0.mp4"):
        cc.pretrain(tmp_path / "moved", resume=part)


# --- disturbances


@pytest.mark.parametrize(("log_every", "moved_at"), [(1, 3), (100, 5)])
def test_a_run_whose_folder_is_moved_ends(stripes, whole, tmp_path, monkeypatch, log_every, moved_at):
    """A line says that the folder no longer exists; nothing is written in its place, and the moved run resumes."""
    folder, train_step = tmp_path / "run", Trainer.train_step

    def move_then_train(self, batch, info):
        if info.step == moved_at:
            folder.rename(tmp_path / "moved")
        return train_step(self, batch, info)

    monkeypatch.setattr(Trainer, "train_step", move_then_train)
    with pytest.raises(
        UserError,
        match="/run no longer exists, so nothing was written; if you moved it, --resume it there",
    ):
        train(stripes, folder, log_every=log_every, health_every=1 if log_every == 1 else 6)
    monkeypatch.undo()
    assert not folder.exists()
    cc.pretrain(resume=tmp_path / "moved")
    if log_every == 1:
        assert_same_run(tmp_path / "moved", whole, STEPS)


def test_a_run_in_use_is_refused(copied):
    """A run that another process trains is refused with the number of that process, and not touched."""
    hold = (
        "import sys, time; from pathlib import Path; from cyclecontrast.files import locked\n"
        "with locked(Path(sys.argv[1]), 'out'): print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, copied], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        before = files_of(copied)
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on"):
            cc.pretrain(resume=copied)
        assert files_of(copied) == before
        holder.kill()
    cc.pretrain(resume=copied)


def test_a_full_disk_costs_nothing(stripes, whole, tmp_path):
    """On a disk that fills up a run ends in one line, its last checkpoint is whole, and it resumes elsewhere."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (whole / "checkpoints").rglob("*") if path.is_file())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        with pytest.raises(UserError, match=r"No space left on device.*--resume"):
            train(stripes, disk / "run")
        shutil.copytree(disk / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert list((tmp_path / "run").glob("checkpoints/*/checksums.json"))
    cc.pretrain(resume=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole, STEPS)


def test_a_bug_is_noted_and_keeps_its_traceback(stripes, tmp_path, monkeypatch):
    """An error that is not the user's is raised as it is, and run.json says that the run failed."""
    monkeypatch.setattr(Trainer, "train_step", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run(stripes, tmp_path / "run")
    status = run_folder.read_about(tmp_path / "run")["status"]
    assert status == "stopped: failed: ZeroDivisionError: integer division or modulo by zero"


def test_the_command_line_resumes(whole, part):
    """`--resume RUN` needs no other option."""
    assert main(["pretrain", f"--resume={os.fspath(part)}"]) == 0
    assert_same_run(part, whole, STEPS)


def test_a_finished_run_can_be_extended(copied, capsys):
    """More steps continue a run on their schedule, which is said; interrupted and resumed, with the same result."""
    again = shutil.copytree(copied, copied.with_name("again"))
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(copied), "--steps", "10"]) == 0
    text = capsys.readouterr().err
    assert "extended from 6 to 10 steps: from here on, the schedules of learning rate, momentum and losses are" in text
    assert [row["step"] for row in rows_of(copied)] == list(range(1, 11))
    rates = [row["learning_rate"] for row in rows_of(copied)]
    assert rates[5] < rates[6] > rates[9], "the cosine of ten steps begins higher than that of six ends"
    assert (run_folder.read_about(copied)["num_steps"], run_folder.read_about(copied)["status"]) == (10, "finished")
    cc.pretrain(resume=again, steps=10, checkpoint_every=2)
    stopped = copy_until(again, copied.with_name("stopped"), 8)
    cc.pretrain(resume=stopped)
    assert_same_run(stopped, again, 10)
    assert rows_of(again) == rows_of(copied)
    with pytest.raises(UserError, match=r"steps: .* has done 10 steps; set as many or more, or start a new run"):
        cc.pretrain(resume=copied, steps=7)


def test_an_extended_run_has_no_finished_weights(copied, whole, monkeypatch, capsys):
    """Until it is finished again, its weights are those of the last checkpoint; it may become shorter, up to that."""
    (copied / "report.html").touch()
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_config", lambda *_: 1 // 0)  # right after its backbone was removed
        with pytest.raises(ZeroDivisionError):
            cc.pretrain(resume=copied, steps=3000)
    assert not [*copied.glob("backbone.*"), *copied.glob("report.html")]
    assert open_model(copied).recognized == f"{copied}: training is unfinished"
    killed = shutil.copytree(copied, copied.with_name("killed"))
    cc.pretrain(resume=killed)
    assert_same_run(killed, whole, STEPS)
    train_step = Trainer.train_step
    monkeypatch.setattr(
        Trainer, "train_step", lambda self, *rest: train_step(self, *rest) if rest[1].step < 8 else 1 // 0
    )
    with pytest.raises(ZeroDivisionError):
        cc.pretrain(resume=copied, steps=3000)
    assert open_model(copied).recognized == f"{copied}: training is unfinished: step 8 of 3,000"
    monkeypatch.undo()
    with pytest.raises(UserError, match="has done 8 steps; set as many or more"):
        cc.pretrain(resume=copied, steps=7)
    capsys.readouterr()
    assert cc.pretrain(resume=copied, steps=9).metrics["step"] == 9
    text = capsys.readouterr().err
    assert "shortened from 3,000 to 9 steps: from here on, the schedules of learning rate, momentum and losses" in text
    assert open_model(copied).recognized == ""
