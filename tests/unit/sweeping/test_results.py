"""The results of a sweep: differences, rankings and the findings about them; the page, the chart and the JSON."""

import json

import cv2
import numpy as np
import pytest
from scipy.stats import ttest_rel

from cyclecontrast.sweeping.results import Gain, RowValues, Sweep, draw, gain, render, write_files
from cyclecontrast.sweeping.tables import TABLES, rows_of


def made(values, table="table4", num_seeds=None):
    """Make a sweep from values {row key: {seed: percent}} of one metric."""
    rows = tuple(RowValues(row, {"kNN top-1": values.get(row.key, {})}) for row in rows_of(table, 1024))
    seeds = num_seeds or max(map(len, values.values()))
    return Sweep(TABLES[table], rows, seeds, "about <b>", (), None)


def test_a_clear_lead_is_bold():
    """A row that is significantly above every other, seed by seed, although the seeds differ a lot."""
    base = {0: 20.0, 1: 40.0, 2: 60.0}
    sweep = made(
        {
            "intra-image": {seed: value - 5 + 0.2 * seed for seed, value in base.items()},
            "intra-video": base,
            "cycle": {seed: value + 2 + 0.1 * seed for seed, value in base.items()},
        }
    )
    assert [best for _, _, best in sweep.lines()][2][1]
    assert str(sweep).count("**42.1 ± 20.1**") == 1
    assert "- first by kNN top-1: full, clearly" in str(sweep)
    assert "- full against intra-video: kNN top-1 +2.1 ± 0.1 (significant), over 3 seeds" in str(sweep)


def test_a_lead_within_the_noise_is_not_bold():
    """Where the seeds disagree; a lead of another row than the full method is reported."""
    sweep = made(
        {
            "intra-image": {0: 10.0, 1: 11.0, 2: 12.0},
            "intra-video": {0: 50.0, 1: 54.0, 2: 52.0},
            "cycle": {0: 52.0, 1: 50.0, 2: 51.0},
        }
    )
    assert "**" not in str(sweep)
    assert "first by kNN top-1: intra-video, within the noise of full; not full, which the paper finds best" in str(
        sweep
    )
    assert "full against intra-video: kNN top-1 -1.0 ± 3.0 (not significant), over 3 seeds" in str(sweep)


def test_tied_rows_share_the_first_place():
    """Rows with the same mean at the digits shown are all named, and none is bold."""
    low, high = {0: 10.0, 1: 11.0, 2: 12.0}, {0: 50.0, 1: 54.0, 2: 52.0}
    above = {seed: value + 0.01 + 0.001 * seed for seed, value in high.items()}
    assert gain(above, high).is_significant
    text = str(made({"intra-image": low, "intra-video": high, "cycle": above}))
    assert "- tied first by kNN top-1: full, intra-video\n" in text
    assert "**" not in text
    text = str(made({"intra-image": high, "intra-video": high, "cycle": low}))
    assert "- tied first by kNN top-1: intra-image, intra-video; not full, which the paper finds best\n" in text
    assert "- tied first by kNN top-1: intra-image, intra-video, full\n" in str(
        made({"intra-image": {0: 50.0}, "intra-video": {0: 50.0}, "cycle": {0: 50.0}})
    )
    near = {0: 54.0, 1: 50.0, 2: 51.0}
    text = str(made({"intra-image": near, "intra-video": high, "cycle": high}))
    assert "- tied first by kNN top-1: intra-video, full, within the noise of all others\n" in text


def test_one_seed_proves_nothing():
    """With a single seed nothing is bold, judged or called clear."""
    text = str(made({"intra-image": {0: 10.0}, "intra-video": {0: 50.0}, "cycle": {0: 90.0}}))
    assert "with one seed, differences cannot be tested" in text
    assert not any(word in text.split("Mean ±")[0] for word in ("**", "clearly", "significant"))


def test_a_single_row_has_no_clear_lead():
    """Where the other rows failed, nothing is bold and nothing is called clear."""
    text = str(made({"cycle": {0: 50.0, 1: 51.0}}))
    assert "- first by kNN top-1: full\n" in text
    assert "**" not in text


def test_only_shared_seeds_are_compared():
    """A row with a failed seed is compared over the seeds it has, and the text says how many."""
    values = {"intra-image": {0: 1.0, 1: 1.5}, "intra-video": {1: 50.0}, "cycle": {0: 10.0, 1: 60.0}}
    text = str(made(values))
    assert "full against intra-video: kNN top-1 +10.0 (one seed is not enough to judge), over 1 seed" in text
    assert "1 of 2" in text


