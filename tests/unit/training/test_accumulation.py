"""Micro-batches: a resumed run of micro-batches is the same run, and what they cannot do is refused."""

import pytest

from cyclecontrast.cli import main
from tests import make_videos as make
from tests.unit.training.test_distributed import asked, steps_of


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames: stripes of one width and direction each, which move."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


def test_a_resumed_run_in_micro_batches_is_the_same_run(tree, tmp_path):
    """Resumed from its checkpoint, such a run ends with the same bits; another number of micro-batches is refused."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    for out in (whole, part):
        assert main(["pretrain", *asked(tree, out, steps=6, accumulate=2)]) == 0
    (part / "checkpoints" / "step-00000006").rename(part / "checkpoints" / "away")
    assert main(["pretrain", f"--resume={part}", "--accumulate=4"]) == 2
    assert main(["pretrain", f"--resume={part}"]) == 0
    assert steps_of(part) == steps_of(whole)
    states = [out / "checkpoints" / "step-00000006" / "state.safetensors" for out in (whole, part)]
    assert states[0].read_bytes() == states[1].read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "batch_size: 8 must be a multiple of 3 (3 micro-batches), at least 6"),
        ({"accumulate": 8}, "batch_size: 8 must be a multiple of 8 (8 micro-batches), at least 16"),
        ({"accumulate": 2, "method": "simclr"}, "accumulate: method simclr compares all queries"),
        ({"accumulate": 2, "method": "vince", "self-batch": None}, "accumulate: --self-batch compares all queries"),
        ({"accumulate": 0}, "accumulate: "),
    ],
)
def test_what_micro_batches_cannot_do_is_refused(tree, tmp_path, capsys, changes, message):
    """A batch that does not divide, and a loss that compares the queries with each other, are a line at the start."""
    flags = ["--self-batch"] if changes.pop("self-batch", 0) is None else []
    options = asked(tree, tmp_path / "run", steps=1, **{"queue-size": 32} | changes)
    assert main(["pretrain", *options, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
