"""The entry point of `cyclecontrast`, `python -m cyclecontrast` and torchrun."""

import contextlib
import io
import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO, cast


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
        sys.stdout.reconfigure(errors="backslashreplace")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt.

    If an import is running, end the process, because the exception would leave it half done.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n")
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


def run() -> int:
    """Run the command line; returns the exit code."""
    guard_streams()
    # PyTorch warns in C++ about each attempt to connect to another process.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    from cyclecontrast.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
