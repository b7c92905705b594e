"""Which frames of a video a sample shows beyond the query's and the positive's."""

from collections.abc import Callable

import numpy as np

FurtherFrames = Callable[[np.random.Generator, int, int], tuple[int, ...]]
"""(generator, the query's frame, number of frames) → frame numbers; the generator belongs to the sample alone."""

NUM_PAIRS = 4


def no_further(rng: np.random.Generator, query: int, num_frames: int) -> tuple[int, ...]:
    """Show the two and no more."""
    return ()


def query_again(rng: np.random.Generator, query: int, num_frames: int) -> tuple[int, ...]:
    """Show the query's frame once more: k++ of the paper (Table 5)."""
    return (query,)


def three_pairs(rng: np.random.Generator, query: int, num_frames: int) -> tuple[int, ...]:
    """Show three more pairs of any frames, the same one perhaps: with the first pair four, as in VINCE."""
    return tuple(int(frame) for frame in rng.integers(num_frames, size=2 * (NUM_PAIRS - 1)))


def other_half(rng: np.random.Generator, query: int, num_frames: int) -> tuple[int, ...]:
    """Show two frames, in the order of time, of the half of the video that the query is not in (SeCo).

    Differs from SeCo's release: the query is any frame, there it is in either half as often; a video of one frame
    shows it again.
    """
    half = num_frames // 2
    low, high = (half, num_frames) if query < half or num_frames == 1 else (0, half)
    return tuple(sorted(int(frame) for frame in rng.integers(low, high, size=2)))
