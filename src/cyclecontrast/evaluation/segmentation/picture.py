"""Masks → one picture to look at: a few true ones, and below each what was predicted."""

from collections.abc import Sequence

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.data.mask_layouts import IGNORE
from cyclecontrast.evaluation.mask_files import draw_legend, encode_mask

SIDE = 160
GAP = 4
GRAY = (128, 128, 128)
WHITE = (255, 255, 255)
LEGEND = "upper row: truth, lower row: predicted"


def draw_pairs(pairs: Sequence[tuple[Pixels, Pixels]]) -> bytes:
    """Draw pairs of a true and a predicted mask as PNG, side by side; background is black, ignored pixels are white."""
    tiles = np.concatenate([np.concatenate([_tile(mask) for mask in pair]) for pair in pairs], axis=1)
    legend = draw_legend(LEGEND)
    width = max(tiles.shape[1], legend.shape[1])
    rows = [np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=WHITE[0]) for x in (legend, tiles)]
    return encode_mask(np.concatenate(rows))


def palette(num_colors: int = IGNORE + 1) -> Pixels:
    """Return VOC's colours (num_colors, 3): three bits of a label at a time give red, green and blue, high bits first.

    IGNORE is white.
    """
    labels = np.arange(num_colors)
    colors = np.zeros((num_colors, 3), np.uint8)
    for digit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((labels >> (3 * digit + channel) & 1) << (7 - digit)).astype(np.uint8)
    colors[IGNORE:] = WHITE
    return colors


def _tile(mask: Pixels) -> Pixels:
    scale = SIDE / max(mask.shape)
    size = [max(1, round(side * scale)) for side in mask.shape]
    small = cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    tile = np.full((SIDE + GAP, SIDE + GAP, 3), GRAY, np.uint8)
    # OpenCV writes blue first.
    tile[: size[0], : size[1]] = palette()[small][..., ::-1]
    return tile
