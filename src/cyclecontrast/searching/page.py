"""The page of found frames: as one HTML file that loads nothing, or as the server sends it, with a script."""

import base64
import hashlib
import importlib.resources
import threading
from functools import cache
from pathlib import Path

import cv2
import jinja2
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import track

from cyclecontrast.config.types import is_url
from cyclecontrast.data.images import Pixels, resize_short_side
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.results import Results

THUMBNAIL_SIDE, MAX_ASPECT, JPEG_QUALITY = 240, 3, 85


class Thumbnails:
    """Small images of the frames of an index; threads may share it."""

    def __init__(self, index: FrameIndex, store: FrameStore) -> None:
        self.index, self.store = index, store
        numbers = pc.index_in(pa.array(index.video_ids, pa.string()), value_set=store.video_ids)
        self._numbers = numbers.fill_null(-1).to_numpy(zero_copy_only=False)
        self._lock = threading.Lock()

    def jpeg(self, row: int) -> bytes:
        """Return a JPEG of the frame of a row; raises UserError where it cannot be read."""
        video, frame = int(self._numbers[self.index.video[row]]), int(self.index.index[row])
        if video < 0 or frame >= self.store.frames_in(video):
            raise UserError(f"data: {self.store.root} has no such frame")
        with self._lock:  # threads must not share the open files of a store
            image = self.store.image(video, frame)
        return thumbnail(image)


def open_thumbnails(index: FrameIndex, data: Path | str | None) -> Thumbnails:
    """Open the frames that an index was made from, where it says or at `data`; raises UserError.

    Frames that only the file names must be on this machine: an index must not cause a download.
    """
    place = data or index.about.get("data", "")
    if not place:
        raise UserError(f"data: {index.path} does not say where its frames are; name them: --data DATA")
    if data is None and is_url(place):
        raise UserError(f"data: {index.path} was made from {place}; to allow the download: --data {place}")
    if not is_url(place) and not Path(place).is_dir():
        raise UserError(f"data: {place}, with the frames of {index.path}, is gone; say where it is: --data DATA")
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
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be written as JPEG")
    return data.tobytes()


def write_page(path: Path, results: Results, query: Pixels | int, thumbnails: Thumbnails) -> None:
    """Write the results as one HTML file with their images inside; `query` is an image or a row of the index."""
    console = Console(stderr=True)
    hits = track(results.hits, "images", console=console, disable=not console.is_terminal, transient=True)
    cards = [(hit, *_image_source(hit.row, thumbnails)) for hit in hits]
    source, _ = (_data_url(thumbnail(query)), "") if not isinstance(query, int) else _image_source(query, thumbnails)
    facts = index_summary(thumbnails.index)
    title = f"Most similar to {results.query}"
    page = render(is_served=False, title=title, query=source, cards=cards, facts=facts)
    with replacing(path) as aside:
        aside.write_bytes(page.encode("utf-8", "replace"))


def _image_source(row: int, thumbnails: Thumbnails) -> tuple[str, str]:
    """Return the data URL of a frame and "", or "" and why it cannot be read."""
    try:
        return _data_url(thumbnails.jpeg(row)), ""
    except UserError as error:
        return "", str(error)


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def render(**values: object) -> str:
    """Return the page as HTML; every value is escaped."""
    style = asset("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(asset("page.html")).render(style=style, style_digest=digest, **values)


@cache
def asset(name: str) -> str:
    """Return a file of the page: its template, style sheet or script."""
    return (importlib.resources.files("cyclecontrast.searching") / name).read_text("utf-8")


def index_summary(index: FrameIndex) -> str:
    """Return how many frames of how many videos an index has."""
    videos = len(index.video_ids)
    return f"{len(index):,} frames of {videos:,} video{'' if videos == 1 else 's'} in {index.path.name}"
