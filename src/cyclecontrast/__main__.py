"""The entry point of `cyclecontrast`, `python -m cyclecontrast` and torchrun."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TextIO, cast


class _UnfailingStream:
    """A stream that ignores errors of writing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def guard_streams() -> None:
    """Let no output end a long work: ignore write errors on stderr (closed pipe, full disk), escape on stdout."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # otherwise the next opened file would get this descriptor
    stream = sys.stderr or os.fdopen(2, "w", closefd=False)
    sys.stderr = cast(TextIO, _UnfailingStream(stream))
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # it asks for the position, which what replaced a file may not have
            sys.stdout.reconfigure(errors="backslashreplace")


def interrupt(number: int, frame: FrameType | None) -> None:
    """End the command by an exception, so that it removes what is half written; a second signal ends it at once.

    If an import is running, end the process, because the exception would leave it half done.
    """
    _handle_by(_exit)
    words = b"interrupted\n" if number == signal.SIGINT else b"terminated\n"
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _exit(number, None, words)
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    with contextlib.suppress(OSError):
        os.write(2, words)
    raise SystemExit(128 + number)


def _exit(number: int, frame: FrameType | None, words: bytes = b"") -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, words)
    os._exit(128 + number)


def _handle_by(handler: Callable[[int, FrameType | None], None]) -> None:
    """Set the handler of the signals that end a command, except those that somebody else handles or ignores."""
    ours = (signal.default_int_handler, signal.SIG_DFL, interrupt)
    # torchrun waits for its processes to end by SIGTERM, which they could not while they wait for each other.
    numbers = (signal.SIGINT,) if "RANK" in os.environ else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        if signal.getsignal(number) in ours:
            signal.signal(number, handler)


def run() -> int:
    """Run the command line; returns the exit code."""
    if sys.getfilesystemencoding() != "utf-8":  # names of files, and files of text, are UTF-8 whatever the locale says
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    guard_streams()
    # If another process cannot be reached, PyTorch logs every attempt with a stack of its C++ code.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    _handle_by(interrupt)
    from cyclecontrast.cli import main

    code = main()
    _handle_by(_exit)  # an exception while Python ends would be a traceback
    return code


if __name__ == "__main__":
    sys.exit(run())
