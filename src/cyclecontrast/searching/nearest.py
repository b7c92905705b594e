"""Exact nearest neighbors of a query, block by block, and the vectors of an index held in memory for many queries."""

import importlib.util
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Floats, Integers, Masks, dot_products
from cyclecontrast.searching.index import FrameIndex

ROWS_IN_MEMORY = 65_536
"""Rows per block of in-memory vectors."""
FAISS_GROWTH = 4
"""Factor by which the number of candidates from faiss grows while too few of them are allowed."""


def nearest_rows(
    query: Floats,
    blocks: Iterable[tuple[int, Floats]],
    videos: Integers,
    allowed: Masks,
    top: int,
    per_video: int | None = None,
) -> tuple[Integers, Floats]:
    """Find the `top` rows most similar to a query (dim,), at most `per_video` of one video.

    `blocks` are (start, vectors) with vectors and query of length 1; `videos` (num_rows,) says which video a row is of,
    `allowed` (num_rows,) whether it may be found. Returns rows and cosine similarities, the most similar first and
    equal ones in the order of the file. Each block names its best rows, so only those are kept in memory.
    """
    best_rows: list[Integers] = [np.empty(0, np.int64)]
    best_vectors: list[Floats] = [np.empty((0, len(query)), np.float32)]
    for start, vectors in blocks:
        here = slice(start, start + len(vectors))
        rows, _ = _best(query, vectors, videos[here], np.flatnonzero(allowed[here]), top, per_video)
        rows = np.sort(rows)
        best_rows.append(start + rows)
        best_vectors.append(vectors[rows])
    candidates = np.concatenate(best_rows)
    everything = np.arange(len(candidates))
    rows, similarities = _best(query, np.concatenate(best_vectors), videos[candidates], everything, top, per_video)
    return candidates[rows], similarities


def _best(
    query: Floats, vectors: Floats, videos: Integers, candidates: Integers, top: int, per_video: int | None
) -> tuple[Integers, Floats]:
    """Return the best candidates.

    Rows of videos that already have `per_video` results are dropped and the search repeats. BLAS rounds equal rows
    differently, depending on where they are. All that may be among the top within rounding are therefore multiplied
    again in double precision, in which equal rows have equal products.
    """
    products, limit = dot_products(vectors, query), per_video or top
    rounding = 2 * vectors.shape[1] * np.finfo(np.float32).eps
    rows, similarities, counts = list[int](), list[float](), Counter[int]()
    while len(rows) < top and len(candidates):
        place = max(0, len(candidates) - top)
        bound = np.partition(products[candidates], place)[place] - rounding
        near = candidates[products[candidates] >= bound]
        exact = (vectors[near].astype(np.float64) * query).sum(axis=1)
        order = np.lexsort((near, -exact))[:top]
        ranked, values = near[order], exact[order].astype(np.float32)
        for row, similarity in zip(ranked.tolist(), values.tolist(), strict=True):
            if len(rows) < top and counts[videos[row]] < limit:
                counts[videos[row]] += 1
                rows.append(row)
                similarities.append(similarity)
        full = [video for video, count in counts.items() if count == limit]
        candidates = candidates[~np.isin(candidates, ranked) & ~np.isin(videos[candidates], full)]
    return np.array(rows, np.int64), np.array(similarities)


def allowed_rows(videos: Integers, row: int | None, other_videos: bool) -> Masks:
    """Return the mask (num_rows,) of allowed results.

    It excludes the query's row, or its whole video with `other_videos`.
    """
    if row is None:
        return np.ones(len(videos), np.bool_)
    return videos != videos[row] if other_videos else np.arange(len(videos)) != row  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LoadedVectors:
    """All vectors of an index (num_rows, dim) in memory, and which video each is of.

    `cells` is an index of faiss, for approximate search; None searches exactly.
    """

    vectors: Floats
    videos: Integers
    cells: Any = None

    @property
    def description(self) -> str:
        """A short description of the search method, for the page."""
        if self.cells is None:
            return "exact search"
        return f"approximate search: faiss looks into {self.cells.nprobe} of {self.cells.nlist} cells"

    def search(self, query: Floats, allowed: Masks, top: int, per_video: int | None = None) -> tuple[Integers, Floats]:
        """Return rows and similarities as `nearest_rows` does."""
        size, num_rows, num_candidates = ROWS_IN_MEMORY, len(self.vectors), top
        if self.cells is None:
            blocks = ((start, self.vectors[start : start + size]) for start in range(0, num_rows, size))
            return nearest_rows(query, blocks, self.videos, allowed, top, per_video)
        while True:
            num_candidates = min(FAISS_GROWTH * num_candidates, num_rows)
            found = self.cells.search(query[None], num_candidates)[1][0]
            rows = np.sort(found[found >= 0])
            block = (0, self.vectors[rows])
            best, similarities = nearest_rows(query, [block], self.videos[rows], allowed[rows], top, per_video)
            if len(best) == top or len(rows) < num_candidates or num_candidates == num_rows:
                return rows[best], similarities


def check_faiss() -> None:
    """Raise UserError where faiss is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise UserError("faiss: is not installed; pip install 'cyclecontrast[faiss]', or leave out --faiss")


def load_vectors(index: FrameIndex, use_faiss: bool) -> LoadedVectors:
    """Load all vectors of an index, and let faiss cluster them if requested; raises UserError."""
    vectors = index.load_vectors()
    if not use_faiss:
        return LoadedVectors(vectors, index.video)
    from cyclecontrast.evaluation.retrieval import make_faiss_index

    with Console(stderr=True).status("faiss clusters the vectors"):
        return LoadedVectors(vectors, index.video, make_faiss_index(vectors))
