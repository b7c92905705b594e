"""Which part of a file a request asks for (RFC 9110, 14): players jump to a second by it."""

import re
from typing import NamedTuple

ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Range(NamedTuple):
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int
    is_partial: bool


def asked_range(header: str | None, size: int) -> Range | None:
    """Return the bytes that a Range header asks for of a file of this size; None where they are not in it.

    Several ranges, other units and nonsense mean the whole file, as the standard allows.
    """
    match = ONE_RANGE.fullmatch(header.strip()) if header is not None else None
    if match is None or match[0] == "bytes=-":
        return Range(0, size, False)
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
        return Range(start, end, True) if start < end else None
    start, end = int(first), min(size, int(last) + 1) if last else size
    if last and int(last) < start:
        return Range(0, size, False)
    return Range(start, end, True) if start < size else None
