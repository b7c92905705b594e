"""Two processes train as they were recorded; how they share a step may change once, on purpose."""

import pytest

from tests.golden import record, trainings
from tests.golden.compare import check_trace


@pytest.fixture(scope="module")
def runs(frames, tmp_path_factory):
    """Return the folder of the runs by two processes."""
    root = tmp_path_factory.mktemp("ranks")
    record.train_by_two(frames, root)
    return root


@pytest.mark.parametrize(("number", "name"), list(enumerate(trainings.RANKS)))
def test_two_processes_train_as_recorded(runs, number, name):
    """Losses, gradients and weights are as near as rounding lets them be."""
    check_trace(trainings.trace_of(runs / str(number)), record.recorded("ranks")[name])