def test_rows_are_ranked_over_the_seeds_that_all_have():
    """A row whose hard seeds are not finished does not lead because of that."""
    hard = {0: 60.0, 1: 62.0, 2: 20.0}
    values = {"intra-image": {0: 50.0, 1: 53.0}, "intra-video": {0: 59.0, 1: 61.9}, "cycle": hard}
    text = str(made(values))
    assert "- first by kNN top-1: full, within the noise of intra-video, over 2 of 3 seeds\n" in text
    assert "**" not in text
    text = str(made(values | {"intra-video": {0: 61.0}}))
    assert "- first by kNN top-1: intra-video, over 1 of 3 seeds; not full, which the paper finds best\n" in text


def test_rows_without_a_common_seed_are_not_ranked():
    """Where each row has other seeds, none is first or bold, and the table says why."""
    values = {"intra-image": {0: 1.0, 1: 2.0}, "intra-video": {1: 40.0, 2: 41.0}, "cycle": {0: 9.0, 2: 99.0}}
    text = str(made(values, num_seeds=3))
    assert "- not ranked by kNN top-1: the rows have no seed in common\n" in text
    assert "first by" not in text
    assert "**" not in text


@pytest.mark.parametrize("seed", range(20))
def test_significance_is_the_paired_t_test(seed):
    """The verdict is scipy's at 5 %, over two to six seeds."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(1, 1, (2, 2 + seed % 5)) * [[1], [0.5]]
    found = gain(dict(enumerate(ours)), dict(enumerate(theirs)))
    assert found.is_significant == (ttest_rel(ours, theirs).pvalue < 0.05)
    assert found.mean == pytest.approx(np.mean(ours - theirs))
    assert found.deviation == pytest.approx(np.std(ours - theirs, ddof=1))


def test_equal_rows_are_not_significant():
    """Neither no difference nor equal differences are significant; without common seeds there is no comparison."""
    assert not gain({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).is_significant
    assert not gain({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0}).is_significant
    assert not Gain(5.0, None, 1).is_significant
    assert gain({0: 1.0}, {1: 1.0}) is None


def test_a_difference_that_rounds_to_zero_has_no_sign():
    """A mean of -0.04 is shown as 0.0, one of -0.06 as -0.1."""
    assert str(Gain(-0.04, 11.8, 3)) == "0.0 ± 11.8 (not significant)"
    assert str(Gain(0.04, None, 1)) == "0.0 (one seed is not enough to judge)"
    assert str(Gain(-0.06, 11.8, 3)).startswith("-0.1 ")


def test_numeric_settings_have_a_chart():
    """Also where a row is missing; the page contains it and escapes text. Tables of names have none."""
    sweep = made({row.key: {0: 50.0, 1: 51.0} for row in rows_of("table7")[1:]}, "table7")
    chart = draw(sweep)
    image = cv2.imdecode(np.frombuffer(chart, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] > image.shape[0] > 300
    assert image.std() > 10
    page = render(sweep, chart)
    assert "data:image/png;base64," in page
    assert "about &lt;b&gt;" in page
    assert draw(made({"cycle": {0: 50.0}})) is None


def test_all_numbers_are_in_the_json(tmp_path):
    """Values by seed, means, deviations, gains and the paper's figures, without NaN."""
    sweep = made({"0.1": {0: 50.0, 1: 54.0}, "0.3": {0: 49.0}}, "table8")
    write_files(Sweep(sweep.table, sweep.rows, 2, "about", (), tmp_path))
    numbers = json.loads((tmp_path / "table8.json").read_text())
    best = next(row for row in numbers["rows"] if row["key"] == "0.1")
    assert best["percent_by_seed"] == {"kNN top-1": {"0": 50.0, "1": 54.0}}
    assert best["mean"]["kNN top-1"] == 52.0
    assert best["deviation"]["kNN top-1"] == pytest.approx(8**0.5)
    assert [figure["percent"] for figure in best["paper"]] == [58.48, 83.50]
    other = next(row for row in numbers["rows"] if row["key"] == "0.3")
    assert other["papers_best_minus_this"]["kNN top-1"]["mean"] == 1.0
    assert sweep.to_json()["rows"][0]["mean"] == {"kNN top-1": None}
