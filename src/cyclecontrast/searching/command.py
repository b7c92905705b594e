"""The command `search`: the frames most similar to a query, printed, as a page, or interactively in the browser."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cyclecontrast.config import SearchConfig
from cyclecontrast.data.images import Pixels, load_image
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.files import check_folder
from cyclecontrast.searching.encoder import open_encoder
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.nearest import allowed_rows, check_faiss, load_vectors, nearest_rows
from cyclecontrast.searching.page import open_thumbnails, write_page
from cyclecontrast.searching.results import Results, frame_name, make_hits

if TYPE_CHECKING:
    from cyclecontrast.searching.routes import SearchService


def run_search(config: SearchConfig) -> Results:
    """Search once, or serve the page until interrupted; raises UserError with all problems, writing nothing."""
    if config.serve:
        _serve(config)
    problems: list[str] = []
    attempt(lambda: _check_page(config.html), problems)
    image = attempt(lambda: _load(config.image), problems)
    index = attempt(lambda: FrameIndex.open(config.index), problems)
    if index is None:
        raise UserError(*problems)
    row = attempt(lambda: _find_row(config, index), problems)
    thumbnails = attempt(lambda: open_thumbnails(index, config.data), problems) if config.html else None
    encoder = attempt(lambda: open_encoder(index, config.model, config.device), problems) if config.image else None
    if problems:
        raise UserError(*problems)
    shown: Pixels | int
    if config.image is not None and image is not None and encoder is not None:
        query, name, shown = encoder.encode(image), config.image.name, image
    elif row is not None:
        query, name, shown = index.vector(row), frame_name(index, row), row
    else:
        raise ValueError("the config has neither an image nor a frame")
    blocks, allowed = index.blocks_with_progress("searching"), allowed_rows(index.video, row, config.other_videos)
    found = nearest_rows(query, blocks, index.video, allowed, config.top, config.per_video)
    results = Results(name, make_hits(index, *found), config.format, config.html)
    if config.html is not None and thumbnails is not None:
        write_page(config.html, results, shown, thumbnails)
    return results


def _check_page(page: Path | None) -> None:
    if page is None:
        return
    if page.is_dir():
        raise UserError(f"html: {page} is a folder; name a file to write")
    check_folder(page.absolute().parent)


def _load(image: Path | None) -> Pixels | None:
    return None if image is None else load_image(image)


def _find_row(config: SearchConfig, index: FrameIndex) -> int | None:
    if config.video is None:
        return None
    if config.frame is not None:
        return index.row_of_frame(config.video, config.frame)
    return index.row_at(config.video, config.time or 0.0)


def _serve(config: SearchConfig) -> NoReturn:
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise UserError("serve: needs Starlette and uvicorn; pip install 'cyclecontrast[search]'")
    from cyclecontrast.searching.routes import bind, serve

    with bind(config.port) as listener:
        serve(listener, open_service(config))


def open_service(config: SearchConfig) -> "SearchService":
    """Load all that the page needs; raises UserError with all problems."""
    from cyclecontrast.searching.routes import SearchService, find_source_videos

    problems: list[str] = []
    if config.faiss:
        attempt(check_faiss, problems)
    index = attempt(lambda: FrameIndex.open(config.index), problems)
    if index is None:
        raise UserError(*problems)
    thumbnails = attempt(lambda: open_thumbnails(index, config.data), problems)
    encoder = attempt(lambda: open_encoder(index, config.model, config.device), problems)
    videos = None
    if thumbnails is not None:
        videos = attempt(lambda: find_source_videos(index, thumbnails.store, config.videos), problems)
    if thumbnails is None or encoder is None or videos is None or problems:
        raise UserError(*problems)
    return SearchService(index, load_vectors(index, config.faiss), encoder, thumbnails, *videos)
