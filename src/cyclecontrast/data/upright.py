"""A decoded picture as it is meant to be seen: turned as its display matrix says, and no larger than asked."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from av.video.reformatter import VideoReformatter
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


class Scaler:
    """Makes frames of one video RGB with a short side of at most `size`; what FFmpeg sets up for that is kept.

    Scaled first and made RGB then, a frame of 720p costs a fifth. Colour keeps the resolution that it has: 4:4:4
    between the two steps.
    """

    def __init__(self) -> None:
        # Each remembers one conversion only.
        self._to_size, self._to_rgb = VideoReformatter(), VideoReformatter()

    def rgb(self, frame: Any, size: int) -> Image:
        """The frame as stored, not turned."""
        # Left to itself the scaler takes a thread per core, in every worker.
        factor = size / min(frame.width, frame.height)
        if factor < 1:
            width, height = (max(1, round(side * factor)) for side in (frame.width, frame.height))
            between = "rgb24" if frame.format.is_rgb or frame.format.has_palette else "yuv444p"
            frame = self._to_size.reformat(frame, width, height, between, interpolation="AREA", threads=1)
        return np.asarray(self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8)
