"""Damage to files, a function of the random numbers alone; it knows formats, and nothing of who reads them.

Bytes are flipped, numbers made odd, runs cut out or repeated. What has a structure is also taken apart and put together
again, checksums and lengths mended, so that the damage gets past the first test of a reader.
"""

import io
import json
import os
import random
import re
import shutil
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

Way = Callable[[bytes, random.Random], bytes]

ODD_INTEGERS = (0, 1, -1, 2, 127, 128, 255, 256, 32_767, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, *ODD_INTEGERS, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), -float("inf")),
    *(
        "",
        "a",
        "a" * 5_000,
        "0",
        "-1",
        "nan",
        "..",
        "/",
        "../../etc/passwd",
        "a\nb",
        "\x1b[31m",
        "\0",
        "<script>",
        "{}",
    ),
    *([], {}, [[]], {"": None}, [0] * 100, ["a"], {"a": {"b": [None]}}),
)
ODD_WORDS = (
    *(b"", b"0", b"-1", b"1", b"nan", b"inf", b"-inf", b"1e999", b"1e300", b"0x10", b"1_000", b"0.5", b"9" * 30),
    *(b"9" * 5_000, b"a" * 300, b"a" * 5_000, b"..", b".", b"/", b"~", b"../..", b"/etc/passwd", b"\0", b"\xff\xfe"),
    *(b"\x1b[31m", b"\x07", b"\r", b"%s", b"{0}", b"<script>", b"'", b'"', b"\\", b",", b";", b"*", b"[", b"]", b"#"),
    *("²".encode(), "١".encode(), "é".encode(), "e\u0301".encode(), "\u2028".encode(), "\u00a0".encode()),
)
SEPARATORS = (b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b" ", b"\t", b"\x0c", b"\x85", b",", b";", "\u2028".encode())
ENCODINGS = ("utf-8-sig", "utf-16", "utf-32", "utf-7", "cp037")
MARKS = {
    ".mp4": (
        b"moov",
        b"mvhd",
        b"tkhd",
        b"mdhd",
        b"stsd",
        b"stts",
        b"ctts",
        b"stsz",
        b"stsc",
        b"stco",
        b"avcC",
        b"avc1",
    ),
    ".mkv": (b"\x15\x49\xa9\x66", b"\x44\x89", b"\x16\x54\xae\x6b", b"\xb0", b"\xba", b"\x1f\x43\xb6\x75", b"\xa3"),
    ".avi": (b"avih", b"strh", b"strf", b"movi", b"idx1", b"00dc", b"vids", b"LIST"),
    ".jpg": (b"\xff\xc0", b"\xff\xc4", b"\xff\xdb", b"\xff\xda", b"\xff\xe0", b"\xff\xe1"),
    ".bmp": (b"BM",),
    ".webp": (b"RIFF", b"VP8 ", b"VP8X", b"ALPH"),
    ".tif": (b"II*\0",),
}
"""Where headers begin, by suffix."""


def damage(folder: Path, rng: random.Random, keep: Sequence[str] = ()) -> list[str]:
    """Damage one to three files below a folder and return their paths below it; each kind of file is as likely.

    Files named in `keep` stay whole.
    """
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in keep)
        if not files:
            break
        suffix = rng.choice(sorted({path.suffix for path in files}))
        path = rng.choice([path for path in files if path.suffix == suffix])
        names.append(path.relative_to(folder).as_posix())
        data = path.read_bytes()
        path.unlink()
        if rng.random() < 0.06:
            _misplace(path, rng.choice(files), data, rng)
        else:
            path.write_bytes(mutate(data, suffix, rng))
    return names


