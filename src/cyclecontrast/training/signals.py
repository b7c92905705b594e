"""Handles SIGINT, SIGTERM and SIGHUP: training stops after the current step, so that a checkpoint can be written."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import NoReturn

NAMES: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "terminal closed",
}
ECHO_SECONDS = 10
"""For so long, a repeated SIGTERM under torchrun is one request: Slurm signals all processes, and torchrun its own."""


@dataclass
class Stop:
    """The received signal, 0 if none; set by the handlers of `stop_signals`."""

    signal: int = 0


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Record the first signal instead of terminating; a second signal terminates the process immediately.

    Only the main thread receives signals; in other threads this does nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (*NAMES, signal.SIGCHLD)}

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()
        if number == signal.SIGTERM and "RANK" in os.environ:
            signal.signal(number, partial(repeated, time.monotonic()))
        _say(f"{NAMES[number]}: writing a checkpoint after this step; repeat the signal to stop immediately")

    def repeated(first: float, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - first > ECHO_SECONDS:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number in NAMES:
            signal.signal(number, before[number])

    for number in NAMES:
        if before[number] is not signal.SIG_IGN:  # nohup, and shells for background commands, ignore it
            signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
        signal.signal(signal.SIGCHLD, before[signal.SIGCHLD])


def end_by_signal(number: int, message: str) -> NoReturn:
    """Raise KeyboardInterrupt for SIGINT, otherwise exit with the conventional code 128 + number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    _say(message)
    raise SystemExit(128 + number)


def _say(text: str) -> None:
    """Write a line to stderr; safe in a signal handler and if stderr is closed."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))
