"""Arrays that a process shares with those that it forks or spawns: however many there are, none has a copy."""

import os
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64


class _Place(NamedTuple):
    """Where an array lies in the memory."""

    kind: str
    start: int
    length: int


class SharedArrays:
    """Arrays by name, which cannot be written to, in memory that belongs to no file with a name.

    A process that is being started is sent a handle of the memory; any other pickle holds the numbers.
    """

    def __init__(self, handle: int, places: Mapping[str, _Place]) -> None:
        """Map the memory behind a handle, which is closed with these arrays."""
        self._handle, self._places = handle, places
        memory = mmap(handle, 0, access=ACCESS_READ)
        self._arrays = {
            name: np.ndarray(place.length, place.kind, memory, place.start) for name, place in places.items()
        }

    @staticmethod
    def of(arrays: Mapping[str, npt.NDArray[Any]]) -> "SharedArrays":
        """Copy arrays of one dimension into memory of their own."""
        handle, places = _unnamed_file(), dict[str, _Place]()
        with open(handle, "wb", closefd=False) as file:
            for name, array in arrays.items():
                places[name] = _Place(array.dtype.str, file.tell(), len(array))
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


def _received(handle: Any, places: Mapping[str, _Place]) -> SharedArrays:
    return SharedArrays(handle.detach(), places)


def _unnamed_file() -> int:
    try:
        return os.memfd_create("cyclecontrast")
    except (AttributeError, OSError):  # no Linux, or none that has it
        with TemporaryFile() as file:
            return os.dup(file.fileno())
