"""The look of a synthetic video: a glyph in front of textured scenes, under a moving light and camera.

This module knows nothing of categories, splits and files.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]
Texture = Literal["noise", "stripes", "checks", "gradient", "blobs"]
Color = tuple[float, float, float]
Field = NDArray[np.float32]

GLYPH_SIZE = 96
"""Pixels per em at which a glyph is drawn before it is put into a frame."""
SCENE_SIDES = 3
"""Side of the scene, in sides of a frame: the room in which the camera moves."""
NUM_SCENES = 4
"""Cuts keep the background from identifying the video: only the object is in all of it."""
OVERSAMPLING = 2


class Paint(NamedTuple):
    """A texture between two colors (RGB, 0..1)."""

    texture: Texture
    low: Color
    high: Color


class Scene(NamedTuple):
    """A background of two textures, and the color of its light: a factor for each of R, G, B."""

    first: Paint
    second: Paint
    light: Color


class Instance(NamedTuple):
    """The object, which stays the same throughout a video, and the scenes behind it.

    `stroke` is what each side of a line grows by, in glyph pixels.
    """

    character: str
    font: str
    stroke: int
    fill: Paint
    outline: Color | None
    scenes: tuple[Scene, ...]


class Shot(NamedTuple):
    """What changes from frame to frame; x, y and pan cover their free room from -1 to 1."""

    rotation: float
    shear: float
    size: float
    x: float
    y: float
    pan_x: float
    pan_y: float
    zoom: float
    gain: float
    slope: float
    light_from: float


LOWEST = Shot(-25, -0.2, 0.55, -1, -1, -1, -1, 0.7, 0.65, 0.0, 0.0)
HIGHEST = Shot(25, 0.2, 0.9, 1, 1, 1, 1, 1.3, 1.15, 0.35, 2 * np.pi)


def make_instance(rng: np.random.Generator, character: str, fonts: Sequence[str]) -> Instance:
    """Draw an object that is bright on dark scenes or dark on bright ones: lumas never meet, hues are free."""
    bright = rng.random() < 0.5
    ink, ground = ((0.66, 0.95), (0.06, 0.46)) if bright else ((0.04, 0.28), (0.5, 0.94))
    font = str(rng.choice(fonts))
    bold = "Bol" in font or font == "cmb10"
    return Instance(
        character=character,
        font=font,
        stroke=int(rng.integers(0, 3) if bold else rng.integers(1, 6)),
        fill=_draw_paint(rng, *ink),
        outline=_draw_color(rng, float(rng.uniform(*ground))) if rng.random() < 0.3 else None,
        scenes=tuple(_draw_scene(rng, ground) for _ in range(NUM_SCENES)),
    )


def _draw_scene(rng: np.random.Generator, lumas: tuple[float, float]) -> Scene:
    first, second = _draw_paint(rng, *lumas), _draw_paint(rng, *lumas)
    red, green, blue = np.exp(rng.uniform(-0.4, 0.2, 3)).tolist()
    return Scene(first, second, (red, green, blue))


def _draw_paint(rng: np.random.Generator, darkest: float, brightest: float) -> Paint:
    """Draw a texture and two colors of this range of luma (0..1)."""
    low, high = sorted(rng.uniform(darkest, brightest, 2))
    return Paint(rng.choice(get_args(Texture)), _draw_color(rng, low), _draw_color(rng, high))


def _draw_color(rng: np.random.Generator, luma: float) -> Color:
    """Draw a hue, and darken or whiten it to this luma (0..1)."""
    hue, saturation = rng.uniform(0, 6), rng.uniform(0.3, 1)
    pure = 1 - saturation * np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) * -1 + 2, 0, 1)
    pure_luma = float(pure @ (0.299, 0.587, 0.114))
    mixed = pure * luma / pure_luma if luma < pure_luma else pure + (1 - pure) * (luma - pure_luma) / (1 - pure_luma)
    red, green, blue = np.clip(mixed, 0, 1).tolist()
    return red, green, blue


def render(rng: np.random.Generator, instance: Instance, num_frames: int, size: int) -> Frames:
    """Return one video before encoding: RGB, (num_frames, size, size, 3)."""
    glyph = _glyph(rng, instance)
    grounds = [_ground(rng, scene, size) for scene in instance.scenes]
    frames = []
    for number, shot in enumerate(_shots(rng, num_frames)):
        cut = number * NUM_SCENES // num_frames
        frames.append(_frame(glyph, grounds[cut], shot, instance.scenes[cut].light, size))
    return np.stack(frames)


def _ground(rng: np.random.Generator, scene: Scene, size: int) -> Field:
    """Blend two textures into each other over a square of SCENE_SIDES frames."""
    side = SCENE_SIDES * size
    first, second = _apply_paint(rng, scene.first, side), _apply_paint(rng, scene.second, side)
    share = np.clip(6 * (_noise(rng, side) - 0.5) + 0.5, 0, 1)[..., None]
    return np.asarray(first * share + second * (1 - share), np.float32)


@functools.cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(str(path), GLYPH_SIZE)


def _mask(instance: Instance, stroke: int) -> NDArray[np.uint8]:
    """Return the character's coverage, 3 × 3 ems large, drawn at its center."""
    side = 3 * GLYPH_SIZE
    image = Image.new("L", (side, side))
    font = _font(instance.font)
    ImageDraw.Draw(image).text((side / 2, side / 2), instance.character, 255, font, anchor="mm", stroke_width=stroke)
    return np.asarray(image)


