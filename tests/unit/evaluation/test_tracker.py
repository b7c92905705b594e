"""The loop that runs a tracker: frames decoded ahead, and boxes that are not finite."""

import numpy as np
import pytest

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.tracking.tracker import DEPTH, IdentityTracker, ahead, follow


def test_frames_come_in_order_and_errors_at_their_place():
    """Items made ahead keep their order, and an error comes after all items before it."""

    def items():
        yield from range(DEPTH + 5)
        raise ValueError("at the end")

    seen = []
    with pytest.raises(ValueError, match="at the end"):
        seen.extend(ahead(items()))
    assert seen == list(range(DEPTH + 5))
    assert list(ahead([])) == []


def test_no_more_frames_are_made_ahead_than_the_depth():
    """Memory stays bounded: a long video is not decoded whole while its first frame is tracked."""
    made = []
    items = ahead(made.append(number) or number for number in range(10 * DEPTH))
    assert next(items) == 0
    items.close()
    assert len(made) <= DEPTH + 1


def test_boxes_that_are_not_finite_are_an_error():
    """The error names the frame, and nothing is scored."""

    class Broken(IdentityTracker):
        def update(self, image):
            return np.full(4, np.nan)

    with pytest.raises(UserError, match="frame 2: the predicted box is not finite"):
        follow(Broken(), [np.zeros((9, 9, 3), np.uint8)] * 3, np.array([1.0, 1, 4, 4]))
