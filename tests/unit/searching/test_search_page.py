"""The page that asks: what its server gives and refuses, and what a person sees and does in a real browser."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import zlib
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
from cyclecontrast.searching.byte_ranges import Range, asked_range
from cyclecontrast.searching.command import open_site
from cyclecontrast.searching.server import bind
from cyclecontrast.searching.site import Asked
from tests import make_videos as make
from tests.browser import DESKTOP, PHONE, chromium, opened, overflow
from tests.unit.searching.test_search import MODEL, rows_of

NAMES = (
    "<img src=x onerror=alert(1)>.mp4",
    "🦊 שלום ‮ עולם.mp4",
    f"{'w' * 200}.mp4",
    "night/plain.mp4",
    "night/raw.avi",
)
NO_FACE = b"GIF89a" + bytes(20)


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Videos with terrible names, one of a kind that no browser plays, and the index of their frames."""
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
    (root / "damaged.gif").write_bytes(NO_FACE)
    return root


@contextmanager
def served(root, **settings):
    """Serve a page and give its address."""
    options = {"index": root / "index.parquet", "serve": True, "device": "cpu", **settings}
    with bind(0) as server:
        server.site = open_site(SearchConfig(**options))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", server.site
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def page(footage):
    """The address of the page over that footage, and its site."""
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


def test_an_image_that_is_sent_finds_its_frames(page, footage):
    """The frames and similarities are those of all vectors in the file, and each has a picture."""
    address, site = page
    frame = site.pictures.store.image(0, 2)
    data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes()
    told = json.loads(request(address, "/search?top=9", "POST", data)[2])
    names, unit = rows_of(footage / "index.parquet")
    row = names.index((site.pictures.store.video_id(0), 2))
    order = np.argsort(-(unit @ unit[row]))[:9]
    assert [found["row"] for found in told["frames"]] == order.tolist()
    np.testing.assert_allclose([found["similarity"] for found in told["frames"]], (unit @ unit[row])[order], atol=1e-5)
    status, headers, picture = request(address, f"/frame/{row}")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    shown = cv2.cvtColor(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(shown.astype(int) - frame).mean() < 8


def test_a_frame_finds_others(page, footage):
    """Without itself, and where it is asked for without its video, or with few of each."""
    address, _ = page
    names, _ = rows_of(footage / "index.parquet")
    told = json.loads(request(address, "/search/5?top=100")[2])
    assert sorted(found["row"] for found in told["frames"]) == [row for row in range(len(names)) if row != 5]
    assert told["query"]["video"] == names[5][0]
    told = json.loads(request(address, "/search/5?top=100&per_video=2&other_videos=true")[2])
    videos = [found["video"] for found in told["frames"]]
    assert sorted(videos) == sorted(2 * list({name for name, _ in names} - {names[5][0]}))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/search/40", "the index has 40 frames, and none of number 40"),
        ("/search/1?top=0", "top: input should be greater than or equal to 1"),
        ("/search/1?top=9999", "top: input should be less than or equal to 200"),
        ("/search/1?path=/etc/passwd", "path is no option"),
    ],
)
def test_what_cannot_be_answered_is_told(page, place, words):
    """In a line that the page shows."""
    status, _, data = request(page[0], place)
    assert status == 200
    assert words in json.loads(data)["problem"]


def test_an_image_that_is_none_is_told(page):
    """A damaged one, an empty one and one that claims too many pixels get a line, and the server goes on."""
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big") + bytes(4) + b"IDAT" + bytes(9)
    for data, words in ((NO_FACE, "image"), (b"", "is empty"), (huge, "pixels"), (b"<svg/>", "unknown format")):
        problem = json.loads(request(page[0], "/search", "POST", data)[2])["problem"]
        assert words in problem
        assert "\n" not in problem
    assert "frames" in json.loads(request(page[0], "/search/0")[2])


