"""The fuzzers as a command: each target in a process of its own, which may crash, hang or take too much memory.

    python fuzz/run.py                                       # all targets, ten minutes together
    python fuzz/run.py videos masks --minutes 30 --seed 7
    python fuzz/run.py videos --seed 7 --first 1234 --inputs 1   # one input again

An input is a function of target, seed and number. What is found is kept in a folder, with what was said of it; then the
command ends with 1.
"""

import argparse
import contextlib
import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.trial import FINE, Outcome, Target, read, try_input, variants

SECONDS_PER_INPUT = 60
SECONDS_TO_START = 600
EXTRA_MEMORY = 3 * 2**30
"""Bytes of addresses that a process may take beyond those it had when every variant had been read once."""
LONGEST_SAID = 20_000


class Limits(NamedTuple):
    """What one input may take."""

    seconds: float = SECONDS_PER_INPUT
    memory: int = EXTRA_MEMORY


@dataclass
class Tally:
    """What came of the inputs of one target; `found` counts the findings by kind and place."""

    name: str
    kinds: Counter[str] = field(default_factory=Counter)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def row(self) -> tuple[str, ...]:
        """Cells of the table."""
        kinds = sorted(kind for kind in self.kinds if kind not in FINE)
        others = ", ".join(f"{self.kinds[kind]:,} {kind}" for kind in kinds)
        fine = (f"{self.kinds[kind]:,}" for kind in FINE)
        findings = f"{len(self.found)} ({others})" if self.found else "0"
        return (self.name, f"{self.kinds.total():,}", f"{self.seconds:.0f}", *fine, findings)


COLUMNS = ("target", "inputs", "seconds", *FINE, "findings")


class Worker:
    """A process that reads inputs of one target; it is started again where one takes it down."""

    def __init__(self, target: Target, scratch: Path, seed: int, limits: Limits) -> None:
        self._target, self._scratch, self._seed, self._limits = target, scratch, seed, limits
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None

    def start(self) -> Outcome:
        """Start the process, which reads what is valid first."""
        self._connection, end = self._context.Pipe()
        arguments = (end, self._target, self._scratch, self._seed, self._limits.memory)
        self._process = self._context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        end.close()
        return self._answer(SECONDS_TO_START)

    def attempt(self, number: int) -> Outcome:
        """Return what comes of an input."""
        if not self._process.is_alive():
            self.start()
        self._connection.send(number)
        return self._answer(self._limits.seconds)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _answer(self, seconds: float) -> Outcome:
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()  # type: ignore[no-any-return]
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Outcome("crash", name, _said(self._scratch))
        self.stop()
        return Outcome("hang", f"more than {seconds:g} s", _said(self._scratch))


def serve(connection: Connection, target: Target, scratch: Path, seed: int, memory: int) -> None:
    """Read the valid data, then each input whose number arrives, and answer with what came of it."""
    base, case = scratch / "base", scratch / "case"
    said = (scratch / "stderr.txt").open("w+")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(said.fileno(), stream.fileno())
    faulthandler.enable(said)
    connection.send(_read_valid(target, base, case))
    resource.setrlimit(resource.RLIMIT_AS, (_addresses() + memory,) * 2)
    warnings.simplefilter("error")
    with contextlib.suppress(EOFError):
        while True:
            number = connection.recv()
            said.seek(0)
            said.truncate()
            outcome = try_input(target, base, case, seed, number)
            sys.stderr.flush()
            if not outcome.is_finding and "Traceback" in _said(scratch):
                outcome = Outcome("traceback", "on stderr", _said(scratch))
            connection.send(outcome)


def _read_valid(target: Target, base: Path, case: Path) -> Outcome:
    """Make the data where there is none, and read every variant: a fuzzer whose data is refused tries nothing."""
    if not base.exists():
        base.mkdir()
        target.make(base)
    for variant in variants(base):
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(variant, case / variant.name)
        outcome = read(target, case / variant.name, [])
        if outcome.kind != "accepted":
            return Outcome("valid data refused", variant.name, outcome.text)
    return Outcome("accepted")


def _addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _said(scratch: Path) -> str:
    return (scratch / "stderr.txt").read_text(errors="backslashreplace")[-LONGEST_SAID:]


def fuzz(target: Target, numbers: Iterable[int], seed: int, seconds: float, findings: Path, limits: Limits) -> Tally:
    """Try inputs until the time is over; the first of each finding is kept in a folder."""
    tally, began = Tally(target.name), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        scratch = Path(folder)
        worker = Worker(target, scratch, seed, limits)
        started = worker.start()
        if started.is_finding:
            _note(tally, started, "valid", scratch, findings)
            numbers = ()
        for number in numbers:
            if time.monotonic() - began > seconds:
                break
            outcome = worker.attempt(number)
            _note(tally, outcome, f"seed{seed}-{number}", scratch, findings)
        worker.stop()
    tally.seconds = time.monotonic() - began
    return tally


def _note(tally: Tally, outcome: Outcome, name: str, scratch: Path, findings: Path) -> None:
    tally.kinds[outcome.kind] += 1
    if not outcome.is_finding:
        return
    tally.found[outcome.kind, outcome.place] += 1
    if tally.found[outcome.kind, outcome.place] == 1:
        kept = findings / f"{tally.name}-{name}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        if (scratch / "case").exists():
            with contextlib.suppress(shutil.Error):  # pipes are told of, and not copied
                shutil.copytree(scratch / "case", kept, symlinks=True, dirs_exist_ok=True)
        (kept / "finding.txt").write_text(f"{outcome.kind}: {outcome.place}\n{outcome.text}\n")
        print(f"{outcome.kind}: {outcome.place}: {kept}", file=sys.stderr, flush=True)


def table(tallies: Sequence[Tally], markdown: bool) -> Iterator[str]:
    """Yield a line for each target, and one for all of them."""
    total = Tally("all", sum((one.kinds for one in tallies), Counter()), sum((one.found for one in tallies), Counter()))
    total.seconds = sum(one.seconds for one in tallies)
    rows = [COLUMNS, *(one.row for one in tallies), total.row]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        pairs = list(enumerate(zip(row, widths, strict=True)))
        cells = [cell.ljust(width) if place in (0, 5) else cell.rjust(width) for place, (cell, width) in pairs]
        yield f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()
        if markdown and number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def main() -> int:
    """Run the command; returns 1 where something was found."""
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all: {', '.join(TARGETS)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="of all targets together [10]")
    parser.add_argument("--seed", type=int, default=0, help="inputs are a function of it [0]")
    parser.add_argument("--first", type=int, default=0, help="number of the first input [0]")
    parser.add_argument("--inputs", type=int, default=sys.maxsize // 2, help="most of each target [as the time allows]")
    parser.add_argument(
        "--findings", type=Path, default=Path("build/fuzz"), help="folder to keep findings in [build/fuzz]"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - TARGETS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: no such target; there are {', '.join(TARGETS)}")
    names = asked.targets or list(TARGETS)
    numbers = range(asked.first, asked.first + asked.inputs)
    seconds, tallies = 60 * asked.minutes / len(names), []
    for name in names:
        tallies.append(fuzz(TARGETS[name], numbers, asked.seed, seconds, asked.findings, Limits()))
        print("\t".join(tallies[-1].row), file=sys.stderr, flush=True)
    print("\n".join(table(tallies, asked.markdown)))
    return 1 if any(tally.found for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
