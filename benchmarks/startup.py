"""What starting costs: seconds of commands, and of a bare Python and one that imports NumPy.

    python benchmarks/startup.py

The aim is that help and mistakes answer in a quarter of a second: nothing imports PyTorch for them.
"""

import subprocess
import sys
from functools import partial

from _turns import Row, parser_of, present, take_turns, timed

GOAL = 0.25
WORKS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import numpy'": ["-c", "import numpy"],
    "python -c 'import cyclecontrast'": ["-c", "import cyclecontrast"],
    "cyclecontrast --version": ["-m", "cyclecontrast", "--version"],
    "cyclecontrast --help": ["-m", "cyclecontrast", "--help"],
    "cyclecontrast pretrain --help": ["-m", "cyclecontrast", "pretrain", "--help"],
    "cyclecontrast prepare --help": ["-m", "cyclecontrast", "prepare", "--help"],
    "cyclecontrast evaluate --help": ["-m", "cyclecontrast", "evaluate", "--help"],
}


def start(arguments: list[str]) -> None:
    """Start Python and wait for its end."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main(arguments: list[str] | None = None) -> None:
    """Let all take turns and print the table."""
    asked = parser_of(__doc__, repetitions=7).parse_args(arguments)
    costs = take_turns({name: timed(partial(start, words)) for name, words in WORKS.items()}, asked.repetitions)
    goals = {name: GOAL for name in WORKS if "cyclecontrast" in name}
    present((Row(f"`{name}`, s", costs[name], goals.get(name)) for name in WORKS), asked)


if __name__ == "__main__":
    main()
