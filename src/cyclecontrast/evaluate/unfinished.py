"""What an evaluation that was stopped had done: parts on disk that the same evaluation finds when it is run again."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cyclecontrast.files import replacing

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
        return self.folder / (re.sub(r"[^\w.-]", "_", name) + suffix)
