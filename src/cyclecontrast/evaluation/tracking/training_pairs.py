"""Pairs of frames that train the head of the tracker: which frames, and which crops of them."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from cyclecontrast.data.images import Pixels
from cyclecontrast.data.random_streams import FRAMES, POSITIVE, QUERY, random_stream
from cyclecontrast.data.tracking_sequences import Boxes, Sequence
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.resume_cache import Arrays
from cyclecontrast.evaluation.tracking.siamfc import SEARCH_SIZE, Preset, Target, crop_squares

MAX_GAP = 100
MAX_TRIES = 100
STRETCH = 0.05
MARGIN = 8
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LANCZOS4)
LAPLACE_SCALE = 0.25

Frames = npt.NDArray[np.int64]


def usable_frames(sequence: Sequence, height: int, width: int) -> Frames:
    """Return the frames whose target is visible and has a usable size and aspect ratio, in images of this size.

    Differs from the release: the width is compared with the image's width, where VINCE compares it with the height.
    """
    w, h = sequence.boxes.T[2:]
    usable = (np.minimum(w, h) >= 20) & (np.maximum(w, h) <= 500)
    usable &= (w >= 0.01 * width) & (w <= 0.5 * width) & (h >= 0.01 * height) & (h <= 0.5 * height)
    usable &= (4 * w >= h) & (w <= 4 * h)
    if sequence.cover is not None:
        usable &= sequence.cover > max(1, 0.3 * sequence.cover.max())
    return np.flatnonzero(usable)


def choose_pair(frames: Frames, rng: np.random.Generator) -> tuple[int, int]:
    """Draw two of at least two frames, the earlier first, less than 100 apart.

    Exactly two frames are a pair at any distance. Where 100 draws give no close pair, one frame is paired with itself.
    """
    if len(frames) == 2:
        return int(frames[0]), int(frames[1])
    for _ in range(MAX_TRIES):
        first, second = sorted(rng.choice(frames, 2, replace=False).tolist())
        if second - first < MAX_GAP:
            return first, second
    alone = int(rng.choice(frames))
    return alone, alone


class ViewDraw(NamedTuple):
    """The random parameters of one crop; `dy` and `dx` shift it by fractions of the search crop's side."""

    stretch: float
    interpolation: int
    top: int
    left: int
    dy: float = 0.0
    dx: float = 0.0
    flip: bool = False


def draw_view(rng: np.random.Generator, preset: Preset, jitter: float) -> ViewDraw:
    """Draw a crop; `jitter` is that of the preset for the exemplar or for the search crop, 0 for no shift."""
    stretch = 1 + float(rng.uniform(-STRETCH, STRETCH))
    interpolation = INTERPOLATIONS[int(rng.integers(len(INTERPOLATIONS)))]
    top, left = rng.integers(MARGIN + 1, size=2).tolist()
    if preset.jitter is None:
        return ViewDraw(stretch, interpolation, top, left)
    dy, dx = (jitter * np.clip(rng.laplace(0, LAPLACE_SCALE, 2), -1, 1)).tolist()
    return ViewDraw(stretch, interpolation, top, left, dy, dx, bool(rng.random() < 0.5))


def crop_view(image: Pixels, box: Boxes, draw: ViewDraw, preset: Preset, size: int) -> Pixels:
    """Return a crop (size, size, 3) around the target in a box (4,); `size` is that of the exemplar or of training.

    Without jitter it is cut from a larger crop, else stretched, shifted and cut in one resampling, as VINCE does.
    """
    target = Target.of(box)
    if preset.jitter is None:
        side = target.exemplar_side() * SEARCH_SIZE / preset.exemplar_size
        larger = crop_squares(image, target.y, target.x, [side], SEARCH_SIZE)[0]
        stretched_size = round(SEARCH_SIZE * draw.stretch)
        stretched = cv2.resize(larger, (stretched_size, stretched_size), interpolation=draw.interpolation)
        middle = _middle(np.asarray(stretched, np.uint8), preset.train_size + MARGIN)
        return _middle(middle[draw.top :, draw.left :][: preset.train_size, : preset.train_size], size)
    per_pixel = target.exemplar_side() / preset.exemplar_size / draw.stretch
    reach = preset.train_size * per_pixel
    y, x = target.y + draw.dy * reach, target.x + draw.dx * reach
    crop: Pixels = crop_squares(image, y, x, [size * per_pixel], size)[0]
    return crop[:, ::-1] if draw.flip else crop


