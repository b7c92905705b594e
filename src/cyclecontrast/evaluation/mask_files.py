"""Masks as PNG files in memory, as records and the resume cache store them, and pictures of masks."""

from collections.abc import Sequence

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.data.masked_images import IGNORE

LEGEND_HEIGHT = 24
TILE_SIZE = 160
FRAME_WIDTH = 240
NUM_FRAMES = 4
GAP = 4
GRAY = (128, 128, 128)
WHITE = 255
CLASS_LEGEND = "upper row: truth, lower row: predicted"
OBJECT_LEGEND = "green: correct, blue: missed, red: false positive, yellow: another object"
RIGHT, MISSED, INVENTED, CONFUSED = (60, 170, 60), (220, 120, 40), (50, 50, 220), (40, 200, 240)
"""Colors (blue, green, red) of the pixels of OBJECT_LEGEND."""


def encode_mask(mask: Pixels) -> bytes:
    """Return the PNG file of a mask uint8 (height, width), or of a picture (height, width, 3) in blue, green, red.

    A PNG file does not end in a zero byte, so a NumPy bytes array stores it without loss.
    """
    return cv2.imencode(".png", mask)[1].tobytes()


def decode_mask(file: bytes) -> Pixels:
    """Return the mask (height, width) of a PNG file that `encode_mask` made."""
    mask: Pixels | None = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    return mask


def draw_sheet(legend: str, rows: Sequence[Pixels]) -> bytes:
    """Return a PNG file of pictures (height, width, 3), one below the other, under a legend."""
    rows = [_draw_legend(legend), *rows]
    width = max(row.shape[1] for row in rows)
    padding = [((0, 0), (0, width - row.shape[1]), (0, 0)) for row in rows]
    padded = [np.pad(row, pad, constant_values=WHITE) for row, pad in zip(rows, padding, strict=True)]
    return encode_mask(np.concatenate(padded))


def _draw_legend(text: str) -> Pixels:
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    width = cv2.getTextSize(text, font, scale, 1)[0][0]
    strip = np.full((LEGEND_HEIGHT, width + 12, 3), WHITE, np.uint8)
    return cv2.putText(strip, text, (6, 16), font, scale, (0, 0, 0), 1, cv2.LINE_AA)  # type: ignore[no-any-return]


def draw_classes(pairs: Sequence[tuple[Pixels, Pixels]]) -> Pixels:
    """Draw pairs of a true and a predicted mask of classes side by side, as CLASS_LEGEND says.

    Background is black, ignored pixels are white.
    """
    return np.concatenate([np.concatenate([_draw_tile(mask) for mask in pair]) for pair in pairs], axis=1)


def _draw_tile(mask: Pixels) -> Pixels:
    scale = TILE_SIZE / max(mask.shape)
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    tile = np.full((TILE_SIZE + GAP, TILE_SIZE + GAP, 3), GRAY, np.uint8)
    tile[:height, :width] = palette()[small][..., ::-1]  # OpenCV writes blue first
    return tile


def palette() -> Pixels:
    """Return the colors of VOC (256, 3) for labels, with white for IGNORE.

    Each three bits of a label set one bit of red, green and blue, beginning with the highest.
    """
    labels = np.arange(IGNORE + 1)
    colors = np.zeros((IGNORE + 1, 3), np.uint8)
    for digit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((labels >> (3 * digit + channel) & 1) << (7 - digit)).astype(np.uint8)
    colors[IGNORE] = WHITE
    return colors


def draw_objects(name: str, predicted: Sequence[Pixels], truth: Sequence[Pixels]) -> Pixels:
    """Draw frames of a video in a row, spread evenly, in the colors of OBJECT_LEGEND; masks hold object numbers."""
    positions = np.linspace(0, len(truth) - 1, NUM_FRAMES + 1).round().astype(int)[1:]
    frames = [_draw_frame(predicted[position], truth[position]) for position in positions]
    cv2.putText(frames[0], name, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    padding = ((0, GAP), (0, GAP), (0, 0))
    return np.concatenate([np.pad(frame, padding, constant_values=WHITE) for frame in frames], axis=1)


def _draw_frame(predicted: Pixels, truth: Pixels) -> Pixels:
    height, width = truth.shape
    drawn = np.zeros((height, width, 3), np.uint8)
    drawn[(truth > 0) & (predicted == 0)] = MISSED
    drawn[(truth == 0) & (predicted > 0)] = INVENTED
    drawn[(truth > 0) & (predicted > 0)] = CONFUSED
    drawn[(truth > 0) & (predicted == truth)] = RIGHT
    size = (FRAME_WIDTH, max(1, round(height * FRAME_WIDTH / width)))
    return cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]
