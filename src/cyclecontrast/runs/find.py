"""Where runs are: the folders below a root, without what lies in a run or in a store of frames."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cyclecontrast.data.folders import natural_order
from cyclecontrast.errors import printable
from cyclecontrast.training.run_folder import ABOUT, CONFIG, METRICS

STORE = "store.json"
OF_A_RUN = frozenset({CONFIG, ABOUT, METRICS})


def find_runs(roots: Sequence[Path], depth: int, problems: list[str]) -> Iterator[Path]:
    """Yield each run once, so many levels below the roots at most; folders that cannot be listed go to `problems`."""
    seen: set[str] = set()
    for root in roots:
        for run in _below(root, depth, problems):
            real = os.path.realpath(run)
            if real not in seen:
                seen.add(real)
                yield run


def is_run(files: Sequence[str]) -> bool:
    """Tell by the files of a folder; a run that has lost one of its own is still one."""
    return len(OF_A_RUN.intersection(files)) >= 2


def _below(root: Path, depth: int, problems: list[str]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        problems.append(printable(f"{error.filename}: cannot be listed ({error.strerror})"))

    for path, folders, files in os.walk(root, onerror=note):
        here = Path(path)
        level = len(here.parts) - len(root.parts)
        if is_run(files):
            yield here
        if is_run(files) or STORE in files or level >= depth:
            folders.clear()
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_order)
