"""What an evaluation that was stopped had done: parts on disk that the same evaluation finds when it is run again."""

import contextlib
import hashlib
import io
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cyclecontrast.data.storage import read_regular
from cyclecontrast.files import locked, remove, replacing

MOST_CHARACTERS = 100
MOST_BYTES = 2**40
ARRAYS, STATE = ".npz", ".pt"

Arrays = Mapping[str, npt.NDArray[Any]]


class Unfinished:
    """Parts by name in a folder of their own, each whole or absent; gone once the result is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from the parts, begin with whole ones, and remove all when the block ends well.

        Raises UserError that names the process that has them. Where the block fails with no part kept, nothing is left.
        """
        made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        with locked(self.folder, "out"):
            self._drop_damaged()
            try:
                yield
                self.discard()
            finally:
                if not self._parts():
                    self.discard()
                    for folder in made:
                        with contextlib.suppress(OSError):
                            folder.rmdir()

    def arrays(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a part, made now or found from before; strings are arrays too, objects are not."""
        path = self._path(name, ARRAYS)
        content = _read(path)
        if content is not None:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                return dict(file)
        made = make()
        if objects := [key for key, value in made.items() if np.asarray(value).dtype.hasobject]:
            raise TypeError(f"{name}: {', '.join(objects)} would be pickled")
        buffer = io.BytesIO()
        np.savez(buffer, **made)  # type: ignore[arg-type]
        _write(path, buffer.getbuffer())
        return made

    def save_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep the state of a training: tensors, numbers, strings, and lists and dicts of them."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        _write(self._path(name, STATE), buffer.getbuffer())

    def load_state(self, name: str) -> dict[str, Any] | None:
        """Return the state that was kept under this name, None where there is none."""
        content = _read(self._path(name, STATE))
        return None if content is None else torch.load(io.BytesIO(content), "cpu", weights_only=True)

    def discard(self) -> None:
        """Remove all parts."""
        self._drop_states()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other evaluations have parts beside
            self.folder.parent.rmdir()

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if path.suffix in (ARRAYS, STATE))

    def _drop_damaged(self) -> None:
        """Remove what cannot be trusted, and say so; what killed processes left half-written goes without a word."""
        for leftover in self.folder.glob("*.part"):
            leftover.unlink()
        damaged = [path for path in self._parts() if _read(path) is None]
        if damaged:
            self._drop_states()
        for path in damaged:
            remove(path)
            print(f"{path}: is damaged; it is made anew", file=sys.stderr)

    def _drop_states(self) -> None:
        """Remove the states of trainings, always before other parts: they go on by notes that their epochs left."""
        for path in self.folder.glob(f"*{STATE}"):
            remove(path)

    def _path(self, name: str, suffix: str) -> Path:
        """Return the file of a part; names that differ have files that differ, whatever characters they are of."""
        safe = re.sub(r"[^a-z0-9-]", "_", name)[:MOST_CHARACTERS]
        end = "" if safe == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self.folder / (safe + end + suffix)


def _write(path: Path, content: memoryview) -> None:
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(_digest(path, content))
        file.write(content)


def _read(path: Path) -> bytes | None:
    """Return the content of a part, None where it is absent or not the one that its first bytes are the checksum of."""
    with contextlib.suppress(OSError, ValueError):
        whole = read_regular(path, MOST_BYTES)
        digest, content = whole[: hashlib.sha256().digest_size], whole[hashlib.sha256().digest_size :]
        return content if _digest(path, content) == digest else None
    return None


def _digest(path: Path, content: bytes | memoryview) -> bytes:
    """Return the checksum of a part under its own name."""
    digest = hashlib.sha256(path.name.encode())
    digest.update(content)
    return digest.digest()
