"""Names are text: in a terminal, in Markdown, and where a character cannot be written."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markupsafe import Markup

from cyclecontrast.evaluation.predictions import About, DataInfo, ModelInfo, Result
from cyclecontrast.evaluation.suite import SuiteResult
from cyclecontrast.exporting.huggingface import model_card
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.output import html_environment, join_lines, markdown, markdown_table, printable, say
from cyclecontrast.sweeping.results import RowValues, Sweep
from cyclecontrast.sweeping.tables import TABLES, rows_of
from tests import make_videos as make
from tests.make_runs import run

NAMES = (
    "broken [dQw4w9WgXcQ].mp4",
    "sub[/bold].mp4",
    "a|b_c _d_ *e* `f` ~~g~~ $h$",
    "<script>alert(1)</script>&lt;&#65; &amp",
    "[x](http://x) ![y](z) \\[z\\]",
    "a__b__ __c__ image_size=3",
    "J&F 日本 é",
    "\x1b[31mred\nforged: done",
    "\u202ereversed\udcff",
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_markdown_shows_a_name_as_it_is(name):
    """A renderer of Markdown shows exactly the name, also within the cell of a table, and makes nothing of it."""
    table = markdown_table([("name", "number"), (markdown(name), "1")], "lr")
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    (cell,) = re.findall(r"<td>(.*)</td>", parser.render(table))
    assert html.unescape(cell) == printable(name)
    assert html.unescape(parser.renderInline(markdown(name))) == printable(name)


def test_a_name_stays_on_its_line(capsys):
    """A line break or an escape sequence in a name is shown, so that it cannot forge lines or control a terminal."""
    say("found", "a\nforged: done\x1b[2J[/bold]\r\u2028")
    assert capsys.readouterr().err == "found\na\\nforged: done\\x1b[2J[/bold]\\r\\u2028\n"
    assert join_lines(["a\nb", "c"]) == "a\\nb\nc"


HOSTILE = "x\x1b[2J\nforged: 99 % | [red] **b** <i>"


def made_result():
    """A result whose model, data and problems have names that could do harm."""
    data = DataInfo(f"/data/{HOSTILE}", "d" * 16, 8, 2)
    about = About("knn", "knn", {}, ModelInfo("resnet18", HOSTILE, "f" * 16), data, problems=(HOSTILE,))
    return Result(about, {"top1": 0.5}, {})


def test_results_print_names_as_text():
    """A file of a model and the names of data cannot forge a line of a result, or control the terminal."""
    lines = str(made_result()).split("\n")
    assert len(lines) == 4
    assert not any("\x1b" in line or line.startswith("forged") for line in lines)


def test_tables_and_cards_show_names_as_text():
    """Names in Markdown that others read make neither tags nor bold text nor rows of a table."""
    backbone = make_backbone("resnet10-small-w4")
    backbone.source = HOSTILE
    texts = (
        SuiteResult(((made_result(), None),), (HOSTILE,)).page(),
        str(Sweep(TABLES["table4"], (RowValues(rows_of("table4")[2], {}),), 1, HOSTILE, (HOSTILE,), Path("out"))),
        model_card(backbone, Path("nowhere")).partition("---\n")[2],
    )
    for text in texts:
        page = MarkdownIt("commonmark").enable("table").render(text)
        shown = html.unescape(re.sub("<[^>]*>", "", page))
        assert r"x\x1b[2J\nforged: 99 % | [red] **b** <i>" in shown
        assert not re.search("<i>|<strong>b", page)
        assert page.count("<tr>") in (0, 2)


def test_lines_below_a_table_on_a_terminal_have_no_escapes_of_markdown():
    """`evaluate all` prints why something was not evaluated as it is; only all.md is escaped."""
    printed = str(SuiteResult(((made_result(), None),), ("videos/<class>: [missing] in a_b\x1b",)))
    assert printed.endswith("not evaluated: videos/<class>: [missing] in a_b\\x1b")


def test_pages_show_control_characters_as_text():
    """A name with an escape sequence does not put it into a page; line breaks and markup stay what they are."""
    page = (
        html_environment().from_string("<p>{{ name }}</p>{{ style }}").render(name="a\x1b[2J<b>\n", style=Markup("<i>"))
    )
    assert page == "<p>a\\x1b[2J&lt;b&gt;\n</p><i>"


def test_commands_show_names_as_text(tmp_path, capsys):
    """Videos and folders whose names look like markup are named in full, also among what cannot be read."""
    videos = tmp_path / "videos[/bold]"
    (videos / "sub[").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "sub[/red].mp4")):
        make.write_noise(videos / name, number)
    (videos / "broken [dQw4w9WgXcQ].mp4").write_bytes(b"nothing")
    run(videos, tmp_path / "run[/red]", steps=1, batch_size=2, method="simclr")
    text = capsys.readouterr().err
    assert "  skipped  broken [dQw4w9WgXcQ].mp4: " in text
    assert f"the frames are in {tmp_path / 'run[/red]' / 'frames'}: " in text


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, r"\u65e5 \u2192"),
        ({"LC_ALL": "C"}, "日 →"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "日 →"),
    ],
    ids=["ascii", "C", "no UTF-8"],
)
def test_every_encoding_can_be_written(environment, shown):
    """A character that the output's encoding lacks is escaped; in every locale, names are read and written as UTF-8."""
    code = (
        "import sys, cyclecontrast.cli as cli\nfrom cyclecontrast.__main__ import run\n"
        "cli.read = lambda arguments: lambda: '\\u65e5 \\u2192'\nsys.exit(run())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, env=kept | environment)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, shown + "\n", b"")
