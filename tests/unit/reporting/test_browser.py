"""The page in a real browser, on a phone and on a desktop: everything is visible, reachable and has a name."""

import itertools
import shutil

import pytest

import cyclecontrast as cc
from tests.browser import DESKTOP, PHONE, chromium, opened, overflow
from tests.make_reports import report, write_result
from tests.unit.reporting.conftest import ODD, SETTINGS

SCHEMES = ("light", "dark")
NARROW = {"width": 320, "height": 640}
UNFOLD = "document.querySelectorAll('details').forEach(one => { one.open = true; })"

CONTRASTS = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * x + .7152 * y + .0722 * z;
  };
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const [r, g, b, a = 1] = channels(getComputedStyle(one).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const texts = [...element.childNodes].filter(node => node.nodeType === 3 && node.textContent.trim());
    if (!texts.length || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const color = element.ownerSVGElement ? style.fill : style.color;
    const [a, b] = [light(channels(color)), light(ground(element))];
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), texts[0].textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    """One browser for all pages."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def single(trained):
    """The address of the page that the training wrote."""
    return (trained / "report.html").as_uri()


@pytest.fixture(scope="module")
def double(trained, tree, tmp_path_factory):
    """The address of the page of two runs of different methods, both with results."""
    root = tmp_path_factory.mktemp("double")
    cc.pretrain(tree, out=root / "other1", steps=2, method="intra-video", report=False, **SETTINGS)
    write_result(root / "other1", {"top1": 0.5, "top5": 0.75})
    report(trained, root / "other1", out=root / "both.html")
    return (root / "both.html").as_uri()


@pytest.fixture(scope="module")
def page(browser, double):
    """The page of two runs on a desktop, unfolded."""
    with opened(browser, double) as page:
        page.evaluate(UNFOLD)
        yield page


@pytest.mark.parametrize("size", [NARROW, PHONE, DESKTOP], ids=["narrow", "phone", "desktop"])
def test_nothing_is_wider_than_the_window(browser, double, size):
    """The page is as wide as its window, folded and unfolded, whatever videos and runs are called."""
    with opened(browser, double, size) as page:
        assert overflow(page) == 0
        page.evaluate(UNFOLD)
        assert overflow(page) == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_text_is_readable(browser, double, scheme):
    """All text has a contrast of 4.5 to 1 (WCAG 1.4.3), and the dark page is dark."""
    with opened(browser, double, PHONE, color_scheme=scheme) as page:
        page.evaluate(UNFOLD)
        found = page.evaluate(CONTRASTS)
        assert len(found) > 300
        assert [one for one in found if one[0] < 4.5] == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(ground.strip("rgb()").split(",")[0]) < 60) == (scheme == "dark")


def test_everything_has_a_name(page):
    """Images, sprites, maps, charts and regions have names, and no name has become markup."""
    names = page.evaluate(
        "[...document.querySelectorAll('img, svg, [role=img], [role=region], nav')]"
        ".map(one => one.getAttribute('aria-label') || one.getAttribute('alt'))"
    )
    assert len(names) > 100
    assert all(name and name.strip() for name in names)
    assert page.locator("main b, main i, main img[onerror], script, iframe, object, link").count() == 0


def test_names_are_text(browser, single):
    """A video whose name is markup is called so below its image."""
    with opened(browser, single) as page:
        assert page.locator("figcaption", has_text=ODD[1]).count() > 0


def test_sprites_are_drawn(page):
    """Each sprite shows a part of a sheet that is there, at a place inside of it."""
    sprites = page.evaluate(
        "[...document.querySelectorAll('.sprite')].map(one => getComputedStyle(one)).map(style => "
        "[style.backgroundImage.slice(0, 27), style.backgroundSize, style.backgroundPosition])"
    )
    assert len(sprites) > 50
    for image, size, position in sprites:
        assert image == 'url("data:image/jpeg;base64'
        across, down = (float(part.removesuffix("%")) for part in size.split())
        assert across == 3200
        assert down >= 100
        assert all(0 <= float(part.removesuffix("%")) <= 100 for part in position.split())


def test_headings_are_in_order(page):
    """There is one title, and no level of headings is skipped on the way down."""
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(one => +one.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_chart_has_its_numbers(page):
    """Each chart and the maps of each data set have a table."""
    counts = page.evaluate("[...document.querySelectorAll('.chart')].map(one => one.querySelectorAll('td').length)")
    assert len(counts) > 10
    assert all(counts)
    rows = page.locator("table", has_text="Frames on the map").locator("tbody tr").count()
    dots = page.evaluate("[...document.querySelectorAll('.map')].map(one => one.querySelectorAll('.dot').length)")
    assert rows > 20
    assert set(dots) == {rows}


def test_all_is_reached_by_keyboard(browser, double):
    """Tab reaches every link, fold, table and command, but no dot; the first stop skips to the content."""
    with opened(browser, double) as page:
        page.evaluate(UNFOLD)
        wanted = page.evaluate("document.querySelectorAll('a, input, summary, [role=region], pre[tabindex]').length")
        note = "document.activeElement.dataset.reached = 1; document.activeElement.textContent"
        page.keyboard.press("Tab")
        assert page.evaluate(note) == "Skip to the content"
        for _ in range(wanted - 1):
            page.keyboard.press("Tab")
            page.evaluate(note)
        missed = page.evaluate(
            "[...document.querySelectorAll('a, summary, [role=region], pre')]"
            ".filter(one => one.checkVisibility() && !one.dataset.reached).map(one => one.outerHTML.slice(0, 80))"
        )
        assert missed == []
        assert page.locator(".dot[data-reached]").count() == 0


SHOWN = """(dot) => {
  const [sprite, text] = ["::before", "::after"].map(part => getComputedStyle(dot, part));
  return [sprite.content, text.content, sprite.backgroundImage.slice(0, 16), sprite.backgroundPosition, sprite.width];
}"""


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_dot_shows_its_frame(browser, single, size):
    """A dot shows its sprite and its name when hovered over or tapped, and no edge of the window cuts them off."""
    with opened(browser, single, size, has_touch=True) as page:
        dots = page.locator(".map .dot")
        for number in (0, dots.count() // 2, dots.count() - 1):
            dot = dots.nth(number)
            assert dot.evaluate(SHOWN)[0] == "none"
            dot.hover(force=True)
            on_top = page.locator(".dot:hover")
            name, place = on_top.get_attribute("data-name"), on_top.get_attribute("style").partition("--at:")[2]
            sprite, text, image, position, width = on_top.evaluate(SHOWN)
            assert (sprite, image, width) == ('""', 'url("data:image/', "96px")
            assert text.replace("\\", "") == f'"{name}"'
            assert position == place
            page.mouse.move(0, 0)
            dot.focus()
            assert dot.evaluate(SHOWN)[0] == '""'
            assert overflow(page) == 0
            page.evaluate("document.activeElement.blur()")


def test_the_printed_page_has_its_images(browser, double):
    """On paper sprites and dots keep their images and colors."""
    with opened(browser, double) as page:
        page.emulate_media(media="print")
        for part in (".sprite", ".dot"):
            assert page.evaluate(f"getComputedStyle(document.querySelector('{part}')).printColorAdjust") == "exact"


def test_the_page_needs_no_script_and_no_network(browser, trained, single, tmp_path):
    """From another folder, with scripts disabled and offline, the page looks the same."""
    shutil.copy(trained / "report.html", tmp_path / "mail.html")
    pictures = []
    for url, allowed in ((single, True), ((tmp_path / "mail.html").as_uri(), False)):
        with opened(browser, url, PHONE, java_script_enabled=allowed, offline=True) as page:
            pictures.append(page.screenshot())
    assert pictures[0] == pictures[1]


def test_the_explorer_by_keyboard(browser, single):
    """The Tab and arrow keys choose another query and another step, and their cycle is shown."""
    with opened(browser, single) as tab:
        shown = tab.locator(".path:visible")
        first = shown.get_attribute("id")
        tab.locator(".queries input").first.focus()
        tab.keyboard.press("ArrowRight")
        assert shown.count() == 1
        assert shown.get_attribute("id") != first
        assert shown.locator(".stage:visible").count() == 1
        last = shown.locator(".stage:visible").get_attribute("class")
        tab.keyboard.press("Tab")
        tab.keyboard.press("ArrowLeft")
        assert shown.locator(".stage:visible").count() == 1
        assert shown.locator(".stage:visible").get_attribute("class") != last
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        assert shown.locator("table").is_visible()


def test_the_explorer_on_a_phone(browser, single):
    """On a phone the sprites of a cycle are large enough, in light and in dark mode."""
    for scheme in SCHEMES:
        with opened(browser, single, PHONE, color_scheme=scheme) as tab:
            assert overflow(tab) == 0
            sprites = tab.locator(".path:visible .stage:visible .sprite")
            assert sprites.count() > 4
            assert all(sprite.bounding_box()["width"] > 40 for sprite in sprites.all())
            assert all(sprite.get_attribute("aria-label") for sprite in sprites.all())
