"""The site built from the documentation: its links work, it needs no other host, and it fits on a phone."""

import os
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser import DESKTOP, PHONE, chromium, opened, overflow

ROOT = Path(__file__).parents[2]
WIDEST = ("index.html", "method.html", "formats.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as by `make docs`; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


class Linked(HTMLParser):
    """The links of a page, and the anchors in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.places = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        """Collect links and ids."""
        found = dict(attributes)
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}


def test_links_of_the_site_work(site):
    """Every link within the site leads to an existing file and anchor; source files are copied as text."""
    pages = {path: Linked(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 15
    followed = 0
    for page, linked in pages.items():
        for link in linked.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            followed += 1
            target = (page.parent / unquote(parts.path)).resolve() if parts.path not in ("", ".") else page
            assert target.exists(), f"{page.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].places, f"{page.name}: {link}"
    assert followed > 500
    assert "def info_nce(" in (site / "source/src/cyclecontrast/loss/losses.py.txt").read_text()


@pytest.fixture(scope="module")
def address(site):
    """The address of a local server with the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """A browser without a screen."""
    with chromium() as started:
        yield started


def check_pages(browser, address, pages, size):
    """Open pages of the site: none requests another host, none is wider than the window."""
    asked = set()
    for page in pages:
        with opened(browser, "about:blank", size) as tab:
            tab.on("request", lambda request: asked.add(request.url))
            tab.goto(f"{address}/{page}", wait_until="load")
            assert overflow(tab) <= 0, page
    assert len(asked) > len(pages)
    assert {url for url in asked if not url.startswith(address)} == set()


def test_the_widest_pages_need_no_other_host_and_fit(browser, address):
    """The pages with the widest tables and formulas fit on a phone and request no other host."""
    check_pages(browser, address, WIDEST, PHONE)


@pytest.mark.long
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_all_pages_need_no_other_host_and_fit(site, browser, address, size):
    """No page requests another host or is wider than the window."""
    check_pages(browser, address, sorted(path.name for path in site.glob("*.html")), size)


def test_the_site_can_be_searched(browser, address):
    """The search of the site finds a word without another host."""
    with opened(browser, f"{address}/index.html") as tab:
        tab.keyboard.press("/")
        tab.keyboard.type("undertrained")
        tab.wait_for_selector(".md-search-result__link")
        assert tab.locator(".md-search-result__link").first.get_attribute("href")
