"""Parts of an evaluation that was stopped: whole or absent, found by exact name, of one process, gone in the end."""

import contextlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import Result, evaluate
from cyclecontrast.evaluation import linear as linear_protocol
from cyclecontrast.evaluation.resume_cache import Unfinished
from faults.killing import killed_before

HOLD = """
import sys
from pathlib import Path
from cyclecontrast.files import locked
with locked(Path(sys.argv[1]), "out"):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def unfinished(tmp_path):
    """A place that does not exist before the first part."""
    return Unfinished(tmp_path / "unfinished" / "key")


def test_a_part_is_made_once(unfinished):
    """What was made is found again, by another object and with types and shapes as they were."""
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "lines": np.array(["é: ", ""]),
        "none": np.array([], str),
    }
    made = unfinished.arrays("part", lambda: arrays)
    found = Unfinished(unfinished.folder).arrays("part", lambda: pytest.fail("made twice"))
    for name, array in arrays.items():
        assert (made[name] == array).all()
        assert (found[name] == array).all()
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_a_part_that_was_stopped_is_absent(unfinished):
    """Neither an interruption while it is made nor a half-written file of a killed process leaves a part."""

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unfinished.arrays("part", stopped)
    unfinished.folder.mkdir(parents=True)
    (unfinished.folder / "part.npz.1234.part").write_bytes(b"PK")
    assert unfinished.arrays("part", lambda: {"a": np.ones(1)})["a"].tolist() == [1]


def test_names_that_differ_name_parts_that_differ(unfinished):
    """Videos may be called anything: no two names share a file, however alike, long or strange they are."""
    names = ["a b", "a_b", "a/b", "A_b", "../a", ".", "x" * 300, "x" * 301, "ü", "a-b", "a.b"]
    for number, name in enumerate(names):
        unfinished.arrays(name, lambda number=number: {"number": np.array(number)})
    found = [int(unfinished.arrays(name, dict)["number"]) for name in names]
    assert found == list(range(len(names)))
    assert len(list(unfinished.folder.iterdir())) == len(names)
    assert len({path.name.lower() for path in unfinished.folder.iterdir()}) == len(names)


def test_objects_are_refused_when_they_are_made(unfinished):
    """They would need pickle, which loading refuses: better no part than one that cannot be read."""
    with pytest.raises(TypeError, match="part: things"):
        unfinished.arrays("part", lambda: {"things": np.array([None])})
    assert not unfinished.folder.exists()


def test_the_state_of_a_training_comes_back(unfinished):
    """Tensors, numbers, strings, lists and dicts; None where nothing was kept; the last one kept counts."""
    assert unfinished.load_state("training") is None
    unfinished.save_state("training", {"losses": [1.0]})
    state = {"losses": [1.0, 0.5], "modules": {"head": {"weight": torch.arange(3.0)}}, "name": "x"}
    unfinished.save_state("training", state)
    found = unfinished.load_state("training")
    assert (found["losses"], found["name"]) == ([1.0, 0.5], "x")
    assert torch.equal(found["modules"]["head"]["weight"], torch.arange(3.0))


def test_nothing_is_left_when_it_is_discarded(unfinished, tmp_path):
    """The folder goes, and the one around it when no other evaluation has parts there."""
    other = Unfinished(tmp_path / "unfinished" / "other")
    for place in (unfinished, other):
        place.save_state("training", {})
    unfinished.discard()
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["other"]
    other.discard()
    assert not (tmp_path / "unfinished").exists()
    other.discard()


@pytest.fixture
def holder():
    """Return a function that starts a process which is at work in a folder, until the test is over."""
    processes = []

    def hold(folder):
        command = [sys.executable, "-c", HOLD, str(folder)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        processes[-1].stdout.readline()
        return processes[-1].pid

    yield hold
    for process in processes:
        process.communicate()


def test_parts_belong_to_one_process(unfinished, holder):
    """A second process is refused and told who the first is; what the first has made stays."""
    unfinished.save_state("training", {"losses": [1.0]})
    pid = holder(unfinished.folder)
    with pytest.raises(UserError, match=rf"out: .* is in use by process {pid} on"), unfinished.alone():
        pytest.fail("two at once")
    assert unfinished.load_state("training") == {"losses": [1.0]}


@contextlib.contextmanager
def interrupted(unfinished):
    """Be at work on the parts, and be interrupted in the end."""
    with contextlib.suppress(KeyboardInterrupt), unfinished.alone():
        yield
        raise KeyboardInterrupt


def test_what_is_kept_depends_on_how_it_ends(unfinished, tmp_path):
    """Parts outlive a failure and are gone after success; a failure without a part leaves no folder behind."""
    with pytest.raises(UserError), unfinished.alone():
        raise UserError("none of the images can be read")
    assert not list(tmp_path.iterdir())
    with interrupted(unfinished):
        unfinished.save_state("training", {})
    assert unfinished.load_state("training") == {}
    with unfinished.alone():
        pass
    assert not list(tmp_path.iterdir())


def test_a_part_cut_at_any_byte_or_with_a_wrong_bit_is_made_anew(unfinished, capsys):
    """Each damage is told in a line that names the file, and what is found is never what the damage made of it."""
    arrays = {"a": np.arange(40.0)}
    path = _part_of(unfinished, arrays)
    whole = path.read_bytes()
    flipped = [bytes([*whole[:at], whole[at] ^ 8, *whole[at + 1 :]]) for at in range(0, len(whole), 7)]
    for damaged in [*(whole[:size] for size in range(0, len(whole), 5)), *flipped]:
        path.write_bytes(damaged)
        with interrupted(unfinished):
            assert capsys.readouterr().err == f"{path}: is damaged; it is made anew\n"
            assert (_part_of(unfinished, arrays), path.read_bytes()) == (path, whole)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_folder_in_place_of_a_part_is_made_anew(unfinished, capsys, suffix):
    """What is no file of ours is told as damaged, and gone."""
    folder = unfinished.folder / f"part{suffix}" / "inside"
    folder.mkdir(parents=True)
    with interrupted(unfinished):
        assert f"part{suffix}: is damaged" in capsys.readouterr().err
        assert not folder.parent.exists()


def _part_of(unfinished, arrays):
    unfinished.arrays("part", lambda: arrays)
    (path,) = (path for path in unfinished.folder.iterdir() if path.suffix == ".npz")
    return path


def test_half_written_files_of_killed_processes_go(unfinished):
    """They are removed when the next process begins, whole parts are not."""
    unfinished.save_state("training", {})
    left = unfinished.folder / "part.npz.1234.part"
    left.write_bytes(b"half")
    with interrupted(unfinished):
        assert not left.exists()
    assert unfinished.load_state("training") == {}


@pytest.fixture
def data(tmp_path):
    """A folder of two classes, three training and two test images each; one of the training images is broken."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 3), ("val", 2)):
        for label in (0, 1):
            (tmp_path / "data" / split / str(label)).mkdir(parents=True)
            for number in range(num):
                image = rng.integers(90 * label, 150 + 90 * label, (16, 16, 3), np.uint8)
                cv2.imwrite(str(tmp_path / "data" / split / str(label) / f"{number}.png"), image)
    (tmp_path / "data" / "train" / "0" / "0.png").write_bytes(b"broken")
    return tmp_path / "data"


