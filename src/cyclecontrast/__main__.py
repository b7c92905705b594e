"""Lets `python -m cyclecontrast` and torchrun call the door."""

import sys

from cyclecontrast.cli import main

if __name__ == "__main__":
    sys.exit(main())
