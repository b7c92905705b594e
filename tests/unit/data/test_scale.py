"""The order of an epoch takes no memory, whatever its length."""

import tracemalloc

import numpy as np

from cyclecontrast.data.random_streams import shuffled

NUM_VIDEOS = 2_700_000
MB = 1_000_000


def test_an_order_of_any_length_takes_no_memory():
    """Places of an epoch over 2.7 million videos are drawn without a list of them, and none twice."""
    tracemalloc.start()
    seen = np.array([shuffled(0, 0, place, NUM_VIDEOS) for place in range(1000, 6000)])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(seen)) == 5000
    assert most < MB
