"""The demo's data: short videos of one persistent object each, and labeled frames of other instances.

An object is a glyph: the character is its category; font, colors and texture are its instance. Within a video, pose,
size and light change smoothly and the background is cut, while the object stays the same. All videos are pure
functions of (seed, split, number).
"""

import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import av
import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cyclecontrast.errors import UserError

Split = Literal["pretrain", "train", "test"]
Item: TypeAlias = tuple[Split, int]
"""One video: its split, and its number there."""
Frames = NDArray[np.uint8]
Field = NDArray[np.float32]
Color = tuple[float, float, float]
"""Red, green, blue, each 0..1."""
Texture = Literal["noise", "stripes", "checks", "gradient", "blobs"]
Paint: TypeAlias = tuple[Texture, Color, Color]
"""A texture between two colors."""
Scene: TypeAlias = tuple[Paint, Paint, Color]
"""A background of two textures, and the color of its light: a factor for each of R, G, B."""

# No two of these become each other by a mirror, by a rotation of 25° or by a change of font.
CATEGORIES = {
    **{f"letter_{letter}": letter for letter in "ACEHJKMQRSTXY"},
    **{"digit_4": "4", "digit_7": "7", "ampersand": "&", "at": "@", "question": "?", "percent": "%", "hash": "#"},
    **{"letter_U": "U", "letter_D": "D", "exclamation": "!", "digit_8": "8"},
}
"""The character of each category."""

TEST_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic", "cmss10", "cmtt10")
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
    *("cmb10", "cmr10", "cmti10"),
)
"""Fonts that ship with matplotlib: whole families are held out for the test split."""
QUANTIZER = 3
"""Of the mpeg4 codec, 1 (best) to 31; mpeg4 is in every build of PyAV, H.264 is not."""
GLYPH_SIZE = 96
"""Pixels per em at which a glyph is drawn before it is put into a frame."""
SCENE_SIDES = 3
"""Side of the scene, in sides of a frame: the room in which the camera moves."""
NUM_SCENES = 4
"""Cuts keep the background from identifying the video: only the object is in all of it."""
OVERSAMPLING = 2


@dataclass(frozen=True)
class SyntheticSpec:
    """Size of the synthetic dataset.

    Numbers of videos, categories and labeled instances, frame size in pixels, frame rate.
    """

    num_videos: int = 1000
    num_categories: int = 20
    num_train_per_category: int = 15
    num_test_per_category: int = 15
    num_frames: int = 12
    num_labeled_frames: int = 4
    size: int = 48
    fps: int = 6

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, in the order of the labels."""
        return tuple(CATEGORIES)[: self.num_categories]

    def items(self) -> list[Item]:
        """Return all videos: the unlabeled ones, then those to train and to test on, balanced by category."""
        labeled = (self.num_categories * number for number in (self.num_train_per_category, self.num_test_per_category))
        counts = zip(get_args(Split), (self.num_videos, *labeled), strict=True)
        return [(split, number) for split, count in counts for number in range(count)]


class SyntheticVideos(NamedTuple):
    """Where the data are: `videos` is a folder of `num_videos` unlabeled mp4 files.

    `labeled` is the root of a frame tree with frames/<category>/<instance>/<frame>.jpg, train.txt, test.txt and
    classes.txt.
    """

    videos: Path
    labeled: Path
    num_videos: int


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


def make_videos(root: Path, spec: SyntheticSpec, seed: int, workers: int | None = None) -> SyntheticVideos:
    """Write `root`/videos and `root`/labeled; the folder appears only when all of it is made.

    `workers`: processes, 0 for none; by default the number of cores. Raises UserError for a folder that is in use.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is in use; name a new or an empty folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as parent:
        made = Path(parent, "made")
        made.mkdir()
        _write_lists(made / "labeled", spec)
        _write_all(made, spec, seed, (os.cpu_count() or 1) if workers is None else workers)
        if root.exists():
            root.rmdir()
        made.replace(root)
    return SyntheticVideos(root / "videos", root / "labeled", spec.num_videos)


def draw_instance(spec: SyntheticSpec, seed: int, split: Split, number: int) -> Instance:
    """Return the object and the scenes of one video."""
    return _draw(spec, seed, split, number)[0]


def render_frames(spec: SyntheticSpec, seed: int, split: Split, number: int) -> Frames:
    """Return one video before encoding: RGB, (num_frames, size, size, 3)."""
    instance, rng = _draw(spec, seed, split, number)
    return _render(rng, instance, spec.num_frames, spec.size)


