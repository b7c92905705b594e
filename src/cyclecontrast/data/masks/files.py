"""An image and its mask as they are stored: nothing is turned upright, and no palette becomes a colour."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL.ImageFile import ImageFile

from cyclecontrast.data.images import MOST_BYTES, Pixels, open_image
from cyclecontrast.data.regular_files import read_regular
from cyclecontrast.errors import UserError

Indices = npt.NDArray[np.integer]


def read_image(path: Path) -> Pixels:
    """Return RGB uint8 (height, width, 3); raises UserError naming the file.

    A note in the file to show it turned is not followed: its mask is drawn on the pixels as they are stored.
    """
    image = _load(path)
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{path}: holds more than 8 bits per channel; make it an 8-bit image")
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> Indices:
    """Return the number that each pixel (height, width) holds, of a palette image the index; raises UserError.

    An image of one bit gives 0 and 1. A gray image stored in three equal channels is as good as one channel.
    """
    image = _load(path)
    values = np.asarray(image, np.uint8 if image.mode == "1" else None)
    if values.ndim == 2 and image.mode != "F":
        return values
    colors = values[..., :3] if image.mode in ("RGB", "RGBA") else values[..., :1]
    if image.mode not in ("RGB", "RGBA", "LA") or (colors != colors[..., :1]).any():
        raise UserError(f"{path}: is an image of mode {image.mode}; a mask holds one whole number per pixel")
    return colors[..., 0]


def _load(path: Path) -> ImageFile:
    try:
        image = open_image(read_regular(path, MOST_BYTES))
        image.load()
    except Exception as error:  # damaged files raise whatever their bytes lead to
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; mend or remove it") from error
    return image
