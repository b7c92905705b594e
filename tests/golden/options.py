"""The commands' flags, defaults and choices as the command line gives them; what is said of them is not recorded."""

import contextlib
import io
import itertools
import re
import runpy
import sys
import tomllib
import warnings

from tests.golden.trainings import METHOD, METHODS, TEACHER

COMMANDS = {
    "demo": (),
    "prepare": ("VIDEOS", "--out", "OUT"),
    "pretrain": ("DATA", "--out", "OUT"),
    "embed": ("MODEL", "DATA", "--out", "vectors.npz"),
    "search": ("vectors.npz", "--image", "image.png"),
    "explore": ("vectors.npz",),
    "label": ("vectors.npz", "labels.csv"),
    "export": ("MODEL",),
    "report": ("RUN",),
    "sweep": ("table7", "DATA"),
    "runs ls": (),
    "runs compare": ("RUN",),
    "evaluate all": ("MODEL", "--data-root", "DATA"),
} | {
    f"evaluate {name}": ("MODEL", "DATA")
    for name in ("knn", "linear", "finetune", "retrieval", "action", "tracking", "segmentation", "propagation")
}
CURRENT_NAMES = {
    "objective": "method",
    "most_unreadable": "max_unreadable",
    "own_key_in_support": "query_frame_in_support",
}
"""Options that were renamed since the recording, by their former names."""
PRESETS = list(itertools.product(("auto", "paper", "release"), METHODS))


def run(*arguments):
    """Run the command line in this process; returns its exit code and what it printed."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["cyclecontrast", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, where the module is imported already
            runpy.run_module("cyclecontrast", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code or 0, out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue(), err.getvalue()


def printed(command, *options):
    """Return the options that a command would run with."""
    code, text, problem = run(*command.split(), *COMMANDS[command], *options, "--print-config")
    assert code == 0, problem
    values = tomllib.loads(text)
    return {CURRENT_NAMES.get(name, name): value for name, value in values.items()}


def current(flag):
    """Return the name of today of a flag."""
    prefix = "--no-" if flag.startswith("--no-") else "--"
    name = flag.removeprefix(prefix).replace("-", "_")
    return prefix + CURRENT_NAMES.get(name, name).replace("_", "-")


def flags_of(command):
    """Return the flags in a command's help."""
    code, text, problem = run(*command.split(), "--help")
    assert code == 0, problem
    lines = re.findall(r"^  (-\S.*?)(?:  |$)", text, re.MULTILINE)
    flags = {flag for line in lines for flag in re.findall(r"--[a-z0-9][a-z0-9-]*", line)}
    return sorted(map(current, flags))


def choices_of(command):
    """Return the choices of each flag that its help names as a|b|c, as far as they need no other flag."""
    _, text, _ = run(*command.split(), "--help")
    found = re.findall(r"^  (--[a-z0-9-]+) ([\w-]+(?:\|[\w-]+)+)", text, re.MULTILINE)
    named = {current(flag): choices.split("|") for flag, choices in found}
    return {flag: [choice for choice in choices if is_taken(command, flag, choice)] for flag, choices in named.items()}


def is_taken(command, flag, choice):
    """Whether a choice can be chosen; `--method` by its former name where the help knows that alone."""
    flag = f"--{METHOD}" if flag == "--method" else flag
    code, text, _ = run(*command.split(), *COMMANDS[command], flag, choice, "--print-config")
    return code == 0 and f'= "{choice}"' in text


def options_of(command):
    """Return the flags of a command, their choices and their defaults."""
    return {"flags": flags_of(command), "choices": choices_of(command), "defaults": printed(command)}


def presets():
    """Return the settings of every preset of `pretrain` for every method, and those of the mode linear of `action`."""
    found = {
        f"{preset} {method}": printed("pretrain", "--preset", preset, f"--{METHOD}", method)
        for preset, method in PRESETS
    }
    found["auto distill"] = printed("pretrain", f"--{METHOD}", "distill", "--teacher", TEACHER)
    return found | {"action linear": printed("evaluate action", "--mode", "linear")}
