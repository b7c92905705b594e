"""Arrays that a process shares with those it forks or spawns, without copies."""

import os
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
Places = Mapping[str, tuple[str, int, int]]
"""The dtype, the first byte and the length of each array in the memory."""


class SharedArrays:
    """Read-only arrays by name, in anonymous shared memory.

    A process that is being spawned receives a handle of the memory; any other pickle holds the numbers.
    """

    def __init__(self, handle: int, places: Places) -> None:
        """Map the memory behind a handle, which is closed with these arrays."""
        self._handle, self._places = handle, places
        memory = mmap(handle, 0, access=ACCESS_READ)
        self._arrays: dict[str, npt.NDArray[Any]] = {
            name: np.ndarray(length, dtype, memory, start) for name, (dtype, start, length) in places.items()
        }

    @staticmethod
    def of(arrays: Mapping[str, npt.NDArray[Any]]) -> "SharedArrays":
        """Copy one-dimensional arrays into shared memory."""
        handle, places = _anonymous_file(), {}
        with open(handle, "wb", closefd=False) as file:
            for name, array in arrays.items():
                places[name] = array.dtype.str, file.tell(), len(array)
                file.write(np.ascontiguousarray(array).data)
                file.write(bytes(ALIGNMENT - array.nbytes % ALIGNMENT))
        return SharedArrays(handle, places)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            return SharedArrays.of, (self._arrays,)
        return _received, (DupFd(self._handle), self._places)

    def __del__(self) -> None:
        os.close(self._handle)


def _received(handle: Any, places: Places) -> SharedArrays:
    return SharedArrays(handle.detach(), places)


def _anonymous_file() -> int:
    try:
        return os.memfd_create("cyclecontrast")
    except (AttributeError, OSError):  # not on Linux, or on an old one
        with TemporaryFile() as file:
            return os.dup(file.fileno())
