"""The rows nearest to a vector, exactly, whatever they are cut into: in one block, or block by block of a file."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cyclecontrast.evaluation.metrics import Floats, Integers, Masks
from cyclecontrast.evaluation.metrics.neighbors import Block, nearest_in_block
from cyclecontrast.searching.index import UnitBlock

LONGEST = 1.001
"""No vector that was scaled to length 1 in single precision is longer."""


class Wanted(NamedTuple):
    """How many rows are asked for, at most so many of one video, and whether each row may be one of them."""

    top: int
    per_video: int | None
    allowed: Masks


class Nearest(NamedTuple):
    """Rows by their cosine similarity, the most similar first; equal ones by their number."""

    rows: Integers
    similarities: Floats


def nearest_rows(query: Floats, blocks: Iterable[UnitBlock], videos: Integers, wanted: Wanted) -> Nearest:
    """Find the rows with the largest dot product with a query (dim,), all of them and it of length 1.

    What is nearest of all is nearest in its block: blocks name their best, and the best of these is taken.
    """
    rows: list[Integers] = [np.empty(0, np.int64)]
    vectors: list[Floats] = [np.empty((0, len(query)), np.float32)]
    for block in blocks:
        here = slice(block.start, block.start + len(block.vectors))
        found = _best(query, block.vectors, videos[here], np.flatnonzero(wanted.allowed[here]), wanted)
        best = np.sort(found.rows)
        rows.append(block.start + best)
        vectors.append(block.vectors[best])
    candidates = np.concatenate(rows)
    found = _best(query, np.concatenate(vectors), videos[candidates], np.arange(len(candidates)), wanted)
    return Nearest(candidates[found.rows], found.similarities)


def _best(query: Floats, vectors: Floats, videos: Integers, rivals: Integers, wanted: Wanted) -> Nearest:
    """Find the best rivals; where videos have their fill, their other frames are left out and it is looked again."""
    error = np.array([LONGEST * vectors.shape[1] * np.finfo(np.float32).eps / 2 * np.linalg.norm(query)])
    block = Block(query[None], (vectors @ query)[None], error)
    rows, similarities, counts = list[int](), list[float](), Counter[int]()
    while len(rows) < wanted.top and len(rivals):
        found = nearest_in_block(vectors, block, min(wanted.top, len(rivals)), rivals)
        for row, similarity in zip(found.indices[0].tolist(), found.similarities[0].tolist(), strict=True):
            if len(rows) < wanted.top and counts[videos[row]] < (wanted.per_video or wanted.top):
                counts[videos[row]] += 1
                rows.append(row)
                similarities.append(similarity)
        full = [video for video, count in counts.items() if count == (wanted.per_video or wanted.top)]
        rivals = rivals[~np.isin(rivals, found.indices[0]) & ~np.isin(videos[rivals], full)]
    return Nearest(np.array(rows, np.int64), np.array(similarities))


def allowed_rows(videos: Integers, row: int | None, other_videos: bool) -> Masks:
    """Return which rows may be found for a row that is the query, or for an image, which is none."""
    allowed = np.ones(len(videos), np.bool_)
    if row is not None:
        allowed &= videos != videos[row] if other_videos else np.arange(len(videos)) != row
    return allowed
