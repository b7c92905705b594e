"""Batches in parts train as they were recorded; what a part sees may change once, on purpose."""

import pytest

from tests.golden import trainings
from tests.golden.compare import check_trace
from tests.golden.record import recorded


@pytest.mark.parametrize("name", trainings.ACCUMULATED)
def test_a_batch_in_parts_trains_as_recorded(run_of, name):
    """Losses, gradients and weights are as near as rounding lets them be."""
    check_trace(trainings.trace_of(run_of(name)), recorded("accumulation")[name])
