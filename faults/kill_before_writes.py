"""kill -9 right before a file is opened to be written, renamed or removed: does the command end all the same?

    python faults/kill_before_writes.py                              # before every tenth change of all four commands
    python faults/kill_before_writes.py evaluate --every 1           # before each

Moments that a clock hardly hits, in turn: the command is killed before its n-th change to files, gone on with as a user
would, and let end; all that it has written must be the same to the bit. It runs without workers, in a process that is
forked, which spares the start. Exit code 1 where anything is lost.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from cyclecontrast.cli import main as command_line
from faults.cases import COMMANDS, Case, make_cases
from faults.killing import exit_code, killed_before
from faults.same import differences


def main() -> int:
    """Try each command; print a line for each variant, and for each thing that was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; default: all")
    parser.add_argument("--every", type=int, default=10, help="changes to go on by [10]")
    parser.add_argument("--first", type=int, default=1, help="change to begin with [1]")
    parser.add_argument("--seed", type=int, default=0, help="of the data [0]")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lost = False
    with tempfile.TemporaryDirectory(prefix="kill-before-writes-") as root:
        for command in asked.commands or COMMANDS:
            cases = make_cases(command, Path(root, command), asked.seed)
            alone = map(_without_processes, cases)
            for case in {case.arguments[:-2]: case for case in alone}.values():  # the last two name the folder
                lost |= not _try_case(case, asked.first, asked.every)
    return int(lost)


def _without_processes(case: Case) -> Case:
    """Return the case with nothing done in processes of its own, whose changes would not be counted."""
    words = list(case.arguments)
    for flag, number in (("--workers", "0"), ("--jobs", "1")):
        if flag in words:
            words[words.index(flag) + 1] = number
    return case._replace(arguments=tuple(words))


def _try_case(case: Case, first: int, every: int) -> bool:
    """Kill a case before every such change; tell whether it always ended the same."""
    began, num_kills, faults = time.monotonic(), 0, list[str]()
    if code := exit_code(lambda: _go_on(case)):
        raise SystemExit(f"{case.name}: fails undisturbed with {code}")
    expected = case.out.rename(case.out.with_name(f"{case.out.name}.expected"))
    while killed_before(first + num_kills * every, lambda: _go_on(case)):
        change = first + num_kills * every
        num_kills += 1
        code = exit_code(lambda: _go_on(case))
        problems = [f"goes on with exit code {code}"] if code else list(differences(expected, case.out))
        faults += [f"killed before change {change}: {problem}" for problem in problems]
        shutil.rmtree(case.out)
    print(
        f"{case.name}: killed {num_kills} times, {len(faults)} faults, {time.monotonic() - began:.0f} s",
        *faults,
        sep="\n  ",
        flush=True,
    )
    return not faults


def _go_on(case: Case) -> int:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        return command_line(case.command[3:])


if __name__ == "__main__":
    sys.exit(main())
