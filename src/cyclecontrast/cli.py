"""The command line, generated from the configs: parses the options, calls a function of `api.py`, prints the result."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args, get_origin

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cyclecontrast import __version__, api, runs
from cyclecontrast.config import (
    PROTOCOL_CONFIGS,
    RESOLVED_BY_AUTO,
    AllConfig,
    CompareConfig,
    DemoConfig,
    EmbedConfig,
    ExploreConfig,
    ExportConfig,
    LabelConfig,
    ListConfig,
    PrepareConfig,
    PretrainConfig,
    ReportConfig,
    SearchConfig,
    SweepConfig,
)
from cyclecontrast.config.pretrain import RENAMED
from cyclecontrast.config.types import GROUPS, detail, read_toml
from cyclecontrast.errors import PASSING, UserError, attempt, checked, did_you_mean, explained, system_error
from cyclecontrast.output import join_lines, say

HELP = ("-h", "--help")
MAX_CHOICES = 40
"""Maximum length of the list of choices that replaces the metavar; longer lists go into the help text."""
SYNONYMS = {
    **dict.fromkeys(("--iterations", "--iters", "--max-steps", "--num-steps"), "--steps"),
    **dict.fromkeys(("--gpu", "--gpus", "--cuda"), "--device"),
    **dict.fromkeys(("--output", "--output-dir", "--save-dir"), "--out"),
    **{"--amp": "--precision", "--arch": "--backbone", "--pretrained": "--init", "--weights": "--init"},
}
"""Words of other programs for options, to suggest ours."""
ENVIRONMENT_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, *PASSING),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
}
"""System errors that are reported in one line, without a traceback."""


class Command(NamedTuple):
    """A command: its options, the function that it calls, and its positional options.

    The command prints the returned object. If that has a non-empty `failure`, it is printed as an error, exit code 2.
    """

    config: type[BaseModel]
    function: Callable[..., Any]
    positional: tuple[str, ...] = ()
    one_process: bool = False
    """Whether the command refuses to run in several processes of torchrun."""

    @property
    def options(self) -> dict[str, FieldInfo]:
        """The fields of the config by option name."""
        return {field.alias or name: field for name, field in self.config.model_fields.items()}


COMMANDS = {
    "demo": Command(DemoConfig, api.demo, one_process=True),
    "prepare": Command(PrepareConfig, api.prepare, ("videos",), one_process=True),
    "pretrain": Command(PretrainConfig, api.pretrain, ("data",)),
    **{
        f"evaluate {name}": Command(config, partial(api.evaluate, name), ("model", "data"))
        for name, config in PROTOCOL_CONFIGS.items()
    },
    "evaluate all": Command(AllConfig, partial(api.evaluate, "all"), ("model",), one_process=True),
    "embed": Command(EmbedConfig, api.embed, ("model", "data")),
    "search": Command(SearchConfig, api.search, ("index",), one_process=True),
    "explore": Command(ExploreConfig, api.explore, ("index",), one_process=True),
    "label": Command(LabelConfig, api.label, ("index", "labels"), one_process=True),
    "export": Command(ExportConfig, api.export, ("model",), one_process=True),
    "report": Command(ReportConfig, api.report, ("runs",), one_process=True),
    "runs ls": Command(ListConfig, runs.ls, ("folders",), one_process=True),
    "runs compare": Command(CompareConfig, runs.compare, ("runs",), one_process=True),
    "sweep": Command(SweepConfig, api.sweep, ("table", "data")),
}
FAMILIES = {
    "evaluate": ("PROTOCOL", "Evaluate a backbone on a downstream task"),
    "runs": ("COMMAND", "List and compare runs"),
}
"""Command groups: the metavar of the subcommand, and a description."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 2 for an error that users can fix, 130 if interrupted."""
    try:
        call = read(list(sys.argv[1:] if arguments is None else arguments))
        result = call()
        if result is not None and (text := str(result)):
            print(join_lines(text.split("\n")), flush=True)
        if failure := getattr(result, "failure", ""):
            raise UserError(failure)
    except UserError as error:
        for problem in error.problems:  # empty if another process reports the problems
            say(f"error: {problem}")
        return 2
    except BrokenPipeError:
        # otherwise Python reports the broken pipe again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        found = system_error(error)
        if found is None or found.errno not in ENVIRONMENT_ERRORS:
            raise
        say(f"error: {explained(found)}")
        return 2
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or "interrupted")
        return 130
    return 0


