"""The exception whose text is for users. Any other exception is a bug and keeps its traceback."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cyclecontrast.config.types import HIDDEN_VALUE

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that break a line, control a terminal or reverse the direction of text, and lone surrogates."""
MAX_SHOWN = 100
"""Characters of a wrong value that are shown."""

Config = TypeVar("Config", bound=BaseModel)
T = TypeVar("T")


class UserError(Exception):
    """Something the user can fix: each problem is one line that says what is wrong, where, and what to do."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(map(printable, problems))
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        return type(self), self.problems


def printable(text: str) -> str:
    """Return a text as one line, with unprintable characters escaped."""
    return UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)


def attempt(action: Callable[[], T], problems: list[str]) -> T | None:
    """Return the result of an action, or add its UserError to `problems`, so that all are reported together."""
    try:
        return action()
    except UserError as error:
        problems.extend(error.problems)
        return None


def out_of_memory(error: BaseException) -> str:
    """Return one line about an out-of-memory error of a device."""
    reason = str(error).partition("\n")[0]
    return f"the memory of the device is too small ({reason})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word with these initials, or the most similar one, or nothing."""
    words = list(known)
    close = [word for word in words if _initials(word) == name.lstrip("-")]
    close = close or difflib.get_close_matches(name[:MAX_SHOWN], words, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _initials(word: str) -> str:
    parts = re.findall(r"[^-_ ]+", word)
    return "".join(part[0] for part in parts) if len(parts) > 1 else ""


def checked(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from plain values, where `auto` is the same as unset.

    Raises UserError that lists every mistake.
    """
    values = {name: value for name, value in values.items() if not (isinstance(value, str) and value == "auto")}
    try:
        return config.model_validate(values)
    except ValidationError as error:
        raise UserError(*_describe_all(config, values, error)) from None


def _describe_all(config: type[BaseModel], values: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    """Describe the wrong values, then what is wrong with the combination of the others.

    Pydantic checks combinations only if every value is right. So wrong values are left out, or replaced if they are
    required, and the others are checked again. Then a line that names such an option would be about its default, and an
    option is missing only because another one was left out: neither is reported.
    """
    required = {name for name, field in config.model_fields.items() if field.is_required()}
    wrong: set[str] = set()
    while True:
        found = [
            (line, _options_in(line, item, config.model_fields.keys() - required), item["type"] == "missing")
            for item in error.errors()
            for line in _describe(item, config.model_fields)
        ]
        yield from (line for line, options, missing in found if not options & wrong and not (wrong and missing))
        new = set[str]().union(*(options for _, options, _ in found)) - wrong
        if not new:
            return
        wrong |= new
        right = {name: value for name, value in values.items() if name not in wrong}
        try:
            config.model_validate(dict.fromkeys(required & wrong, "-") | right)
        except ValidationError as next_error:
            error = next_error
        else:
            return


def _options_in(line: str, item: Any, optional: Iterable[str]) -> set[str]:
    """Return the wrong option, or the options that a line about a combination names."""
    if item["loc"]:
        return {_name_of(item)}
    words = {word.replace("-", "_") for word in re.findall(r"[a-z]+(?:[-_][a-z]+)*", line)}
    return words.intersection(optional)


def _describe(item: Any, known: Iterable[str]) -> tuple[str, ...]:
    if not item["loc"]:
        return item["ctx"]["error"].args  # type: ignore[no-any-return]
    name = _name_of(item)
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


def _name_of(item: Any) -> str:
    return ".".join(part for part in item["loc"] if isinstance(part, str))


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of more than 4,300 digits
        return "a number with thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
