"""Published figures: the same numbers as in the paper's text, and never beside what differs unsaid."""

import re
from dataclasses import replace

import pytest

from cyclecontrast.config import PROTOCOL_CONFIGS
from cyclecontrast.evaluation.predictions import About, DataInfo, ModelInfo, Result
from cyclecontrast.evaluation.references import ITEMS, SETTINGS, compare, load_references

PAPER = {"1": 22, "2": 12, "3": 5, "4": 6, "9": 21, "10": 6, "11": 55}
OURS = {"CycleContrast": "Ours"}


def test_every_figure_of_the_tables_is_there():
    """The tables are complete, and each figure names its source."""
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
    ablation = row.source.endswith((" 2", " 4", " 10"))
    head = row.backbone if ablation else OURS.get(row.method, row.method.split()[0].split(",")[0])
    head = {"VCOP": "Order", "Büchler": "Buchler", "ρBYOL": "BYOL", "Shuffle": "Shuffle", "Random": "Random"}.get(
        head, head
    )
    lines = [line for line in table.splitlines() if head in line and f"{row.percent:.1f}" in re.split(r"[\t ]+", line)]
    assert lines, f"{row} is on no line of the table"


def make_result(protocol, metric, backbone, items, **config):
    """Make a result as a protocol would write it, of so many items of train and test."""
    num_train, num_test = items
    about = About(
        protocol,
        protocol,
        config,
        ModelInfo(backbone, "run", "f" * 16),
        DataInfo("data", "d" * 16, num_train, num_test),
    )
    return Result(about, {metric: 0.5}, {})


def test_a_result_of_the_same_protocol_backbone_and_data_is_comparable():
    """Split 1 of UCF101 with ResNet-18 at 224 px stands beside the paper's 39.7."""
    result = make_result(
        "retrieval",
        "hit@1",
        "resnet18",
        (95_370, 37_830),
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
    """Backbone, data, settings and left-out items are each reported."""
    result = make_result(
        "retrieval",
        "hit@1",
        "resnet10",
        (1_590, 790),
        level="frame",
        split=1,
        per_video=10,
        image_size=32,
        center=False,
    )
    result = replace(result, about=replace(result.about, problems=("x.avi: cannot be read",)))
    compared = compare(result)
    assert compared.one.percent == 45.8
    assert compared.differences == (
        "backbone resnet10, not ResNet-18",
        "data: 1,590 train items, not the 95,370 of UCF101 split 1",
        "data: 790 test items, not the 37,830 of UCF101 split 1",
        "image_size 32, not 224",
        "1 items left out",
    )


@pytest.mark.parametrize(
    ("protocol", "config"), [(name.split()[0], dict(settings)) for name, settings in SETTINGS.items()]
)
def test_the_settings_of_the_paper_are_comparable_and_no_others(protocol, config):
    """With the paper's data and settings nothing differs; with another value of any setting, just that one does."""
    variant = {"action": "mode", "retrieval": "level"}.get(protocol)
    names = [name for name, settings in SETTINGS.items() if settings == config and name.startswith(protocol)]
    for name in names:
        chosen = {**config, **({variant: name.split()[1]} if variant else {})}
        metric = {row.protocol: row.metric for row in load_references()}[name]
        assert compare(make_result(protocol, metric, "resnet50", ITEMS[protocol], **chosen)).differences == ()
        for setting, value in config.items():
            other = make_result(protocol, metric, "resnet50", ITEMS[protocol], **chosen | {setting: f"not {value}"})
            assert compare(other).differences == (f"{setting} not {value}, not {value}",)


def test_the_numbers_of_ucf101_are_those_of_its_first_split():
    """13,320 videos in all, 9,537 and 3,783, of which retrieval takes ten items each."""
    assert ITEMS["action"] == (9_537, 3_783)
    assert sum(ITEMS["action"]) == 13_320
    assert ITEMS["retrieval"] == (95_370, 37_830)


def test_settings_are_options_of_their_protocols():
    """Each setting that is compared is an option of the protocol, so that none is compared in vain."""
    for name, settings in SETTINGS.items():
        assert set(settings) <= set(PROTOCOL_CONFIGS[name.split()[0]].model_fields)


def test_the_backbone_decides_which_figure_is_shown():
    """A ResNet-50 is compared with the paper's ResNet-50."""
    result = make_result(
        "tracking", "success", "resnet50", (9_335, 100), preset="release", train=True, toolkit="got10k"
    )
    assert compare(result).one.percent == 49.2


def test_a_protocol_that_the_paper_does_not_have_has_no_figure():
    """Nothing stands beside kNN."""
    assert compare(make_result("knn", "top1_k20", "resnet18", (1, 1))) is None
