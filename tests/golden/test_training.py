"""Trainings go step by step as they were recorded, whatever the method, the preset or the setting."""

import pytest

from tests.golden import trainings
from tests.golden.compare import check_trace, smooth, with_kinks
from tests.golden.record import recorded


@pytest.mark.parametrize("name", trainings.RUNS | trainings.RESNETS)
def test_a_training_goes_as_recorded(run_of, name):
    """Learning rates are the same; losses, gradients, health and weights are as near as rounding lets them be."""
    limit = with_kinks if name in trainings.RESNETS else smooth
    check_trace(trainings.trace_of(run_of(name)), recorded("training")[name], limit)


@pytest.mark.parametrize("method", ["intra-image", "cycle", "vince", "seco"])
def test_frames_and_random_numbers_come_in_the_recorded_order(frames, tmp_path, method):
    """Every view of every step is of the same frame of the same video, and its random numbers are the same."""
    assert trainings.sampling_of(frames, tmp_path / "run", method) == recorded("sampling")[method]
