"""A decoded picture as it is meant to be seen: turned as its display matrix says, and no larger than asked."""

from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]


class Turn(NamedTuple):
    """What brings a stored frame upright: a transposition first, then mirroring of either axis."""

    is_transposed: bool
    mirror_x: bool
    mirror_y: bool

    @classmethod
    def of(cls, frame: Any) -> "Turn":
        """Reads the display matrix, rounded to quarter turns and mirrorings."""
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls(False, False, False)
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    def upright(self, image: Image) -> Image:
        """The image as it is meant to be seen, contiguous."""
        turned = image.swapaxes(0, 1) if self.is_transposed else image
        turned = turned[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return np.ascontiguousarray(turned)


def shrink(image: Image, size: int) -> Image:
    """The image with a short side of at most `size`."""
    height, width = image.shape[:2]
    short_side = min(height, width)
    if short_side <= size:
        return image
    target = (max(1, round(width * size / short_side)), max(1, round(height * size / short_side)))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]