def read(arguments: list[str]) -> Callable[[], Any]:
    """Return a callable that runs the command line; for --help, it returns the help text. Raises UserError."""
    if not arguments or arguments[0] in HELP:
        return _overview
    if arguments[0] == "--version":
        return partial(str, f"cyclecontrast {__version__}")
    first, *rest = arguments
    name, kind, word, known = first, "command", first, list(dict.fromkeys(full.split()[0] for full in COMMANDS))
    if first in FAMILIES:
        if not rest or rest[0] in HELP:
            return partial(_family_help, first)
        word, *rest = rest
        name, kind = f"{first} {word}", FAMILIES[first][0].lower()
        known = [full.split()[1] for full in COMMANDS if full.startswith(f"{first} ")]
    if name not in COMMANDS:
        raise UserError(f"unknown {kind} {word!r}{did_you_mean(word, known)}; known: {', '.join(known)}")
    return _read_options(name, COMMANDS[name], rest)


def _read_options(name: str, command: Command, arguments: list[str]) -> Callable[[], Any]:
    parser = _make_parser(name, command)
    if any(word in HELP for word in arguments):
        return parser.format_help
    parsed, unknown = parser.parse_known_args(arguments)
    given = vars(parsed)
    flags = [flag(option) for option in command.options if option not in command.positional]
    wrong = [word for word in unknown if word.startswith("-")]
    problems = [f"unknown option {word}{did_you_mean(SYNONYMS.get(word, word), flags)}" for word in wrong]
    if unknown and not problems:
        problems.append(f"unexpected argument {' '.join(unknown)!r}")
    file, shown = given.pop("config", None), given.pop("print_config", False)
    values = _read_toml(file) | given if file else given
    check = checked if shown else api.check_options
    made = attempt(lambda: check(command.config, values), problems)
    if problems or made is None:
        raise UserError(*problems)
    if shown:
        return partial(_to_toml, made)
    if command.one_process and {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        from cyclecontrast.distributed import check_single_process

        check_single_process(name.partition(" ")[0] if name.startswith("runs") else name)
    many = [values.pop(option, ()) for option in command.positional if is_many(command.options[option])]
    return partial(command.function, *(value for several in many for value in several), **values)


def _read_toml(file: str) -> dict[str, Any]:
    try:
        return read_toml(Path(file))
    except OSError as error:
        raise UserError(f"config: {file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"config: {file} is not TOML ({error})") from error


def _to_toml(config: BaseModel) -> str:
    undecided = config.undecided() if isinstance(config, PretrainConfig) else set()
    values = {name: value for name, value in config.model_dump(mode="json", by_alias=True).items() if value is not None}
    return tomli_w.dumps({name: "auto" if name in undecided else value for name, value in values.items()}).rstrip()


# --- the options of a command, and their help


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _make_parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"cyclecontrast {name}",
        usage=usage(name, command),
        description=command.config.__doc__,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    sections = {group: parser.add_argument_group(group) for group in GROUPS}  # an empty one has no help
    for option, field in command.options.items():
        if option in command.positional:
            number = "*" if is_many(field) else "?"  # missing arguments are reported together with all other mistakes
            parser.add_argument(option, metavar=option.upper(), nargs=number, help=_escape(str(field.description)))
        else:
            _add_flag(sections[detail(field, "group")], option, field, command)
    general = parser.add_argument_group("general")
    general.add_argument("--config", metavar="FILE", help="TOML file of options, which flags override")
    general.add_argument("--print-config", action="store_true", help="print the options as TOML and exit")
    general.add_argument("--help", "-h", action="store_true", help="show this help message and exit")
    return parser


def usage(name: str, command: Command) -> str:
    """Return the command with its positional and required options."""
    words = [f"{option.upper()}{' ...' * is_many(command.options[option])}" for option in command.positional]
    required = (option for option, field in command.options.items() if field.is_required())
    words += [
        f"{flag(option)} {metavar(option, command.options[option])}"
        for option in required
        if option not in command.positional
    ]
    return " ".join(["cyclecontrast", name, *words, "[options]"])


def _add_flag(section: argparse._ArgumentGroup, name: str, field: FieldInfo, command: Command) -> None:
    text = _escape(help_text(name, field, command))
    settings: dict[str, Any] = {"nargs": "+" if is_many(field) else None, "metavar": metavar(name, field)}
    if field.annotation is bool:
        settings = {"action": argparse.BooleanOptionalAction}
    elif bare := detail(field, "bare"):
        settings |= {"nargs": "?", "const": bare}
        section.add_argument(flag(f"no_{name}"), dest=name, action="store_false", help=argparse.SUPPRESS)
    section.add_argument(flag(name), help=text, **settings)
    for former, current in RENAMED.items():
        if current == name and command.config is PretrainConfig:
            section.add_argument(flag(former), dest=name, help=argparse.SUPPRESS, **settings)


def flag(name: str) -> str:
    """Return the flag of an option."""
    return f"--{name.replace('_', '-')}"


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def is_many(field: FieldInfo) -> bool:
    """Return whether an option takes several values."""
    return get_origin(field.annotation) is tuple


def _choices(field: FieldInfo) -> str:
    values = get_args(field.annotation)
    nested = [choice for value in values for choice in get_args(value)]
    return "|".join(choice for choice in (*values, *nested) if isinstance(choice, str))


def metavar(name: str, field: FieldInfo) -> str:
    """Return what stands for the value of an option: its choices, or a word."""
    choices = _choices(field)
    if choices and len(choices) <= MAX_CHOICES and not is_many(field):
        return choices
    return detail(field, "metavar") or name.split("_")[-1].upper()


def help_text(name: str, field: FieldInfo, command: Command) -> str:
    """Return what the help says of an option: its description, its choices if they are many, and its default."""
    choices = _choices(field)
    long = f": {choices.replace('|', ', ')}" if len(choices) > MAX_CHOICES else ""
    return f"{field.description}{long}{_default(name, field, command)}"


def _default(name: str, field: FieldInfo, command: Command) -> str:
    if field.is_required() or field.default in (None, ()):
        return ""
    value = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    decided = command.config is PretrainConfig and name in RESOLVED_BY_AUTO
    return f" (default: {'auto; paper: ' * decided}{value})"


def _overview() -> str:
    lines = {name.split()[0]: str(command.config.__doc__) for name, command in COMMANDS.items()}
    lines |= {family: f"{about}." for family, (_, about) in FAMILIES.items()}
    about = "Train an image backbone on a folder of unlabeled videos."
    return _listing("COMMAND", about, lines, "shows the options of a command")


def _family_help(family: str) -> str:
    kind, about = FAMILIES[family]
    lines = {full.split()[1]: str(COMMANDS[full].config.__doc__) for full in COMMANDS if full.startswith(f"{family} ")}
    return _listing(f"{family} {kind}", f"{about}.", lines, "shows the options")


def _listing(usage: str, about: str, lines: dict[str, str], end: str) -> str:
    width = max(map(len, lines)) + 2
    table = "\n".join(f"  {name:<{width}}{text}" for name, text in lines.items())
    return f"usage: cyclecontrast {usage} ...\n\n{about}\n\n{table}\n\ncyclecontrast {usage} --help {end}."
