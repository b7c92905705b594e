"""The page in a real browser, on a phone and on a desk: all of it is seen, reached and named, without a script."""

import itertools
import shutil

import pytest

import cyclecontrast as cc
from cyclecontrast.config import ReportConfig
from cyclecontrast.reporting.page import write_report
from tests.browser import DESKTOP, PHONE, chromium, opened, overflow
from tests.unit.reporting.test_report import write_frames, write_result

ODD = (
    "<b>bold</b> & \"quoted\" 'name'",
    "<img src=x onerror=alert(1)>",
    "🐘🐘🐘 elephants",
    "סרטון בעברית 12 (a)",
    "x" * 200,
    "many words " * 18,
    "plain/below/folders",
)
RUN = "<i>run עברית 🐘 " + 100 * "y" + "0"
TINY = {"backbone": "resnet10-small-w4", "image_size": 16, "batch_size": 8, "workers": 0, "device": "cpu"}
SCHEMES = ("light", "dark")
NARROW = {"width": 320, "height": 640}

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
def root(tmp_path_factory):
    """A folder with videos of odd names and two runs of other objectives, one of them evaluated and with an odd name.

    The first was trained by 60 steps and wrote its own page.
    """
    root = tmp_path_factory.mktemp("pages")
    data = write_frames(root / "data", [*ODD, *(f"video{number}" for number in range(14))], num_frames=4)
    cc.pretrain(data, out=root / RUN, steps=60, log_every=5, holdout=0, **TINY)
    write_result(root / RUN, {"top1": 0.625, "top5": 0.875}, model="resnet10-small-w4", notes=("a <note>",))
    cc.pretrain(data, out=root / "other1", steps=2, method="intra-video", report=False, **TINY)
    write_result(root / "other1", {"top1": 0.5, "top5": 0.75})
    return root


@pytest.fixture(scope="module")
def single(root):
    """The address of the page that the training wrote."""
    return (root / RUN / "report.html").as_uri()


@pytest.fixture(scope="module")
def double(root):
    """The address of the page of both runs."""
    options = ReportConfig(runs=(root / RUN, root / "other1"), out=root / "both.html", workers=0, device="cpu")
    return write_report(options).path.as_uri()


@pytest.fixture(scope="module")
def signs(root, shared):
    """The address of the page of a short training on traffic signs."""
    data = shared / "video_frames" / "gtsrb"
    return (cc.pretrain(data, out=root / "signs", steps=30, flip=False, **TINY).folder / "report.html").as_uri()


@pytest.fixture(scope="module", params=["single", "double", "signs"])
def page(request, browser):
    """One of the pages on a desk, with everything unfolded."""
    with opened(browser, request.getfixturevalue(request.param)) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        yield page


@pytest.mark.parametrize("size", [NARROW, PHONE, DESKTOP], ids=["narrow", "phone", "desk"])
@pytest.mark.parametrize("which", ["single", "double", "signs"])
def test_nothing_sticks_out(request, browser, size, which):
    """The page is as wide as its window, folded and unfolded, whatever videos and runs are called."""
    with opened(browser, request.getfixturevalue(which), size) as page:
        assert overflow(page) == 0
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert overflow(page) == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_can_be_read(browser, double, scheme):
    """All text stands out from its ground by 4.5 to 1 (WCAG 1.4.3), and the dark page is dark."""
    with opened(browser, double, PHONE, color_scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 300
        assert [one for one in found if one[0] < 4.5] == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(ground.strip("rgb()").split(",")[0]) < 60) == (scheme == "dark")


def test_everything_has_a_name(page):
    """Pictures, tiles, maps, charts and regions say what they are, and no name has become markup."""
    names = page.evaluate(
        "[...document.querySelectorAll('img, svg, [role=img], [role=region], nav')]"
        ".map(one => one.getAttribute('aria-label') || one.getAttribute('alt'))"
    )
    assert len(names) > 100
    assert all(name and name.strip() for name in names)
    assert page.locator("main b, main i, main img[onerror], script, iframe, object, link").count() == 0


