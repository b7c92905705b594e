"""A cache on disk of the finished parts of an evaluation, with which an interrupted evaluation resumes."""

import contextlib
import io
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cyclecontrast.errors import UserError
from cyclecontrast.files import atomic_write, locked

ARRAYS, STATE = ".npz", ".pt"

Arrays = Mapping[str, npt.NDArray[Any]]


class ResumeCache:
    """Arrays and training states by name in a folder, written atomically; removed when the result has been written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder; remove it if the block succeeds, or if it fails before anything was stored.

        Raises UserError that names the process that holds the lock.
        """
        created = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        with locked(self.folder, "out"):
            for leftover in self.folder.glob("*.part"):  # of a killed process
                leftover.unlink()
            try:
                yield
                self.discard()
            finally:
                if not any(path.suffix in (ARRAYS, STATE) for path in self.folder.glob("*")):
                    self.discard()
                    for folder in created:
                        with contextlib.suppress(OSError):
                            folder.rmdir()

    def remove_leftover(self) -> None:
        """Remove the folder of a process that was killed after it wrote its result, unless another process uses it."""
        if self.folder.exists():
            with contextlib.suppress(UserError), self.locked():
                pass

    def has_arrays(self, name: str) -> bool:
        """Whether the arrays of this name are stored."""
        return self._path(name, ARRAYS).exists()

    def arrays(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays stored under this name, or make and store them; they hold numbers, strings or bytes."""
        path = self._path(name, ARRAYS)
        if path.exists():
            with _explained(path), path.open("rb") as stored, np.load(stored, allow_pickle=False) as arrays:
                return dict(arrays)
        made = make()
        with atomic_write(path) as aside, aside.open("wb") as file:
            np.savez(file, **made)  # type: ignore[arg-type]
        return made

    def save_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Store the state of a training: tensors, numbers, strings, and lists and dicts of them."""
        buffer = io.BytesIO()  # writing to a file, PyTorch would hide that the disk is full
        torch.save(dict(state), buffer)
        with atomic_write(self._path(name, STATE)) as aside:
            aside.write_bytes(buffer.getbuffer())

    def load_state(self, name: str) -> dict[str, Any] | None:
        """Return the state stored under this name, None where there is none."""
        path = self._path(name, STATE)
        if not path.exists():
            return None
        with _explained(path):
            state: dict[str, Any] = torch.load(path, "cpu", weights_only=True)
        return state

    def discard(self) -> None:
        """Remove everything stored."""
        for path in self.folder.glob(f"*{STATE}"):  # before the arrays that a resumed training expects
            path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other evaluations have their folders beside it
            self.folder.parent.rmdir()

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / (re.sub(r"\W+", "-", name) + suffix)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: cannot be read ({reason}); delete it, and the evaluation computes it again"
        ) from error
