"""SIGINT, SIGTERM and SIGHUP end a training between two steps, so that a checkpoint can be written first."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

NAMES: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "terminal closed",
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
    before = {number: signal.getsignal(number) for number in (*NAMES, signal.SIGCHLD)}

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()
        _say(f"{NAMES[number]}: writing a checkpoint after this step; once more stops at once")

    def restore() -> None:
        for number in NAMES:
            signal.signal(number, before[number])

    for number in NAMES:
        if before[number] is not signal.SIG_IGN:  # as nohup and shells have it for commands in the background
            signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
        signal.signal(signal.SIGCHLD, before[signal.SIGCHLD])


def ignore_worker_deaths() -> None:
    """Undo torch's handler, which raises in the middle of a step when a worker dies; the next batch reports it too."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def end_by_signal(number: int, message: str) -> NoReturn:
    """End as programs do after a signal: KeyboardInterrupt after SIGINT, else exit code 128 + number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    _say(message)
    raise SystemExit(128 + number)


def _say(text: str) -> None:
    """Write a line to stderr, even from a signal handler, and whether or not anybody reads."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))
