"""Published figures: the same numbers as in the paper's text, and never beside what differs unsaid."""

import re
from dataclasses import replace

import pytest

from cyclecontrast.evaluate.references import compare, load_references
from cyclecontrast.evaluate.result import About, DataInfo, ModelInfo, Result

PAPER = {"1": 22, "3": 5, "9": 21, "11": 55}
OURS = {"CycleContrast": "Ours"}


def test_every_figure_of_the_tables_is_there():
    """Tables 1, 3, 9 and 11 are complete, and each figure names its source."""
    tables = [re.fullmatch(r".*Table (\d+)", row.source) for row in load_references()]
    counts = {number: sum(match is not None and match[1] == number for match in tables) for number in PAPER}
    assert counts == PAPER
    assert all(row.source and row.data and row.pretrained_on for row in load_references())


@pytest.mark.parametrize(
    "row",
    [row for row in load_references() if "Table" in row.source],
    ids=lambda row: f"{row.protocol}-{row.metric}-{row.method}-{row.backbone}",
)
def test_figures_are_those_of_the_papers_text(row, shared):
    """A line of the paper's table names the method and the backbone and holds the figure."""
    text = (shared.parent / "paper.md").read_text()
    end = text.index(f"\nTable {row.source.split()[-1]}:")
    table = text[max(0, end - 2500) : end]
    head = OURS.get(row.method, row.method.split()[0].split(",")[0])
    head = {"VCOP": "Order", "Büchler": "Buchler", "ρBYOL": "BYOL", "Shuffle": "Shuffle", "Random": "Random"}.get(
        head, head
    )
    lines = [line for line in table.splitlines() if head in line and f"{row.percent:.1f}" in re.split(r"[\t ]+", line)]
    assert lines, f"{row} is on no line of the table"


def make_result(protocol, metric, backbone, num_test, **config):
    """Make a result as a protocol would write it."""
    about = About(
        protocol,
        protocol,
        config,
        ModelInfo(backbone, "run", "f" * 16),
        DataInfo("data", "d" * 16, 10, num_test),
    )
    return Result(about, {metric: 0.5}, {})


def test_a_result_of_the_same_protocol_backbone_and_data_is_comparable():
    """Split 1 of UCF101 with ResNet-18 at 224 px stands beside the paper's 39.7."""
    result = make_result(
        "retrieval",
        "hit@1",
        "resnet18",
        37830,
        level="clip",
        split=1,
        per_video=10,
        image_size=224,
        center=False,
        clip_length=16,
    )
    compared = compare(result)
    assert (compared.one.percent, compared.differences) == (39.7, ())


def test_each_difference_is_named():
    """Backbone, data, settings and left-out items are each told of."""
    result = make_result(
        "retrieval", "hit@1", "resnet10", 790, level="frame", split=1, per_video=10, image_size=32, center=False
    )
    result = replace(result, about=replace(result.about, problems=("x.avi: cannot be read",)))
    compared = compare(result)
    assert compared.one.percent == 45.8
    assert compared.differences == (
        "backbone resnet10, not ResNet-18",
        "data: 790 test items, not the 37,830 of UCF101 split 1",
        "image_size 32, not 224",
        "1 items left out",
    )


def test_the_backbone_decides_which_figure_is_shown():
    """A ResNet-50 is compared with the paper's ResNet-50."""
    result = make_result("tracking", "success", "resnet50", 100, preset="release", train=True, toolkit="got10k")
    assert compare(result).one.percent == 49.2


def test_a_protocol_that_the_paper_does_not_have_has_no_figure():
    """Nothing stands beside kNN."""
    assert compare(make_result("knn", "top1_k20", "resnet18", 50_000)) is None
