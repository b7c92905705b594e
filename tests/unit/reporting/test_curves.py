"""Charts: chance levels, averages, numbers behind each chart, and drawings in the colors of the page."""

import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cyclecontrast import methods
from cyclecontrast.reporting.curves import INCHES, MAX_POINTS, METRICS, chance_levels, draw_charts
from cyclecontrast.reporting.runs import read_run
from tests.make_reports import HEALTH, SIGNALS, TERMS, write_frames, write_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run as the report reads it."""
    root = tmp_path_factory.mktemp("runs")
    data = write_frames(root / "data", ["a", "b"])
    return read_run(write_run(root / "run", data, about=HEALTH), "run", with_data=False)


def changed(run, name="run", rows=None, **options):
    """The run with other settings or metrics."""
    config = run.config.model_copy(update=options)
    return dataclasses.replace(run, name=name, config=config, metrics=run.metrics if rows is None else rows)


def losses(*values, key="loss"):
    """Lines of metrics with one value every five steps."""
    return [{"step": 5 * number + 5, key: value} for number, value in enumerate(values)]


def places(chart, color=r"c\d"):
    """The coordinates of the lines with this color in the drawing of a chart."""
    lines = re.findall(rf' d="([^"]*)" style="[^"]*stroke: var\(--{color}\)', chart["svg"])
    return [[tuple(map(float, point.split())) for point in re.split("[ML]", line)[1:]] for line in lines]


def test_chance_levels(finished):
    """Guessing among n candidates has the loss log n: the keys and the positive."""
    levels = chance_levels(finished)
    assert levels["intra_loss"] == pytest.approx(math.log(1024 + 1))
    assert levels["intra_accuracy"] == pytest.approx(1 / (1024 + 1))
    assert levels["cycle_loss"] == pytest.approx(math.log(1024 - 256 + 1))
    assert levels["cycle_closed"] == pytest.approx(1 / (1024 - 256 + 1))
    assert (levels["health_same_video"], levels["health_cycle_closed"]) == (0.0625, 0.03125)


def test_chance_levels_count_the_keys_of_the_step(finished):
    """With batch_keys the other three keys of the step are candidates too, but not for health."""
    levels = chance_levels(changed(finished, batch_keys=True, queue_size=4))
    assert levels["intra_loss"] == pytest.approx(math.log(4 + 3 + 1))
    assert levels["cycle_loss"] == pytest.approx(math.log(1024 + 3 - 256 + 1))
    assert levels["health_queue_loss"] == pytest.approx(math.log(4 + 1))
    assert levels["health_queue_accuracy"] == pytest.approx(1 / (4 + 1))


@pytest.mark.parametrize(("method", "known"), [("cycle-only", (0, 1)), ("seco", (1, 0)), ("simsiam", (0, 0))])
def test_chance_levels_of_other_methods(finished, method, known):
    """There is a chance level only for the losses that a method has."""
    levels = chance_levels(changed(finished, method=method))
    assert ("intra_loss" in levels, "cycle_loss" in levels) == known


@pytest.mark.parametrize("method", ["cycle", "cycle-only", "intra-video"])
def test_the_weight_of_the_cycle_loss(finished, method):
    """λ has a chart only for a method that weighs a cycle loss against another loss."""
    run = changed(finished, rows=losses(0.1, 0.2, key="cycle_weight"), method=method)
    assert [chart["title"] for chart in draw_charts([run], [0])] == ["Weight of the cycle loss (λ)"] * (
        method == "cycle"
    )


def test_every_loss_term_has_a_chart():
    """Each named term of the built-in losses is a metric with words."""
    source = "".join(path.read_text() for path in Path(methods.__file__).parent.glob("*.py"))
    terms = {
        f"{name}_loss"
        for line in re.findall(r"(?:terms = |Losses\(.*)\{(.*)\}", source)
        for name in re.findall(r'"(\w+)"', line)
    }
    assert terms == set(TERMS)
    assert terms <= {info.key for info in METRICS}


def test_terms_of_a_users_method(finished):
    """The losses that a user's method names are drawn after the others."""
    run = changed(finished, rows=losses(1.0, 2.0, key="my_own_loss"), method="own:mine")
    (chart,) = draw_charts([run], [0])
    assert chart["title"] == "My own loss"


