"""Runs, reports, indexes and exports leave the recorded files."""

import pytest

from tests.golden import files
from tests.golden.record import recorded


@pytest.fixture(scope="module")
def found(frames, videos, tmp_path_factory):
    """Return the files of runs and of what is made of them."""
    return files.of_trainings(frames, videos, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", ["run", "run of videos", "search", "index", "report", "runs ls"])
def test_files_are_as_recorded(found, name):
    """They have the same names, keys, columns and tensors."""
    assert found[name] == recorded("files")[name]


@pytest.mark.parametrize("format", files.EXPORTS)
def test_exports_leave_the_recorded_files(tmp_path, format):
    """Each format is a file or a folder of the same names."""
    assert files.of_export(tmp_path, format) == recorded("files")["exports"][format]