def _glyph(rng: np.random.Generator, instance: Instance) -> Field:
    """Return the object cut out: RGBA 0..1 with the color premultiplied."""
    body = _mask(instance, instance.stroke)
    whole = body if instance.outline is None else _mask(instance, instance.stroke + GLYPH_SIZE // 20)
    left, top, width, height = cv2.boundingRect(whole)
    window = np.s_[top : top + height, left : left + width]
    cover = (body[window] / np.float32(255))[..., None]
    alpha = (whole[window] / np.float32(255))[..., None]
    color = _apply_paint(rng, instance.fill, max(width, height))[:height, :width]
    rest = (alpha - cover) * np.array(instance.outline or (0, 0, 0), np.float32)
    return np.concatenate([color * cover + rest, alpha], axis=2)


def _shots(rng: np.random.Generator, num_frames: int) -> list[Shot]:
    """Move each quantity along a sine of its own through most of its range."""
    lowest, highest = np.array(LOWEST), np.array(HIGHEST)
    turns, phase = rng.uniform(0.4, 0.9, lowest.size), rng.uniform(0, 1, lowest.size)
    time = np.linspace(0, 1, num_frames)[:, None]
    swing = 0.5 + 0.5 * np.sin(2 * np.pi * (turns * time + phase))
    return [Shot(*row) for row in (lowest + (highest - lowest) * swing).tolist()]


def _frame(glyph: Field, scene: Field, shot: Shot, light: Color, size: int) -> Frames:
    side = OVERSAMPLING * size
    item = cv2.warpAffine(glyph, _pose(glyph, shot, side), (side, side), flags=cv2.INTER_LINEAR)
    item = cv2.resize(item, (size, size), interpolation=cv2.INTER_AREA)
    ground = cv2.warpAffine(scene, _camera(scene, shot, size), (size, size), flags=cv2.INTER_LINEAR)
    pixels = item[..., :3] + ground * (1 - item[..., 3:])
    return np.asarray(np.clip(255 * pixels * _light(shot, light, size), 0, 255).round(), np.uint8)


def _pose(glyph: Field, shot: Shot, side: int) -> NDArray[np.float64]:
    """Return glyph → frame, (2, 3): the longer side of the upright glyph becomes `size` of the frame's."""
    height, width = glyph.shape[:2]
    angle = np.deg2rad(shot.rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1, shot.shear], [0, 1]]) * (shot.size * side / max(height, width))
    room = (1 - shot.size) / 2
    center = side * (0.5 + room * np.array([shot.x, shot.y]))
    return np.column_stack([linear, center - linear @ (width / 2, height / 2)])


def _camera(scene: Field, shot: Shot, size: int) -> NDArray[np.float64]:
    """Return scene → frame, (2, 3): the window never leaves the scene."""
    side, window = len(scene), size / shot.zoom
    corner = (side - window) / 2 * (1 + np.array([shot.pan_x, shot.pan_y]))
    return np.column_stack([shot.zoom * np.eye(2), -shot.zoom * corner])


def _light(shot: Shot, color: Color, size: int) -> Field:
    """Return the factor of each pixel, (size, size, 3): strength, color, and a slope across the frame."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    slope = 1 + shot.slope * (x * np.cos(shot.light_from) + y * np.sin(shot.light_from))
    return np.asarray(shot.gain * slope[..., None] * np.array(color), np.float32)


# --- textures: fields 0..1, (side, side)


def _apply_paint(rng: np.random.Generator, paint: Paint, side: int) -> Field:
    """Return the painted square, RGB 0..1, (side, side, 3)."""
    field = TEXTURES[paint.texture](rng, side)[..., None]
    return np.asarray(np.array(paint.low) * (1 - field) + np.array(paint.high) * field, np.float32)


def _noise(rng: np.random.Generator, side: int) -> Field:
    """Add five octaves of noise."""
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
    "noise": _noise,
    "stripes": _stripes,
    "checks": _checks,
    "gradient": _gradient,
    "blobs": _blobs,
}