def linear(data, out, **settings):
    """Train a probe for three epochs on a network of random weights."""
    named = {"probe": "sgd", "epochs": 3, "image_size": 16, "workers": 0, "device": "cpu", "out": out}
    return evaluate("linear", "random:resnet10-small-w8", data, **named | settings)


def written(out):
    """Return all files of a folder of results, without the folder's name in them."""
    return {
        str(path.relative_to(out)): path.read_bytes().replace(str(out).encode(), b"")
        for path in out.rglob("*")
        if path.is_file()
    }


def test_a_stopped_evaluation_with_a_damaged_part_ends_as_one_that_was_not(data, tmp_path, monkeypatch, capsys):
    """Whichever of its parts is cut, notes that a training left included, no bit of record and result differs."""
    out = tmp_path / "out"
    linear(data, out)
    whole = written(out)
    shutil.rmtree(out)
    with monkeypatch.context() as patch:
        patch.setattr("cyclecontrast.evaluation.linear.ranked_table", _stop)
        with pytest.raises(KeyboardInterrupt):
            linear(data, out)
    stopped = out.rename(tmp_path / "stopped")
    parts = [path for path in stopped.rglob("*") if path.suffix in (".npz", ".pt")]
    assert len(parts) == 5
    for number, part in enumerate(parts):
        shutil.copytree(stopped, out)
        cut = out / part.relative_to(stopped)
        cut.write_bytes(cut.read_bytes()[: 25 * number])
        linear(data, out)
        assert f"{cut}: is damaged; it is made anew" in capsys.readouterr().err
        assert written(out) == whole
        shutil.rmtree(out)


def _stop(*_):
    raise KeyboardInterrupt


def test_an_evaluation_that_another_process_makes_is_refused(data, tmp_path, holder, monkeypatch):
    """The second of two at once ends in a line, and the other protocol beside it does not."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("cyclecontrast.evaluation.linear.ranked_table", _stop)
        with pytest.raises(KeyboardInterrupt):
            linear(data, out)
    (key,) = (out / "unfinished").iterdir()
    pid = holder(key)
    with pytest.raises(UserError, match=rf"{key} is in use by process {pid}") as caught:
        linear(data, out)
    assert len(caught.value.problems) == 1
    assert not list(out.glob("*.json"))
    assert linear(data, out, epochs=2).metrics


def test_a_result_comes_last(data, tmp_path, monkeypatch):
    """A stop right before it leaves record and pictures but no result, and costs no computation."""
    score = linear_protocol.score
    monkeypatch.setattr(linear_protocol, "score", lambda *given: score(*given)._replace(files={"txt": b"all"}))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("cyclecontrast.evaluation.predictions.Result.save", _stop)
        with pytest.raises(KeyboardInterrupt):
            linear(data, out)
    assert [path.suffix for path in out.glob("linear-*")] == [".txt"]
    assert len(list((out / "records").iterdir())) == 1
    monkeypatch.setattr("cyclecontrast.models.backbone.Backbone.forward", lambda *_: pytest.fail("computed again"))
    result = linear(data, out)
    assert Result.load(out / f"{result.about.key}.json") == result
    assert not (out / "unfinished").exists()


def test_killed_before_any_change_to_files_it_ends_the_same(data, tmp_path):
    """Whichever file was about to be opened, renamed or removed, the same command ends with all files the same."""
    out = tmp_path / "out"
    linear(data, out)
    whole, number = written(out), 0
    while True:
        shutil.rmtree(out)
        number += 1
        was_killed = killed_before(number, lambda: linear(data, out))
        linear(data, out)
        assert written(out) == whole, f"killed before change {number}"
        if not was_killed:
            break
    assert number > 30
