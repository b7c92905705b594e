"""The demo's own data: short videos of one persistent object each, and labeled frames of other instances.

An object is a glyph: its category is the character, its instance the font, the colors, the texture and the
scene behind it. Within a video pose, size, light and camera change smoothly while the object stays the same.
Everything is a pure function of (seed, split, number). It knows nothing of networks and of losses.
"""

import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import av
import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cyclecontrast.errors import UserError

Split = Literal["pretrain", "train", "test"]
Texture = Literal["noise", "stripes", "checks", "gradient", "blobs"]
Color = tuple[float, float, float]
Field = NDArray[np.float32]
Frames = NDArray[np.uint8]


class Category(NamedTuple):
    """A character, and the name of its folder."""

    name: str
    character: str


# No two of these become each other by a mirror, by a rotation of 25° or by a change of font.
CATEGORIES = (
    *(Category(f"letter_{letter}", letter) for letter in "ACEHJKMQRSTXY"),
    *(Category(f"digit_{digit}", digit) for digit in "47"),
    Category("ampersand", "&"),
    Category("at", "@"),
    Category("question", "?"),
    Category("percent", "%"),
    Category("hash", "#"),
    *(Category(f"letter_{letter}", letter) for letter in "UD"),
    Category("exclamation", "!"),
    Category("digit_8", "8"),
)

TEST_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic", "cmss10", "cmtt10")
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
    *("cmb10", "cmr10", "cmti10"),
)
"""Fonts that ship with matplotlib: whole families are kept for the test split."""


@dataclass(frozen=True)
class SyntheticSpec:
    """How many videos of what: sizes in pixels, fps in frames per second, counts of labels in instances."""

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
        """Their names, in the order of the labels."""
        return tuple(category.name for category in CATEGORIES[: self.num_categories])

    def problems(self) -> list[str]:
        """One line for each value that cannot be made; empty when all is well."""
        lowest = {"num_categories": 2, "num_frames": 2, "size": 16}
        found = [
            f"{name} is {value}: it must be at least {lowest.get(name, 1)}"
            for name, value in vars(self).items()
            if value < lowest.get(name, 1)
        ]
        if self.num_categories > len(CATEGORIES):
            found.append(f"num_categories is {self.num_categories}: there are {len(CATEGORIES)} characters")
        if self.size % 2:
            found.append(f"size is {self.size}: it must be even, as video codecs ask")
        if self.num_labeled_frames > self.num_frames:
            found.append(f"num_labeled_frames is {self.num_labeled_frames}: a video has num_frames, {self.num_frames}")
        return found


@dataclass(frozen=True)
class SyntheticVideos:
    """Where the set lies and how much of it there is."""

    videos: Path
    """Folder of mp4 files, unlabeled."""
    labeled: Path
    """Root of a frame tree: frames/<category>/<instance>/<frame>.jpg, train.txt, test.txt, classes.txt."""
    categories: tuple[str, ...]
    num_videos: int
    num_train: int
    num_test: int
    num_labeled_frames: int
    """Frames in train and test together."""


class Paint(NamedTuple):
    """A texture between two colors (RGB, 0..1)."""

    texture: Texture
    low: Color
    high: Color


class Scene(NamedTuple):
    """A background of two textures, and the colour of its light: a factor for each of R, G, B."""

    first: Paint
    second: Paint
    light: Color


class Instance(NamedTuple):
    """The object, which stays the same throughout a video, and the scenes that it is cut through.

    stroke is what each side of a line grows by, in glyph pixels.
    """

    category: int
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

GLYPH_SIZE = 96
"""Pixels per em at which a glyph is drawn before it is put into a frame."""
SCENE_SIDES = 3
"""Side of the scene, in sides of a frame: the room in which the camera moves."""
NUM_SCENES = 4
"""Cuts are what keeps the background from naming the video: only the object goes through all of it."""
OVERSAMPLING = 2
QUANTIZER = 3
"""Of the mpeg4 codec, 1 (best) to 31; mpeg4 is in every build of PyAV, H.264 is not."""


