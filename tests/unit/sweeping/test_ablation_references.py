"""The paper's ablation figures beside ours: the same numbers as in its text, all of them."""

import re

import pytest

from cyclecontrast.sweeping.published import load_published, published_in
from cyclecontrast.sweeping.tables import TABLES, rows_of

OBJECTIVES = ("intra-image", "intra-video", "cycle")


@pytest.fixture(scope="module")
def paper(shared):
    """The paper's text."""
    return (shared.parent / "paper.md").read_text()


def figures_of(table):
    """Return a table's figures as {(row, metric, backbone): percent}."""
    return {(one.row, one.metric, one.backbone): one.percent for one in published_in(table)}


@pytest.mark.parametrize(
    ("number", "metrics"), [(2, ("precision", "success")), (4, ("top-1",)), (10, ("top-1",))], ids=["2", "4", "10"]
)
def test_tables_of_losses_are_the_papers(number, metrics, paper):
    """Three rows of ticks for each backbone, as they stand above the caption of Tables 2, 4 and 10."""
    above = paper[: paper.index(f"\nTable {number}:")].splitlines()[-7:]
    rows = [re.fullmatch(r"(✓)\t(✓?)\t(✓?)\t(ResNet-\d+)\t([\d.]+)(?:\t([\d.]+))?", line) for line in above]
    expected = {
        (OBJECTIVES[sum(map(bool, row.group(1, 2, 3))) - 1], metric, row[4]): float(value)
        for row in rows
        if row is not None
        for metric, value in zip(metrics, row.groups()[4:], strict=False)
    }
    assert len(expected) == 6 * len(metrics)
    assert figures_of(f"table{number}") == expected


@pytest.mark.parametrize("number", [5, 6, 7, 8])
def test_tables_of_numbers_are_the_papers(number, paper):
    """The line of settings and the lines of top-1 and top-5 above the caption of Tables 5 to 8."""
    head, *lines = (line.split("\t") for line in paper[: paper.index(f"\nTable {number}:")].splitlines()[-4:] if line)
    expected = {
        (row, metric, "ResNet-18"): float(value)
        for metric, line in zip(("top-1", "top-5"), lines, strict=True)
        for row, value in zip(head[1:], line[1:], strict=True)
    }
    ours = {key: value for key, value in figures_of(f"table{number}").items() if key[0] in head}
    assert len(expected) == 2 * (len(head) - 1)
    assert ours == expected


def test_what_the_text_adds_is_the_texts(paper):
    """45.78 without k++ and 58.50 with all of U stand in the text, and Table 6's 58.48 says that the text differs."""
    flat = " ".join(paper.split())
    assert "if k_{++} is not included in the neighbor set U , using a neighbor size of 256" in flat
    assert "45.78% Top-1 accuracy" in flat
    assert "a neighbor set U of size 16384, which has 58.50% Top-1 accuracy" in flat
    added = {(one.table, one.row): one for one in load_published() if one.note}
    assert added["table5", "256 without k++"].percent == 45.78
    assert added["table7", "all"].percent == 58.50
    assert added["table6", "16384"].percent == 58.48
    assert "58.50" in added["table6", "16384"].note


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_its_figures(table):
    """A row of ours is a row of the paper and the other way round, and so is the row that the paper finds best."""
    keys = [row.key for row in rows_of(table)]
    assert set(keys) == {one.row for one in published_in(table)}
    top = [one for one in published_in(table) if one.metric in ("top-1", "precision") and one.backbone == "ResNet-18"]
    best = max(one.percent for one in top)
    assert [one.row for one in top if one.percent == best] == [TABLES[table].chosen]


def test_figures_keep_their_digits():
    """57.00 stays 57.00 in the tables with two digits, and 33.0 stays 33.0."""
    texts = {one.text for one in load_published()}
    assert {"57.00", "33.0", "58.50"} <= texts
