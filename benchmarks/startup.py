"""What starting costs: seconds of commands, against a bare Python and one that imports NumPy.

    python benchmarks/startup.py

The aim is that help and mistakes answer in less than a second: nothing imports PyTorch for them.
"""

import statistics
import subprocess
import sys
from functools import partial

from _turns import parser_of, print_table, ratio, take_turns, timed

BARE, NUMPY = "python -c pass", "python -c 'import numpy'"
WORKS = {
    BARE: ["-c", "pass"],
    NUMPY: ["-c", "import numpy"],
    "python -c 'import cyclecontrast'": ["-c", "import cyclecontrast"],
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
    repetitions = parser_of(__doc__, repetitions=7).parse_args(arguments).repetitions
    costs = take_turns({name: timed(partial(start, words)) for name, words in WORKS.items()}, repetitions)
    rows = (
        [f"`{name}`", f"{statistics.median(costs[name]):.2f}", "" if name in (BARE, NUMPY) else "< 1.00", *ratios]
        for name in WORKS
        for ratios in [[ratio(costs, name, other) for other in (BARE, NUMPY)]]
    )
    print_table(["what is started", "seconds", "goal", "/ bare Python", "/ with NumPy"], rows)


if __name__ == "__main__":
    main()