@pytest.mark.parametrize(
    ("place", "method", "headers", "status"),
    [
        ("/", "GET", {"Host": "evil.example"}, 403),
        ("/search/1", "GET", {"Host": "evil.example:8765"}, 403),
        ("/", "GET", {"Host": "127.0.0.1.evil.example"}, 403),
        ("/", "GET", {"Host": ""}, 403),
        ("/", "GET", {"Host": "localhost:9000"}, 200),
        ("/search", "POST", {"Origin": "https://evil.example"}, 403),
        ("/search", "POST", {"Origin": "null"}, 403),
        ("/search", "POST", {"Content_Length": str(33 * 2**20)}, 413),
        ("/search", "POST", {"Content_Length": "9" * 5000}, 413),
        ("/search", "POST", {"Content_Length": "-1"}, 411),
        ("/search", "POST", {"Transfer_Encoding": "chunked"}, 411),
        ("/", "GET", {"Origin": "http://["}, 400),
        ("/search", "POST", {"Origin": "http://["}, 400),
        ("http://[", "GET", {}, 400),
        ("http://[", "POST", {}, 400),
        ("*", "GET", {}, 400),
        ("http://localhost", "GET", {}, 400),
        ("/", "POST", {}, 404),
        ("/", "PUT", {}, 501),
        ("/../../etc/passwd", "GET", {}, 404),
        ("//etc/passwd", "GET", {}, 404),
        ("/page.html", "GET", {}, 404),
        ("/server.py", "GET", {}, 404),
        ("/frame/..%2f..%2fetc%2fpasswd", "GET", {}, 404),
        ("/frame/-1", "GET", {}, 404),
        ("/frame/1e3", "GET", {}, 404),
        ("/frame/٣", "GET", {}, 404),
        ("/frame/40", "GET", {}, 404),
        ("/frame/" + "1" * 400, "GET", {}, 404),
        ("/video/99", "GET", {}, 404),
        ("/video/0/../1", "GET", {}, 404),
    ],
)
def test_what_no_page_of_ours_asks_is_refused(page, place, method, headers, status):
    """Other hosts, other pages, too much, and whatever is no number of a frame or a video."""
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


def test_answers_let_nothing_else_in(page):
    """Every answer forbids other sources, frames, guesses of kinds, and keeping a copy."""
    for place in ("/", "/page.js", "/page.css", "/frame/0", "/search/0", "/video/0", "/nothing"):
        _, headers, _ = request(page[0], place)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "Python" not in headers["Server"]


def test_only_this_machine_is_listened_to(monkeypatch):
    """The socket is the loopback's, no name is looked up for it, and a port that is taken is told or another taken."""
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("a name was looked up"))
    with bind(0) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UserError, match=f"port: {server.server_port} cannot be taken"):
            bind(server.server_port)
        monkeypatch.setattr("cyclecontrast.searching.server.DEFAULT_PORT", server.server_port)
        with bind(None) as other:
            assert other.server_port != server.server_port


# --- the source videos


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, Range(0, 100, False)),
        ("bytes=0-", Range(0, 100, True)),
        ("bytes=10-19", Range(10, 20, True)),
        ("bytes=90-500", Range(90, 100, True)),
        ("bytes=-30", Range(70, 100, True)),
        ("bytes=-300", Range(0, 100, True)),
        ("bytes=100-", None),
        ("bytes=-0", None),
        ("bytes=20-10", Range(0, 100, False)),
        ("bytes=0-1,5-6", Range(0, 100, False)),
        ("lines=1-2", Range(0, 100, False)),
        ("bytes=-", Range(0, 100, False)),
    ],
)
def test_parts_of_a_file_are_asked_for_as_the_standard_says(header, expected):
    """RFC 9110: up to the end, from the end, beyond it, and what may be ignored."""
    assert asked_range(header, 100) == expected


def test_a_video_is_sent_in_parts(page, footage):
    """A range is answered by 206 and those bytes, all by 200, none by 416, and HEAD by no bytes."""
    address, site = page
    number = site.index.video_ids.index("night/plain.mp4")
    content = (footage / "videos" / "night" / "plain.mp4").read_bytes()
    status, headers, data = request(address, f"/video/{number}", Range="bytes=100-299")
    assert (status, data) == (206, content[100:300])
    assert headers["Content-Range"] == f"bytes 100-299/{len(content)}"
    assert headers["Content-Type"] == "video/mp4"
    assert request(address, f"/video/{number}")[::2] == (200, content)
    assert request(address, f"/video/{number}", Range="bytes=99999999-")[0] == 416
    status, headers, data = request(address, f"/video/{number}", "HEAD")
    assert (status, headers["Content-Length"], data) == (200, str(len(content)), b"")


