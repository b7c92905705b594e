"""The search page: what its server answers and refuses, and what people see and do in a real browser."""

import contextlib
import csv
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import expect

from cyclecontrast.config import EmbedConfig, PrepareConfig, SearchConfig
from cyclecontrast.data.prepare import prepare
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import embed
from cyclecontrast.searching.command import open_service
from tests import make_videos as make
from tests.browser import DESKTOP, PHONE, chromium, opened, overflow
from tests.unit.searching.test_search import MODEL, rows_of

routes = pytest.importorskip("cyclecontrast.searching.routes", reason="needs the extra: search")
SearchOptions = routes.SearchOptions

NAMES = (
    "<img src=x onerror=alert(1)>.mp4",
    "🦊 שלום ‮ עולם.mp4",
    f"{'w' * 200}.mp4",
    "night/plain.mp4",
    "night/raw.avi",
)
NOT_AN_IMAGE = b"GIF89a" + bytes(20)


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Videos with hostile names, one in a format that browsers do not play, and the index of their frames."""
    root = tmp_path_factory.mktemp("footage")
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (8, 4, 6, 3), np.uint8)
        images = [cv2.resize(image, (96, 64), interpolation=cv2.INTER_NEAREST) for image in coarse]
        make.write_images(path, images, rate=2)
    prepare(PrepareConfig(videos=root / "videos", out=root / "frames", every=1, workers=0))
    settings = {"image_size": 32, "workers": 0, "device": "cpu"}
    embed(EmbedConfig(model=MODEL, data=root / "frames", out=root / "index.parquet", **settings))
    frame = cv2.resize(rng.integers(0, 256, (4, 6, 3), np.uint8), (96, 64), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(root / "query.png"), frame)
    (root / "damaged.gif").write_bytes(NOT_AN_IMAGE)
    return root


@contextmanager
def served(root, **settings):
    """Serve a page from a thread and give its address."""
    options = {"index": root / "index.parquet", "serve": True, "device": "cpu", **settings}
    service = open_service(SearchConfig(**options))
    server = routes.make_server(service)
    with routes.bind(0) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield address, service
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def page(footage):
    """The address of the page over that footage, and its service."""
    with served(footage, videos=footage / "videos") as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    """A real browser."""
    with chromium() as started:
        yield started


def request(address, place, method="GET", body=None, **headers):
    """Send a request by hand; returns status, headers and body."""
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=20)
    connection.request(method, place, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), data


# --- the server


def test_an_uploaded_image_finds_its_frames(page, footage):
    """Frames and similarities follow from the vectors in the file, and each frame has a thumbnail."""
    address, service = page
    frame = service.thumbnails.store.image(0, 2)
    data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes()
    answer = json.loads(request(address, "/search?top=9", "POST", data)[2])
    names, unit = rows_of(footage / "index.parquet")
    row = names.index((service.thumbnails.store.video_id(0), 2))
    order = np.argsort(-(unit @ unit[row]))[:9]
    assert [found["row"] for found in answer["frames"]] == order.tolist()
    np.testing.assert_allclose(
        [found["similarity"] for found in answer["frames"]], (unit @ unit[row])[order], atol=1e-5
    )
    status, headers, picture = request(address, f"/frame/{row}")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    shown = cv2.cvtColor(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(shown.astype(int) - frame).mean() < 8


def test_a_frame_finds_other_frames(page, footage):
    """Without itself, and if requested without its video and with a limit per video."""
    address, _ = page
    names, _ = rows_of(footage / "index.parquet")
    answer = json.loads(request(address, "/search/5?top=100")[2])
    assert sorted(found["row"] for found in answer["frames"]) == [row for row in range(len(names)) if row != 5]
    assert answer["query"]["video"] == names[5][0]
    answer = json.loads(request(address, "/search/5?top=100&per_video=2&other_videos=true")[2])
    videos = [found["video"] for found in answer["frames"]]
    assert sorted(videos) == sorted(2 * list({name for name, _ in names} - {names[5][0]}))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/search/40", "the index has 40 frames and no frame 40"),
        ("/search/1?top=0", "top: input should be greater than or equal to 1"),
        ("/search/1?top=9999", "top: input should be less than or equal to 200"),
        ("/search/1?path=/etc/passwd", "unknown option path"),
    ],
)
def test_wrong_options_are_reported(page, place, words):
    """In a line that the page shows."""
    status, _, data = request(page[0], place)
    assert status == 200
    assert words in json.loads(data)["problem"]


def test_files_that_are_not_images_are_reported(page):
    """A damaged image, an empty one and one that claims too many pixels each give a line, and the server goes on."""
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big") + bytes(4) + b"IDAT" + bytes(9)
    for data, words in ((NOT_AN_IMAGE, "image"), (b"", "is empty"), (huge, "pixels"), (b"<svg/>", "unknown format")):
        problem = json.loads(request(page[0], "/search", "POST", data)[2])["problem"]
        assert words in problem
        assert "\n" not in problem
    assert "frames" in json.loads(request(page[0], "/search/0")[2])


@pytest.mark.parametrize(
    ("place", "method", "headers", "status"),
    [
        ("/", "GET", {"Host": "evil.example"}, 400),
        ("/search/1", "GET", {"Host": "evil.example:8765"}, 400),
        ("/", "GET", {"Host": "127.0.0.1.evil.example"}, 400),
        ("/", "GET", {"Host": "127.0.0.1@evil.example"}, 400),
        ("/", "GET", {"Host": "127.0.0.1:80@evil.example"}, 400),
        ("/", "GET", {"Host": "name:word@127.0.0.1"}, 400),
        ("/", "GET", {"Host": "127.0.0.1:evil"}, 400),
        ("/", "GET", {"Host": ""}, 400),
        ("/", "GET", {"Host": "localhost:9000"}, 200),
        ("/", "GET", {"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),
        ("/search/1", "GET", {"Origin": "https://evil.example"}, 403),
        ("/search", "POST", {"Origin": "https://evil.example"}, 403),
        ("/search", "POST", {"Origin": "null"}, 403),
        ("/search", "POST", {"Origin": "http://["}, 403),
        ("/search/1", "GET", {"Sec_Fetch_Site": "cross-site"}, 403),
        ("/frame/1", "GET", {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"}, 403),
        ("/video/0", "GET", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 403),
        ("/", "GET", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}, 403),
        ("/", "GET", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),
        ("/search/1", "GET", {"Sec_Fetch_Site": "same-origin"}, 200),
        ("/search/1", "GET", {"Sec_Fetch_Site": "none"}, 200),
        ("/search", "POST", {"Content_Length": str(33 * 2**20)}, 413),
        ("/search", "POST", {"Content_Length": "9" * 5000}, 400),
        ("/search", "POST", {"Content_Length": "-1"}, 400),
        ("/search", "GET", {}, 405),
        ("/", "POST", {}, 405),
        ("http://[", "GET", {}, 404),
        ("http://evil.example/search/1", "GET", {}, 404),
        ("evil.example:443", "CONNECT", {}, 404),
        ("*", "GET", {}, 404),
        ("/../../etc/passwd", "GET", {}, 404),
        ("//etc/passwd", "GET", {}, 404),
        ("/page.html", "GET", {}, 404),
        ("/routes.py", "GET", {}, 404),
        ("/frame/..%2f..%2fetc%2fpasswd", "GET", {}, 404),
        ("/video/..%2f..%2fetc%2fpasswd", "GET", {}, 404),
        ("/frame/-1", "GET", {}, 404),
        ("/frame/1e3", "GET", {}, 404),
        ("/frame/%D9%A3", "GET", {}, 404),
        ("/frame/40", "GET", {}, 404),
        ("/frame/" + "1" * 5000, "GET", {}, 404),
        ("/video/99", "GET", {}, 404),
        ("/video/0/../1", "GET", {}, 404),
    ],
)
def test_foreign_requests_are_refused(page, place, method, headers, status):
    """Other hosts, other origins, large bodies, and whatever is not the number of a frame or a video."""
    connection = http.client.HTTPConnection(page[0].split("/")[2], timeout=20)
    connection.putrequest(method, "/", skip_host="Host" in headers)
    connection._buffer[0] = f"{method} {place} HTTP/1.1".encode()
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == status
    assert b"root:" not in answer.read()
    connection.close()


def sent(address, *parts):
    """Open a connection and send this; the caller closes it."""
    connection = socket.create_connection(("127.0.0.1", int(address.split(":")[2].strip("/"))), timeout=20)
    connection.sendall("\r\n".join(parts).encode())
    return connection


def answer_to(address, *parts):
    """All that the server sends until it closes the connection."""
    with sent(address, *parts) as connection, connection.makefile("rb") as answer:
        return answer.read()


@pytest.mark.parametrize(
    ("second", "status"), [("Host: 127.0.0.1", 400), ("Host: evil.example", 400), ("Origin: https://evil.example", 403)]
)
def test_a_header_cannot_be_given_twice(page, second, status):
    """A second Host or Origin is not overlooked, in the old version of HTTP too."""
    own = page[0].strip("/").removeprefix("http://")
    for version in ("1.1", "1.0"):
        lines = (f"GET /search/1 HTTP/{version}", f"Host: {own}", f"Origin: http://{own}", second, "Connection: close")
        assert answer_to(page[0], *lines, "\r\n").startswith(f"HTTP/1.1 {status}".encode())


def test_the_body_of_a_request_is_not_a_request(page):
    """A GET whose body looks like another request gets one answer, with a length and in chunks."""
    inner = "GET /search/2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for lines in (
        (f"Content-Length: {len(inner)}", "", inner),
        ("Transfer-Encoding: chunked", "", f"{len(inner):x}", inner, "0", "\r\n"),
    ):
        answer = answer_to(page[0], "GET /search/1 HTTP/1.1", "Host: localhost", "Connection: close", *lines)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1") == 1


def test_requests_wait_up_to_a_limit(footage, monkeypatch):
    """Of more requests than may be in progress, the others get status 503 at once; those in progress are answered."""
    monkeypatch.setattr(routes, "MAX_REQUESTS", 3)
    with served(footage) as (address, service), ThreadPoolExecutor(3) as pool:
        search, begun, goes_on = service.search_frame, threading.Semaphore(0), threading.Event()

        def held(row, options):
            begun.release()
            goes_on.wait(20)
            return search(row, options)

        monkeypatch.setattr(service, "search_frame", held)
        waiting = [pool.submit(request, address, "/search/1") for _ in range(3)]
        for _ in waiting:
            begun.acquire()
        for place in ("/search/1", "/", "/frame/0"):
            status, headers, _ = request(address, place)
            assert (status, headers["retry-after"]) == (503, "1")
        goes_on.set()
        assert [result.result()[0] for result in waiting] == [200, 200, 200]
        assert request(address, "/search/1")[0] == 200


def test_one_image_is_decoded_at_a_time(page, monkeypatch):
    """However many are sent: a small file may unpack to hundreds of megabytes."""
    decode, at_once, most = routes.decode_image, [], []

    def counted(data):
        at_once.append(data)
        most.append(len(at_once))
        time.sleep(0.02)
        at_once.pop()
        return decode(data)

    monkeypatch.setattr(routes, "decode_image", counted)
    image = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    with ThreadPoolExecutor(5) as pool:
        assert [*pool.map(lambda _: request(page[0], "/search", "POST", image)[0], range(5))] == 5 * [200]
    assert most == 5 * [1]


def test_uploads_wait_for_their_turn(footage, monkeypatch, capfd):
    """Only so many are in memory; one that breaks off makes room, and nothing is printed about it."""
    monkeypatch.setattr(routes, "MAX_UPLOADS", 1)
    upload = ("POST /search HTTP/1.1", "Host: localhost", "Connection: close", "Content-Length: 6", "")
    with served(footage) as (address, _):
        first = sent(address, *upload, "<sv")
        assert request(address, "/favicon.ico")[0] == 204  # the server has begun with the first
        second = sent(address, *upload, "<svg/>")
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.recv(1)
        first.close()
        second.settimeout(20)
        assert second.recv(100).startswith(b"HTTP/1.1 200")
        second.close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "begun",
    [
        (),
        ("GET / HTTP/1.1", "Host"),
        ("POST /search HTTP/1.1", "Host: localhost", "Content-Length: 100", "", "half"),
        ("GET /search/1 HTTP/1.1", "Host: localhost", "Content-Length: 100", "", "half"),
    ],
    ids=["nothing", "headers", "body", "body that nobody reads"],
)
def test_a_request_that_does_not_arrive_is_given_up(page, monkeypatch, begun):
    """A connection that sends a byte now and then is closed, whatever part of a request it sends."""
    monkeypatch.setattr(routes, "SECONDS_TO_REQUEST", 0.1)
    with sent(page[0], *begun) as connection:
        connection.settimeout(0.05)
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    while connection.recv(10_000):
                        pass
                    return
            pytest.fail("the connection is still open")


def test_a_slow_answer_is_not_given_up(page, monkeypatch):
    """The time limit is for requests: a search may take longer, and so may the player of a video."""
    monkeypatch.setattr(routes, "SECONDS_TO_REQUEST", 0.05)
    page_of = page[1].page
    monkeypatch.setattr(page[1], "page", lambda: (time.sleep(0.3), page_of())[1])
    assert request(page[0], "/")[0] == 200


def test_connections_are_limited(footage, monkeypatch):
    """One too many is closed; once there is room, the server answers again."""
    monkeypatch.setattr(routes, "MAX_CONNECTIONS", 2)
    with served(footage) as (address, _):
        idle = [sent(address) for _ in range(2)]
        with pytest.raises(OSError, match=r"Remote end closed|reset by peer"):
            request(address, "/")
        for connection in idle:
            connection.close()
        for _ in range(200):
            with contextlib.suppress(OSError):
                assert request(address, "/")[0] == 200
                break
            time.sleep(0.05)
        else:
            pytest.fail("it does not answer")


def test_a_large_body_without_a_length_is_refused(page):
    """A chunked body counts as it comes in; the server goes on."""
    chunks = iter([bytes(2**20)] * 33)
    assert request(page[0], "/search", "POST", chunks)[0] == 413
    assert request(page[0], "/search/0")[0] == 200


def test_every_answer_has_security_headers(page):
    """They forbid other sources, embedding, guessing of types, and caching."""
    for place in ("/", "/page.js", "/page.css", "/frame/0", "/search/0", "/video/0", "/nothing"):
        _, headers, _ = request(page[0], place)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert not {"server", "Server"} & set(headers)


def test_only_this_machine_can_connect(monkeypatch):
    """The socket is bound to the loopback; a port in use is reported, or replaced where it was only the default."""
    with routes.bind(0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UserError, match=f"port: {port} cannot be used"):
            routes.bind(port)
        monkeypatch.setattr(routes, "DEFAULT_PORT", port)
        with routes.bind(None) as other:
            assert other.getsockname()[1] != port


# --- the source videos


def test_a_video_is_sent_in_parts(page, footage):
    """A range gives 206 and those bytes, no range 200, a range beyond the end 416, and HEAD no bytes."""
    address, service = page
    number = service.index.video_ids.index("night/plain.mp4")
    content = (footage / "videos" / "night" / "plain.mp4").read_bytes()
    status, headers, data = request(address, f"/video/{number}", Range="bytes=100-299")
    assert (status, data) == (206, content[100:300])
    assert headers["content-range"] == f"bytes 100-299/{len(content)}"
    assert headers["content-type"] == "video/mp4"
    assert request(address, f"/video/{number}")[::2] == (200, content)
    assert request(address, f"/video/{number}", Range="bytes=99999999-")[0] == 416
    status, headers, data = request(address, f"/video/{number}", "HEAD")
    assert (status, headers["content-length"], data) == (200, str(len(content)), b"")


def test_videos_that_cannot_be_played_are_reported(footage, tmp_path):
    """In a format that browsers do not play, missing or changed: each says so, and no file is sent."""
    folder = tmp_path / "videos"
    for name in NAMES[3:]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((footage / "videos" / name).read_bytes())
    (folder / NAMES[0]).write_bytes(b"cut")
    with served(footage, videos=folder) as (address, service):
        answer = json.loads(request(address, "/search/0?top=100")[2])["frames"]
        problems = {found["video"]: found["problem"] for found in answer}
        ids = {name: service.index.video_ids.index(name) for name in problems}
        assert [problems[name] for name in NAMES] == [
            "the video has changed",
            "the video no longer exists",
            "the video no longer exists",
            "",
            "browsers do not play .avi",
        ]
        answers = {name: request(address, f"/video/{number}")[0] for name, number in ids.items()}
        assert answers == {name: 404 if problems[name] else 200 for name in NAMES}
        assert all((found["playable"] is None) == bool(found["problem"]) for found in answer)
    with pytest.raises(UserError, match="has none of the 5 videos"):
        open_service(SearchConfig(index=footage / "index.parquet", serve=True, videos=footage / "frames"))
    (footage / "videos").rename(footage / "moved")
    try:
        with served(footage) as (address, _):
            assert b"name their folder: --videos FOLDER" in request(address, "/")[2]
            assert request(address, "/video/0")[0] == 404
    finally:
        (footage / "moved").rename(footage / "videos")


def test_a_video_outside_of_the_folder_is_not_sent(footage, tmp_path):
    """Neither by a link in place of the video nor of its folder; links within the folder are followed."""
    outside, folder = tmp_path / "outside", tmp_path / "videos"
    shutil.copytree(footage / "videos", outside)
    folder.mkdir()
    (folder / "kept").mkdir()
    shutil.copy(outside / NAMES[0], folder / "kept" / "there.mp4")
    (folder / NAMES[0]).symlink_to("kept/there.mp4")
    (folder / NAMES[1]).symlink_to(outside / NAMES[1])
    (folder / "night").symlink_to(outside / "night")
    with served(footage, videos=folder) as (address, service):
        ids = [service.index.video_ids.index(name) for name in (NAMES[0], NAMES[1], NAMES[3])]
        assert [request(address, f"/video/{number}")[0] for number in ids] == [200, 404, 404]
        why = "a link leads out of the folder of videos"
        assert [service.videos[number].problem for number in ids] == ["", why, why]


def test_the_videos_of_a_store_are_found(footage, tmp_path):
    """Frames play from the folder that they were prepared from, without --videos; not if it is gone or not named."""
    store = shutil.copytree(footage / "frames", tmp_path / "copy" / "frames")
    config = SearchConfig(index=footage / "index.parquet", serve=True, data=store)
    header = json.loads((store / "store.json").read_text())
    for folder in (header["videos"], 5, None, "\0", "x" * 10_000):
        (store / "store.json").write_text(json.dumps(header | {"videos": folder}))
        assert "--videos" in open_service(config).note, "its path is relative to the store"
    (tmp_path / "copy" / "videos").symlink_to(footage / "videos")
    (store / "store.json").write_text(json.dumps(header))
    service = open_service(config)
    assert [service.index.video_ids[number] for number in service.videos if not service.videos[number].problem] == [
        name for name in service.index.video_ids if not name.endswith(".avi")
    ]


def test_the_videos_of_a_run_are_found(footage, tmp_path):
    """If a store names no folder, as older ones, its frames play from the folder that its run was trained on."""
    store, config_file = shutil.copytree(footage / "frames", tmp_path / "frames"), tmp_path / "config.toml"
    header = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({name: header[name] for name in header if name != "videos"}))
    config_file.write_text(f'data = "{footage}/videos"\n')
    config = SearchConfig(index=footage / "index.parquet", serve=True, data=store)
    assert any(not video.problem for video in open_service(config).videos.values())
    for text in ("data = 5", "= [", f'data = "{tmp_path}/gone"', 'data = "s3://bucket/frames"', ""):
        config_file.write_text(text)
        assert "--videos" in open_service(config).note


# --- in a browser


def cards(shown):
    """Return the rows shown, in order."""
    return [
        int(row) for row in shown.locator(".card button.picture").evaluate_all("all => all.map(e => e.dataset.row)")
    ]


def unfold(shown):
    """Show all frames of each video, which the page folds."""
    shown.locator("#per-video").select_option("no limit")


def expected(service, path, top=24):
    """Return the rows most similar to an image file."""
    return [frame["row"] for frame in service.search_image(path.read_bytes(), SearchOptions(top=top))["frames"]]


DROP = """([bytes, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  for (const kind of ["dragover", "drop"])
    document.getElementById("drop").dispatchEvent(
      new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""
DROP_TWO = """(files) => {
  const transfer = new DataTransfer();
  files.forEach((bytes, number) => transfer.items.add(new File([new Uint8Array(bytes)], `${number}.png`)));
  document.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""
PASTE = """([bytes, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, clipboardData: transfer }));
}"""


def test_an_image_can_be_dropped_pasted_or_chosen(page, footage, browser):
    """Each way shows its most similar frames in order with similarities; of several files the first is used."""
    address, service = page
    path = footage / "query.png"
    content, rows = list(path.read_bytes()), expected(service, path)

    def choose(shown):
        with shown.expect_file_chooser() as chooser:
            shown.get_by_role("button", name="Choose an image").click()
        chooser.value.set_files(path)

    ways = {
        "query.png": choose,
        "dropped.png": lambda shown: shown.evaluate(DROP, [content, "dropped.png"]),
        "pasted.png": lambda shown: shown.evaluate(PASTE, [content, "pasted.png"]),
        "0.png": lambda shown: shown.evaluate(DROP_TWO, [content, list(NOT_AN_IMAGE)]),
    }
    with opened(browser, address) as shown:
        unfold(shown)
        for name, send in ways.items():
            send(shown)
            expect(shown.get_by_role("heading", name=f"Most similar to {name}")).to_be_visible()
            assert cards(shown) == rows
            expect(shown.get_by_role("status")).to_contain_text("24 frames, the most similar first")
            similarities = [float(text) for text in shown.locator(".similarity").all_inner_texts()]
            assert similarities == sorted(similarities, reverse=True)
        expect(shown.get_by_role("alert")).to_have_text("Only the first of 2 files is used.")


def test_a_problem_replaces_the_results(page, footage, browser):
    """A bad image hides the old results and shows a line in the window; options then repeat the last good search."""
    address, service = page
    with opened(browser, f"{address}#frame=3") as shown:
        unfold(shown)
        expect(shown.locator(".card")).to_have_count(24)
        shown.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        shown.set_input_files("#file", footage / "damaged.gif")
        expect(shown.get_by_role("alert")).to_contain_text("The image")
        expect(shown.locator("#problem")).to_be_in_viewport()
        expect(shown.locator("#results")).to_be_hidden()
        assert shown.locator("#heading").text_content() == ""
        assert shown.url == f"{address}#frame=3"
        shown.locator("#top").select_option("12")
        expect(shown.locator(".card")).to_have_count(12)
        expect(shown.locator("#problem")).to_be_hidden()
        expect(shown.locator("#heading")).to_contain_text("Most similar to 0:00:01.5")
        shown.evaluate("searchFile([new File([new Uint8Array(34 * 2 ** 20)], 'large.png')])")
        expect(shown.get_by_role("alert")).to_have_text("The image has 34 MB; the limit is 32 MB.")
        shown.set_input_files("#file", footage / "query.png")
        expect(shown.get_by_role("heading", name="Most similar to query.png")).to_be_visible()
        expect(shown.locator("#problem")).to_be_hidden()
        assert cards(shown) == expected(service, footage / "query.png", top=12)


def test_the_page_works_with_the_keyboard(page, browser):
    """Tab reaches the buttons, Enter searches by a frame, the results get the focus, and Back goes back."""
    address, service = page
    with opened(browser, address) as shown:
        unfold(shown)
        shown.locator(".skip").focus()
        for _ in range(2):
            shown.keyboard.press("Tab")
        expect(shown.get_by_role("button", name="Random frame")).to_be_focused()
        shown.keyboard.press("Enter")
        expect(shown.locator("#heading")).to_be_focused()
        first = shown.url
        expect(shown.locator(".card")).to_have_count(24)
        row = cards(shown)[0]
        shown.keyboard.press("Tab")
        expect(shown.get_by_role("link", name="Save as CSV")).to_be_focused()
        shown.keyboard.press("Tab")
        expect(shown.locator(f'button[data-row="{row}"]')).to_be_focused()
        shown.keyboard.press("Enter")
        shown.wait_for_url(f"**/#frame={row}")
        expect(shown.locator(".card").first.locator(f'button:not([data-row="{row}"])')).to_be_visible()
        assert cards(shown) == [frame["row"] for frame in service.search_frame(row, SearchOptions())["frames"]]
        shown.go_back()
        expect(shown.locator(f'button[data-row="{row}"]')).to_be_visible()
        assert shown.url == first


def test_changing_an_option_repeats_the_search(page, browser):
    """Number, limit per video, and other videos only; a link to a part of the page leaves the results as they are."""
    address, service = page
    with opened(browser, f"{address}#frame=3") as shown:
        unfold(shown)
        expect(shown.locator(".card")).to_have_count(24)
        shown.locator(".skip").focus()
        shown.keyboard.press("Enter")
        shown.wait_for_url("**/#results")
        expect(shown.locator(".card")).to_have_count(24)
        shown.locator("#top").select_option("12")
        expect(shown.locator(".card")).to_have_count(12)
        shown.locator("#per-video").select_option("at most 1")
        expect(shown.locator(".card")).to_have_count(5)
        shown.get_by_label("Other videos only").check()
        expect(shown.locator(".card")).to_have_count(4)
        options = SearchOptions(top=12, per_video=1, other_videos=True)
        assert cards(shown) == [frame["row"] for frame in service.search_frame(3, options)["frames"]]


def test_an_empty_page_invites_to_a_first_search(page, browser):
    """It shows a frame of each of some videos; a click on one searches, and they are gone."""
    with opened(browser, page[0]) as shown:
        expect(shown.get_by_role("heading", name="Or start from one of these frames")).to_be_visible()
        assert cards(shown) == [4, 12, 20, 28, 36]
        shown.locator('button[data-row="20"]').click()
        expect(shown.locator("#heading")).to_contain_text("Most similar to")
        expect(shown.locator("#start")).to_be_hidden()
        shown.go_back()
        expect(shown.locator("#start")).to_be_visible()


def test_frames_of_a_clip_are_folded(page, browser):
    """Each video has one card, its best frame; a button shows the others in order, and hides them again."""
    address, service = page
    with opened(browser, f"{address}#frame=3") as shown:
        expect(shown.locator(".card")).to_have_count(5)
        expect(shown.get_by_role("status")).to_contain_text("5 videos, the most similar first")
        best = [frame["row"] for frame in service.search_frame(3, SearchOptions(top=24, per_video=1))["frames"]]
        assert cards(shown) == best
        every = service.search_frame(3, SearchOptions(top=200, per_video=8))["frames"]
        number = service.index.video_ids[service.index.video[best[1]]]
        others = [frame["row"] for frame in every if frame["video"] == number][1:]
        shown.locator(".card").nth(1).get_by_role("button", name=f"{len(others)} more from this clip").click()
        assert cards(shown) == [*best[:2], *others, *best[2:]]
        shown.get_by_role("button", name="Fold").click()
        assert cards(shown) == best


def test_results_can_be_saved(page, browser):
    """The table has every frame found, folded ones too; names are quoted."""
    address, service = page
    with opened(browser, f"{address}#frame=3") as shown:
        with shown.expect_download() as download:
            shown.get_by_role("link", name="Save as CSV").click()
        assert download.value.suggested_filename == "found.csv"
        rows = list(csv.DictReader(Path(download.value.path()).read_text("utf-8").splitlines()))
    found = service.search_frame(3, SearchOptions(top=200, per_video=8))["frames"]
    assert {(row["video"], int(row["frame"])) for row in rows} == {(hit["video"], hit["frame"]) for hit in found}
    assert list(rows[0]) == ["rank", "similarity", "video", "frame", "time"]
    assert len(rows) == len(found)


def test_the_image_is_still_there_after_a_reload(page, footage, browser):
    """The browser keeps it, with its name, and searches by it again."""
    with opened(browser, page[0]) as shown:
        shown.set_input_files("#file", footage / "query.png")
        expect(shown.get_by_role("heading", name="Most similar to query.png")).to_be_visible()
        found = cards(shown)
        shown.reload()
        expect(shown.get_by_role("heading", name="Most similar to query.png")).to_be_visible()
        assert cards(shown) == found
        assert shown.locator("#query").evaluate("image => image.decode().then(() => image.naturalWidth)") == 96


def test_a_frame_plays_its_video_from_its_time(page, browser):
    """The player requests ranges, starts at that second, and closes with Escape."""
    address, service = page
    number = service.index.video_ids.index("night/plain.mp4")
    row = int(np.flatnonzero(service.index.video == number)[4])
    with opened(browser, f"{address}#frame={row - 1}") as shown:
        unfold(shown)
        shown.locator("#top").select_option("96")
        answers = []
        shown.on("response", lambda answer: answers.append((answer.url, answer.status)))
        link = shown.get_by_role("link", name="Play night/plain.mp4 from 0:00:02.0")
        assert link.get_attribute("href") == f"/video/{number}#t=2.00"
        link.click()
        expect(shown.locator("#video")).to_have_js_property("readyState", 4, timeout=20_000)  # it could play to the end
        assert 1.9 <= shown.evaluate("document.getElementById('video').currentTime") <= 4.1
        assert (f"{address}video/{number}", 206) in [(url.partition("#")[0], status) for url, status in answers]
        expect(shown.get_by_role("dialog", name="0:00:02.0 of night/plain.mp4")).to_be_visible()
        shown.keyboard.press("Escape")
        expect(shown.locator("#player")).to_be_hidden()
        assert shown.get_by_role("link", name="Play night/raw.avi").count() == 0
        assert shown.get_by_text("browsers do not play .avi").count() == 8


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")], ids=["phone", "desktop"])
def test_hostile_names_do_not_break_the_page(page, footage, browser, size, scheme):
    """Nothing is wider than the window, names are not interpreted as HTML, and text contrasts with the background."""
    address, _ = page
    with opened(browser, address, size, color_scheme=scheme) as shown:
        shown.locator("#per-video").select_option("at most 1")
        shown.set_input_files("#file", footage / "query.png")
        expect(shown.locator(".card")).to_have_count(5)
        names = shown.locator(".name bdi").all_inner_texts()
        assert sorted(names) == sorted(NAMES)
        assert overflow(shown) == 0
        row = next(row for row in range(40) if len(page[1].index.video_ids[page[1].index.video[row]]) > 200)
        shown.goto(f"{address}#frame={row}")
        expect(shown.locator("#heading")).to_contain_text("wwww")
        assert overflow(shown) == 0
        shown.get_by_role("link", name="Play www").first.click()
        expect(shown.get_by_role("dialog")).to_be_visible()
        assert overflow(shown) == 0
        ground, text = (
            shown.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
        )
        assert (brightness(ground) < brightness(text)) == (scheme == "dark")
        assert abs(brightness(ground) - brightness(text)) > 500
        if folder := os.environ.get("SCREENSHOTS"):
            shown.keyboard.press("Escape")
            shown.screenshot(path=f"{folder}/{scheme}-{size['width']}.png")


def brightness(color):
    """Return the sum of red, green and blue of `rgb(r, g, b)`."""
    return sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(",")))


def test_the_written_page_is_self_contained(footage, browser, tmp_path):
    """One file without a script shows every frame and requests nothing."""
    from cyclecontrast import search

    search(footage / "index.parquet", image=footage / "query.png", top=30, per_video=3, html=tmp_path / "p.html")
    with opened(browser, (tmp_path / "p.html").as_uri(), PHONE) as shown:
        assert shown.locator(".card").count() == 15
        widths = shown.locator("img").evaluate_all(
            "all => all.map(e => { e.loading = 'eager'; return e.decode(); }).length"
        )
        assert widths == 16
        assert shown.evaluate("performance.getEntriesByType('resource').length") == 0
        assert sorted(set(shown.locator(".name bdi").all_inner_texts())) == sorted(NAMES)
        assert overflow(shown) == 0


def test_ctrl_c_stops_the_server(footage):
    """The command prints its address, answers there, and ends with exit code 130 and one line, even amid an answer."""
    words = [sys.executable, "-m", "cyclecontrast", "search", footage / "index.parquet", "--serve", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[1]
        assert request(address, "/")[0] == 200
        unfinished = http.client.HTTPConnection(address.split("/")[2], timeout=20)
        unfinished.request("POST", "/search", headers={"Content-Length": "100"})
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
        unfinished.close()
    assert (process.returncode, printed) == (130, "server stopped\n")


def test_the_files_of_the_page_are_in_the_package():
    """The wheel takes template, style sheet and script from beside the code."""
    folder = Path(sys.modules["cyclecontrast.searching.results"].__file__).parent
    assert {path.name for path in folder.iterdir()} >= {"page.html", "page.css", "page.js"}
