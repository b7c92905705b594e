"""Two frames of one sequence that teach the head: which frames, and which crops of them (protocols.md §a)."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cyclecontrast.data.images import Pixels
from cyclecontrast.data.pairs import FRAMES, POSITIVE, QUERY, random_stream
from cyclecontrast.data.tracking_sequences import Sequence
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.resume_cache import Arrays
from cyclecontrast.evaluation.tracking.presets import Preset
from cyclecontrast.evaluation.tracking.training_views import (
    ViewDraw,
    draw_view,
    exemplar_view,
    search_view,
    target_shift,
)

MAX_GAP = 100
MAX_TRIES = 100

Frames = npt.NDArray[np.int64]


def usable_frames(sequence: Sequence, height: int, width: int) -> Frames:
    """Return the frames whose target is neither tiny, huge, thin nor hidden, in an image of this size.

    Differs from the release: width is compared with width, where VINCE compares it with the height.
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

    Two frames are a pair at any distance; where no draw of 100 is near enough, one frame is paired with itself.
    """
    if len(frames) == 2:
        return int(frames[0]), int(frames[1])
    for _ in range(MAX_TRIES):
        first, second = sorted(rng.choice(frames, 2, replace=False).tolist())
        if second - first < MAX_GAP:
            return first, second
    alone = int(rng.choice(frames))
    return alone, alone


@dataclass(frozen=True)
class TrainingPairs:
    """The pairs of one epoch by position: a function of (seed, epoch, position).

    `frames` are the usable ones of each sequence; a sequence with fewer than two is replaced by a random other one.
    """

    sequences: tuple[Sequence, ...]
    frames: tuple[Frames, ...]
    pairs_per_sequence: int
    preset: Preset
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.sequences) * self.pairs_per_sequence

    def image(self, position: int) -> Pixels:
        """Return the search crop with the exemplar to its right, as `unpack` takes it; raises UserError."""
        sequence, first, second = self.choose(position)
        preset, boxes = self.preset, self.sequences[sequence].boxes
        images = (self.sequences[sequence].image(frame) for frame in (first, second))
        exemplar = exemplar_view(next(images), boxes[first], self._draw(position, QUERY), preset)
        packed = np.zeros((preset.train_size, preset.train_size + preset.exemplar_size, 3), np.uint8)
        packed[: preset.exemplar_size, preset.train_size :] = exemplar
        packed[:, : preset.train_size] = search_view(
            next(images), boxes[second], self._draw(position, POSITIVE), preset
        )
        return packed

    def choose(self, position: int) -> tuple[int, int, int]:
        """Return the sequence and its two frames."""
        rng = random_stream(self.seed, self.epoch, position, FRAMES)
        sequence = position % len(self.sequences)
        if len(self.frames[sequence]) < 2:
            sequence = int(rng.choice(self._trainable))
        return sequence, *choose_pair(self.frames[sequence], rng)

    def shifts(self, positions: Iterable[int]) -> npt.NDArray[np.float32]:
        """Return where the targets lie from the middle of the search crops, in pixels y, x (num_positions, 2)."""
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


def as_packed(image: Pixels, position: int) -> Pixels:
    """Leave what `TrainingPairs.image` made as it is."""
    return image


def first_sizes(sequences: tuple[Sequence, ...], workers: int) -> Arrays:
    """Return height and width of each sequence's first image; 0 and a line on it where it cannot be read."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(pool.map(_first_size, sequences))
    sizes = [size if isinstance(size, tuple) else (0, 0) for size in found]
    problems = [str(size) for size in found if isinstance(size, UserError)]
    return {"sizes": np.array(sizes, np.int64), "problems": np.array(problems, dtype=str)}


def _first_size(sequence: Sequence) -> tuple[int, int] | UserError:
    try:
        height, width = sequence.image(0).shape[:2]
    except UserError as error:
        return error
    return height, width
