"""What an evaluation that was stopped had done: parts on disk that the same evaluation finds when it is run again."""

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cyclecontrast.files import replacing

MOST_CHARACTERS = 100

Arrays = Mapping[str, npt.NDArray[Any]]


class Unfinished:
    """Parts by name in a folder of their own, each whole or absent; gone once the result is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def arrays(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a part, made now or found from before; strings are arrays too, objects are not."""
        path = self._path(name, ".npz")
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        made = make()
        if objects := [key for key, value in made.items() if np.asarray(value).dtype.hasobject]:
            raise TypeError(f"{name}: {', '.join(objects)} would be pickled")
        with replacing(path) as aside, aside.open("wb") as file:
            np.savez(file, **made)  # type: ignore[arg-type]
        return made

    def save_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep the state of a training: tensors, numbers, strings, and lists and dicts of them."""
        with replacing(self._path(name, ".pt")) as aside:
            torch.save(dict(state), aside)

    def load_state(self, name: str) -> dict[str, Any] | None:
        """Return the state that was kept under this name, None where there is none."""
        path = self._path(name, ".pt")
        return torch.load(path, "cpu", weights_only=True) if path.exists() else None

    def discard(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
        parent = self.folder.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()

    def _path(self, name: str, suffix: str) -> Path:
        """Return the file of a part; names that differ have files that differ, whatever characters they are of."""
        safe = re.sub(r"[^a-z0-9-]", "_", name)[:MOST_CHARACTERS]
        end = "" if safe == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self.folder / (safe + end + suffix)
