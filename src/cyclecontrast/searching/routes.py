"""The search page: a Starlette application, served by uvicorn on the loopback address.

Requests name frames and videos by number, never by path. Requests for another host, from pages of another origin, and
bodies of more than 32 MiB are refused, so that other web pages in the same browser cannot read anything.
Connections, requests and uploads at the same time are limited, and a request must arrive in time.
"""

import asyncio
import contextlib
import os
import re
import socket
import stat
import threading
import traceback
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, NamedTuple, NoReturn

import numpy as np
import uvicorn
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cyclecontrast.config.types import STRICT, SmallCount, read_toml
from cyclecontrast.data.images import decode_image
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import read_videos, read_videos_folder
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation.metrics import Floats
from cyclecontrast.searching.command import QueryEncoder
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.nearest import LoadedVectors, allowed_rows
from cyclecontrast.searching.results import Hit, Thumbnails, asset, index_summary, make_hit, make_hits, render

ADDRESS, DEFAULT_PORT = "127.0.0.1", 8765
HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?")
"""Any port, because the page may be forwarded from another machine."""
MAX_UPLOAD, MAX_UPLOADS = 32 * 2**20, 4
"""The bytes of an image, and how many images are in memory at the same time; others wait."""
MAX_REQUESTS, MAX_CONNECTIONS, BACKLOG = 64, 500, 200
"""Requests in progress, of which more get status 503, and open connections, of which more are closed.

A browser opens six. The backlog is also the number of connections that asyncio accepts before it looks at one.
"""
SECONDS_TO_REQUEST = 30.0
"""After this time, or at most twice as long, a connection that has not sent a whole request is closed."""
MAX_TOP = 200
NUM_SAMPLES = 12
"""Frames that the page offers to start from."""
SECONDS_TO_FINISH = 1
"""How long the server waits at its end for answers under way, such as a paused video."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
VIDEO_TYPES = {
    **dict.fromkeys((".mp4", ".m4v", ".mov"), "video/mp4"),
    **dict.fromkeys((".webm", ".mkv"), "video/webm"),
    **dict.fromkeys((".ogv", ".ogm"), "video/ogg"),
}
"""Containers that browsers may play; a browser may still lack the codec."""


class SourceVideo(NamedTuple):
    """A video file below a folder, and its size when its frames were extracted."""

    folder: Path
    path: Path
    size_bytes: int

    @property
    def problem(self) -> str:
        """Why it cannot be played, "" where it can."""
        try:
            status = self.path.stat()
            is_within = Path(os.path.realpath(self.path)).is_relative_to(os.path.realpath(self.folder))
        except (OSError, ValueError):
            return "the video no longer exists"
        if not is_within:
            return "a link leads out of the folder of videos"
        if not stat.S_ISREG(status.st_mode) or status.st_size != self.size_bytes:
            return "the video has changed"
        return "" if self.path.suffix.lower() in VIDEO_TYPES else f"browsers do not play {self.path.suffix}"


def find_source_videos(index: FrameIndex, store: FrameStore, folder: Path | None) -> tuple[dict[int, SourceVideo], str]:
    """Find the videos that the frames were extracted from, in `folder` or where their store or its run says.

    Returns them by their number in the index, and what the user can do where their folder is not known. Raises
    UserError where `folder` has none of them.
    """
    root = store.root
    if isinstance(root, str) or not (root / "videos.parquet").is_file():
        if folder is not None:
            raise UserError(f"videos: {root} is not a store that was prepared from videos here; leave out --videos")
        return {}, ""
    known_folder = folder or read_videos_folder(root)
    if known_folder is None and root.name == "frames":  # older stores name no folder, but the run that has made them
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known_folder = Path(read_toml(root.absolute().parent / "config.toml")["data"])
    if known_folder is None or not (folder or os.path.isdir(known_folder)):
        return {}, "To play the videos, name their folder: --videos FOLDER"
    rows = {row.id: row for row in read_videos(root / "videos.parquet")}
    videos = {
        number: SourceVideo(known_folder, known_folder / rows[video_id].path, rows[video_id].size_bytes)
        for number, video_id in enumerate(index.video_ids)
        if video_id in rows
    }
    if folder is not None and not any(video.path.is_file() for video in videos.values()):
        raise UserError(f"videos: {folder} has none of the {len(videos):,} videos that {root} was prepared from")
    return videos, ""


class SearchOptions(BaseModel):
    """The options of one search in the page."""

    model_config = STRICT
    top: Annotated[int, Field(ge=1, le=MAX_TOP)] = 24
    per_video: SmallCount | None = None
    other_videos: bool = False


class SearchService:
    """State of the search server, loaded once. Requests run in threads; searches run one at a time."""

    def __init__(
        self,
        index: FrameIndex,
        vectors: LoadedVectors,
        encoder: QueryEncoder,
        thumbnails: Thumbnails,
        videos: dict[int, SourceVideo],
        note: str,
    ) -> None:
        self.index, self.vectors, self.encoder, self.thumbnails = index, vectors, encoder, thumbnails
        self.videos, self.note = videos, note
        self._lock = threading.Lock()

    def search_image(self, data: bytes, options: SearchOptions) -> dict[str, Any]:
        """Return the frames most similar to an encoded image; raises UserError where it is not an image."""
        with self._lock:
            try:
                image = decode_image(data)
            except ValueError as error:
                raise UserError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from error
            began = perf_counter()
            return self._search(self.encoder.encode(image), None, options, began)

    def search_frame(self, row: int, options: SearchOptions) -> dict[str, Any]:
        """Return the frames most similar to one of the index; raises UserError where it has no such row."""
        if row >= len(self.index):
            raise UserError(f"frame: the index has {len(self.index):,} frames and no frame {row}")
        with self._lock:
            return self._search(self.vectors.vectors[row], row, options, perf_counter())

    def page(self) -> str:
        """Return the page as HTML."""
        return render(
            is_served=True,
            title="Find similar frames",
            facts=f"{index_summary(self.index)}, by {self.encoder.backbone.name}",
            num_rows=len(self.index),
            samples=self._samples(),
            note=self.note,
            has_videos=bool(self.videos),
            search=self.vectors.description,
        )

    def _samples(self) -> list[int]:
        """Return a row in the middle of each of some videos, from the first to the last."""
        numbers = np.unique(np.linspace(0, len(self.index.video_ids) - 1, NUM_SAMPLES).round())
        rows = [np.flatnonzero(self.index.video == number) for number in numbers]
        return [int(found[len(found) // 2]) for found in rows]

    def _search(self, query: Floats, row: int | None, options: SearchOptions, began: float) -> dict[str, Any]:
        allowed = allowed_rows(self.index.video, row, options.other_videos)
        found = self.vectors.search(query, allowed, options.top, options.per_video)
        frames = [self._plain(hit) for hit in make_hits(self.index, *found)]
        frame = None if row is None else self._plain(make_hit(self.index, row))
        return {"query": frame, "frames": frames, "seconds": perf_counter() - began}

    def _plain(self, hit: Hit) -> dict[str, Any]:
        number = int(self.index.video[hit.row])
        problem = self.videos[number].problem if number in self.videos else ""
        return {
            "row": hit.row,
            "similarity": hit.similarity,
            "video": hit.video,
            "frame": hit.frame,
            "moment": hit.moment,
            "time": hit.time,
            "playable": None if number not in self.videos or problem else number,
            "problem": problem,
        }


def make_app(service: SearchService) -> Starlette:
    """Return the web application of the page."""

    def search_frame(request: Request) -> Response:
        return JSONResponse(service.search_frame(_number(request), _options(request)))

    uploads = asyncio.Semaphore(MAX_UPLOADS)

    async def search_image(request: Request) -> Response:
        options = _options(request)
        async with uploads:
            return JSONResponse(await run_in_threadpool(service.search_image, await request.body(), options))

    def frame(request: Request) -> Response:
        row = _number(request)
        if row >= len(service.index):
            raise HTTPException(404)
        try:
            return Response(service.thumbnails.jpeg(row), media_type="image/jpeg")
        except UserError as error:
            raise HTTPException(404) from error

    def video(request: Request) -> Response:
        found = service.videos.get(_number(request))
        if found is None or found.problem:
            raise HTTPException(404)
        return FileResponse(found.path, media_type=VIDEO_TYPES[found.path.suffix.lower()])

    routes = [
        Route("/", lambda _: HTMLResponse(service.page())),
        Route("/page.js", lambda _: Response(asset("page.js"), media_type="text/javascript")),
        Route("/page.css", lambda _: Response(asset("page.css"), media_type="text/css")),
        Route("/favicon.ico", lambda _: Response(status_code=204)),
        Route("/search", search_image, methods=["POST"]),
        Route("/search/{number}", search_frame),
        Route("/frame/{number}", frame),
        Route("/video/{number}", video),
    ]
    handlers = {UserError: _show_problem, ClientDisconnect: _nobody_waits, Exception: _report_bug}
    return Starlette(
        routes=routes, middleware=[Middleware(_Gate)], exception_handlers=handlers, max_body_size=MAX_UPLOAD
    )


class _Gate:
    """Refuses requests of other sites, and too many at once, and adds the headers that keep other sites out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.num_requests = app, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._refusal(scope["path"], Headers(scope=scope)) or self.app
        self.num_requests += 1
        try:
            await app(scope, receive, send_with_headers)
        finally:
            self.num_requests -= 1

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        host, site = headers.get("host", ""), headers.get("sec-fetch-site", "none")
        if not HOST.fullmatch(host):
            return PlainTextResponse("Invalid host header", 400)
        is_link_to_page = path == "/" and headers.get("sec-fetch-mode") == "navigate"
        is_foreign = site not in ("none", "same-origin") and not is_link_to_page
        if is_foreign or any(origin.partition("://")[2] != host for origin in headers.getlist("origin")):
            return PlainTextResponse("Forbidden", 403)
        if self.num_requests >= MAX_REQUESTS:
            return PlainTextResponse("Too many requests at once", 503, {"Retry-After": "1"})
        return None


