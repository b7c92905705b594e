"""Many small pictures in one: a page holds each once, as a tile, however often it is shown, and needs no script."""

import math
from collections.abc import Hashable

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.report.pictures import data_address

PER_ROW = 32


class Atlas:
    """Square tiles side by side on one JPEG, which the page's style sheet holds as a background."""

    def __init__(self, name: str, side: int) -> None:
        self.name, self.side = name, side
        self._numbers: dict[Hashable, int] = {}
        self._tiles: list[Pixels] = []

    def place(self, key: Hashable, image: Pixels) -> int:
        """Return the number of the tile of this key; the first image of a key is scaled down and kept."""
        if key not in self._numbers:
            self._numbers[key] = len(self._tiles)
            self._tiles.append(_square(image, self.side))
        return self._numbers[key]

    @property
    def num_rows(self) -> int:
        """Number of rows of tiles."""
        return math.ceil(len(self._tiles) / PER_ROW)

    def picture(self) -> str:
        """Return all tiles as one JPEG in a data address."""
        sheet = np.zeros((self.num_rows * self.side, PER_ROW * self.side, 3), np.uint8)
        for number, tile in enumerate(self._tiles):
            top, left = (self.side * place for place in divmod(number, PER_ROW))
            sheet[top : top + self.side, left : left + self.side] = tile
        return data_address(sheet)

    def style(self, number: int) -> str:
        """Return where a tile lies, for a `background-position` in percent: the same at every size of the element."""
        row, column = divmod(number, PER_ROW)
        down = 100 * row / (self.num_rows - 1) if self.num_rows > 1 else 0
        return f"{100 * column / (PER_ROW - 1):.3f}% {down:.3f}%"


def _square(image: Pixels, side: int) -> Pixels:
    """Cut the middle out of an image and scale it."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    cut = image[top : top + edge, left : left + edge]
    scaled = cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA if edge > side else cv2.INTER_LINEAR)
    return np.asarray(scaled, np.uint8)
