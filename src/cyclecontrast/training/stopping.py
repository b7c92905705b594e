"""SIGINT, SIGTERM and SIGHUP end a training between two steps, so that what it has learned can be kept."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

NAMES: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "cut off from its terminal",
}


@dataclass
class Stop:
    """The number of the signal that came, 0 before any."""

    signal: int = 0


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note a signal instead of ending in the middle of a step; a second one ends at once.

    Outside of the main thread, which alone gets signals, nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        put_back()
        say(f"{NAMES[number]}: a checkpoint is written after this step; once more stops now")

    before = {number: signal.getsignal(number) for number in (*NAMES, signal.SIGCHLD)}

    def put_back() -> None:
        for number in NAMES:
            signal.signal(number, before[number])

    for number in NAMES:
        if before[number] is not signal.SIG_IGN:  # as nohup and shells have it for commands in the background
            signal.signal(number, note)
    try:
        yield stop
    finally:
        put_back()
        signal.signal(signal.SIGCHLD, before[signal.SIGCHLD])


def await_batch_to_tell_of_workers() -> None:
    """Undo what torch does when a worker dies: it raises in the middle of a step; at the next batch it tells, too."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def end(number: int, message: str) -> None:
    """End as programs do after a signal: KeyboardInterrupt after SIGINT, else exit code 128 + number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    say(message)
    raise SystemExit(128 + number)


def say(text: str) -> None:
    """Write a line to where errors go, whatever else is being written there, and whether or not anybody still reads."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))
