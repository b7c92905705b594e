"""Many small pictures in one: a page holds each once, as a tile, however often it is shown, and needs no script."""

import math
from collections.abc import Hashable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.reporting.pictures import data_address

PER_ROW = 32
MOST_PIXELS = 12_000_000
"""Of one picture: phones hold no larger ones."""
QUALITIES = (85, 70, 50, 30, 10)
MULTIPLE = 16
"""Sides of tiles are multiples of it, the side of a JPEG's blocks, so that no two tiles share one."""


class Atlas:
    """Square tiles side by side on one JPEG, which the page's style sheet holds as a background."""

    def __init__(self, name: str, side: int) -> None:
        self.name, self.side = name, side
        self._numbers: dict[Hashable, int] = {}
        self._tiles: list[Pixels] = []

    def __len__(self) -> int:
        return len(self._tiles)

    def place(self, key: Hashable, image: Pixels) -> int:
        """Return the number of the tile of this key; the first image of a key is scaled down and kept."""
        if key not in self._numbers:
            self._numbers[key] = len(self._tiles)
            self._tiles.append(_square(image, self.side))
        return self._numbers[key]

    def find(self, key: Hashable) -> int | None:
        """Return the number of the tile of this key, None where it was not placed."""
        return self._numbers.get(key)

    @property
    def num_rows(self) -> int:
        """Number of rows of tiles."""
        return math.ceil(len(self._tiles) / PER_ROW)

    @property
    def size(self) -> str:
        """Return the `background-size` of a tile: so many times its own."""
        return f"{100 * PER_ROW}% {100 * self.num_rows}%"

    def picture(self, most_bytes: int) -> str:
        """Return all tiles as one JPEG in a data address of so many bytes: the best, then the largest, that fits.

        Raises ValueError where none does.
        """
        for side in self._sides():
            sheet = self._sheet(side)
            for quality in QUALITIES:
                address = data_address(sheet, quality)
                if len(address) <= most_bytes:
                    return address
        raise ValueError(f"{len(self):,} tiles do not fit into {most_bytes:,} bytes")

    def style(self, number: int) -> str:
        """Return where a tile lies, for a `background-position` in percent: the same at every size of the element."""
        row, column = divmod(number, PER_ROW)
        down = 100 * row / (self.num_rows - 1) if self.num_rows > 1 else 0
        return f"{round(100 * column / (PER_ROW - 1), 3):g}% {round(down, 3):g}%"

    def _sides(self) -> Iterator[int]:
        for side in range(self.side, 0, -MULTIPLE):
            if side * side * PER_ROW * self.num_rows <= MOST_PIXELS or side <= MULTIPLE:
                yield side

    def _sheet(self, side: int) -> Pixels:
        sheet = np.zeros((self.num_rows * side, PER_ROW * side, 3), np.uint8)
        for number, tile in enumerate(self._tiles):
            top, left = (side * place for place in divmod(number, PER_ROW))
            sheet[top : top + side, left : left + side] = tile if side == self.side else _square(tile, side)
        return sheet


class Tile(NamedTuple):
    """A picture of an atlas, and what it is in words."""

    atlas: Atlas
    number: int
    alt: str

    @property
    def position(self) -> str:
        """Where it lies, once all tiles are placed."""
        return self.atlas.style(self.number)


def _square(image: Pixels, side: int) -> Pixels:
    """Cut the middle out of an image and scale it."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    cut = image[top : top + edge, left : left + edge]
    scaled = cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA if edge > side else cv2.INTER_LINEAR)
    return np.asarray(scaled, np.uint8)
