"""Sprite sheets: many small images in one JPEG, so that a page holds each image once and needs no script."""

import base64
import math
from collections.abc import Callable, Hashable
from typing import NamedTuple

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels

PER_ROW = 32
MAX_PIXELS = 12_000_000
"""Largest sheet: phones cannot show larger images."""
QUALITIES = (85, 70, 50, 30, 10)
MULTIPLE = 16
"""Sides of sprites are multiples of this, the side of a JPEG block, so that neighboring sprites do not mix."""
MAX_NAME = 120


class SpriteSheet:
    """Square images side by side on one JPEG, which is a background image in the page's style sheet."""

    def __init__(self, name: str, side: int) -> None:
        self.name, self.side = name, side
        self._numbers: dict[Hashable, int] = {}
        self._images: list[Pixels] = []

    def __len__(self) -> int:
        return len(self._images)

    def sprite(self, key: Hashable, alt: str, read: Callable[[], Pixels]) -> "Sprite":
        """Return the sprite with this key; only a new one is read, cut to a square and scaled down."""
        if key not in self._numbers:
            self._images.append(_square(read(), self.side))
            self._numbers[key] = len(self._images) - 1
        return Sprite(self, self._numbers[key], alt)

    @property
    def num_rows(self) -> int:
        """Number of rows of sprites."""
        return math.ceil(len(self) / PER_ROW)

    @property
    def size(self) -> str:
        """Return the CSS `background-size` of an element that shows one sprite."""
        return f"{100 * PER_ROW}% {100 * self.num_rows}%"

    def position(self, number: int) -> str:
        """Return the CSS `background-position` of a sprite in percent, which holds for any size of the element."""
        row, column = divmod(number, PER_ROW)
        down = 100 * row / (self.num_rows - 1) if self.num_rows > 1 else 0
        return f"{round(100 * column / (PER_ROW - 1), 3):g}% {round(down, 3):g}%"

    def to_url(self, max_bytes: int) -> str:
        """Return the sheet as a data URL: the largest and best JPEG that fits; raises ValueError if none does."""
        for side in range(self.side, 0, -MULTIPLE):
            if side * side * PER_ROW * self.num_rows > MAX_PIXELS and side > MULTIPLE:
                continue
            sheet = self._draw(side)
            for quality in QUALITIES:
                if len(url := jpeg_url(sheet, quality)) <= max_bytes:
                    return url
        raise ValueError(f"{len(self):,} sprites do not fit into {max_bytes:,} bytes")

    def _draw(self, side: int) -> Pixels:
        sheet = np.zeros((self.num_rows * side, PER_ROW * side, 3), np.uint8)
        for number, image in enumerate(self._images):
            top, left = (side * place for place in divmod(number, PER_ROW))
            sheet[top : top + side, left : left + side] = image if side == self.side else _square(image, side)
        return sheet


class Sprite(NamedTuple):
    """One image of a sheet with its text alternative."""

    sheet: SpriteSheet
    number: int
    alt: str

    @property
    def position(self) -> str:
        """Its place on the sheet as CSS; valid once the sheet is complete."""
        return self.sheet.position(self.number)


def jpeg_url(image: Pixels, quality: int = QUALITIES[0]) -> str:
    """Return an RGB image as a JPEG in a data URL."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be written as JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def shortened(name: str) -> str:
    """Return a long name with its middle replaced by '…', because names mostly differ at their ends."""
    half = MAX_NAME // 2
    return name if len(name) <= MAX_NAME else f"{name[:half]}…{name[1 - half :]}"


def frame_name(video: str, index: int) -> str:
    """Return the name of a frame; a video's name that may run from right to left is isolated from the rest."""
    name = shortened(video)
    return f"{name}, frame {index}" if name.isascii() else f"\u2068{name}\u2069, frame {index}"


def _square(image: Pixels, side: int) -> Pixels:
    """Cut out the middle square of an image and scale it."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    cut = image[top : top + edge, left : left + edge]
    scaled = cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA if edge > side else cv2.INTER_LINEAR)
    return np.asarray(scaled, np.uint8)
