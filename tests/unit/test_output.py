"""Names are text: in a terminal, in Markdown, and where a character cannot be written."""

import html
import os
import re
import subprocess
import sys

import pytest
from markdown_it import MarkdownIt

from cyclecontrast.output import join_lines, markdown, markdown_table, printable, say

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


@pytest.mark.parametrize(
    ("environment", "shown"),
    [({"PYTHONIOENCODING": "ascii"}, r"\u65e5 \u2192"), ({"LC_ALL": "C"}, "日 →")],
    ids=["ascii", "C"],
)
def test_every_encoding_can_be_written(environment, shown):
    """A character that the output's encoding lacks is escaped; with LC_ALL=C, Python reads and writes UTF-8."""
    code = (
        "import sys, cyclecontrast.cli as cli\nfrom cyclecontrast.__main__ import run\n"
        "cli.read = lambda arguments: lambda: '日 →'\nsys.exit(run())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, env=kept | environment)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, shown + "\n", b"")