def mutate(data: bytes, suffix: str, rng: random.Random) -> bytes:
    """Return the content of a file changed in a few places, in the ways that fit its suffix and in any other."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        ways = WAYS.get(suffix.lower(), ())
        way = rng.choice(ways) if ways and rng.random() < 0.7 else rng.choice(BYTES)
        try:
            data = way(data, rng)
        except Exception:  # what has been damaged has no structure any more, and says so in its own way
            data = _flip(data, rng)
    return data


def _misplace(path: Path, other: Path, data: bytes, rng: random.Random) -> None:
    """Do to the file itself, which is gone, what happens to files: lost, emptied, renamed, something else instead."""
    match rng.randrange(7):
        case 0:
            path.write_bytes(b"")
        case 1:
            path.mkdir()
        case 2:
            os.symlink(path.name, path)
        case 3:
            path.with_name(rng.choice(("é", "a" * 200, "\udcff", " ", "-", "0")) + path.suffix).write_bytes(data)
        case 4 if path.suffix != ".toml":  # settings may be piped to a command
            os.mkfifo(path)
        case 5 if other.is_file():
            shutil.copy(other, path)


def _place(data: Sequence[Any], rng: random.Random) -> int:
    """Draw a place, as often near one of the ends, where headers and indices are, as anywhere."""
    place = int(len(data) * rng.random() ** rng.choice((1, 4)))
    return max(0, len(data) - 1 - place) if rng.random() < 0.3 else place


def _run(data: Sequence[Any], rng: random.Random) -> slice:
    start = _place(data, rng)
    return slice(start, start + rng.choice((1, 2, 4, 8, 64, max(1, len(data) // 4))))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[_place(changed, rng)] ^= rng.choice((1, 2, 4, 8, 16, 32, 64, 128, 255, rng.randrange(1, 256)))
    return bytes(changed)


def _put(data: bytes, place: int, rng: random.Random) -> bytes:
    """Overwrite with a number that readers may not expect."""
    layout = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(layout)
    number = struct.pack(layout, rng.choice(ODD_INTEGERS) % 2 ** (8 * size))
    return data[:place] + number + data[place + size :]


def _number(data: bytes, rng: random.Random) -> bytes:
    return _put(data, _place(data, rng), rng)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _remove(data: bytes, rng: random.Random) -> bytes:
    run = _run(data, rng)
    return data[: run.start] + data[run.stop :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    run = _run(data, rng)
    return data[: run.stop] + data[run] * rng.choice((1, 1, 3, 20)) + data[run.stop :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    place = _place(data, rng)
    return data[:place] + rng.randbytes(rng.choice((1, 2, 4, 8, 100))) + data[place:]


def _blank(data: bytes, rng: random.Random) -> bytes:
    run = _run(data, rng)
    return data[: run.start] + rng.choice((b"\0", b"\xff")) * len(data[run]) + data[run.stop :]


def _copy(data: bytes, rng: random.Random) -> bytes:
    part, place = data[_run(data, rng)], _place(data, rng)
    return data[:place] + part + data[place + len(part) :]


BYTES: tuple[Way, ...] = (_flip, _number, _cut, _remove, _repeat, _insert, _blank, _copy)


def _header(marks: Sequence[bytes]) -> Way:
    def near_a_mark(data: bytes, rng: random.Random) -> bytes:
        places = [match.start() for match in re.finditer(b"|".join(map(re.escape, marks)), data[:200_000])]
        place = max(0, rng.choice(places) + rng.randrange(-4, 48))
        if rng.random() < 0.5:
            return _put(data, place, rng)
        return data[:place] + bytes([data[place] ^ rng.randrange(1, 256)]) + data[place + 1 :]

    return near_a_mark


def _word(data: bytes, rng: random.Random) -> bytes:
    parts = re.split(rb"([\s,/=:\"]+)", data)
    parts[rng.randrange(len(parts))] = rng.choice(ODD_WORDS)
    return b"".join(parts)


def _line(data: bytes, rng: random.Random) -> bytes:
    """Drop, double, move or add a line."""
    lines = data.splitlines(keepends=True)
    line = lines.pop(rng.randrange(len(lines)))
    added = rng.choice(([], [line, line], [line], [line, rng.choice(ODD_WORDS) + b"\n"]))
    place = rng.randrange(len(lines) + 1)
    return b"".join([*lines[:place], *added, *lines[place:]])


def _separator(data: bytes, rng: random.Random) -> bytes:
    return data.replace(rng.choice((b"\n", b" ", b",", b"/")), rng.choice(SEPARATORS))


def _encoding(data: bytes, rng: random.Random) -> bytes:
    return data.decode().encode(rng.choice(ENCODINGS))


def tree(value: Any, rng: random.Random) -> Any:
    """Return nested lists and dicts with one place changed: another value, key or number of items."""
    if not isinstance(value, list | dict) or not value or rng.random() < 0.1:
        return rng.choice(ODD_VALUES)
    copy: Any = value.copy()
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    part = copy.pop(key)
    match rng.randrange(8):
        case 0:
            return copy
        case 1 if isinstance(copy, dict):
            return copy | {rng.choice(("", "a", "\0", "<script>", f"{key}2")): part}
    part = tree(part, rng)
    return copy | {key: part} if isinstance(copy, dict) else [*copy[:key], part, *copy[key:]]


def _json(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.02:
        return b"[" * 100_000
    return json.dumps(tree(json.loads(data), rng)).encode()


def _json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = _json(lines[place], rng)
    return b"\n".join([*lines, b""])


def _toml(data: bytes, rng: random.Random) -> bytes:
    return tomli_w.dumps(tree(tomllib.loads(data.decode()), rng)).encode()


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    about = header.get("__metadata__", {}).get("about")
    if about is not None and rng.random() < 0.4:
        header["__metadata__"]["about"] = json.dumps(tree(json.loads(about), rng))
    elif rng.random() < 0.8:
        header = tree(header, rng)
    else:
        rest = rng.choice(BYTES)(rest, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def _zip(data: bytes, rng: random.Random) -> bytes:
    """Change one member, and write an archive whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice(sorted(members))
    content = members.pop(chosen)
    if rng.random() < 0.8:
        members[chosen] = rng.choice(BYTES)(content, rng)
    elif rng.random() < 0.5:
        members[rng.choice(("../a", "/a", "a", "", "a" * 300))] = content
    with zipfile.ZipFile(made := io.BytesIO(), "w") as archive:
        for name, part in members.items():
            archive.writestr(zipfile.ZipInfo(name), part)
    return made.getvalue()


