"""Which frames are picked."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cyclecontrast.data.frame_sampling import evenly


@given(num_all=st.integers(1, 500), num_picked=st.integers(1, 500))
def test_spread_is_even(num_all, num_picked):
    """Picks are distinct, in range, and no two gaps between them differ by more than one frame."""
    picked = evenly(num_all, num_picked)
    gaps = np.diff(picked)
    assert len(picked) == min(num_all, num_picked)
    assert 0 <= picked[0] <= picked[-1] < num_all
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert abs(picked[0] - (num_all - 1 - picked[-1])) <= 1
