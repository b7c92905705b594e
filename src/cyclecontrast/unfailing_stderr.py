"""A standard error that cannot fail: work of days goes on where nobody can be told of it any more."""

import contextlib
import os
import sys
from typing import Any, TextIO, cast


class _Unfailing:
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


def guard_stderr() -> None:
    """Let writing to standard error fail in silence: a closed pipe, a full disk, or none at all."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the free number, which a file of data would get otherwise
    stream = sys.stderr or os.fdopen(2, "w", closefd=False)
    sys.stderr = cast(TextIO, _Unfailing(stream))
