"""The way in for `cyclecontrast`, `python -m cyclecontrast` and torchrun."""

import signal
import sys

from cyclecontrast.unfailing_stderr import guard_stderr


def run() -> int:
    """Import the door and go through it; Ctrl-C ends the imports without a word, which an exception would break."""
    guard_stderr()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cyclecontrast.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
