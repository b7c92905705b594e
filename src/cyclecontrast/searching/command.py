"""Options → the frames that are most like a query: printed, as a page, or by a server that is asked in the browser."""

from pathlib import Path

from rich.console import Console

from cyclecontrast.config import SearchConfig
from cyclecontrast.data.images import Pixels, load_image
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.files import check_folder
from cyclecontrast.searching.engines import check_faiss, make_engine
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.nearest import Wanted, allowed_rows, nearest_rows
from cyclecontrast.searching.page import write_page
from cyclecontrast.searching.pictures import open_pictures
from cyclecontrast.searching.queries import Encoder, Query, load_encoder, model_of
from cyclecontrast.searching.results import Results, hits_of, name_of
from cyclecontrast.searching.server import bind, serve
from cyclecontrast.searching.site import Site
from cyclecontrast.searching.source_videos import find_sources


def run_search(config: SearchConfig) -> Results:
    """Search once, or serve a page until interrupted; raises UserError with all that is wrong, writing nothing."""
    if config.serve:
        with bind(config.port) as server:
            serve(server, open_site(config))
    return _search_once(config)


def _search_once(config: SearchConfig) -> Results:
    problems: list[str] = []
    attempt(lambda: _check_page(config.html), problems)
    image = attempt(lambda: _load(config.image), problems)
    index = attempt(lambda: FrameIndex.open(config.index), problems)
    if index is None:
        raise UserError(*problems)
    row = attempt(lambda: _row(config, index), problems)
    pictures = attempt(lambda: open_pictures(index, config.data), problems) if config.html is not None else None
    encoder = attempt(lambda: _open_encoder(config, index), problems) if config.image is not None else None
    if problems:
        raise UserError(*problems)
    if config.image is not None and encoder is not None and image is not None:
        query = Query(encoder.vector(image), config.image.name)
    else:
        query = _frame_query(index, row)
    wanted = Wanted(config.top, config.per_video, allowed_rows(index.video, row, config.other_videos))
    nearest = nearest_rows(query.vector, index.blocks("searching"), index.video, wanted)
    results = Results(query.name, hits_of(index, nearest), config.format, config.html)
    if pictures is not None:
        write_page(results, query, image, pictures)
    return results


def open_site(config: SearchConfig) -> Site:
    """Open all that a page may ask for; raises UserError with all that is wrong."""
    problems: list[str] = []
    if config.faiss:
        attempt(check_faiss, problems)
    index = attempt(lambda: FrameIndex.open(config.index), problems)
    if index is None:
        raise UserError(*problems)
    pictures = attempt(lambda: open_pictures(index, config.data), problems)
    encoder = attempt(lambda: _open_encoder(config, index), problems)
    sources = None
    if pictures is not None:
        sources = attempt(lambda: find_sources(index, pictures.store, config.videos), problems)
    if pictures is None or encoder is None or sources is None or problems:
        raise UserError(*problems)
    return Site(index, make_engine(index, config.faiss), encoder, pictures, sources)


def _check_page(page: Path | None) -> None:
    if page is None:
        return
    if page.is_dir():
        raise UserError(f"html: {page} is a folder; name a file to write")
    check_folder(page.absolute().parent)


def _load(image: Path | None) -> Pixels | None:
    return None if image is None else load_image(image)


def _row(config: SearchConfig, index: FrameIndex) -> int | None:
    if config.video is None:
        return None
    if config.frame is not None:
        return index.row_of_frame(config.video, config.frame)
    return index.row_at(config.video, config.time or 0.0)


def _open_encoder(config: SearchConfig, index: FrameIndex) -> Encoder:
    model = model_of(index, config.model)
    console = Console(stderr=True)
    with console.status("loading the model"):
        return load_encoder(index, model, config.device)


def _frame_query(index: FrameIndex, row: int | None) -> Query:
    if row is None:
        raise ValueError("neither an image nor a frame is asked for")
    return Query(index.vector(row), name_of(index, row), row)