class _TimedProtocol(H11Protocol):
    """Speaks HTTP on a connection, and closes it if a request does not arrive in time, or there are too many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timer = self.loop.call_later(SECONDS_TO_REQUEST, self._close_if_slow, None)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.timer.cancel()

    def _close_if_slow(self, before: object) -> None:
        """Close the connection unless a request has come since the one `before`, or a whole one is being answered."""
        request = self.cycle
        is_answering = request is not None and not (request.more_body or request.response_complete)
        if request is before and not is_answering:
            self.transport.abort()
        else:
            self.timer = self.loop.call_later(SECONDS_TO_REQUEST, self._close_if_slow, request)


def _show_problem(_: Request, error: Exception) -> Response:
    return JSONResponse({"problem": str(error)})


def _nobody_waits(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


def _report_bug(_: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    return PlainTextResponse("Internal Server Error", 500)


def _number(request: Request) -> int:
    text = request.path_params["number"]
    if not (text.isascii() and text.isdecimal()) or len(text) > 12:
        raise HTTPException(404)
    return int(text)


def _options(request: Request) -> SearchOptions:
    return checked(SearchOptions, dict(request.query_params))


def bind(port: int | None) -> socket.socket:
    """Take a port of this machine: the one given, or the default or else a free one; raises UserError."""
    try:
        return socket.create_server((ADDRESS, DEFAULT_PORT if port is None else port))
    except OSError as error:
        if port is None:
            return socket.create_server((ADDRESS, 0))
        raise UserError(
            f"port: {port} cannot be used ({error.strerror}); choose another, or 0 for a free one"
        ) from error


def make_server(service: SearchService) -> uvicorn.Server:
    """Return the server of the page, which logs nothing."""
    config = uvicorn.Config(
        make_app(service),
        http=_TimedProtocol,
        ws="none",
        lifespan="off",
        backlog=BACKLOG,
        log_config=None,
        log_level="critical",  # else Ctrl-C during an answer prints a traceback
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    return uvicorn.Server(config)


def serve(listener: socket.socket, service: SearchService) -> NoReturn:
    """Serve the page until Ctrl-C: raises KeyboardInterrupt."""
    port = listener.getsockname()[1]
    print(f"search: http://{ADDRESS}:{port}/ ({service.vectors.description}; Ctrl-C to stop)", flush=True)
    try:
        make_server(service).run([listener])
    except KeyboardInterrupt:
        raise KeyboardInterrupt("server stopped") from None
    raise RuntimeError("the server stopped unexpectedly")
