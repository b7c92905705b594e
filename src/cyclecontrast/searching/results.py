"""The frames that a search found: as a table, as JSON, or as an HTML page, which the server sends with a script."""

import base64
import hashlib
import importlib.resources
import io
import json
import math
import shutil
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from cyclecontrast.config.types import is_url
from cyclecontrast.data.images import Pixels, resize_short_side
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError, explained
from cyclecontrast.evaluation.metrics import Floats, Integers
from cyclecontrast.files import atomic_write
from cyclecontrast.output import html_environment, join_lines, printable, quoted
from cyclecontrast.searching.index import FrameIndex

THUMBNAIL_SIDE, MAX_ASPECT, JPEG_QUALITY = 240, 3, 85
MAX_WIDTH = 4096
"""Columns of a table that goes to a file or a pipe: long ids are not broken there."""


class Hit(NamedTuple):
    """A frame that was found: its row in the index, its rank from 1, and its cosine similarity to the query.

    `time` is in seconds, None where the index does not know it.
    """

    row: int
    rank: int
    similarity: float
    video: str
    frame: int
    time: float | None

    @property
    def moment(self) -> str:
        """Its time in the video as h:mm:ss.s, or its frame number."""
        return moment(self.time, self.frame)


@dataclass(frozen=True)
class Results:
    """The frames most similar to a query, the most similar first; `str` is the output of the command."""

    query: str
    hits: tuple[Hit, ...]
    format: str = "table"
    page: Path | None = None

    def __str__(self) -> str:
        if self.format == "json":
            frames = [{name: value for name, value in hit._asdict().items() if name != "row"} for hit in self.hits]
            return json.dumps({"query": self.query, "frames": frames}, indent=2)
        found = _table(self.hits).split("\n") if self.hits else ["no other frames"]
        return join_lines([f"most similar to {self.query}", *found, *([f"page: {self.page}"] if self.page else [])])


def make_hits(index: FrameIndex, rows: Integers, similarities: Floats) -> tuple[Hit, ...]:
    """Return the frames of rows, ranked in this order."""
    pairs = zip(rows.tolist(), similarities.tolist(), strict=True)
    return tuple(make_hit(index, row, rank, similarity) for rank, (row, similarity) in enumerate(pairs, start=1))


def make_hit(index: FrameIndex, row: int, rank: int = 0, similarity: float = 1.0) -> Hit:
    """Return the frame of a row; the query itself has rank 0 and similarity 1."""
    time = float(index.time[row])
    video = index.video_ids[index.video[row]]
    return Hit(row, rank, similarity, video, int(index.index[row]), None if math.isnan(time) else time)


def frame_name(index: FrameIndex, row: int) -> str:
    """Return such as `cats.mp4 at 0:01:02.5`."""
    hit = make_hit(index, row)
    return f"{hit.video} at {hit.moment}" if hit.time is not None else f"{hit.video}, {hit.moment}"


def moment(time: float | None, frame: int) -> str:
    """Return h:mm:ss.s, or the frame's index where its time is not known."""
    if time is None:
        return f"frame {frame}"
    tenths = round(10 * time)
    sign = "-" if tenths < 0 else ""
    minutes, tenths = divmod(abs(tenths), 600)
    return f"{sign}{minutes // 60}:{minutes % 60:02}:{tenths / 10:04.1f}"


