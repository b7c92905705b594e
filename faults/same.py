"""Whether two folders are the same to the bit, but for what a clock says."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SPEED = ("images_per_second", "data_wait")
HAS_CLOCK = ("metrics.jsonl", "run.json")
"""Files with the time in them, whose checksums differ, too."""


def differences(expected: Path, found: Path) -> Iterator[str]:
    """Yield a line for each file or folder that is missing, left over, or not the same."""
    ours, theirs = content(found), content(expected)
    yield from (f"{name}: is missing" for name in sorted(theirs.keys() - ours.keys()))
    yield from (f"{name}: is left over" for name in sorted(ours.keys() - theirs.keys()))
    both = sorted(ours.keys() & theirs.keys())
    yield from (f"{name}: is not the same" for name in both if ours[name] != theirs[name])


def content(folder: Path) -> dict[str, Any]:
    """Return what is in a folder by name, without locks and logs of processes."""
    paths = (path for path in folder.rglob("*") if path.name != ".lock" and path.suffix != ".log")
    return {str(path.relative_to(folder)): None if path.is_dir() else _content(path) for path in paths}


def _content(path: Path) -> Any:
    has_speed = path.name.startswith("tracking-")
    return _READERS.get(path.suffix if has_speed else path.name, Path.read_bytes)(path)


def _metrics(path: Path) -> Any:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in SPEED} for row in rows]


def _run(path: Path) -> Any:
    about = json.loads(path.read_text())
    about.get("health", {}).pop("seconds", None)
    return about


def _checksums(path: Path) -> Any:
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in HAS_CLOCK}


def _tracking_result(path: Path) -> Any:
    return _without_speed(json.loads(path.read_text()))


def _tracking_record(path: Path) -> Any:
    table = pq.read_table(path)
    return table.drop_columns(["seconds"]).to_pydict(), _without_speed(json.loads(table.schema.metadata[b"about"]))


def _without_speed(about: dict[str, Any]) -> dict[str, Any]:
    about["details"].pop("frames_per_second")
    return about


_READERS: dict[str, Callable[[Path], Any]] = {
    "metrics.jsonl": _metrics,
    "run.json": _run,
    "checksums.json": _checksums,
    ".json": _tracking_result,
    ".parquet": _tracking_record,
}
