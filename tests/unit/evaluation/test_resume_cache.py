"""Parts of a stopped evaluation: whole or absent, found by exact name, of one process, gone in the end."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.resume_cache import ResumeCache

HOLD = """
import sys
from pathlib import Path
from cyclecontrast.files import locked
with locked(Path(sys.argv[1]), "out"):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path):
    """A cache in a folder that does not exist yet."""
    return ResumeCache(tmp_path / "unfinished" / "key")


def test_arrays_are_made_once(cache):
    """They are found again by another object, with types and shapes as they were; strings are arrays, too."""
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "lines": np.array(["é: ", ""]),
        "none": np.array([], str),
    }
    assert not cache.has_arrays("part")
    made = cache.arrays("part", lambda: arrays)
    assert cache.has_arrays("part")
    found = ResumeCache(cache.folder).arrays("part", lambda: pytest.fail("made twice"))
    for name, array in arrays.items():
        assert (made[name] == array).all()
        assert (found[name] == array).all()
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_an_interrupted_part_is_absent(cache):
    """Neither an interruption while it is made nor a half-written file of a killed process leaves a part."""

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.arrays("part", interrupt)
    cache.folder.mkdir(parents=True)
    left = cache.folder / "part.npz.1234.part"
    left.write_bytes(b"PK")
    with interrupted(cache):
        assert not left.exists()
        assert cache.arrays("part", lambda: {"a": np.ones(1)})["a"].tolist() == [1]


def test_the_last_state_of_a_training_is_restored(cache):
    """Tensors, numbers, strings, lists and dicts; None where nothing was stored."""
    assert cache.load_state("training") is None
    cache.save_state("training", {"losses": [1.0]})
    state = {"losses": [1.0, 0.5], "modules": {"head": {"weight": torch.arange(3.0)}}, "name": "x"}
    cache.save_state("training", state)
    found = cache.load_state("training")
    assert (found["losses"], found["name"]) == ([1.0, 0.5], "x")
    assert torch.equal(found["modules"]["head"]["weight"], torch.arange(3.0))


def test_a_damaged_part_is_one_line(cache):
    """It names the file and what to do."""
    cache.arrays("part", lambda: {"a": np.ones(3)})
    cache.save_state("training", {"losses": [1.0]})
    for read in (lambda: cache.arrays("part", dict), lambda: cache.load_state("training")):
        for path in cache.folder.iterdir():
            path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(UserError, match=rf"^{cache.folder}/\w+\.\w+: cannot be read \(.*\); delete it"):
            read()


def test_discarding_removes_the_folder(cache, tmp_path):
    """The folder around it goes when no other evaluation has parts there."""
    other = ResumeCache(tmp_path / "unfinished" / "other")
    for one in (cache, other):
        one.save_state("training", {})
    cache.discard()
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["other"]
    other.discard()
    assert not (tmp_path / "unfinished").exists()
    other.discard()


def test_a_second_process_is_refused(cache):
    """The line says who holds the lock; what the first has stored stays."""
    cache.save_state("training", {"losses": [1.0]})
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(cache.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match=rf"out: .* is in use by process {holder.pid} on"), cache.locked():
            pytest.fail("two at once")
        holder.stdin.close()
    assert cache.load_state("training") == {"losses": [1.0]}


@contextlib.contextmanager
def interrupted(cache):
    """Hold the lock, and be interrupted in the end."""
    with contextlib.suppress(KeyboardInterrupt), cache.locked():
        yield
        raise KeyboardInterrupt


def test_what_remains_depends_on_how_the_work_ends(cache, tmp_path):
    """Parts outlive a failure and are gone after success; a failure without a part leaves no folder behind."""
    with pytest.raises(UserError), cache.locked():
        raise UserError("none of the images can be read")
    assert not list(tmp_path.iterdir())
    with interrupted(cache):
        cache.save_state("training", {})
    assert cache.load_state("training") == {}
    with cache.locked():
        pass
    assert not list(tmp_path.iterdir())