def _table(hits: Sequence[Hit]) -> str:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("rank", "similarity", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("video", overflow="fold")
    for hit in hits:
        texts = (str(hit.rank), f"{hit.similarity:.3f}", hit.moment, printable(hit.video))
        table.add_row(*(Text(text) for text in texts))
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None where the caller closed it
    written = io.StringIO()
    Console(
        file=written, width=shutil.get_terminal_size().columns if is_terminal else MAX_WIDTH, color_system=None
    ).print(table)
    return "\n".join(line.rstrip() for line in written.getvalue().rstrip("\n").split("\n"))


# --- the page


class Thumbnails:
    """Small images of the frames of an index; threads may share it."""

    def __init__(self, index: FrameIndex, store: FrameStore) -> None:
        self.index, self.store = index, store
        numbers = pc.index_in(pa.array(index.video_ids, pa.string()), value_set=store.video_ids)
        self._numbers = numbers.fill_null(-1).to_numpy(zero_copy_only=False)
        self._lock = threading.Lock()

    def frame(self, row: int) -> tuple[int, int]:
        """Return the number in the store of the video of a row, and the frame's index; raises UserError."""
        video, frame = int(self._numbers[self.index.video[row]]), int(self.index.index[row])
        if video < 0 or frame >= self.store.frames_in(video):
            raise UserError(f"data: {self.store.root} has no such frame")
        return video, frame

    def image(self, row: int) -> Pixels:
        """Return the decoded frame of a row; raises UserError if it cannot be read."""
        try:
            with self._lock:  # threads must not share the open files of a store
                return self.store.image(*self.frame(row))
        except OSError as error:
            raise UserError(explained(error)) from error

    def jpeg(self, row: int) -> bytes:
        """Return a small JPEG of the frame of a row; raises UserError if it cannot be read."""
        return thumbnail(self.image(row))


def open_thumbnails(index: FrameIndex, data: Path | str | None) -> Thumbnails:
    """Return thumbnails of the indexed frames, read from `data` or from the path in the index. Raises UserError.

    A path from the index must be local, because an index must not cause a download.
    """
    place = data or index.about.get("data", "")
    if not place:
        raise UserError(f"data: {index.path} does not contain the path of its frames; pass it with --data DATA")
    if data is None and is_url(place):
        raise UserError(f"data: {index.path} was made from {place}; to allow the download: --data {quoted(place)}")
    if not is_url(place) and not Path(place).is_dir():
        raise UserError(
            f"data: {place}, with the frames of {index.path}, no longer exists; pass the new path with --data DATA"
        )
    store = FrameStore.open(place)
    known = index.about.get("data_fingerprint", "")
    if store.fingerprint != known:
        raise UserError(
            f"data: {place} is not the data that {index.path} was made from (fingerprint {store.fingerprint}, not "
            f"{known or 'known'}); name the right one with --data, or run `cyclecontrast embed` again"
        )
    return Thumbnails(index, store)


def thumbnail(image: Pixels) -> bytes:
    """Return an RGB image (height, width, 3) as a small JPEG; the ends of a long strip are cropped."""
    longest = MAX_ASPECT * min(image.shape[:2])
    top, left = (max(0, side - longest) // 2 for side in image.shape[:2])
    image = image[top : top + longest, left : left + longest]
    if min(image.shape[:2]) > THUMBNAIL_SIDE:
        image = resize_short_side(image, THUMBNAIL_SIDE)
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def write_page(path: Path, results: Results, query: Pixels | int, thumbnails: Thumbnails) -> None:
    """Write the results as one HTML file with their images inside; `query` is an image or a row of the index."""
    console = Console(stderr=True)
    hits = track(results.hits, "images", console=console, disable=not console.is_terminal, transient=True)
    cards = [(hit, *_image_source(hit.row, thumbnails)) for hit in hits]
    page = render(
        is_served=False,
        title=f"Most similar to {results.query}",
        query=_image_source(query, thumbnails)[0],
        cards=cards,
        facts=index_summary(thumbnails.index),
    )
    with atomic_write(path) as aside:
        aside.write_bytes(page.encode("utf-8", "replace"))


def _image_source(image: Pixels | int, thumbnails: Thumbnails) -> tuple[str, str]:
    """Return the data URL of an image or of the frame of a row, and ""; or "" and why it cannot be read."""
    try:
        jpeg = thumbnails.jpeg(image) if isinstance(image, int) else thumbnail(image)
    except UserError as error:
        return "", str(error)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}", ""


def render(**values: object) -> str:
    """Return the page as HTML; every value is escaped."""
    style = asset("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return html_environment().from_string(asset("page.html")).render(style=style, style_digest=digest, **values)


@cache
def asset(name: str) -> str:
    """Return a file of the page: its template, style sheet or script."""
    return (importlib.resources.files("cyclecontrast.searching") / name).read_text("utf-8")


def index_summary(index: FrameIndex) -> str:
    """Return how many frames of how many videos an index has."""
    videos = len(index.video_ids)
    return f"{len(index):,} frames of {videos:,} video{'' if videos == 1 else 's'} in {index.path.name}"