def make_videos(
    root: Path,
    spec: SyntheticSpec,
    seed: int,
    workers: int | None = None,
    advance: Callable[[int], object] = lambda num_made: None,
) -> SyntheticVideos:
    """Write `root`/videos and `root`/labeled; the folder appears only when all of it is made.

    workers: processes, 0 for none; by default the number of cores. advance: told of each video or instance
    made (num_items of them). Raises UserError for an impossible spec or a folder that is in use.
    """
    problems = spec.problems()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        problems.append(f"{root} is in use; name a new or an empty folder")
    if problems:
        raise UserError(*problems)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as parent:
        made = Path(parent, "made")
        made.mkdir()
        _write_lists(made / "labeled", spec)
        for _ in _map(functools.partial(_write, made, spec, seed), _items(spec), workers):
            advance(1)
        if root.exists():
            root.rmdir()
        made.replace(root)
    return _summary(root, spec)


def num_items(spec: SyntheticSpec) -> int:
    """Videos and labeled instances together: what `make_videos` counts its progress in."""
    return len(_items(spec))


def draw_instance(spec: SyntheticSpec, seed: int, split: Split, number: int) -> Instance:
    """The object and the scene of one video."""
    return _draw(spec, seed, split, number, _generator(seed, split, number))


def render_frames(spec: SyntheticSpec, seed: int, split: Split, number: int) -> Frames:
    """One video before encoding: RGB, (num_frames, size, size, 3)."""
    rng = _generator(seed, split, number)
    instance = _draw(spec, seed, split, number, rng)
    glyph = _glyph(rng, instance)
    grounds = [_ground(rng, scene, spec.size) for scene in instance.scenes]
    frames = []
    for number, shot in enumerate(_shots(rng, spec.num_frames)):
        cut = number * NUM_SCENES // spec.num_frames
        frames.append(_frame(glyph, grounds[cut], shot, instance.scenes[cut].light, spec.size))
    return np.stack(frames)


class _Item(NamedTuple):
    split: Split
    number: int


def _items(spec: SyntheticSpec) -> list[_Item]:
    counts = (
        spec.num_videos,
        spec.num_train_per_category * spec.num_categories,
        spec.num_test_per_category * spec.num_categories,
    )
    return [
        _Item(split, number) for split, count in zip(get_args(Split), counts, strict=True) for number in range(count)
    ]


def _map(write: Callable[[_Item], None], items: list[_Item], workers: int | None) -> Iterator[None]:
    num_workers = (os.cpu_count() or 1) if workers is None else workers
    if num_workers == 0:
        yield from map(write, items)
        return
    # spawn: forking a process that has run torch or OpenCV threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from pool.map(write, items, chunksize=16)


def _write(root: Path, spec: SyntheticSpec, seed: int, item: _Item) -> None:
    frames = render_frames(spec, seed, item.split, item.number)
    if item.split == "pretrain":
        path = root / "videos" / f"{item.number:04d}.mp4"
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
        lines = sorted(
            f"{_instance_id(spec, item)} {item.number % spec.num_categories}\n"
            for item in _items(spec)
            if item.split == split
        )
        (labeled / f"{split}.txt").write_text("".join(lines))


def _instance_id(spec: SyntheticSpec, item: _Item) -> str:
    index, label = divmod(item.number, spec.num_categories)
    return f"{spec.categories[label]}/{item.split}_{index:05d}"


def _summary(root: Path, spec: SyntheticSpec) -> SyntheticVideos:
    num_train = spec.num_train_per_category * spec.num_categories
    num_test = spec.num_test_per_category * spec.num_categories
    return SyntheticVideos(
        videos=root / "videos",
        labeled=root / "labeled",
        categories=spec.categories,
        num_videos=spec.num_videos,
        num_train=num_train,
        num_test=num_test,
        num_labeled_frames=(num_train + num_test) * spec.num_labeled_frames,
    )


def _generator(seed: int, split: Split, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, get_args(Split).index(split), number])


def _category(spec: SyntheticSpec, seed: int, split: Split, number: int) -> int:
    """Balanced, and for the unlabeled videos shuffled within each round, so that numbers tell nothing."""
    rounds, place = divmod(number, spec.num_categories)
    if split != "pretrain":
        return place
    order = np.random.default_rng([seed, len(get_args(Split)), rounds]).permutation(spec.num_categories)
    return int(order[place])


