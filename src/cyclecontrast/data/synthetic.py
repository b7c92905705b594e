"""The demo's data: short videos of one persistent object each, and labeled frames of other instances.

An object is a glyph: its category is the character, its instance the font, the colors and the texture. Within a video
pose, size and light change smoothly and the scene behind is cut, while the object stays the same. Everything is a pure
function of (seed, split, number); scenes.py draws it.
"""

import functools
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import av
import cv2
import numpy as np

from cyclecontrast.data.scenes import Frames, Instance, make_instance, render
from cyclecontrast.errors import UserError

Split = Literal["pretrain", "train", "test"]
Item: TypeAlias = tuple[Split, int]
"""One video: its split, and its number there."""


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
"""Fonts that ship with matplotlib: whole families are held out for the test split."""
QUANTIZER = 3
"""Of the mpeg4 codec, 1 (best) to 31; mpeg4 is in every build of PyAV, H.264 is not."""


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
        """Names of the categories, in the order of the labels."""
        return tuple(category.name for category in CATEGORIES[: self.num_categories])

    def problems(self) -> list[str]:
        """Return one line for each value that is impossible."""
        lowest = {"num_categories": 2, "num_frames": 2, "size": 16}
        found = [
            f"{name} is {value}: it must be at least {lowest.get(name, 1)}"
            for name, value in vars(self).items()
            if value < lowest.get(name, 1)
        ]
        if self.num_categories > len(CATEGORIES):
            found.append(f"num_categories is {self.num_categories}: there are {len(CATEGORIES)} characters")
        if self.size % 2:
            found.append(f"size is {self.size}: it must be even, as video codecs need")
        if self.num_labeled_frames > self.num_frames:
            found.append(f"num_labeled_frames is {self.num_labeled_frames}: a video has num_frames, {self.num_frames}")
        return found

    def items(self) -> list[Item]:
        """Return all videos: the unlabeled ones, then those to train and to test on, balanced by category."""
        labeled = (self.num_train_per_category * self.num_categories, self.num_test_per_category * self.num_categories)
        counts = zip(get_args(Split), (self.num_videos, *labeled), strict=True)
        return [(split, number) for split, count in counts for number in range(count)]


@dataclass(frozen=True)
class SyntheticVideos:
    """Where the data are, and how many of them there are.

    `videos` is a folder of unlabeled mp4 files, `labeled` the root of a frame tree with
    frames/<category>/<instance>/<frame>.jpg, train.txt, test.txt and classes.txt; `num_labeled_images` counts the
    frames of train and test together.
    """

    videos: Path
    labeled: Path
    categories: tuple[str, ...]
    num_videos: int
    num_train: int
    num_test: int
    num_labeled_images: int


def make_videos(root: Path, spec: SyntheticSpec, seed: int, workers: int | None = None) -> SyntheticVideos:
    """Write `root`/videos and `root`/labeled; the folder appears only when all of it is made.

    `workers`: processes, 0 for none; by default the number of cores. Raises UserError for an impossible spec or a
    folder that is in use.
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
        _write_all(made, spec, seed, (os.cpu_count() or 1) if workers is None else workers)
        if root.exists():
            root.rmdir()
        made.replace(root)
    num_train, num_test = (
        number * spec.num_categories for number in (spec.num_train_per_category, spec.num_test_per_category)
    )
    num_labeled = (num_train + num_test) * spec.num_labeled_frames
    where = root / "videos", root / "labeled"
    return SyntheticVideos(*where, spec.categories, spec.num_videos, num_train, num_test, num_labeled)


def draw_instance(spec: SyntheticSpec, seed: int, split: Split, number: int) -> Instance:
    """Return the object and the scenes of one video."""
    return _draw(spec, seed, split, number)[0]


def render_frames(spec: SyntheticSpec, seed: int, split: Split, number: int) -> Frames:
    """Return one video before encoding: RGB, (num_frames, size, size, 3)."""
    instance, rng = _draw(spec, seed, split, number)
    return render(rng, instance, spec.num_frames, spec.size)


def _draw(spec: SyntheticSpec, seed: int, split: Split, number: int) -> tuple[Instance, np.random.Generator]:
    """Return an instance, and its generator for the rendering."""
    rng = np.random.default_rng([seed, get_args(Split).index(split), number])
    character = CATEGORIES[_category(spec, seed, split, number)].character
    return make_instance(rng, character, TEST_FONTS if split == "test" else FONTS), rng


def _category(spec: SyntheticSpec, seed: int, split: Split, number: int) -> int:
    """Return a category: balanced, and for the unlabeled videos shuffled within each round of all categories."""
    rounds, place = divmod(number, spec.num_categories)
    if split != "pretrain":
        return place
    order = np.random.default_rng([seed, len(get_args(Split)), rounds]).permutation(spec.num_categories)
    return int(order[place])


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
