"""A server for the browsers of this machine alone, until Ctrl-C."""

import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, NoReturn
from urllib.parse import SplitResult, parse_qsl, urlsplit

from cyclecontrast.errors import UserError, checked
from cyclecontrast.searching.byte_ranges import Range, asked_range
from cyclecontrast.searching.page import asset, render_served
from cyclecontrast.searching.site import Asked, Site

ADDRESS, DEFAULT_PORT = "127.0.0.1", 8765
OWN_NAMES = {"127.0.0.1", "localhost"}
MOST_UPLOADED = 32 * 2**20
AT_ONCE = 2**18
LONGEST_SILENCE = 60
"""Seconds that a connection may say and take nothing."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ALWAYS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
ASSETS = {"/page.js": "text/javascript; charset=utf-8", "/page.css": "text/css; charset=utf-8"}


class LocalServer(ThreadingHTTPServer):
    """Listens to this machine; it has a site once that is open."""

    site: Site

    def server_bind(self) -> None:
        """Take the port, and ask no network for this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.socket.getsockname()[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that went away; all else is a bug."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def bind(port: int | None) -> LocalServer:
    """Take a port: the one asked for, or the usual or else a free one; raises UserError where it is taken."""
    try:
        return LocalServer((ADDRESS, DEFAULT_PORT if port is None else port), _Handler)
    except OSError as error:
        if port is None:
            return LocalServer((ADDRESS, 0), _Handler)
        raise UserError(f"port: {port} cannot be taken ({error.strerror}); name another, or 0") from error


def serve(server: LocalServer, site: Site) -> NoReturn:
    """Answer until interrupted: raises KeyboardInterrupt with a word of goodbye."""
    server.site = site
    print(f"search: http://{ADDRESS}:{server.server_port}/ ({site.engine.line}; Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the page is closed") from None
    raise RuntimeError("the server has ended by itself")


class _RefusedError(Exception):
    """A request that no page of ours makes."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    server_version, sys_version = "cyclecontrast", ""
    protocol_version = "HTTP/1.1"
    timeout = LONGEST_SILENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""

    def _answer(self, action: Callable[[], None]) -> None:
        """Answer what a page of ours asks: another that has made a name of its own lead here is refused."""
        try:
            host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
            if _name_of(host) not in OWN_NAMES or (origin is not None and _parts(origin).netloc != host):
                raise _RefusedError(HTTPStatus.FORBIDDEN)
            action()
        except _RefusedError as refused:
            self.close_connection = True
            self._send(f"{refused}\n".encode(), "text/plain; charset=utf-8", refused.status)

    def _get(self) -> None:
        place = _parts(self.path)
        if not place.path.startswith("/"):
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        _, kind, *rest = place.path.split("/")
        if place.path == "/":
            self._send(render_served(self.server.site).encode(), "text/html; charset=utf-8")
        elif place.path in ASSETS:
            self._send(asset(place.path[1:]).encode(), ASSETS[place.path])
        elif place.path == "/favicon.ico":
            self._send(b"", "image/x-icon", HTTPStatus.NO_CONTENT)
        elif kind == "search" and len(rest) == 1:
            self._tell(lambda: self.server.site.by_frame(_number(rest[0]), self._asked()))
        elif kind == "frame" and len(rest) == 1:
            self._send_picture(_number(rest[0]))
        elif kind == "video" and len(rest) == 1:
            self._send_video(_number(rest[0]))
        else:
            raise _RefusedError(HTTPStatus.NOT_FOUND)

    def _post(self) -> None:
        if _parts(self.path).path != "/search":
            raise _RefusedError(HTTPStatus.NOT_FOUND)
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED)
        if len(length) > 12 or int(length) > MOST_UPLOADED:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        data = self.rfile.read(int(length))
        self._tell(lambda: self.server.site.by_image(data, self._asked()))

    def _asked(self) -> Asked:
        return checked(Asked, dict(parse_qsl(_parts(self.path).query)))

    def _tell(self, action: Callable[[], dict[str, Any]]) -> None:
        """Send what was found, or in a line what the user can mend."""
        try:
            told = action()
        except UserError as error:
            told = {"problem": str(error)}
        self._send(json.dumps(told).encode(), "application/json")

    def _send_picture(self, row: int) -> None:
        try:
            data = self.server.site.picture(row)
        except UserError as error:
            raise _RefusedError(HTTPStatus.NOT_FOUND) from error
        self._send(data, "image/jpeg")

    def _send_video(self, number: int) -> None:
        """Send a video, or the part of it that is asked for."""
        try:
            video = self.server.site.video(number)
            file = video.open()
        except (UserError, OSError) as error:
            raise _RefusedError(HTTPStatus.NOT_FOUND) from error
        with file:
            size = video.size_bytes
            part = asked_range(self.headers.get("Range"), size)
            if part is None:
                self._begin(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"}, 0)
                return
            about = {"Content-Type": video.kind, "Accept-Ranges": "bytes"}
            if part.is_partial:
                about["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size}"
            status = HTTPStatus.PARTIAL_CONTENT if part.is_partial else HTTPStatus.OK
            self._begin(status, about, part.end - part.start)
            if self.command != "HEAD":
                self._copy(file, part)

    def _copy(self, file: Any, part: Range) -> None:
        file.seek(part.start)
        left = part.end - part.start
        while left:
            data = file.read(min(AT_ONCE, left))
            if not data:  # the file was cut meanwhile: what was promised cannot be sent
                self.close_connection = True
                return
            self.wfile.write(data)
            left -= len(data)

    def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._begin(status, {"Content-Type": kind}, len(data))
        if self.command != "HEAD" and data:
            self.wfile.write(data)

    def _begin(self, status: HTTPStatus, about: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in (ALWAYS | about).items():
            self.send_header(name, value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def _parts(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise _RefusedError(HTTPStatus.BAD_REQUEST) from error


def _name_of(host: str) -> str:
    """Return a host without its port, which differs where a tunnel leads here."""
    return host.rpartition(":")[0] if ":" in host else host


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 12:
        raise _RefusedError(HTTPStatus.NOT_FOUND)
    return int(text)
