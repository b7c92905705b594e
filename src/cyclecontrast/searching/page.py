"""The page of pictures: as one file that needs nothing else, or as the server gives it, with a script that asks."""

import base64
import hashlib
import importlib.resources
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import jinja2
from rich.console import Console
from rich.progress import track

from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing
from cyclecontrast.searching.pictures import Pictures, jpeg_of
from cyclecontrast.searching.queries import Query
from cyclecontrast.searching.results import Hit, Results

if TYPE_CHECKING:
    from cyclecontrast.searching.site import Site


class Card(NamedTuple):
    """A frame that was found, and its picture as a data address, or why there is none."""

    hit: Hit
    source: str
    problem: str


def write_page(results: Results, query: Query, image: Pixels | None, pictures: Pictures) -> None:
    """Write the results with their pictures as one HTML file, in one piece."""
    if results.page is None:
        raise ValueError("no page is asked for")
    console = Console(stderr=True)
    watched = track(results.hits, "pictures", console=console, disable=not console.is_terminal, transient=True)
    cards = [_card(hit, pictures) for hit in watched]
    asked = _data_address(jpeg_of(image)) if image is not None else _card_source(query, pictures)
    page = _render(served=False, title=f"Most like {query.name}", query=asked, cards=cards, facts=_facts(pictures))
    with replacing(results.page) as aside:
        aside.write_bytes(page.encode("utf-8", "replace"))


def render_served(site: "Site") -> str:
    """Return the page that asks the server."""
    facts = f"{_facts(site.pictures)}, by {site.encoder.backbone.name}"
    return _render(
        served=True,
        title="Find the frames most like this one",
        facts=facts,
        num_rows=len(site.index),
        note=site.sources.problem,
        plays=bool(site.sources.videos),
        engine=site.engine.line,
    )


@cache
def asset(name: str) -> str:
    """Return the style sheet or the script of the page."""
    return (importlib.resources.files("cyclecontrast.searching") / name).read_text("utf-8")


def _render(**values: object) -> str:
    style = asset("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(asset("page.html")).render(style=style, style_digest=digest, **values)


def _facts(pictures: Pictures) -> str:
    index = pictures.index
    videos = len(index.video_ids)
    return f"{len(index):,} frames of {videos:,} video{'' if videos == 1 else 's'} in {index.path.name}"


def _card(hit: Hit, pictures: Pictures) -> Card:
    try:
        return Card(hit, _data_address(pictures.jpeg(hit.row)), "")
    except UserError as error:
        return Card(hit, "", str(error))


def _card_source(query: Query, pictures: Pictures) -> str:
    try:
        return _data_address(pictures.jpeg(query.row if query.row is not None else 0))
    except UserError:
        return ""


def _data_address(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
