"""Checkpoints: whole or absent, with checksums of all that resuming needs, the newest two kept."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.training import checkpoints as module
from cyclecontrast.training.checkpoints import (
    COPIED,
    checkpoints,
    find_intact,
    load_state,
    remove_checkpoints_after,
    step_of,
    write_checkpoint,
)

STATE = {"encoder/weight": torch.arange(6.0).view(2, 3).T, "queue/video": torch.tensor([-1, 7])}
FILES = {"state.safetensors", "backbone.safetensors", "backbone.json", "checksums.json", *COPIED}


@pytest.fixture
def run(tmp_path):
    """The folder of a run, with the files that a checkpoint copies."""
    for name in COPIED:
        (tmp_path / name).write_text(f"{name} of the run")
    return tmp_path


def write(run, *steps):
    """Write a checkpoint after each of these steps."""
    backbone = make_backbone("resnet10-small-w4")
    return [write_checkpoint(run, step, STATE, backbone) for step in steps]


def names(run):
    """Return the names of what lies among the checkpoints."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_checkpoint_has_all_that_resuming_needs(run):
    """It has the state, a backbone that loads, copies of the run's files, their checksums, and usual permissions."""
    (folder,) = write(run, 4)
    assert {path.name for path in folder.iterdir()} == FILES
    assert all((folder / name).read_text() == f"{name} of the run" for name in COPIED)
    assert json.loads((folder / "checksums.json").read_text()).keys() == FILES - {"checksums.json"}
    found = load_state(folder)
    assert all(torch.equal(value, found[name]) for name, value in STATE.items())
    assert load_backbone(folder).name == "resnet10-small-w4"
    assert (step_of(folder), step_of(None)) == (4, 0)
    (run / "new").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(run / "new").stat().st_mode}


def test_a_checkpoint_of_another_user_is_not_called_damaged(run, monkeypatch):
    """A file that may not be read is named with the reason, and no earlier checkpoint takes its place."""
    *_, folder = write(run, 4, 5)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "_checksum", refuse)
    with pytest.raises(UserError, match=rf"^{folder}/\S+: cannot be read \(Permission denied\); change"):
        find_intact(run)


def test_the_newest_two_stay(run):
    """Older checkpoints are removed once the new one is whole; one of the same step stays as it is."""
    write(run, 2, 4, 6)
    assert names(run) == ["step-00000004", "step-00000006"]
    kept = (run / "checkpoints" / "step-00000006" / "state.safetensors").stat().st_mtime_ns
    write(run, 6)
    assert (run / "checkpoints" / "step-00000006" / "state.safetensors").stat().st_mtime_ns == kept


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_checkpoint_is_passed_over(run, name):
    """A checkpoint that is cut, changed in one bit or lacks a file gives way to the one before, and is named."""
    first, second = write(run, 4, 6)
    content, draw = (second / name).read_bytes(), random.Random(name)
    flipped = bytearray(content)
    flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    for damaged in (content[: draw.randrange(len(content))], bytes(flipped), None):
        (second / name).unlink() if damaged is None else (second / name).write_bytes(damaged)
        found, damages = find_intact(run)
        assert found == first
        assert len(damages) == 1
        assert damages[0].startswith(f"{second}: is damaged (")
        (second / name).write_bytes(content)
    assert find_intact(run) == (second, [])


def test_if_no_checkpoint_is_whole_each_is_named(run):
    """If all are damaged nothing begins anew: the error names each; without any there is nothing to say."""
    assert find_intact(run) == (None, [])
    for folder in write(run, 4, 6):
        (folder / "state.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"(?s)step-00000006: is damaged.*step-00000004: is damaged.*start a new run"):
        find_intact(run)


def test_other_things_are_not_checkpoints(run):
    """A dead link, a file, a copy or an unfinished folder is not a checkpoint; an empty folder is a damaged one."""
    first, _ = write(run, 4, 6)
    folder = run / "checkpoints"
    (folder / "step-00000099").symlink_to("/nowhere")
    (folder / "step-00000098").write_text("a file")
    shutil.copytree(first, folder / "step-00000004.bak")
    (folder / "step-00000097.part").mkdir()
    assert [step_of(path) for path in checkpoints(run)] == [4, 6]
    (folder / "step-00000096").mkdir()
    (folder / "step-00000096" / "checksums.json").write_text("{}")
    found, (damage,) = find_intact(run)
    assert step_of(found) == 6
    assert "step-00000096: is damaged (checksums.json: does not name" in damage


def test_what_a_kill_left_is_removed(run):
    """Later, unfinished and surplus checkpoints go when a run resumes; a copy that somebody made stays."""
    write(run, 4, 6)
    folder = run / "checkpoints"
    for name in ("step-00000002", "step-00000008"):
        shutil.copytree(folder / "step-00000004", folder / name)
    (folder / "step-00000009.part").mkdir()
    (folder / "step-00000004.bak").mkdir()
    remove_checkpoints_after(run, 6)
    assert names(run) == ["step-00000004", "step-00000004.bak", "step-00000006"]


def test_killed_while_writing_the_one_before_stays(run, monkeypatch):
    """Killed before the new checkpoint has its name, the one before is whole, and the new one does not count."""
    write(run, 6)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "sync", killed)
    with pytest.raises(KeyboardInterrupt):
        write(run, 8)
    assert names(run) == ["step-00000006", "step-00000008.part"]
    assert step_of(find_intact(run)[0]) == 6
    monkeypatch.undo()
    write(run, 8)
    assert names(run) == ["step-00000006", "step-00000008"]


def test_a_checkpoint_that_cannot_be_written_is_one_line(run, monkeypatch):
    """On a full disk the error names the checkpoint and the reason, and nothing half-written stays."""
    monkeypatch.setattr(module, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"step-00000004: cannot be written \(No space left on device\)"):
        write(run, 4)
    assert names(run) == []
    monkeypatch.undo()
    state = load_file(write(run, 4)[0] / "state.safetensors")
    assert state.keys() == STATE.keys()