def target_shift(draw: ViewDraw, preset: Preset) -> tuple[float, float]:
    """Return the target's distance from the middle of the search crop in pixels, y and x.

    It is 0 for crops that are cut from a larger one, as in the release.
    Differs from the release: VINCE shifts its labels by the crop's shift as a fraction of 17 cells, but the crop has
    31 cells, and the target moves by that fraction of them.
    """
    dy, dx = (-part * preset.train_size for part in (draw.dy, draw.dx))
    return dy, -dx if draw.flip else dx


def _middle(image: Pixels, size: int) -> Pixels:
    """Return the middle (size, size, 3) of a square, padded with the mean color where the square is smaller."""
    spare = image.shape[0] - size
    start = round(spare / 2)
    if spare >= 0:
        return image[start : start + size, start : start + size]
    before, after = -start, start - spare
    mean = cv2.mean(image)[:3]
    bordered = cv2.copyMakeBorder(image, before, after, before, after, cv2.BORDER_CONSTANT, value=mean)
    return np.asarray(bordered, np.uint8)


@dataclass(frozen=True)
class TrainingPairs:
    """The pairs of one epoch by position: a function of (seed, epoch, position).

    `frames` are the usable ones of each sequence; a sequence with fewer than two is replaced by a random other one.
    """

    sequences: tuple[Sequence, ...]
    frames: tuple[Frames, ...]
    preset: Preset
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.sequences) * self.preset.pairs_per_sequence

    def image(self, position: int) -> Pixels:
        """Return the search crop with the exemplar to its right, as `unpack` takes it; raises UserError."""
        sequence, first, second = self.choose(position)
        preset, source = self.preset, self.sequences[sequence]

        def crop(frame: int, role: int, size: int) -> Pixels:
            return crop_view(source.image(frame), source.boxes[frame], self._draw(position, role), preset, size)

        packed = np.zeros((preset.train_size, preset.train_size + preset.exemplar_size, 3), np.uint8)
        packed[: preset.exemplar_size, preset.train_size :] = crop(first, QUERY, preset.exemplar_size)
        packed[:, : preset.train_size] = crop(second, POSITIVE, preset.train_size)
        return packed

    def choose(self, position: int) -> tuple[int, int, int]:
        """Return the sequence and its two frames."""
        rng = random_stream(self.seed, self.epoch, position, FRAMES)
        sequence = position % len(self.sequences)
        if len(self.frames[sequence]) < 2:
            sequence = int(rng.choice(self._trainable))
        return sequence, *choose_pair(self.frames[sequence], rng)

    def shifts(self, positions: Iterable[int]) -> npt.NDArray[np.float32]:
        """Return the targets' distances from the middle of the search crops, in pixels y, x (num_positions, 2)."""
        return np.array([target_shift(self._draw(at, POSITIVE), self.preset) for at in positions], np.float32)

    @cached_property
    def _trainable(self) -> Frames:
        return np.flatnonzero([len(frames) >= 2 for frames in self.frames])

    def _draw(self, position: int, role: int) -> ViewDraw:
        exemplar, search = self.preset.jitter or (0.0, 0.0)
        rng = random_stream(self.seed, self.epoch, position, role)
        return draw_view(rng, self.preset, exemplar if role == QUERY else search)


def unpack(packed: Tensor, preset: Preset) -> tuple[Tensor, Tensor]:
    """Return the exemplars and the search crops of a batch (batch, 3, height, width)."""
    return packed[..., : preset.exemplar_size, preset.train_size :], packed[..., : preset.train_size]


def first_sizes(sequences: tuple[Sequence, ...], workers: int) -> Arrays:
    """Return `sizes`, height and width of each sequence's first image, and `problems`.

    An image that cannot be read has size 0 and a line in `problems`.
    """

    def read(sequence: Sequence) -> tuple[int, ...] | UserError:
        try:
            return sequence.image(0).shape[:2]
        except UserError as error:
            return error

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(pool.map(read, sequences))
    sizes = [(0, 0) if isinstance(size, UserError) else size for size in found]
    problems = [str(size) for size in found if isinstance(size, UserError)]
    return {"sizes": np.array(sizes, np.int64), "problems": np.array(problems, dtype=str)}