@pytest.mark.parametrize(
    "columns",
    [
        ([0.5],),
        ([3.0, 3.0, 3.0], [7.0]),
        ([0.0] * 4, [-1e6, 1e6, None, 0.0]),
        ([None], [1e-9, 2e-9]),
        ([float(step % 7) for step in range(350)],),
    ],
)
def test_lines_stay_inside_of_the_chart(finished, columns):
    """Lines of any numbers lie inside of the drawing, one line for each run with values."""
    runs = [changed(finished, f"run{number}", losses(*column)) for number, column in enumerate(columns)]
    (chart,) = draw_charts(runs, range(len(runs)))
    shown = [column for column in columns if column != [None]]
    assert len(places(chart)) == len(shown)
    for x, y in (place for line in places(chart) for place in line):
        assert 0 < x < 72 * INCHES[0]
        assert 0 < y < 72 * INCHES[1]
    assert 1 <= len(chart["rows"]) <= 2 * MAX_POINTS
    assert len(chart["columns"]) == 1 + len(shown)


def test_heights_are_to_scale(finished):
    """Points lie where their values belong: the steps from left to right, larger values higher."""
    (chart,) = draw_charts([changed(finished, rows=losses(1.0, 2.0, 4.0))], [3])
    ((first, second, third),) = places(chart, "c3")
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert first[1] - third[1] == pytest.approx(3 * (first[1] - second[1]), abs=0.4)


def test_drawings_follow_the_theme(finished):
    """A drawing is well-formed, has only colors of the page's style sheet, and no ids that could occur twice."""
    for chart in draw_charts([finished], [0]):
        assert ET.fromstring(f"<svg>{chart['svg']}</svg>").find("g") is not None
        assert "#" not in chart["svg"]
        assert not re.search(r"\bid=|url\(|http|font-family", chart["svg"])
        assert len(chart["svg"]) < 6000


def test_chance_is_labeled_once(finished):
    """Each chance level has a label; of two levels that nearly coincide only one has."""
    run = changed(finished, rows=losses(5.0, 6.0, key="intra_loss"))
    near, far = (changed(run, f"with {size}", queue_size=size) for size in (1030, 64))
    assert re.findall(r"chance [\d.]+", draw_charts([run, near], [0, 0])[0]["svg"]) == [f"chance {math.log(1025):.2f}"]
    assert len(re.findall(r"chance [\d.]+", draw_charts([run, far], [0, 0])[0]["svg"])) == 2


def test_long_runs_are_averaged(finished):
    """A thousand logged steps become a hundred points, each the mean of ten."""
    rows = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    (chart,) = draw_charts([changed(finished, rows=rows)], [0])
    assert len(chart["rows"]) == 100
    assert (chart["rows"][0], chart["rows"][-1]) == (["10", "5.50"], ["1,000", "995.50"])


def test_numbers_of_several_runs(finished):
    """A step that one run did not log is a dash in its column; the text alternative has the first and last values."""
    runs = [changed(finished, name, [{"step": step, "loss": 2.0}]) for name, step in (("a", 5), ("b", 7))]
    (chart,) = draw_charts(runs, [0, 1])
    assert chart["columns"] == ["step", "a", "b"]
    assert chart["rows"] == [["5", "2.00", "–"], ["7", "–", "2.00"]]
    assert "a: 2.00 at step 5" in chart["alt"]


def test_values_before_the_first_step(finished):
    """Health begins at step 0, with what was measured before the training."""
    (chart,) = draw_charts([changed(finished, rows=losses(0.25, 0.375, key="health_same_video"))], [0])
    assert chart["alt"] == "Same-video retrieval. run: 12.5 % at step 0, 37.5 % at step 10; chance level: 6.2 %."
    assert chart["rows"][0] == ["0", "12.5 %"]


def test_runs_without_health(finished):
    """A run that did not measure health has no charts of it."""
    rows = [{"step": step, "loss": 1.0, **dict.fromkeys(SIGNALS)} for step in (10, 20)]
    assert [chart["title"] for chart in draw_charts([changed(finished, rows=rows)], [0])] == ["Loss"]
