"""What a file of vectors is, whatever its format."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

LONGEST_TEXT = 4096
"""Of what a file says of itself: names of files, at most."""


class Columns(NamedTuple):
    """Which frame each row is: its video's id, its index there, its time in seconds, nan where it is not known."""

    videos: pa.StringArray
    indices: npt.NDArray[np.int32]
    times: npt.NDArray[np.float64]


class VectorFile(Protocol):
    """A file of rows; reading raises ValueError and OSError where it is damaged."""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""

    @property
    def about(self) -> dict[str, str]:
        """What the file says of its making."""

    def columns(self) -> Columns:
        """Return which frames the rows are."""
        ...

    def vectors(self, most_rows: int, start: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the vectors in order from the row `start`, at most so many rows at once."""
        ...
