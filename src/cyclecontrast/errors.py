"""The one exception that users are meant to read; everything else is a bug and keeps its traceback."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from cyclecontrast.config.fields import UNSHOWN

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What breaks a line, steers a terminal or turns the order of what stands beside it; and what is no character."""
LONGEST = 100
"""Characters of a wrong value that are shown."""

Config = TypeVar("Config", bound=BaseModel)
T = TypeVar("T")


class UserError(Exception):
    """Something the user can mend: each problem is one line that says what, where, and what to do."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(map(printable, problems))
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        return type(self), self.problems


def printable(text: str) -> str:
    """Return a text of one line, with what is unprintable written out."""
    return UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)


def checked(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from plain values, where `auto` is as good as unset; raises UserError listing every mistake."""
    asked = {name: value for name, value in values.items() if not (isinstance(value, str) and value == "auto")}
    try:
        return config.model_validate(asked)
    except ValidationError as error:
        raise UserError(*_all_mistakes(config, asked, error)) from None


def attempt(action: Callable[[], T], problems: list[str]) -> T | None:
    """Return what the action returns; where it fails, add its lines to `problems`, so that all are told at once."""
    try:
        return action()
    except UserError as error:
        problems.extend(error.problems)
        return None


def out_of_memory(error: BaseException) -> str:
    """Return what a device says that has no room left, in a line."""
    reason = str(error).partition("\n")[0]
    return f"the memory of the device is too small ({reason})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the most similar known word, or nothing."""
    close = difflib.get_close_matches(name[:LONGEST], list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


class _Mistake(NamedTuple):
    line: str
    options: frozenset[str]
    is_gap: bool


def _all_mistakes(config: type[BaseModel], asked: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    """Tell what is wrong by itself, then what of the rest does not fit together.

    Pydantic looks at the whole only where each part is right: so what was told of is left out, and it looks again. A
    line that names such an option is not told: it would speak of its default. What is missing only since is not told
    either, but given a stand-in.
    """
    told: set[str] = set()
    required = {name for name, field in config.model_fields.items() if field.is_required()}
    while True:
        mistakes = [
            _Mistake(line, _options_of(line, item, config.model_fields.keys() - required), item["type"] == "missing")
            for item in error.errors()
            for line in _explain(item, config.model_fields)
        ]
        fresh = (mistake for mistake in mistakes if not mistake.options & told)
        yield from (mistake.line for mistake in fresh if not (told and mistake.is_gap))
        new = frozenset[str]().union(*(mistake.options for mistake in mistakes)) - told
        if not new:
            return
        told |= new
        try:
            rest = {name: value for name, value in asked.items() if name not in told}
            config.model_validate(dict.fromkeys(required & told, "-") | rest)
        except ValidationError as of_the_rest:
            error = of_the_rest
        else:
            return


def _options_of(line: str, item: Any, known: Set[str]) -> frozenset[str]:
    """Return the option that is wrong, or those of the known ones that a line about the whole names."""
    if item["loc"]:
        return frozenset({_name(item)})
    words = re.findall(r"[a-z]+(?:[-_][a-z]+)*", line)
    return frozenset(word.replace("-", "_") for word in words) & known


def _explain(item: Any, known: Iterable[str]) -> tuple[str, ...]:
    if not item["loc"]:
        return item["ctx"]["error"].args  # type: ignore[no-any-return]
    name = _name(item)
    if item["type"] == "extra_forbidden":
        return (f"{name[:LONGEST]} is no option{did_you_mean(name, known)}",)
    if item["type"] == "missing":
        return (f"{name} is missing",)
    if item["type"] == UNSHOWN:
        return (f"{name}: {item['msg']}",)
    message, value = item["msg"].removeprefix("Value error, "), _shown(item["input"])
    hint = ""
    if item["type"] == "literal_error":
        hint = did_you_mean(value, re.findall(r"'(.*?)'", item["ctx"]["expected"]))
    return (f"{name}: {message[:1].lower()}{message[1:]}, not {value}{hint}",)


def _name(item: Any) -> str:
    return ".".join(part for part in item["loc"] if isinstance(part, str))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than some thousand digits
        return "a number without end"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