def test_videos_that_cannot_be_played_are_told(footage, tmp_path):
    """Of a kind that browsers do not know, gone, changed, or none at all: each says so, and no file is sent."""
    folder = tmp_path / "videos"
    for name in NAMES[3:]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((footage / "videos" / name).read_bytes())
    (folder / NAMES[0]).write_bytes(b"cut")
    with served(footage, videos=folder) as (address, site):
        told = json.loads(request(address, "/search/0?top=100")[2])["frames"]
        problems = {found["video"]: found["problem"] for found in told}
        ids = {name: site.index.video_ids.index(name) for name in problems}
        assert [problems[name] for name in NAMES] == [
            "the video has changed",
            "the video is gone",
            "the video is gone",
            "",
            "browsers do not play .avi",
        ]
        answers = {name: request(address, f"/video/{number}")[0] for name, number in ids.items()}
        assert answers == {name: 404 if problems[name] else 200 for name in NAMES}
        assert all((found["playable"] is None) == bool(found["problem"]) for found in told)
    with pytest.raises(UserError, match="holds none of the 5 videos"):
        open_site(SearchConfig(index=footage / "index.parquet", serve=True, videos=footage / "frames"))
    with served(footage) as (address, _):
        assert b"name their folder: --videos FOLDER" in request(address, "/")[2]
        assert request(address, "/video/0")[0] == 404


