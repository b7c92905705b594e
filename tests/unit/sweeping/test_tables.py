"""The tables of `sweep`: their rows and settings, and the published figures, which are those of the paper's text."""

import itertools
import re

import pytest

from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import checked
from cyclecontrast.sweeping.tables import TABLES, Metric, load_published, published_in, rows_of, scaled

METHODS = ("intra-image", "intra-video", "cycle")


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
def test_tables_of_losses_have_the_papers_figures(number, metrics, paper):
    """Three rows of ticks for each backbone, as they stand above the caption of Tables 2, 4 and 10."""
    above = paper[: paper.index(f"\nTable {number}:")].splitlines()[-7:]
    rows = [re.fullmatch(r"(✓)\t(✓?)\t(✓?)\t(ResNet-\d+)\t([\d.]+)(?:\t([\d.]+))?", line) for line in above]
    expected = {
        (METHODS[sum(map(bool, row.group(1, 2, 3))) - 1], metric, row[4]): float(value)
        for row in rows
        if row is not None
        for metric, value in zip(metrics, row.groups()[4:], strict=False)
    }
    assert len(expected) == 6 * len(metrics)
    assert figures_of(f"table{number}") == expected


@pytest.mark.parametrize("number", [5, 6, 7, 8])
def test_tables_of_sizes_have_the_papers_figures(number, paper):
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


def test_figures_from_the_text_have_notes(paper):
    """45.78 without k++ and 58.50 with all of U are in the text only; Table 6's 58.48 notes that the text differs."""
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
    """Our rows are the paper's rows, and the chosen row is the one that the paper finds best."""
    keys = [row.key for row in rows_of(table)]
    assert set(keys) == {one.row for one in published_in(table)}
    top = [one for one in published_in(table) if one.metric in ("top-1", "precision") and one.backbone == "ResNet-18"]
    best = max(one.percent for one in top)
    assert [one.row for one in top if one.percent == best] == [TABLES[table].chosen]


def test_figures_keep_their_digits():
    """Tables with two decimals show 57.00, those with one 33.0."""
    texts = {one.text for one in load_published()}
    assert {"57.00", "33.0", "58.50"} <= texts


def test_rows_have_the_papers_sizes():
    """Without --small, Tables 5 to 8 change exactly the options that the paper varies, at its sizes."""
    knobs = {
        table: [{name: value for name, value in row.settings.items() if name != "method"} for row in rows_of(table)]
        for table in ("table5", "table6", "table7", "table8")
    }
    assert [one["support_size"] for one in knobs["table5"]] == [128, 256, 512, 16384, 256]
    assert [one["query_frame_in_support"] for one in knobs["table5"]] == [True, True, True, True, False]
    assert {row.settings["method"] for row in rows_of("table5")} == {"cycle-only"}
    assert knobs["table6"] == [{"support_size": size} for size in (256, 1024, 4096, 16384)]
    assert [one.get("top_k") for one in knobs["table7"]] == [8, 16, 32, 128, 256, None]
    assert {one["support_size"] for one in knobs["table7"]} == {16384}
    assert knobs["table8"] == [{"cycle_weight": weight} for weight in (0.05, 0.1, 0.3, 0.5, 0.7, 1.0)]
    assert [row.settings for row in rows_of("table4")] == [
        {"method": name} for name in ("intra-image", "intra-video", "cycle")
    ]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("queue", [None, 1024, 2048, 65_536])
def test_rows_are_distinct_and_valid(table, queue):
    """At any size of the queue, rows differ in config and folder, and each config is valid."""
    rows = rows_of(table, queue)
    preset = {"preset": "paper"} if queue is None else {}
    configs = [checked(PretrainConfig, {"data": "d", "out": "o", **preset, **row.settings}) for row in rows]
    for a, b in itertools.combinations(range(len(rows)), 2):
        assert configs[a] != configs[b]
        assert rows[a].folder != rows[b].folder
    if queue == 65_536:
        assert [row.settings | {"cycle_queue_size": 0} for row in rows] == [
            row.settings | {"cycle_queue_size": 0} for row in rows_of(table)
        ]


@pytest.mark.parametrize("share", [1.0, 0.5, 1 / 64, 1 / 100, 1 / 4000, 1e-9])
@pytest.mark.parametrize("sizes", [(128, 256, 512, 16_384), (8, 16, 32, 128, 256)])
def test_scaled_sizes_stay_distinct(sizes, share):
    """Sizes keep their order, none is below 1, and whole fractions are exact."""
    small = scaled(sizes, share)
    assert small[0] >= 1
    assert len(set(small)) == len(sizes)
    assert sorted(small) == list(small)
    if share == 1 / 64 and sizes[0] == 128:
        assert small == (2, 4, 8, 256)
    if share == 1.0:
        assert small == sizes


def test_a_metric_is_found_with_any_k():
    """kNN limits k to the number of training images; a metric of another protocol is not found."""
    assert Metric("knn", "top1", "").pick({"knn": {"top1_k7": 0.5, "top5_k7": 0.75}}) == 50.0
    assert Metric("linear", "top5", "").pick({"linear": {"top1": 0.5}, "knn": {"top5": 0.5}}) is None
