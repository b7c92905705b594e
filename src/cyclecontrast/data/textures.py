"""Textured squares in two colors: what glyphs are filled with and scenes are made of."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

Texture = Literal["noise", "stripes", "checks", "gradient", "blobs"]
Color = tuple[float, float, float]
Field = NDArray[np.float32]


class Paint(NamedTuple):
    """A texture between two colors (RGB, 0..1)."""

    texture: Texture
    low: Color
    high: Color


def draw_paint(rng: np.random.Generator, darkest: float, brightest: float) -> Paint:
    """A random texture in two random colors of this range of luma (0..1)."""
    low, high = sorted(rng.uniform(darkest, brightest, 2))
    return Paint(rng.choice(get_args(Texture)), draw_color(rng, low), draw_color(rng, high))


def draw_color(rng: np.random.Generator, luma: float) -> Color:
    """A random hue, darkened or whitened to this luma (0..1)."""
    hue, saturation = rng.uniform(0, 6), rng.uniform(0.3, 1)
    pure = 1 - saturation * np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) * -1 + 2, 0, 1)
    own = float(pure @ (0.299, 0.587, 0.114))
    mixed = pure * luma / own if luma < own else pure + (1 - pure) * (luma - own) / (1 - own)
    red, green, blue = np.clip(mixed, 0, 1).tolist()
    return red, green, blue


def apply_paint(rng: np.random.Generator, paint: Paint, side: int) -> Field:
    """The painted square, RGB 0..1, (side, side, 3)."""
    field = TEXTURES[paint.texture](rng, side)[..., None]
    return np.asarray(np.array(paint.low) * (1 - field) + np.array(paint.high) * field, np.float32)


def draw_noise(rng: np.random.Generator, side: int) -> Field:
    """Five octaves of noise, 0..1, (side, side)."""
    total = np.zeros((side, side), np.float32)
    for octave in range(5):
        grid = rng.standard_normal((3 * 2**octave,) * 2).astype(np.float32)
        total += 0.7**octave * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
    return _unit(total)


def _blobs(rng: np.random.Generator, side: int) -> Field:
    grid = rng.standard_normal((int(rng.integers(8, 20)),) * 2).astype(np.float32)
    return _unit(np.tanh(3 * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)))


def _stripes(rng: np.random.Generator, side: int) -> Field:
    return _unit(np.tanh(2 * _wave(rng, side, rng.uniform(0, np.pi))))


def _checks(rng: np.random.Generator, side: int) -> Field:
    angle = rng.uniform(0, np.pi)
    return _unit(np.tanh(4 * _wave(rng, side, angle) * _wave(rng, side, angle + np.pi / 2)))


def _gradient(rng: np.random.Generator, side: int) -> Field:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:side, :side] / side
    return _unit(x * np.cos(angle) + y * np.sin(angle))


def _wave(rng: np.random.Generator, side: int, angle: float) -> Field:
    y, x = np.mgrid[:side, :side] / side
    turns = rng.uniform(8, 22)
    bend = rng.uniform(0, 0.1) * np.sin(2 * np.pi * (2 * y + rng.random()))
    return np.asarray(np.sin(2 * np.pi * turns * (x * np.cos(angle) + y * np.sin(angle) + bend)), np.float32)


def _unit(field: NDArray[np.floating]) -> Field:
    return np.asarray((field - field.min()) / (np.ptp(field) + 1e-6), np.float32)


TEXTURES: dict[Texture, Callable[[np.random.Generator, int], Field]] = {
    "noise": draw_noise,
    "stripes": _stripes,
    "checks": _checks,
    "gradient": _gradient,
    "blobs": _blobs,
}
