"""`UserError`, the exception for problems that the user can fix. Any other exception is a bug and shows a traceback."""

import difflib
import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cyclecontrast.config.types import HIDDEN_VALUE
from cyclecontrast.output import printable

MAX_SHOWN = 100
"""Characters of a wrong value that are shown."""

REMEDIES = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit on open files (ulimit -n)"),
    errno.EAGAIN: "raise the limit on processes and threads (ulimit -u), or use fewer --workers",
    errno.ENOMEM: "free memory or raise its limit (ulimit -v), or use fewer --workers",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space, or name a folder on another disk"),
    errno.EROFS: "name a folder that can be written to",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT), "check the storage"),
}
"""What to do about an error of the system, by its number."""
SHM_REMEDIES = {
    errno.ENOSPC: "use fewer --workers, or give the container more shared memory (docker run --shm-size=1g)",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.ENOENT), "make it writable"),
}
"""What to do about /dev/shm, by which processes exchange data."""
SIGNS = {
    **{"open files": errno.EMFILE, "ancdata": errno.EMFILE, "new thread": errno.EAGAIN},
    **{"No space left": errno.ENOSPC, "Read-only file": errno.EROFS, "File too large": errno.EFBIG},
    **dict.fromkeys(("failed to map segment", "allocate memory", "bad_alloc", "bad allocation"), errno.ENOMEM),
    "MPS backend out of memory": errno.ENOMEM,
}
"""Errors of the system by the words in the exceptions of libraries that hide them."""
PASSING = frozenset(
    {
        *(errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN),
        *(errno.EINTR, errno.EBUSY, errno.ENOBUFS, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNABORTED),
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN),
        errno.ENETUNREACH,
    }
)
"""Errors of storage, memory and limits, which may be gone when a file is read again."""

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
    """Return the result of an action, or add its UserError to `problems`, so that all are reported together.

    A missing permission is such an error, too.
    """
    try:
        return action()
    except UserError as error:
        problems.extend(error.problems)
    except PermissionError as error:
        problems.append(printable(f"{error.filename}: permission denied; allow access, or use other data"))
    return None


def some(problems: Sequence[str], most: int = 3) -> list[str]:
    """Return the first problems, and how many more there are."""
    more = len(problems) - most
    return [*problems[:most], *([f"and {more:,} more"] if more > 0 else [])]


def system_error(error: BaseException) -> OSError | None:
    """Return the error of the system that an exception is, or hides in its text; None for other exceptions."""
    if isinstance(error, OSError) and error.errno:
        return error
    words = (number for words, number in SIGNS.items() if words in str(error))
    number = errno.ENOMEM if isinstance(error, MemoryError) else next(words, 0)
    if number:
        return OSError(number, os.strerror(number), "memory" if number == errno.ENOMEM else None)
    return system_error(error.__cause__) if isinstance(error, ImportError) and error.__cause__ else None


def explained(error: OSError, place: object = "the output", remedy: str = "") -> str:
    """Return one line about an error of the system: the file, or the place, what happened, and what to do."""
    remedy = REMEDIES.get(error.errno or 0, remedy)
    return f"{error.filename or place}: {(error.strerror or str(error)).lower()}{f'; {remedy}' if remedy else ''}"


def why_no_workers(error: Exception) -> str:
    """Return why processes cannot be started or exchange data, and what to do."""
    found = system_error(error)
    if found is None:
        return str(error).partition("\n")[0]
    if remedy := SHM_REMEDIES.get(found.errno or 0):
        return f"/dev/shm: {os.strerror(found.errno or 0).lower()}; {remedy}"
    return explained(found).partition(": ")[2]


def out_of_memory(error: BaseException) -> str:
    """Return a one-line message for an out-of-memory error."""
    return f"the device is out of memory ({str(error).partition(chr(10))[0]})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' with the most similar known word, or the one with these initials.

    '' if there is none.
    """
    words = {word.lstrip("-"): word for word in known}
    close = [words[bare] for bare in difflib.get_close_matches(name[:MAX_SHOWN].lstrip("-"), words, n=1, cutoff=0.65)]
    for word in words.values():
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
