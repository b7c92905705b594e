"""The look of a made video: a glyph of one look throughout, in front of scenes, under moving light and camera.

It knows nothing of categories, splits and files.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cyclecontrast.data.textures import Color, Field, Paint, apply_paint, draw_color, draw_noise, draw_paint

Frames = NDArray[np.uint8]

GLYPH_SIZE = 96
"""Pixels per em at which a glyph is drawn before it is put into a frame."""
SCENE_SIDES = 3
"""Side of the scene, in sides of a frame: the room in which the camera moves."""
NUM_SCENES = 4
"""Cuts are what keeps the background from naming the video: only the object goes through all of it."""
OVERSAMPLING = 2


class Scene(NamedTuple):
    """A background of two textures, and the colour of its light: a factor for each of R, G, B."""

    first: Paint
    second: Paint
    light: Color


class Instance(NamedTuple):
    """The object, which stays the same throughout a video, and the scenes that it is cut through.

    stroke is what each side of a line grows by, in glyph pixels.
    """

    character: str
    font: str
    stroke: int
    fill: Paint
    outline: Color | None
    scenes: tuple[Scene, ...]


class Shot(NamedTuple):
    """What changes from frame to frame; x, y and pan run over their free room from -1 to 1."""

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
    """An object bright on dark scenes or dark on bright ones: lumas never meet, hues are free."""
    bright = rng.random() < 0.5
    ink, ground = ((0.66, 0.95), (0.06, 0.46)) if bright else ((0.04, 0.28), (0.5, 0.94))
    font = str(rng.choice(fonts))
    bold = "Bol" in font or font == "cmb10"
    return Instance(
        character=character,
        font=font,
        stroke=int(rng.integers(0, 3) if bold else rng.integers(1, 6)),
        fill=draw_paint(rng, *ink),
        outline=draw_color(rng, float(rng.uniform(*ground))) if rng.random() < 0.3 else None,
        scenes=tuple(_draw_scene(rng, ground) for _ in range(NUM_SCENES)),
    )


def _draw_scene(rng: np.random.Generator, lumas: tuple[float, float]) -> Scene:
    first, second = draw_paint(rng, *lumas), draw_paint(rng, *lumas)
    red, green, blue = np.exp(rng.uniform(-0.4, 0.2, 3)).tolist()
    return Scene(first, second, (red, green, blue))


def render(rng: np.random.Generator, instance: Instance, num_frames: int, size: int) -> Frames:
    """One video before encoding: RGB, (num_frames, size, size, 3)."""
    glyph = _glyph(rng, instance)
    grounds = [_ground(rng, scene, size) for scene in instance.scenes]
    frames = []
    for number, shot in enumerate(_shots(rng, num_frames)):
        cut = number * NUM_SCENES // num_frames
        frames.append(_frame(glyph, grounds[cut], shot, instance.scenes[cut].light, size))
    return np.stack(frames)


def _ground(rng: np.random.Generator, scene: Scene, size: int) -> Field:
    """Two textures that give way to each other over a square of SCENE_SIDES frames."""
    side = SCENE_SIDES * size
    first, second = apply_paint(rng, scene.first, side), apply_paint(rng, scene.second, side)
    share = np.clip(6 * (draw_noise(rng, side) - 0.5) + 0.5, 0, 1)[..., None]
    return np.asarray(first * share + second * (1 - share), np.float32)


@functools.cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(str(path), GLYPH_SIZE)


def _mask(instance: Instance, stroke: int) -> NDArray[np.uint8]:
    """The character's coverage, (3, 3) ems large, drawn at its center."""
    side = 3 * GLYPH_SIZE
    image = Image.new("L", (side, side))
    font = _font(instance.font)
    ImageDraw.Draw(image).text((side / 2, side / 2), instance.character, 255, font, anchor="mm", stroke_width=stroke)
    return np.asarray(image)


def _glyph(rng: np.random.Generator, instance: Instance) -> Field:
    """The object cut out: RGBA 0..1 with the color premultiplied."""
    body = _mask(instance, instance.stroke)
    whole = body if instance.outline is None else _mask(instance, instance.stroke + GLYPH_SIZE // 20)
    left, top, width, height = cv2.boundingRect(whole)
    window = np.s_[top : top + height, left : left + width]
    cover = (body[window] / np.float32(255))[..., None]
    alpha = (whole[window] / np.float32(255))[..., None]
    color = apply_paint(rng, instance.fill, max(width, height))[:height, :width]
    rest = (alpha - cover) * np.array(instance.outline or (0, 0, 0), np.float32)
    return np.concatenate([color * cover + rest, alpha], axis=2)


def _shots(rng: np.random.Generator, num_frames: int) -> list[Shot]:
    """Each quantity swings along a sine of its own through most of its range."""
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
    """Glyph → frame, (2, 3): the longer side of the upright glyph becomes `size` of the frame's."""
    height, width = glyph.shape[:2]
    angle = np.deg2rad(shot.rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1, shot.shear], [0, 1]]) * (shot.size * side / max(height, width))
    room = (1 - shot.size) / 2
    center = side * (0.5 + room * np.array([shot.x, shot.y]))
    return np.column_stack([linear, center - linear @ (width / 2, height / 2)])


def _camera(scene: Field, shot: Shot, size: int) -> NDArray[np.float64]:
    """Scene → frame, (2, 3): the window never leaves the scene."""
    side, window = len(scene), size / shot.zoom
    corner = (side - window) / 2 * (1 + np.array([shot.pan_x, shot.pan_y]))
    return np.column_stack([shot.zoom * np.eye(2), -shot.zoom * corner])


def _light(shot: Shot, color: Color, size: int) -> Field:
    """What each pixel is multiplied by, (size, size, 3): strength, colour, and a slope across the frame."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    slope = 1 + shot.slope * (x * np.cos(shot.light_from) + y * np.sin(shot.light_from))
    return np.asarray(shot.gain * slope[..., None] * np.array(color), np.float32)
