"""The door: parse, call, print. Options are the fields of the configs; nothing heavy is imported before its use."""

import argparse
import errno
import os
import signal
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cyclecontrast import __version__
from cyclecontrast.api import COMMANDS, EVALUATIONS, RUNS, Command
from cyclecontrast.config import DECIDED_BY_AUTO, PretrainConfig
from cyclecontrast.errors import UserError, attempt, checked, did_you_mean

HELP = ("-h", "--help")


class Group(NamedTuple):
    """Commands behind a word of their own: what they are, and what they take."""

    commands: dict[str, Command]
    kind: str
    words: str
    about: str


GROUPS = {
    "evaluate": Group(EVALUATIONS, "protocol", "MODEL DATA", "Frozen backbone → numbers"),
    "runs": Group(RUNS, "verb", "FOLDER", "Many runs at a glance"),
}
OUTSIDE_OUR_POWER = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for what the user can mend, 130 when interrupted."""
    try:
        if text := _dispatch(list(sys.argv[1:] if arguments is None else arguments)):
            print(text, flush=True)
    except UserError as error:
        for problem in error.problems:  # none where another process tells
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again when it ends
        return 1
    except OSError as error:
        if error.errno not in OUTSIDE_OUR_POWER:
            raise
        print(f"error: {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    return 0


def _dispatch(arguments: list[str]) -> str:
    if not arguments or arguments[0] in HELP:
        return _overview()
    if arguments[0] == "--version":
        return f"cyclecontrast {__version__}"
    name, rest = arguments[0], arguments[1:]
    if name not in GROUPS:
        return _call(name, _find(COMMANDS, name, "command", (*COMMANDS, *GROUPS)), rest)
    group = GROUPS[name]
    if not rest or rest[0] in HELP:
        return _members(name, group)
    return _call(f"{name} {rest[0]}", _find(group.commands, rest[0], group.kind, group.commands), rest[1:])


def _find(commands_by_name: dict[str, Command], name: str, kind: str, known: Sequence[str] | dict[str, Any]) -> Command:
    if name not in commands_by_name:
        raise UserError(f"{kind} {name!r} is unknown{did_you_mean(name, known)}; there are: {', '.join(known)}")
    return commands_by_name[name]


def _call(name: str, command: Command, arguments: list[str]) -> str:
    parser = _make_parser(name, command)
    if any(word in HELP for word in arguments):
        return parser.format_help()
    problems: list[str] = []
    parsed, unknown = parser.parse_known_args(arguments)
    given = vars(parsed)
    flags = [f"--{field.replace('_', '-')}" for field in _options(command) if field not in command.positional]
    problems += [f"{word} is no option{did_you_mean(word, flags)}" for word in unknown if word.startswith("-")]
    if unknown and not problems:
        problems += [f"{' '.join(unknown)!r} is one argument too many"]
    file, show = given.pop("config", None), given.pop("print_config", False)
    values = _read_toml(file) | given
    made = attempt(lambda: checked(command.config, values) if show else command.check(values), problems)
    if problems or made is None:
        raise UserError(*problems)
    if show:
        return _to_toml(made)
    result = _run(command, made)
    return "" if result is None else str(result)  # another process tells


def _run(command: Command, options: BaseModel) -> Any:
    """Call a command; from here on Ctrl-C is an exception, where it was the end while modules were imported."""
    command.load()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command.call(options)


def _to_toml(made: BaseModel) -> str:
    undecided = made.undecided() if hasattr(made, "undecided") else set()
    values = {name: value for name, value in made.model_dump(mode="json", by_alias=True).items() if value is not None}
    return tomli_w.dumps({name: "auto" if name in undecided else value for name, value in values.items()}).rstrip()


def _read_toml(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(Path(file).read_text())
    except OSError as error:
        raise UserError(f"config: {file} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"config: {file} is no TOML ({error})") from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _make_parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"cyclecontrast {name}",
        description=command.config.__doc__,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--help", "-h", action="store_true", help="show this and stop")
    parser.add_argument("--config", metavar="FILE", help="TOML file of options; flags override it")
    parser.add_argument("--print-config", action="store_true", help="show the options as TOML and stop")
    for field_name, field in _options(command).items():
        if field_name in command.positional:
            number = "*" if _is_many(field) else "?"
            parser.add_argument(field_name, metavar=field_name.upper(), nargs=number, help=field.description)
            continue
        decided = command.config is PretrainConfig and field_name in DECIDED_BY_AUTO
        _add_flag(parser, field_name, field, "auto; paper: " if decided else "")
        if field_name == "method":
            parser.add_argument("--objective", dest="method", help=argparse.SUPPRESS)
    return parser


def _options(command: Command) -> dict[str, FieldInfo]:
    """Return the options by the names that users give them."""
    return {field.alias or name: field for name, field in command.config.model_fields.items()}


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo, before_default: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    text = f"{field.description}{_default(field, before_default)}".replace("%", "%%")
    if field.annotation is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif _is_many(field):
        parser.add_argument(flag, nargs="+", metavar="N", help=text)
    else:
        choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
        parser.add_argument(flag, metavar="|".join(choices) if choices else name.split("_")[-1].upper(), help=text)


def _is_many(field: FieldInfo) -> bool:
    return getattr(field.annotation, "__origin__", None) is tuple


def _default(field: FieldInfo, before: str) -> str:
    if field.is_required() or field.default is None or isinstance(field.default, bool):
        return ""
    value = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return f" [{before}{value}]"


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.config.__doc__}" for name, command in COMMANDS.items()]
    lines += [f"  {name:<{width}}{group.about}: {', '.join(group.commands)}." for name, group in GROUPS.items()]
    return "\n".join(
        (
            "usage: cyclecontrast COMMAND ...",
            "",
            "From a folder of unlabeled videos to an image backbone.",
            "",
            *lines,
            "",
            "cyclecontrast COMMAND --help shows the options of a command.",
        )
    )


def _members(name: str, group: Group) -> str:
    width = max(map(len, group.commands)) + 2
    lines = [f"  {member:<{width}}{command.config.__doc__}" for member, command in group.commands.items()]
    usage = f"usage: cyclecontrast {name} {group.kind.upper()} {group.words} ..."
    return "\n".join([usage, "", *lines, "", f"cyclecontrast {name} {group.kind.upper()} --help shows the options."])
