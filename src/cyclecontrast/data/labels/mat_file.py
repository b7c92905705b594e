"""Records in a file of MATLAB's version 5; a reader of our own, for scipy's crashes the process on damaged ones."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cyclecontrast.data.regular_files import read_regular

MATRIX, COMPRESSED = 14, 15
STRUCT, TEXT, NUMBERS = 2, 4, range(6, 16)
NUMBER_TYPES = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
ENCODINGS = {1: "utf-8", 2: "utf-8", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
HEADER_BYTES, LITTLE_ENDIAN = 128, b"IM"
MOST_BYTES = 2**26
"""Of the file, and of what is compressed in it; ImageNet's has a hundredth of it."""

Record = dict[str, str | int | float]


class _Element(NamedTuple):
    kind: int
    data: bytes


class _Matrix(NamedTuple):
    kind: int
    name: str
    parts: list[_Element]


def read_records(path: Path, variable: str) -> list[Record]:
    """Return the records of a variable, of each the fields that hold a text or one number.

    Raises OSError, and ValueError where the file is damaged, or has no such variable of records.
    """
    content = read_regular(path, MOST_BYTES)
    if content[HEADER_BYTES - 2 : HEADER_BYTES] != LITTLE_ENDIAN:
        raise ValueError("it is no file of MATLAB's version 5")
    for kind, data in _elements(content[HEADER_BYTES:]):
        if kind == COMPRESSED:
            kind, data = next(_elements(_inflated(data)), _Element(0, b""))
        matrix = _matrix(data) if kind == MATRIX else None
        if matrix is not None and (matrix.name, matrix.kind) == (variable, STRUCT):
            return list(_records(matrix.parts))
    raise ValueError(f"it holds no records named {variable}")


def _elements(data: bytes) -> Iterator[_Element]:
    place = 0
    while place < len(data):
        kind, size = np.frombuffer(data[place : place + 8], "<u4").tolist()
        start, end = place + 8, place + 8 + size
        place = end if kind == COMPRESSED else end + -size % 8
        if kind >> 16:  # so small that it lies in its own head
            start, end, place = start - 4, start - 4 + (kind >> 16), start
        if end > len(data):
            raise ValueError("it is cut off")
        yield _Element(kind & 0xFFFF, data[start:end])


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not stream.eof:
        raise ValueError(f"it is cut off, or holds more than {MOST_BYTES:,} bytes")
    return content


def _matrix(data: bytes) -> _Matrix:
    flags, _, name, *parts = _elements(data)
    return _Matrix(int.from_bytes(flags.data[:1]), name.data.decode(), parts)


def _records(parts: list[_Element]) -> Iterator[Record]:
    (_, size), (_, names), *values = parts
    length = int.from_bytes(size, "little")
    fields = [names[at : at + length].rstrip(b"\0").decode() for at in range(0, len(names), max(1, length))]
    if not fields or len(values) % len(fields):
        raise ValueError("its fields do not fit its values")
    for at in range(0, len(values), len(fields)):
        row = {name: _value(part.data) for name, part in zip(fields, values[at:], strict=False)}
        yield {name: value for name, value in row.items() if value is not None}


def _value(data: bytes) -> str | int | float | None:
    """Return a text or a single number; None for all else."""
    matrix = _matrix(data) if data else None
    if matrix is None or not matrix.parts:
        return None
    kind, content = matrix.parts[0]
    if matrix.kind == TEXT and kind in ENCODINGS:
        return content.decode(ENCODINGS[kind])
    numbers = np.frombuffer(content, NUMBER_TYPES[kind]).tolist() if kind in NUMBER_TYPES else []
    return numbers[0] if matrix.kind in NUMBERS and len(numbers) == 1 else None
