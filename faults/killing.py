"""A command as processes that are killed: at a moment that was drawn, or right before a change to files."""

import os
import random
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PAUSE = 0.003
"""Seconds between two looks at the folder."""
CLOSE = 0.02
"""Seconds behind a change within which half of the moments lie: when files are written, most can go wrong."""
PART_OF_START = 0.1
"""Of the moments, those before the command has written anything."""
LONGEST = 600.0
"""Seconds after which a command hangs."""

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR

Listing = dict[str, tuple[int, int]]


class Moment(NamedTuple):
    """So many seconds after so many changes in the folder: it holds on a slow machine, too."""

    num_changes: int
    delay: float


class Ended(NamedTuple):
    """How a process ended, when the folder changed, in seconds from its start, and how long it took."""

    pid: int
    code: int
    changes: tuple[float, ...]
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether it had not ended by itself before."""
        return self.code == -signal.SIGKILL


def draw_moment(rng: random.Random, whole: Ended, num_done: int) -> Moment:
    """Draw a moment of a run like `whole`, of which `num_done` changes were made before: all over its time."""
    changes = whole.changes
    if rng.random() < PART_OF_START:
        return Moment(0, rng.uniform(0, changes[0]))
    left = range(min(num_done, len(changes) - 1), len(changes))
    if rng.random() < 0.5:
        return Moment(1 + rng.randrange(len(left)), rng.uniform(0, CLOSE))
    at = rng.uniform(changes[left[0]], whole.seconds)
    before = max(number for number in left if changes[number] <= at)
    return Moment(1 + before - left[0], at - changes[before])


def run(command: Sequence[str], out: Path, log: Path, moment: Moment | None = None, whole_group: bool = True) -> Ended:
    """Run a command to its end, or kill -9 it, alone or with all its processes, at the moment.

    Raises TimeoutError where it hangs.
    """
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
    began = last = time.monotonic()
    changes: list[float] = []
    seen = _listing(out)
    while process.poll() is None:
        now = time.monotonic()
        if moment is not None and (len(changes), now - last) >= moment:
            (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
            break
        if now - began > LONGEST:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"{' '.join(command)}: hangs")
        if (listing := _listing(out)) != seen:
            seen, last = listing, now
            changes.append(now - began)
        time.sleep(PAUSE)
    code = process.wait()
    return Ended(process.pid, code, tuple(changes), time.monotonic() - began)


def outlives(pid: int, seconds: float) -> bool:
    """Tell whether processes of a group are still there after so many seconds; if so, end them."""
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            os.killpg(pid, 0)
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def killed_before(number: int, action: Callable[[], object]) -> bool:
    """Do something in a forked process that is killed before its change of this number to files; tell if it was.

    A change is to open a file to write, to make, rename or remove one, or a folder.
    """

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        number -= event in CHANGES or (event == "open" and bool(arguments[2] & WRITES))
        if number == 0:
            number = -1  # the signal is an event, too
            os.kill(os.getpid(), signal.SIGKILL)

    return exit_code(action, before=lambda: sys.addaudithook(count)) == -signal.SIGKILL


def exit_code(action: Callable[[], object], before: Callable[[], None] = lambda: None) -> int:
    """Do something in a forked process; return the number that it returns, 1 where it fails, -9 where it is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads that wait do not mind a fork
        process = os.fork()
    if process == 0:
        try:
            before()
            code = action()
            os._exit(code if isinstance(code, int) else 0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _listing(folder: Path) -> Listing:
    found: Listing = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                about = os.stat(path)
            except FileNotFoundError:
                continue
            found[path] = about.st_size, about.st_mtime_ns
    return found
