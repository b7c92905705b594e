"""Image files: every format decodes to upright RGB, broken bytes are an error, and resizing averages."""

import errno
import io
import math
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from cyclecontrast.data import storage
from cyclecontrast.data.images import decode_image, load_image, read_image, read_mask, resize_short_side
from cyclecontrast.errors import UserError


def encoded(image, kind, **options):
    """An image file written by Pillow."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RGB = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_images_decode_to_rgb(kind):
    """Red stays red: channels come in the order R, G, B."""
    assert np.array_equal(decode_image(encoded(Image.fromarray(RGB), kind)), RGB)


def test_other_depths_and_channels_decode_to_rgb():
    """Gray becomes three equal channels, 16 bits become 8, alpha and palettes are resolved."""
    gray = RGB[..., 0]
    for data in (
        encoded(Image.fromarray(gray), "PNG"),
        encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"),
        encoded(Image.fromarray(gray), "JPEG", quality=100),
    ):
        image = decode_image(data)
        assert (image.dtype, image.shape) == (np.uint8, (5, 8, 3))
        assert np.abs(image.astype(int) - gray[..., None]).max() <= 2
    alpha = Image.fromarray(np.dstack([RGB, np.full((5, 8), 99, np.uint8)]))
    assert np.array_equal(decode_image(encoded(alpha, "PNG")), RGB)
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode_image(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))


def test_a_rotated_jpeg_stands_upright():
    """The orientation in EXIF is applied."""
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None, None], (32, 16, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(encoded(Image.fromarray(np.ascontiguousarray(ramp)), "JPEG", exif=exif, quality=100))
    assert image.shape == (16, 32, 3)
    assert image[:, 0].mean() > 240
    assert image[:, -1].mean() < 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0, 1, 20, 0.5, 0.9])
def test_broken_bytes_are_a_value_error(kind, kept):
    """Empty, cut and foreign bytes do not decode to something."""
    data = encoded(Image.fromarray(np.tile(RGB, (20, 20, 1))), kind)
    with pytest.raises(ValueError, match="image"):
        decode_image(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(ValueError, match="does not decode"):
        decode_image(b"GIF of a cat" * 10)


@pytest.mark.parametrize(("shape", "expected"), [((40, 60), (20, 30)), ((60, 40), (30, 20)), ((10, 10), (20, 20))])
def test_the_short_side_is_resized(shape, expected):
    """The short side gets the requested size, the other follows; a constant image stays constant."""
    image = resize_short_side(np.full((*shape, 3), 77, np.uint8), 20)
    assert image.shape == (*expected, 3)
    assert (image == 77).all()


def test_shrinking_averages_and_nothing_is_done_at_size():
    """A fine checkerboard becomes gray, not noise; an image of the size comes back as it is."""
    board = (np.indices((40, 40)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.abs(resize_short_side(board, 20).astype(int) - 127.5).max() <= 1
    assert resize_short_side(board, 40) is board
    assert resize_short_side(np.zeros((1, 500, 3), np.uint8), 3).shape == (3, 1500, 3)


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB", "P", "RGBA", "LA"])
def test_images_of_any_mode_are_decoded_to_rgb(mode):
    """ILSVRC has JPEGs in CMYK and gray, and a PNG that is called .JPEG: all give RGB as Pillow does."""
    rows = np.linspace(0, 255, 24)
    pixels = np.stack([np.add.outer(rows, 0 * rows), np.add.outer(0 * rows, rows), np.full((24, 24), 60.0)], axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    data = encoded(image, "JPEG" if mode in ("CMYK", "L") else "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode_image(data).astype(int) - expected).max() <= 3


def write_smooth(path, height, width):
    """Write a photograph-like image: large patches of color with soft transitions."""
    colors = np.random.default_rng(height).integers(64, 192, (height // 120, width // 120, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(colors, (width, height), interpolation=cv2.INTER_CUBIC))
    return path.read_bytes()


@pytest.mark.parametrize(("side", "times"), [(None, 1), (241, 1), (240, 2), (121, 2), (120, 4), (60, 8), (1, 8)])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path, side, times):
    """Its short side stays as long as required, and it shows the whole image, scaled by averaging."""
    data = write_smooth(tmp_path / "large.jpg", 481, 643)
    part = decode_image(data, side)
    assert part.shape == (math.ceil(481 / times), math.ceil(643 / times), 3)
    whole = cv2.resize(decode_image(data), part.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(part.astype(int) - whole).mean() < 2
    data = write_smooth(tmp_path / "large.png", 481, 643)
    assert np.array_equal(decode_image(data, side), decode_image(data))


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("read", [load_image, read_image, read_mask])
def test_a_failing_storage_is_not_an_unreadable_image(tmp_path, monkeypatch, read, number):
    """Errors that may pass are retried, then raised with the file's name; a missing file is a property of the file."""
    monkeypatch.setattr(storage, "PAUSES", (0.0,))
    path = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(path)
    tried = []

    def failing(name, *args):
        tried.append(name)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        with pytest.raises(OSError, match="tried 2 times in 0 s") as caught:
            read(path)
    assert (caught.value.filename, len(tried)) == (str(path), 2)
    path.unlink()
    with pytest.raises(UserError, match="No such file or directory; fix or remove it"):
        read(path)