def _png(data: bytes, rng: random.Random) -> bytes:
    """Change, drop or double one chunk, and mend its checksum."""
    chunks, place = [], 8
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    number = 0 if rng.random() < 0.5 else rng.randrange(len(chunks))
    kind, body = chunks.pop(number)
    changed = rng.choice((_number, _number, *BYTES))(body, rng)
    chunks[number:number] = rng.choice(([(kind, changed)], [(kind, changed)], [(kind, body)] * 2, []))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return data[:8] + b"".join(packed)


def _parquet(data: bytes, rng: random.Random) -> bytes:
    """Change one column: its name, its type, its values; or the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    number = rng.randrange(table.num_columns)
    name, values = table.column_names[number], table.column(number).to_pylist()
    match rng.randrange(6):
        case 0:
            table = table.drop_columns(name)
        case 1:
            table = table.rename_columns([name.upper() if one == name else one for one in table.column_names])
        case 2:
            kind = rng.choice((pa.string(), pa.int64(), pa.int8(), pa.float32(), pa.bool_(), pa.binary(), pa.null()))
            table = table.set_column(number, name, table.column(number).cast(kind, safe=False))
        case 3:
            rows = [rng.randrange(len(table)) for _ in range(rng.choice((0, 1, len(table))))]
            table = table.take(pa.array(rows, pa.int64()))
        case 4:
            table = table.add_column(number, name, table.column(number))
        case _:
            values[rng.randrange(len(values))] = rng.choice((None, *ODD_VALUES))
            table = table.set_column(number, name, pa.array(values, table.schema.field(number).type))
    pq.write_table(table, made := io.BytesIO())
    return made.getvalue()


_TEXT: tuple[Way, ...] = (_word, _word, _word, _line, _line, _separator, _encoding)
WAYS: dict[str, tuple[Way, ...]] = {
    **{suffix: (_header(marks),) for suffix, marks in MARKS.items()},
    **dict.fromkeys((".txt", ".label"), _TEXT),
    ".json": (_json, _json, _word),
    ".jsonl": (_json_lines, _json_lines, *_TEXT),
    ".toml": (_toml, _toml, *_TEXT),
    ".parquet": (_parquet,),
    ".safetensors": (_safetensors,),
    **dict.fromkeys((".npz", ".pth", ".pt"), (_zip,)),
    ".png": (_png,),
}