def _draw(spec: SyntheticSpec, seed: int, split: Split, number: int) -> tuple[Instance, np.random.Generator]:
    """Return an instance, and its generator for the rendering.

    Categories are balanced; those of the unlabeled videos are shuffled within each round of all categories.
    """
    splits = get_args(Split)
    rng = np.random.default_rng([seed, splits.index(split), number])
    rounds, category = divmod(number, spec.num_categories)
    if split == "pretrain":
        category = np.random.default_rng([seed, len(splits), rounds]).permutation(spec.num_categories)[category]
    character = CATEGORIES[spec.categories[category]]
    return _make_instance(rng, character, TEST_FONTS if split == "test" else FONTS), rng


def _write_all(root: Path, spec: SyntheticSpec, seed: int, num_workers: int) -> None:
    write, items = functools.partial(_write, root, spec, seed), spec.items()
    if num_workers == 0:
        for item in items:
            write(item)
        return
    # Forking a process that has run threads of torch or OpenCV can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        list(pool.map(write, items, chunksize=16))


def _write(root: Path, spec: SyntheticSpec, seed: int, item: Item) -> None:
    frames = render_frames(spec, seed, *item)
    if item[0] == "pretrain":
        path = root / "videos" / f"{item[1]:04d}.mp4"
        path.parent.mkdir(exist_ok=True)
        _encode(path, frames, spec.fps)
        return
    folder = root / "labeled" / "frames" / _instance_id(spec, item)
    folder.mkdir(parents=True)
    for index in np.linspace(0, spec.num_frames - 1, spec.num_labeled_frames).round().astype(int):
        image = cv2.cvtColor(frames[index], cv2.COLOR_RGB2BGR)
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (folder / f"{index:05d}.jpg").write_bytes(encoded.tobytes())


def _encode(path: Path, frames: Frames, fps: int) -> None:
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.qmin = stream.codec_context.qmax = QUANTIZER
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_lists(labeled: Path, spec: SyntheticSpec) -> None:
    labeled.mkdir()
    classes = [f"{label} {name}\n" for label, name in enumerate(spec.categories)]
    (labeled / "classes.txt").write_text("".join(classes))
    for split in ("train", "test"):
        items = [item for item in spec.items() if item[0] == split]
        lines = sorted(f"{_instance_id(spec, item)} {item[1] % spec.num_categories}\n" for item in items)
        (labeled / f"{split}.txt").write_text("".join(lines))


def _instance_id(spec: SyntheticSpec, item: Item) -> str:
    split, number = item
    index, label = divmod(number, spec.num_categories)
    return f"{spec.categories[label]}/{split}_{index:05d}"


# --- drawing an object and its scenes


def _make_instance(rng: np.random.Generator, character: str, fonts: Sequence[str]) -> Instance:
    """Return a random object: bright on dark backgrounds or the reverse, with disjoint ranges of luma and any hue."""
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
    return first, second, (red, green, blue)


def _draw_paint(rng: np.random.Generator, darkest: float, brightest: float) -> Paint:
    """Draw a texture and two colors of this range of luma (0..1)."""
    low, high = sorted(rng.uniform(darkest, brightest, 2))
    return rng.choice(get_args(Texture)), _draw_color(rng, low), _draw_color(rng, high)


def _draw_color(rng: np.random.Generator, luma: float) -> Color:
    """Draw a hue, and darken or whiten it to this luma (0..1)."""
    hue, saturation = rng.uniform(0, 6), rng.uniform(0.3, 1)
    pure = 1 - saturation * np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) * -1 + 2, 0, 1)
    pure_luma = float(pure @ (0.299, 0.587, 0.114))
    mixed = pure * luma / pure_luma if luma < pure_luma else pure + (1 - pure) * (luma - pure_luma) / (1 - pure_luma)
    red, green, blue = np.clip(mixed, 0, 1).tolist()
    return red, green, blue


def _render(rng: np.random.Generator, instance: Instance, num_frames: int, size: int) -> Frames:
    """Return one video before encoding: RGB, (num_frames, size, size, 3)."""
    glyph = _glyph(rng, instance)
    grounds = [_ground(rng, scene, size) for scene in instance.scenes]
    frames = []
    for number, shot in enumerate(_shots(rng, num_frames)):
        cut = number * NUM_SCENES // num_frames
        frames.append(_frame(glyph, grounds[cut], shot, instance.scenes[cut][2], size))
    return np.stack(frames)


def _ground(rng: np.random.Generator, scene: Scene, size: int) -> Field:
    """Blend two textures into each other over a square of SCENE_SIDES frames."""
    side = SCENE_SIDES * size
    first, second = (_apply_paint(rng, paint, side) for paint in scene[:2])
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
    """Move each quantity along a sine through most of its range."""
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
    texture, low, high = paint
    field = TEXTURES[texture](rng, side)[..., None]
    return np.asarray(np.array(low) * (1 - field) + np.array(high) * field, np.float32)


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
