"""All benchmarks of speed that fit into 20 minutes of two cores, as one table; `make bench` runs this.

    python benchmarks/run.py                                # writes build/bench-DATE.json beside the table
    python benchmarks/run.py --against build/bench-A.json   # and says which rows are worse than then: exit code 1
    python benchmarks/run.py --only startup retrieval

Each benchmark is a process with a limit; what it measured by then counts. The table has the rows with a goal, and those
that changed; the file has all. A row has changed if the medians differ by more than the range of the turns then, by
more than that of now, and by more than 5 %. Rows in seconds compare only on the same machine, and ratios best there.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from _turns import COLUMNS, Row, print_table

from cyclecontrast.models.hardware import num_cores, package_versions, rounding

FOLDER = Path(__file__).resolve().parent
LIMITS = {
    "startup": (30, ""),
    "data": (90, "--sizes 112 224 --repetitions 3"),
    "step": (240, ""),
    "release": (150, ""),
    "lightly_moco": (90, "--repetitions 2"),
    "weak_scaling": (90, ""),
    "loss_memory": (45, ""),
    "checkpointing": (45, ""),
    "prepare": (150, "--copies 2 --repetitions 2"),
    "scale": (75, "--repetitions 3"),
    "embedding": (60, "--num-images 512"),
    "retrieval": (45, "--queries 1000 --repetitions 3"),
    "search": (60, "--repetitions 5"),
    "tracking": (30, "--repetitions 10"),
}
"""By name, the seconds that a benchmark may take, 20 minutes in all, and its options."""
SMALLEST_CHANGE = 0.05
Rows = dict[str, Row]
"""By `benchmark: name`."""


def measure(name: str, seconds: float, options: str) -> tuple[list[Row], str]:
    """Run a benchmark for so long at most; return its rows, and the reason why there are no more."""
    with tempfile.TemporaryDirectory() as folder:
        kept, log = Path(folder) / "rows", Path(folder) / "log"
        command = [sys.executable, str(FOLDER / f"{name}.py"), *options.split(), "--rows", str(kept)]
        with open(log, "w") as file:
            started = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": folder},
                start_new_session=True,
            )
        try:
            code = started.wait(seconds)
            last = (log.read_text().strip() or "no output").splitlines()[-1]
            reason = f"it failed: {last}" if code else "" if kept.exists() else last
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds:g} s"
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()
        lines = kept.read_text().splitlines() if kept.exists() else []
        return [Row(**json.loads(line)) for line in lines], reason


def change(now: Row, before: Row | None) -> str:
    """Return whether a row is `worse` or `better` than before, `same`, or `new`."""
    if before is None:
        return "new"
    spreads = [max(row.values) - min(row.values) for row in (now, before)]
    difference = now.median - before.median
    if abs(difference) <= max(*spreads, SMALLEST_CHANGE * abs(before.median)):
        return "same"
    return "worse" if (difference > 0) == (now.better == "lower") else "better"


def summary(rows: Rows, before: Rows | None) -> tuple[list[str], list[list[str]], bool]:
    """Return the columns and lines of the table, and whether a row is worse than before."""
    if before is None:
        return [*COLUMNS], [[name, *row.cells[1:]] for name, row in rows.items() if row.goal is not None], False
    changes = {name: change(row, before.get(name)) for name, row in rows.items()}
    lines = [
        [name, *row.cells[1:], before[name].cells[1] if name in before else "", changes[name]]
        for name, row in rows.items()
        if row.goal is not None or changes[name] in ("worse", "better")
    ]
    lines += [[name, "not measured", *[""] * 3, row.cells[1], ""] for name, row in before.items() if name not in rows]
    return [*COLUMNS, "before", "change"], lines, "worse" in changes.values()


def read(path: Path) -> Rows:
    """Return the rows that a run of this script wrote."""
    return {name: Row(**row) for name, row in json.loads(path.read_text(encoding="utf-8"))["rows"].items()}


def write(path: Path, rows: Mapping[str, Row], left_out: Mapping[str, str]) -> None:
    """Write all rows with the machine and the versions."""
    import torch

    machine: dict[str, Any] = rounding(torch.device("cpu")) | {"cores": num_cores(), "versions": package_versions()}
    content = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "machine": machine,
        "rows": {name: row._asdict() for name, row in rows.items()},
        "left_out": left_out,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks, print the table and write the file; returns 1 if a row is worse than before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("build") / f"bench-{datetime.now():%Y-%m-%d-%H%M}.json"
    parser.add_argument(
        "--out", type=Path, default=default, help="the file of all rows; default: build/bench-DATE.json"
    )
    parser.add_argument("--against", type=Path, help="such a file of an earlier run")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="NAME", help="these alone")
    asked = parser.parse_args(arguments)
    before = None if asked.against is None else read(asked.against)
    rows, left_out = dict[str, Row](), dict[str, str]()
    for name in asked.only:
        began = time.monotonic()
        found, reason = measure(name, *LIMITS[name])
        rows |= {f"{name}: {row.name}": row for row in found}
        if reason:
            left_out[name] = reason
        print(
            f"{name}: {len(found)} rows in {time.monotonic() - began:.0f} s",
            *filter(None, [reason]),
            sep="; ",
            flush=True,
        )
        write(asked.out, rows, left_out)
    if before is not None:
        before = {name: row for name, row in before.items() if name.partition(":")[0] in asked.only}
    columns, lines, is_worse = summary(rows, before)
    print()
    print_table(columns, lines)
    print(f"\nall rows: {asked.out}", flush=True)
    return int(is_worse)


if __name__ == "__main__":
    sys.exit(main())
