"""Parts of an evaluation that was stopped: whole or absent, found by exact name, and gone in the end."""

import numpy as np
import pytest
import torch

from cyclecontrast.evaluate.unfinished import Unfinished


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
