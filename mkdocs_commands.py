"""Writes docs/commands.md, all commands and their options, from the definitions that `--help` is made from.

`make docs` runs it, and a test fails where the page is out of date: `python mkdocs_commands.py`.
"""

import re
from collections.abc import Container, Sequence
from pathlib import Path

from cyclecontrast.cli import COMMANDS, Command, flag, help_text, is_many, metavar, usage
from cyclecontrast.config import EvaluateConfig
from cyclecontrast.config.types import GROUPS, detail

PAGE = Path(__file__).parent / "docs" / "commands.md"
HEAD = """# Commands and options

<!-- Written by mkdocs_commands.py from the definitions of the options; do not edit. -->

What `cyclecontrast COMMAND --help` prints, for every command; [the guide](guide.md) shows them in use. Every command
takes `--config FILE` (a TOML file of options; those on the command line take precedence), `--print-config` (print the
options as TOML and exit) and `--help`. Each command is also [a function in Python](api.md), where the option
`--image-size` is the argument `image_size`.
"""
AUTO = """
Where the default is *auto*, the preset `auto` chooses from your data and hardware, and prints what it chose
([how](method.md#presets)); `--preset paper` takes the value beside it.
"""
SHARED = """## evaluate

Options of every protocol. The sections of the protocols list only what they add.
"""
DEFAULT = re.compile(r" \(default: ([^)]*)\)")
LITERAL = re.compile(r"(?<![\w`-])--[a-z][a-z-]*|[\w./:-]*(?:<[a-z ]+>[\w./:-]*)+")
Row = tuple[str, str, str, str]
"""The group of an option, and its cells: the flag, the default, and what it does."""


def make_page() -> str:
    """Return the page in Markdown."""
    protocols = [name for name, command in COMMANDS.items() if issubclass(command.config, EvaluateConfig)]
    first, *others = (rows(COMMANDS[name]) for name in protocols)
    shared = [row for row in first if all(row in other for other in others)]
    listed, sections = [], []
    for name, command in COMMANDS.items():
        listed.append((f"[`{name}`](#{name.replace(' ', '-')})", str(command.config.__doc__)))
        if name == protocols[0]:
            sections.append(SHARED + option_tables(shared))
        sections.append(section(name, command, shared if name in protocols else ()))
    return "\n".join([HEAD, table(("command", "what it does"), listed), "", *sections])


def section(name: str, command: Command, hidden: Container[Row]) -> str:
    """Return the section of a command, without the hidden rows."""
    also = " Also the options [of every protocol](#evaluate)." if hidden else ""
    auto = AUTO if name == "pretrain" else ""
    own = [row for row in rows(command) if row not in hidden]
    return f"## {name}\n\n{command.config.__doc__}{also}\n\n`{usage(name, command)}`\n{auto}{option_tables(own)}"


def rows(command: Command) -> list[Row]:
    """Return the rows of a command's options, the positional ones first."""
    found = []
    for name, field in command.options.items():
        is_positional = name in command.positional
        text = str(field.description) if is_positional else help_text(name, field, command)
        default = "required" if field.is_required() else "".join(DEFAULT.findall(text))
        value = f"{metavar(name, field)}{' ...' * is_many(field)}"
        shown = f"`{flag(name)} {value}`"
        if "|" in value:  # in code, GitHub needs it escaped, and the site shows the backslash
            alone = f"; alone: {bare}" if (bare := detail(field, "bare")) else ""
            shown = f"`{flag(name)}` {value.replace('|', ', ')}{alone}"
        if is_positional:
            shown = f"`{name.upper()}`"
        elif field.annotation is bool:
            shown = f"`{flag(name)}`, `{flag(f'no_{name}')}`"
        group = "" if is_positional else detail(field, "group")
        found.append((group, shown, escaped(default), escaped(DEFAULT.sub("", text))))
    return sorted(found, key=lambda row: ("", *GROUPS).index(row[0]))


def option_tables(options: Sequence[Row]) -> str:
    """Return a table of options; more than ten are divided by group."""
    groups = list(dict.fromkeys(row[0] for row in options)) if len(options) > 10 else [None]
    parts = []
    for group in groups:
        title = f"\n**{group.capitalize()}**\n" if group else ""
        cells = [row[1:] for row in options if group in (None, row[0])]
        parts.append(f"{title}\n{table(('option', 'default', 'what it does'), cells)}")
    return "\n".join(parts) + "\n"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, not aligned, so that a change of one option changes one line."""
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, ["---"] * len(head), *lines))


def escaped(text: str) -> str:
    """Return a text of the help as Markdown for a cell, with flags and names like timm:<name> as code."""
    return LITERAL.sub(r"`\g<0>`", text).replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(make_page(), "utf-8")
