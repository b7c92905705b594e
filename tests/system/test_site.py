"""The site that is built of the documentation: its links lead somewhere, and it needs no other host."""

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
    """The site, built as `make docs` builds it: a warning is an error."""
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
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.places = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        """Note links and ids."""
        found = dict(attributes)
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}


def test_links_of_the_site_lead_somewhere(site):
    """Every link within the site leads to a file that is there, and to a place in it; texts of the source are texts."""
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
    assert (site / "source/src/cyclecontrast/loss/losses.py.txt").read_text().startswith('"""The equations')


@pytest.fixture(scope="module")
def address(site):
    """The site behind a server of its own, as readers open it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_site_needs_no_other_host(site, address):
    """Opened on a phone, and the widest pages at a desk, no page asks another host, nor is wider than its window."""
    pages = sorted(path.name for path in site.glob("*.html"))
    asked = set()
    with chromium() as browser:
        for page, size in [(page, PHONE) for page in pages] + [(page, DESKTOP) for page in WIDEST]:
            with opened(browser, "about:blank", size) as tab:
                tab.on("request", lambda request: asked.add(request.url))
                tab.goto(f"{address}/{page}", wait_until="networkidle")
                assert overflow(tab) <= 0, (page, size)
    assert len(asked) > 20
    assert {url for url in asked if not url.startswith(address)} == set()


def test_the_site_can_be_searched(address):
    """A word that stands on one page is found there, without help from elsewhere."""
    with chromium() as browser, opened(browser, f"{address}/index.html") as tab:
        tab.keyboard.press("/")
        tab.keyboard.type("under-trained")
        tab.wait_for_selector(".md-search-result__link")
        assert tab.locator(".md-search-result__link").first.get_attribute("href")
