"""Image files → pixels; what an image says of its size is looked at before memory is spent on it."""

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cyclecontrast.data.regular_files import read_regular
from cyclecontrast.errors import UserError

Pixels = npt.NDArray[np.uint8]

READERS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"II": TiffImageFile,
    b"MM": TiffImageFile,
    b"GIF8": GifImageFile,
    b"P": PpmImageFile,
}
"""By the first bytes of a file; no format outside of this table is given to a decoder, whatever the file is called."""
MOST_PIXELS = 128_000_000
"""A decoded image costs three bytes a pixel; the largest cameras of phones have 108 million."""
MOST_SIDE = 65_500
"""JPEG knows no longer side."""
MOST_TIMES_AS_LONG = 200
"""A strip that is resized by its short side grows by as much."""
MOST_BYTES = 4 * MOST_PIXELS
"""An image that is not compressed at all has no more."""
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


def load_image(path: Path) -> Pixels:
    """Return the image of a file, RGB (height, width, 3); raises UserError naming the file."""
    try:
        return decode_image(read_regular(path, MOST_BYTES))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; mend or remove it") from error


def decode_image(data: bytes, enough: int | None = None) -> Pixels:
    """Return RGB (height, width, 3); raises ValueError where the bytes are no image, or one beyond the limits.

    Of a JPEG whose short side stays `enough` or more, a half, a quarter or an eighth is decoded, at a part of the cost.
    """
    header = open_image(data)
    mode = cv2.IMREAD_COLOR_RGB
    if enough is not None and isinstance(header, JpegImageFile):
        fitting = (flag for times, flag in REDUCED.items() if min(header.size) >= times * enough)
        mode = next((flag & ~cv2.IMREAD_COLOR_BGR | mode for flag in fitting), mode)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error as error:
        raise ValueError(f"the image does not decode ({error.err})") from error
    if image is None:
        raise ValueError("the image does not decode")
    return image  # type: ignore[no-any-return]


def open_image(data: bytes) -> ImageFile:
    """Return an image of which the header alone has been read; raises ValueError as `decode_image` does."""
    if not data:
        raise ValueError("the image is empty")
    reader = next((reader for start, reader in READERS.items() if data.startswith(start)), None)
    if reader is None:
        raise ValueError("the image does not decode (its format is none of those that are read)")
    try:
        image = reader(io.BytesIO(data))
    except Exception as error:  # damaged headers raise whatever their bytes lead to
        raise ValueError(f"the image does not decode ({error})") from error
    if why := excess(*image.size, MOST_PIXELS):
        raise ValueError(f"the image is one of {why}")
    return image


def excess(width: int, height: int, most_pixels: int) -> str:
    """Say what is too much about a size, "" where nothing is; a size is refused before anything of it is decoded."""
    if width * height > most_pixels:
        return f"more than {most_pixels:,} pixels ({width}x{height})"
    if max(width, height) > MOST_SIDE:
        return f"more than {MOST_SIDE:,} pixels on a side ({width}x{height})"
    if max(width, height) > MOST_TIMES_AS_LONG * min(width, height):
        return f"sides more unequal than 1:{MOST_TIMES_AS_LONG} ({width}x{height})"
    return ""


def resize_short_side(image: Pixels, size: int) -> Pixels:
    """Scale so that the short side is `size`: averaging when shrinking, linear when enlarging."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale == 1:
        return image
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, target, interpolation=method)  # type: ignore[no-any-return]
