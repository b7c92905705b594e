"""`UserError`, the exception for problems that the user can fix. Any other exception is a bug and shows a traceback."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cyclecontrast.config.types import HIDDEN_VALUE
from cyclecontrast.output import printable

MAX_SHOWN = 100
"""Characters of a wrong value that are shown."""

Config = TypeVar("Config", bound=BaseModel)
T = TypeVar("T")


class UserError(Exception):
    """An error that the user can fix; each of its `problems` is one line: what is wrong, where, and what to do."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(map(printable, problems))
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        return type(self), self.problems


def attempt(action: Callable[[], T], problems: list[str]) -> T | None:
    """Return the result of an action, or add its UserError or its missing permission to `problems`.

    So all are reported together.
    """
    try:
        return action()
    except UserError as error:
        problems.extend(error.problems)
    except PermissionError as error:
        problems.append(printable(f"{error.filename}: permission denied; allow access, or use other data"))
    return None


def out_of_memory(error: BaseException) -> str:
    """Return a one-line message for an out-of-memory error."""
    return f"the device is out of memory ({str(error).partition(chr(10))[0]})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' with the most similar known word, or the one with these initials.

    '' if there is none.
    """
    words = list(known)
    close = difflib.get_close_matches(name[:MAX_SHOWN], words, n=1)
    for word in words:
        parts = re.findall(r"[^-_ ]+", word)
        if len(parts) > 1 and "".join(part[0] for part in parts) == name.lstrip("-"):
            close = [word]
    return f"; did you mean {close[0]}?" if close else ""


def checked(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Return the config built from plain values; the value `auto` counts as unset.

    Raises UserError with a line per mistake.
    """
    values = {name: value for name, value in values.items() if not (isinstance(value, str) and value == "auto")}
    try:
        return config.model_validate(values)
    except ValidationError as error:
        lines = (line for item in error.errors() for line in _describe(item, config.model_fields))
        raise UserError(*lines) from None


def _describe(item: Any, known: Iterable[str]) -> tuple[str, ...]:
    if not item["loc"]:
        return item["ctx"]["error"].args  # type: ignore[no-any-return]
    name = ".".join(part for part in item["loc"] if isinstance(part, str))
    if item["type"] == "extra_forbidden":
        return (f"unknown option {name[:MAX_SHOWN]}{did_you_mean(name, known)}",)
    if item["type"] == "missing":
        return (f"{name} is missing",)
    if item["type"] == HIDDEN_VALUE:
        return (f"{name}: {item['msg']}",)
    message, value = item["msg"].removeprefix("Value error, "), _shorten(item["input"])
    hint = ""
    if item["type"] == "literal_error":
        hint = did_you_mean(value, re.findall(r"'(.*?)'", item["ctx"]["expected"]))
    return (f"{name}: {message[:1].lower()}{message[1:]}, not {value}{hint}",)


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "a value with thousands of levels"
    except ValueError:  # Python does not write integers of more than 4,300 digits
        return "a number with thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
