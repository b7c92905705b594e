"""Every protocol gives the recorded metrics on real data."""

import numpy as np
import pytest

from cyclecontrast import progress
from tests.golden import evaluations, files
from tests.golden.record import recorded


@pytest.fixture(scope="module")
def data(shared, tmp_path_factory):
    """Return a function that copies small parts of the real data."""
    return evaluations.Data(shared, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    """Return the folder of results, and a function that evaluates by the settings of a name."""
    out = tmp_path_factory.mktemp("results")
    return out, lambda name: evaluations.evaluate(data, out, name)


@pytest.mark.parametrize("name", evaluations.EVALUATIONS)
def test_an_evaluation_is_as_recorded(results, name, monkeypatch, capsys):
    """Its tag is the same; of its items one may change sides in a close comparison. It says how far it is."""
    monkeypatch.setattr(progress, "SECONDS", 0)  # of a line a minute
    found, is_scored_alike = results[1](name)
    expected = recorded("evaluations")["results"][name]
    assert is_scored_alike
    assert " done" in capsys.readouterr().err
    for part in ("tag", "items", "problems"):
        assert found[part] == expected[part]
    allowed = {"linear", "finetune"}.intersection(name.split()) and 2.01 / expected["items"][1]
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=allowed or 1.01 / max(expected["items"][1], 20))
    assert found["record"].keys() == expected["record"].keys()
    for column, values in expected["record"].items():
        if isinstance(values, dict):
            assert found["record"][column] == pytest.approx(values, rel=0.02), column
        else:
            assert np.mean(np.equal(found["record"][column], values)) >= 0.8, column


def test_evaluations_leave_the_recorded_files(results):
    """Results, records and pictures have the same names, keys and columns."""
    assert files.listing(results[0]) == recorded("evaluations")["files"]