def _draw(spec: SyntheticSpec, seed: int, split: Split, number: int, rng: np.random.Generator) -> Instance:
    """The object is bright on a dark scene or dark on a bright one: lumas never meet, hues are free."""
    bright = rng.random() < 0.5
    ink, ground = ((0.66, 0.95), (0.06, 0.46)) if bright else ((0.04, 0.28), (0.5, 0.94))
    font = str(rng.choice(TEST_FONTS if split == "test" else FONTS))
    bold = "Bol" in font or font == "cmb10"
    return Instance(
        category=_category(spec, seed, split, number),
        font=font,
        stroke=int(rng.integers(0, 3) if bold else rng.integers(1, 6)),
        fill=_paint(rng, *ink),
        outline=_color(rng, float(rng.uniform(*ground))) if rng.random() < 0.3 else None,
        scenes=tuple(Scene(_paint(rng, *ground), _paint(rng, *ground), _light_color(rng)) for _ in range(NUM_SCENES)),
    )


def _paint(rng: np.random.Generator, darkest: float, brightest: float) -> Paint:
    low, high = sorted(rng.uniform(darkest, brightest, 2))
    return Paint(rng.choice(get_args(Texture)), _color(rng, low), _color(rng, high))


def _light_color(rng: np.random.Generator) -> Color:
    red, green, blue = np.exp(rng.uniform(-0.4, 0.2, 3)).tolist()
    return red, green, blue


def _color(rng: np.random.Generator, luma: float) -> Color:
    """A random hue, darkened or whitened to this luma (0..1)."""
    hue, saturation = rng.uniform(0, 6), rng.uniform(0.3, 1)
    pure = 1 - saturation * np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) * -1 + 2, 0, 1)
    own = float(pure @ (0.299, 0.587, 0.114))
    mixed = pure * luma / own if luma < own else pure + (1 - pure) * (luma - own) / (1 - own)
    red, green, blue = np.clip(mixed, 0, 1).tolist()
    return red, green, blue


def _apply(rng: np.random.Generator, paint: Paint, side: int) -> Field:
    """The painted square, RGB 0..1, (side, side, 3)."""
    field = TEXTURES[paint.texture](rng, side)[..., None]
    return np.asarray(np.array(paint.low) * (1 - field) + np.array(paint.high) * field, np.float32)


def _noise(rng: np.random.Generator, side: int) -> Field:
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


def _ground(rng: np.random.Generator, scene: Scene, size: int) -> Field:
    """Two textures that give way to each other over a square of SCENE_SIDES frames."""
    side = SCENE_SIDES * size
    first, second = _apply(rng, scene.first, side), _apply(rng, scene.second, side)
    share = np.clip(6 * (_noise(rng, side) - 0.5) + 0.5, 0, 1)[..., None]
    return np.asarray(first * share + second * (1 - share), np.float32)


@functools.cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(str(path), GLYPH_SIZE)


def _mask(instance: Instance, stroke: int) -> NDArray[np.uint8]:
    """The character's coverage, (3, 3) ems large, drawn at its center."""
    side = 3 * GLYPH_SIZE
    image = Image.new("L", (side, side))
    character = CATEGORIES[instance.category].character
    font = _font(instance.font)
    ImageDraw.Draw(image).text((side / 2, side / 2), character, 255, font, anchor="mm", stroke_width=stroke)
    return np.asarray(image)


def _glyph(rng: np.random.Generator, instance: Instance) -> Field:
    """The object cut out: RGBA 0..1 with the color premultiplied."""
    body = _mask(instance, instance.stroke)
    whole = body if instance.outline is None else _mask(instance, instance.stroke + GLYPH_SIZE // 20)
    left, top, width, height = cv2.boundingRect(whole)
    window = np.s_[top : top + height, left : left + width]
    cover = (body[window] / np.float32(255))[..., None]
    alpha = (whole[window] / np.float32(255))[..., None]
    color = _apply(rng, instance.fill, max(width, height))[:height, :width]
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
