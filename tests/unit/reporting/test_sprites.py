"""Sprite sheets: each image lies where its style says, and the sheet fits into its bytes."""

import numpy as np
import pytest

from cyclecontrast.reporting.sprites import MAX_NAME, PER_ROW, SpriteSheet, frame_name, shortened
from tests.make_reports import decoded


def plain_images(num, side, seed=0):
    """Images of one color each."""
    colors = np.random.default_rng(seed).integers(0, 256, (num, 1, 1, 3))
    return np.broadcast_to(colors, (num, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("num", [1, PER_ROW, PER_ROW + 1, 100])
def test_each_sprite_lies_at_its_place(num):
    """A browser's arithmetic for background positions in percent finds each sprite's own color."""
    sheet, images = SpriteSheet("a", 16), plain_images(num, 20)
    sprites = [sheet.sprite(key, "", lambda image=image: image) for key, image in enumerate(images)]
    assert [sprite.number for sprite in sprites] == list(range(num))
    drawn = decoded(sheet.to_url(10**7))
    size = [float(part.strip("%")) / 100 for part in sheet.size.split()]
    for sprite, image in zip(sprites, images, strict=True):
        x, y = (
            (1 - parts) * 16 * float(part.strip("%")) / 100
            for part, parts in zip(sprite.position.split(), size, strict=True)
        )
        inside = drawn[round(-y) + 2 : round(-y) + 14, round(-x) + 2 : round(-x) + 14].astype(float)
        assert np.abs(inside - image[0, 0]).max() < 12


def test_an_image_is_read_once():
    """A key that is there already is not read again."""
    sheet = SpriteSheet("a", 16)
    first = sheet.sprite("key", "first", lambda: plain_images(1, 20)[0])
    again = sheet.sprite("key", "again", lambda: pytest.fail("read again"))
    assert (first.number, again.number, again.alt, len(sheet)) == (0, 0, "again", 1)


def test_a_sheet_fits_into_its_bytes():
    """The JPEG gets coarser, then smaller, until it fits; it is an error if it cannot."""
    sheet = SpriteSheet("a", 96)
    for key, image in enumerate(np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), np.uint8)):
        sheet.sprite(key, "", lambda image=image: image)
    heights = {}
    for most in (10**7, 400_000, 100_000, 20_000):
        url = sheet.to_url(most)
        assert len(url) <= most
        heights[most] = len(decoded(url))
    assert heights[10**7] == 2 * 96
    assert heights[20_000] < 2 * 96
    with pytest.raises(ValueError, match="do not fit"):
        sheet.to_url(500)


@pytest.mark.parametrize("name", ["short", "x" * MAX_NAME, "y" * (MAX_NAME + 1), "a" * 90 + "🐘" * 90])
def test_long_names_are_shortened_in_the_middle(name):
    """Both ends of a name remain."""
    short = shortened(name)
    assert len(short) == min(len(name), MAX_NAME)
    assert short[:50] == name[:50]
    assert short[-50:] == name[-50:]
    assert ("…" in short) == (len(name) > MAX_NAME)


def test_names_that_run_from_right_to_left_are_isolated():
    """The frame number stays behind a name of any script."""
    assert frame_name("video", 3) == "video, frame 3"
    assert frame_name("סרטון", 3) == "\u2068סרטון\u2069, frame 3"
