"""Decode untrusted image files; the size in the header is checked before pixels are allocated."""

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

from cyclecontrast.data.storage import check_memory, read_file, reason
from cyclecontrast.errors import UserError

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.integer]

CROP_MARGIN = 8 / 7

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
"""Decoders by the first bytes of a file (not by its suffix); other formats are rejected."""
MAX_PIXELS = 128_000_000
"""The largest cameras of phones have 108 million pixels; a decoded image takes three bytes for each."""
MAX_SIDE = 65_500
"""The longest side that a JPEG can have."""
MAX_ASPECT = 200
"""Limits the size of an image that is resized by its short side."""
MAX_BYTES = 4 * MAX_PIXELS
"""Upper bound on the size of an uncompressed image file."""
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


def load_image(path: Path) -> Pixels:
    """Return the image of a file, RGB (height, width, 3); raises UserError naming the file."""
    try:
        return decode_image(read_file(path, MAX_BYTES))
    except ValueError as error:
        raise UserError(f"{path}: {error}; fix or remove it") from error


def decode_image(data: bytes, min_side: int | None = None) -> Pixels:
    """Return RGB (height, width, 3); raises ValueError where the bytes are not an image, or one beyond the limits.

    A JPEG may be decoded at a half, a quarter or an eighth of its size, as long as its short side stays `min_side` or
    more; this costs a part of the time.
    """
    header = open_image(data)
    mode = cv2.IMREAD_COLOR_RGB
    if min_side is not None and isinstance(header, JpegImageFile):
        fitting = (flag for times, flag in REDUCED.items() if min(header.size) >= times * min_side)
        mode = next((flag & ~cv2.IMREAD_COLOR_BGR | mode for flag in fitting), mode)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error as error:
        check_memory(error)
        raise ValueError(f"the image does not decode ({error.err})") from error
    if image is None:
        raise ValueError("the image does not decode")
    return image  # type: ignore[no-any-return]


def open_image(data: bytes) -> ImageFile:
    """Return an image of which only the header has been read; raises ValueError as `decode_image` does."""
    if not data:
        raise ValueError("the image is empty")
    reader = next((reader for start, reader in READERS.items() if data.startswith(start)), None)
    if reader is None:
        raise ValueError("the image does not decode (unknown format)")
    try:
        image = reader(io.BytesIO(data))
    except Exception as error:  # damaged headers raise anything
        raise ValueError(f"the image does not decode ({error})") from error
    if problem := size_problem(*image.size, MAX_PIXELS):
        raise ValueError(f"the image has {problem}")
    return image


def size_problem(width: int, height: int, most_pixels: int) -> str:
    """Return what is wrong with the size of an image, "" where it can be decoded."""
    if width * height > most_pixels:
        return f"more than {most_pixels:,} pixels ({width}x{height})"
    if max(width, height) > MAX_SIDE:
        return f"more than {MAX_SIDE:,} pixels on a side ({width}x{height})"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"sides more unequal than 1:{MAX_ASPECT} ({width}x{height})"
    return ""


def read_image(path: Path) -> Pixels:
    """Return the pixels as stored, RGB uint8 (height, width, 3); raises UserError naming the file.

    The EXIF orientation is not applied: masks are drawn on the stored pixels.
    """
    image = _load_stored(path)
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{path}: holds more than 8 bits per channel; make it an 8-bit image")
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> Indices:
    """Return a mask as integers (height, width); for a palette image, the palette indices. Raises UserError.

    An image of one bit gives 0 and 1. Three equal channels count as one.
    """
    image = _load_stored(path)
    if isinstance(image, JpegImageFile):
        raise UserError(f"{path}: is a JPEG, whose compression changes labels; save masks as PNG")
    values = np.asarray(image, np.uint8 if image.mode == "1" else None)
    if values.ndim == 2 and image.mode != "F":
        return values
    colors = values[..., :3] if image.mode in ("RGB", "RGBA") else values[..., :1]
    if image.mode not in ("RGB", "RGBA", "LA") or (colors != colors[..., :1]).any():
        raise UserError(f"{path}: is an image of mode {image.mode}; a mask holds one whole number per pixel")
    return colors[..., 0]


def _load_stored(path: Path) -> ImageFile:
    try:
        data = read_file(path, MAX_BYTES)
    except ValueError as error:
        raise UserError(f"{path}: {error}; fix or remove it") from error
    try:
        image = open_image(data)
        image.load()
    except Exception as error:  # damaged files raise anything
        check_memory(error)
        raise UserError(f"{path}: {reason(error)}; fix or remove it") from error
    return image


def resize_short_side(image: Pixels, size: int) -> Pixels:
    """Scale so that the short side is `size`: averaging when shrinking, linear when enlarging."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale == 1:
        return image
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, target, interpolation=method)  # type: ignore[no-any-return]


def center_crop(image: Pixels, size: int, margin: float = CROP_MARGIN) -> Pixels:
    """Scale the short side to `margin` times the size (256 for 224), then return the middle (size, size, 3)."""
    image = resize_short_side(image, round(size * margin))
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]
