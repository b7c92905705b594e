"""kill -9 at random moments of prepare, pretrain, evaluate and sweep: does each end as if nothing had happened?

    python faults/kill_anywhere.py                                    # all four, 50 kills each
    python faults/kill_anywhere.py sweep --kills 10 --seed 1
    python faults/kill_anywhere.py pretrain evaluate --cuts           # ... and a file cut at any byte after each kill

Each variant of a command runs once undisturbed. Then it is started, killed at a moment that was drawn, its parent
alone or all its processes in turn, gone on with as a user would, killed again up to seven times, and let end: all that
it has written must be the same to the bit, no file missing or left over, no process left behind. With --cuts the
command may also end with a line that names the cut file, which is then put back. Exit code 1 where anything is lost.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.cases import COMMANDS, Case, make_cases
from faults.cutting import Cut, cut_one, mend
from faults.killing import Ended, draw_moment, outlives, run
from faults.same import differences

MAX_KILLS = 8
"""Of one run, before it is let end."""
MAX_SAID = 1000
"""Characters of a message that are shown."""
SECONDS_TO_END = 20.0
"""What orphans may take to see that they are."""


@dataclass
class Tally:
    """What was done to a command, and what was lost by it."""

    kills: int = 0
    at_start: int = 0
    of_parent: int = 0
    runs: int = 0
    cuts: int = 0
    told: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = (
            f"{self.kills} kills ({self.at_start} before anything was written, {self.of_parent} of the parent alone) "
            f"over {self.runs} runs"
        )
        if self.cuts:
            names = f" ({', '.join(sorted(self.told))})" if self.told else ""
            text += f", {self.cuts} files cut, {len(self.told)} of them told in a line and put back{names}"
        return f"{text}: {f'{len(self.faults)} FAULTS' if self.faults else 'nothing lost, each ended the same'}"


def main() -> int:
    """Try each command; print a line for each, and for each thing that was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; default: all")
    parser.add_argument("--kills", type=int, default=50, help="of each command [50]")
    parser.add_argument("--seed", type=int, default=0, help="of the data and of the moments [0]")
    parser.add_argument("--first", action="store_true", help="the first variant of each command alone")
    parser.add_argument("--cuts", action="store_true", help="cut one of the newest files after each kill")
    asked = parser.parse_args()
    if unknown := set(asked.commands) - set(COMMANDS):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(COMMANDS)}")
    root = Path(tempfile.mkdtemp(prefix="kill-anywhere-"))
    lost = False
    for command in asked.commands or COMMANDS:
        began = time.monotonic()
        variants = 1 if asked.first else None
        tally = try_command(command, root / command, asked.kills, asked.seed, asked.cuts, variants)
        print(f"{command}: {tally}, {time.monotonic() - began:.0f} s", flush=True)
        for fault in tally.faults:
            print(f"  {fault}")
        lost |= bool(tally.faults)
    if lost:
        print(f"what is left of them: {root}")
    else:
        shutil.rmtree(root)
    return int(lost)


def try_command(command: str, root: Path, num_kills: int, seed: int, cuts: bool, num_variants: int | None) -> Tally:
    """Kill a command so many times, its variants in turn, or the first ones alone."""
    root.mkdir(parents=True)
    cases, rng, tally = make_cases(command, root, seed)[:num_variants], random.Random(f"{command} {seed}"), Tally()
    whole = {case: _run_whole(case) for case in dict.fromkeys(cases)}
    while tally.kills < num_kills and not tally.faults:
        case = cases[tally.runs % len(cases)]
        _try_run(case, whole[case], rng, num_kills, cuts, tally)
    return tally


def _run_whole(case: Case) -> Ended:
    """Run a case undisturbed, and keep what it wrote beside."""
    log = case.out.with_suffix(".log")
    ended = run(case.command, case.out, log)
    if ended.code:
        raise SystemExit(f"{case.name}: fails undisturbed\n{log.read_text()}")
    case.out.rename(_expected(case))
    print(f"{case.name}: undisturbed {ended.seconds:.1f} s, {len(ended.changes)} moments at which files change")
    return ended


def _expected(case: Case) -> Path:
    return case.out.with_name(f"{case.out.name}.expected")


def _try_run(case: Case, whole: Ended, rng: random.Random, num_kills: int, cuts: bool, tally: Tally) -> None:
    """Start a case anew, kill it some times, let it end, and compare."""
    shutil.rmtree(case.out, ignore_errors=True)
    tally.runs += 1
    kills_left = min(rng.randint(1, MAX_KILLS), num_kills - tally.kills)
    done, pids, cut_files = 0, [], list[Cut]()
    log = case.out.with_name(f"{case.out.name}.{tally.runs}.log")
    while True:
        whole_group = bool(tally.kills % 2)
        moment = draw_moment(rng, whole, done) if kills_left else None
        ended = run(case.command, case.out, log, moment, whole_group)
        pids.append(ended.pid)
        said = log.read_text(errors="replace")
        if ended.was_killed:
            kills_left -= 1
            done += len(ended.changes)
            tally.kills += 1
            tally.at_start += not ended.changes
            tally.of_parent += not whole_group
            if cuts and (cut := cut_one(case.out, case.may_be_cut, rng)) is not None:
                tally.cuts += 1
                cut_files.append(cut)
        elif ended.code == 2 and "Traceback" not in said and (mended := mend(said, cut_files)):
            tally.told += [path.name for path in mended]
            cut_files = [cut for cut in cut_files if cut.path not in mended]
        else:
            break
    if ended.code:
        problems = [f"ended with {ended.code}: {said[-MAX_SAID:]}"]
    else:
        problems = list(differences(_expected(case), case.out))
    problems += [f"processes of group {pid} stay behind" for pid in pids if outlives(pid, SECONDS_TO_END)]
    after = f", after a cut of {', '.join(cut.path.name for cut in cut_files)}" if cut_files else ""
    tally.faults += [f"{case.name}, run {tally.runs}{after}: {problem}" for problem in problems]


if __name__ == "__main__":
    sys.exit(main())
