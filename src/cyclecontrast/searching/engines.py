"""Vectors held in memory, asked again and again: exactly, or approximately by faiss."""

import importlib.util
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Floats, Integers
from cyclecontrast.searching.index import FrameIndex, UnitBlock
from cyclecontrast.searching.nearest import Nearest, Wanted, nearest_rows

MORE = 4
"""Times as many are asked for where too few of those found may be shown."""


class Engine(Protocol):
    """Finds rows of an index."""

    @property
    def vectors(self) -> Floats:
        """All vectors, of length 1 (num_rows, dim)."""

    @property
    def line(self) -> str:
        """How it searches, in words."""

    def find(self, query: Floats, videos: Integers, wanted: Wanted) -> Nearest:
        """Return the rows nearest to a query (dim,)."""
        ...


class Exact(NamedTuple):
    """Compares with every row."""

    vectors: Floats
    line: str = "exact"

    def find(self, query: Floats, videos: Integers, wanted: Wanted) -> Nearest:
        """Return the nearest rows."""
        return nearest_rows(query, [UnitBlock(0, self.vectors)], videos, wanted)


class Approximate(NamedTuple):
    """Compares with the rows that faiss finds by looking into a part of its cells."""

    vectors: Floats
    cells: Any
    line: str

    def find(self, query: Floats, videos: Integers, wanted: Wanted) -> Nearest:
        """Return the nearest of what is found: more is asked for while too few may be shown."""
        num_asked = wanted.top
        while True:
            num_asked = min(MORE * num_asked, len(self.vectors))
            found = self.cells.search(query[None], num_asked)[1][0]
            rows = np.sort(found[found >= 0])
            allowed = wanted._replace(allowed=wanted.allowed[rows])
            nearest = nearest_rows(query, [UnitBlock(0, self.vectors[rows])], videos[rows], allowed)
            if len(nearest.rows) == wanted.top or len(rows) < num_asked or num_asked == len(self.vectors):
                return Nearest(rows[nearest.rows], nearest.similarities)


def check_faiss() -> None:
    """Raise UserError where faiss is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise UserError("faiss: is not installed; pip install 'cyclecontrast[faiss]', or leave out --faiss")


def make_engine(index: FrameIndex, by_faiss: bool) -> Engine:
    """Load all vectors of an index; raises UserError."""
    vectors = index.load("loading the vectors").vectors
    return sorted_into_cells(vectors) if by_faiss else Exact(vectors)


def sorted_into_cells(vectors: Floats) -> Approximate:
    """Let faiss sort vectors of length 1 into cells, which takes a while."""
    from cyclecontrast.evaluation.retrieval import make_faiss_index

    with Console(stderr=True).status("faiss sorts the vectors into cells"):
        cells = make_faiss_index(vectors)
    return Approximate(vectors, cells, f"approximate: faiss looks into {cells.nprobe} of {cells.nlist} cells")