def test_names_are_text(browser, single):
    """A video whose name is markup is called so below its picture."""
    with opened(browser, single) as page:
        assert page.locator("figcaption", has_text=ODD[1]).count() > 0


def test_pictures_are_drawn(page):
    """Each tile shows its part of a picture that is there, at a place inside it."""
    tiles = page.evaluate(
        "[...document.querySelectorAll('.tile')].map(one => getComputedStyle(one)).map(style => "
        "[style.backgroundImage.slice(0, 27), style.backgroundSize, style.backgroundPosition])"
    )
    assert len(tiles) > 50
    for image, size, position in tiles:
        assert image == 'url("data:image/jpeg;base64'
        across, down = (float(part.removesuffix("%")) for part in size.split())
        assert across == 3200
        assert down >= 100
        assert all(0 <= float(part.removesuffix("%")) <= 100 for part in position.split())


def test_headings_are_in_order(page):
    """There is one title, and no level is left out on the way down."""
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(one => +one.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_chart_has_its_numbers(page):
    """Behind each chart, and below each data set's maps, stands a table."""
    counts = page.evaluate("[...document.querySelectorAll('.chart')].map(one => one.querySelectorAll('td').length)")
    assert len(counts) > 10
    assert all(counts)
    rows = page.locator("table", has_text="Frames on the map").locator("tbody tr").count()
    dots = page.evaluate("[...document.querySelectorAll('.map')].map(one => one.querySelectorAll('.dot').length)")
    assert rows > 20
    assert set(dots) == {rows}


def test_all_is_reached_by_keyboard(browser, double):
    """Tab goes to every link, fold, table and command, and past the hundreds of dots; the first stop skips ahead."""
    with opened(browser, double) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
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
  const [tile, text] = ["::before", "::after"].map(part => getComputedStyle(dot, part));
  return [tile.content, text.content, tile.backgroundImage.slice(0, 16), tile.backgroundPosition, tile.width];
}"""


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desk"])
def test_a_dot_shows_its_frame(browser, single, size):
    """Pointed at, or tapped, a dot shows its tile and its name, which no edge of the window cuts off."""
    with opened(browser, single, size, has_touch=True) as page:
        dots = page.locator(".map .dot")
        for number in (0, dots.count() // 2, dots.count() - 1):
            dot = dots.nth(number)
            assert dot.evaluate(SHOWN)[0] == "none"
            dot.hover(force=True)
            on_top = page.locator(".dot:hover")
            name, place = on_top.get_attribute("data-name"), on_top.get_attribute("style").partition("--at:")[2]
            tile, text, image, position, width = on_top.evaluate(SHOWN)
            assert (tile, image, width) == ('""', 'url("data:image/', "96px")
            assert text.replace("\\", "") == f'"{name}"'
            assert position == place
            page.mouse.move(0, 0)
            dot.focus()
            assert dot.evaluate(SHOWN)[0] == '""'
            assert overflow(page) == 0
            page.evaluate("document.activeElement.blur()")


def test_printed_it_is_whole(browser, double):
    """On paper tiles and dots keep their pictures and colors."""
    with opened(browser, double) as page:
        page.emulate_media(media="print")
        for part in (".tile", ".dot"):
            assert page.evaluate(f"getComputedStyle(document.querySelector('{part}')).printColorAdjust") == "exact"


def test_it_is_read_where_scripts_are_forbidden(browser, root, single, tmp_path):
    """From another folder, with scripts forbidden and no network, the page is the same picture."""
    shutil.copy(root / RUN / "report.html", tmp_path / "mail.html")
    pictures = []
    for url, allowed in ((single, True), ((tmp_path / "mail.html").as_uri(), False)):
        with opened(browser, url, PHONE, java_script_enabled=allowed, offline=True) as page:
            pictures.append(page.screenshot())
    assert pictures[0] == pictures[1]