def test_a_run_knows_where_its_videos_are(footage, tmp_path):
    """Frames that a run prepared are played from the folder that it was trained on, without a word."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "frames").symlink_to(footage / "frames")
    (run / "config.toml").write_text(f'data = "{footage}/videos"\n')
    site = open_site(SearchConfig(index=footage / "index.parquet", serve=True, data=run / "frames"))
    played = [number for number, name in enumerate(site.index.video_ids) if not name.endswith(".avi")]
    assert [site.video(number).path.is_file() for number in played] == [True] * 4
    for text in ("data = 5", "= [", f'data = "{tmp_path}/gone"', ""):
        (run / "config.toml").write_text(text)
        site = open_site(SearchConfig(index=footage / "index.parquet", serve=True, data=run / "frames"))
        assert "--videos" in site.sources.problem


# --- in a browser


def cards(shown):
    """Return the rows that are shown, in order."""
    return [
        int(row) for row in shown.locator(".card button.picture").evaluate_all("all => all.map(e => e.dataset.row)")
    ]


def expected(site, path, top=24):
    """Return the rows that are most like an image file."""
    return [frame["row"] for frame in site.by_image(path.read_bytes(), Asked(top=top))["frames"]]


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


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_an_image_is_dropped_pasted_or_chosen(page, footage, browser, way):
    """Its frames are shown in their order, with similarities, and its name is told."""
    address, site = page
    path = footage / "query.png"
    with opened(browser, address) as shown:
        if way == "choose":
            with shown.expect_file_chooser() as chooser:
                shown.get_by_role("button", name="Choose an image").click()
            chooser.value.set_files(path)
        else:
            shown.evaluate(DROP if way == "drop" else PASTE, [list(path.read_bytes()), "query.png"])
        expect(shown.get_by_role("heading", name="Most like query.png")).to_be_visible()
        assert cards(shown) == expected(site, path)
        expect(shown.get_by_role("status")).to_contain_text("24 frames, the most similar first")
        similarities = [float(text) for text in shown.locator(".similarity").all_inner_texts()]
        assert similarities == sorted(similarities, reverse=True)


def test_a_damaged_image_is_told_on_the_page(page, footage, browser):
    """In a line that is read out, and the next image is looked for as if nothing had happened."""
    address, site = page
    with opened(browser, address) as shown:
        shown.set_input_files("#file", footage / "damaged.gif")
        expect(shown.get_by_role("alert")).to_contain_text("The image")
        shown.set_input_files("#file", footage / "query.png")
        expect(shown.get_by_role("heading", name="Most like query.png")).to_be_visible()
        expect(shown.locator("#problem")).to_be_hidden()
        assert cards(shown) == expected(site, footage / "query.png")


def test_a_link_to_a_part_of_the_page_asks_nothing(page, browser):
    """Skipping to the results leaves them, and they can be asked for again."""
    address, _ = page
    with opened(browser, f"{address}#frame=3") as shown:
        expect(shown.locator(".card")).to_have_count(24)
        shown.locator(".skip").focus()
        shown.keyboard.press("Enter")
        shown.wait_for_url("**/#results")
        expect(shown.locator(".card")).to_have_count(24)
        shown.locator("#top").select_option("12")
        expect(shown.locator(".card")).to_have_count(12)


def test_what_failed_leaves_nothing_of_the_answer_before(page, footage, browser):
    """Its results are hidden, its address stays and is what options ask again; the message is in the window."""
    address, _ = page
    with opened(browser, f"{address}#frame=3") as shown:
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
        expect(shown.locator("#heading")).to_contain_text("Most like 0:00:01.5")


def test_what_is_left_of_what_was_dropped_is_told(page, footage, browser):
    """Of several files the first is taken, and one that is too large is told with the limit."""
    address, site = page
    with opened(browser, address) as shown:
        content = list((footage / "query.png").read_bytes())
        shown.evaluate(DROP_TWO, [content, list(NO_FACE)])
        expect(shown.get_by_role("heading", name="Most like 0.png")).to_be_visible()
        expect(shown.get_by_role("alert")).to_have_text("Of 2 files the first is taken.")
        assert cards(shown) == expected(site, footage / "query.png")
        shown.evaluate("take([new File([new Uint8Array(34 * 2 ** 20)], 'large.png')])")
        expect(shown.get_by_role("alert")).to_have_text("The image has 34 MB, more than 32 MB.")


def test_the_keyboard_is_enough(page, browser):
    """Tab reaches the buttons, Enter searches by a frame, focus goes to what was found, and Back goes back."""
    address, site = page
    with opened(browser, address) as shown:
        for _ in range(3):
            shown.keyboard.press("Tab")
        expect(shown.get_by_role("button", name="Any frame")).to_be_focused()
        shown.keyboard.press("Enter")
        expect(shown.locator("#heading")).to_be_focused()
        first = shown.url
        expect(shown.locator(".card")).to_have_count(24)
        row = cards(shown)[0]
        shown.keyboard.press("Tab")
        expect(shown.locator(f'button[data-row="{row}"]')).to_be_focused()
        shown.keyboard.press("Enter")
        shown.wait_for_url(f"**/#frame={row}")
        expect(shown.locator(".card").first.locator(f'button:not([data-row="{row}"])')).to_be_visible()
        assert cards(shown) == [frame["row"] for frame in site.by_frame(row, Asked())["frames"]]
        shown.go_back()
        expect(shown.locator(f'button[data-row="{row}"]')).to_be_visible()
        assert shown.url == first


def test_the_options_hold_for_the_next_answer(page, browser):
    """Changing one asks again: number, number of each video, and other videos only."""
    address, site = page
    with opened(browser, f"{address}#frame=3") as shown:
        expect(shown.locator(".card")).to_have_count(24)
        shown.locator("#top").select_option("12")
        expect(shown.locator(".card")).to_have_count(12)
        shown.locator("#per-video").select_option("1 at most")
        expect(shown.locator(".card")).to_have_count(5)
        shown.get_by_label("Other videos only").check()
        expect(shown.locator(".card")).to_have_count(4)
        asked = Asked(top=12, per_video=1, other_videos=True)
        assert cards(shown) == [frame["row"] for frame in site.by_frame(3, asked)["frames"]]


def test_a_frame_plays_its_video_from_there(page, browser):
    """A link leads to the moment; the player asks for parts, stands at that second, and closes by Escape."""
    address, site = page
    number = site.index.video_ids.index("night/plain.mp4")
    row = int(np.flatnonzero(site.index.video == number)[4])
    with opened(browser, f"{address}#frame={row - 1}") as shown:
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


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_terrible_names_do_not_break_the_page(page, footage, browser, size, scheme):
    """Nothing is wider than the window, no name is taken for HTML, and text stands out against its ground."""
    address, _ = page
    with opened(browser, address, size, color_scheme=scheme) as shown:
        shown.locator("#per-video").select_option("1 at most")
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
    """Return the sum of red, green and blue."""
    return sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(",")))


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_written_page_needs_nothing(footage, browser, tmp_path, size):
    """It is one file without a script that shows every picture, and asks for nothing."""
    from cyclecontrast import search

    search(footage / "index.parquet", image=footage / "query.png", top=30, per_video=3, html=tmp_path / "p.html")
    with opened(browser, (tmp_path / "p.html").as_uri(), size) as shown:
        assert shown.locator(".card").count() == 15
        widths = shown.locator("img").evaluate_all(
            "all => all.map(e => { e.loading = 'eager'; return e.decode(); }).length"
        )
        assert widths == 16
        assert shown.evaluate("performance.getEntriesByType('resource').length") == 0
        assert sorted(set(shown.locator(".name bdi").all_inner_texts())) == sorted(NAMES)
        assert overflow(shown) == 0


def test_ctrl_c_ends_the_page_with_a_line(footage):
    """The command prints its address, answers there, and ends with exit code 130 and without a traceback."""
    words = [sys.executable, "-m", "cyclecontrast", "search", footage / "index.parquet", "--serve", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[1]
        assert request(address, "/")[0] == 200
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "the page is closed\n")


def test_the_page_is_in_the_package():
    """Its three files lie beside the code, where the wheel takes them from."""
    folder = Path(sys.modules["cyclecontrast.searching.page"].__file__).parent
    assert {path.name for path in folder.iterdir()} >= {"page.html", "page.css", "page.js"}
