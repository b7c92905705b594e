"""Prepared stores hold the recorded frames at the recorded places."""

import numpy as np
import pytest

from tests.golden import stores
from tests.golden.record import recorded


@pytest.mark.parametrize("name", stores.POLICIES)
def test_a_store_is_as_recorded(videos, tmp_path, name):
    """The tables are the same; so are the JPEGs by the same OpenCV, and by another their colors, nearly."""
    expected = recorded("stores")[name]
    found = stores.content_of(stores.prepare(videos, tmp_path / "store", name))
    assert found["videos"] == expected["videos"]
    assert [frame["row"] for frame in found["frames"]] == [frame["row"] for frame in expected["frames"]]
    for frame, other in zip(found["frames"], expected["frames"], strict=True):
        assert np.abs(np.subtract(frame["colors"], other["colors"])).max() <= 2
        if found["opencv"] == expected["opencv"]:
            assert (frame["jpeg"], frame["place"]) == (other["jpeg"], other["place"])
