"""The one exception that users are meant to read; everything else is a bug and keeps its traceback."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Config = TypeVar("Config", bound=BaseModel)
T = TypeVar("T")


class UserError(Exception):
    """Something the user can mend: each problem is one line that says what, where, and what to do."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        return type(self), self.problems


def checked(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from plain values, where `auto` is as good as unset; raises UserError listing every mistake."""
    try:
        return config.model_validate({name: value for name, value in values.items() if value != "auto"})
    except ValidationError as error:
        raise UserError(*(_explain(item, config.model_fields) for item in error.errors())) from None


def attempt(action: Callable[[], T], problems: list[str]) -> T | None:
    """Return what the action returns; where it fails, add its lines to `problems`, so that all are told at once."""
    try:
        return action()
    except UserError as error:
        problems.extend(error.problems)
        return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the most similar known word, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(item: Any, known: Iterable[str]) -> str:
    name = ".".join(part for part in item["loc"] if isinstance(part, str))
    if item["type"] == "extra_forbidden":
        return f"{name} is no option{did_you_mean(name, known)}"
    if item["type"] == "missing":
        return f"{name} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if not name:
        return str(message)
    hint = ""
    if item["type"] == "literal_error":
        hint = did_you_mean(str(item["input"]), re.findall(r"'(.*?)'", item["ctx"]["expected"]))
    return f"{name}: {message[:1].lower()}{message[1:]}, not {item['input']!r}{hint}"
