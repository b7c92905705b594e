"""Masks and pictures of them as PNG files in memory: what records hold, and what stays of a stopped evaluation."""

from collections.abc import Sequence

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels, open_image
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.resume_cache import Arrays

LEGEND_HEIGHT = 24


def encode_mask(mask: Pixels) -> bytes:
    """Return the PNG file of a mask uint8 (height, width), or of a picture (height, width, 3) of blue, green, red."""
    return cv2.imencode(".png", mask)[1].tobytes()


def decode_mask(file: bytes) -> Pixels:
    """Return the mask (height, width) of a PNG file; raises UserError where it is none, or beyond the limits."""
    try:
        open_image(file)
        mask: Pixels | None = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    except (ValueError, cv2.error):
        mask = None
    if mask is None:
        raise UserError("the record holds a mask that cannot be read; run the evaluation without --score-only")
    return mask


def packed(name: str, files: Sequence[bytes]) -> Arrays:
    """Return files side by side in one array of this name, beside the array of their sizes."""
    sizes = np.array([len(file) for file in files], np.int64)
    return {name: np.frombuffer(b"".join(files), np.uint8), f"{name}_sizes": sizes}


def unpacked(part: Arrays, name: str) -> list[bytes]:
    """Return the files that a part of an evaluation packs under this name."""
    ends = part[f"{name}_sizes"].cumsum()
    return [file.tobytes() for file in np.split(part[name], ends)[:-1]]


def draw_legend(text: str) -> Pixels:
    """Return a white strip (height, width, 3) with words, to stand above a picture of masks."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    width = cv2.getTextSize(text, font, scale, 1)[0][0]
    strip = np.full((LEGEND_HEIGHT, width + 12, 3), 255, np.uint8)
    return cv2.putText(strip, text, (6, 16), font, scale, (0, 0, 0), 1, cv2.LINE_AA)  # type: ignore[no-any-return]
