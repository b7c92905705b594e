"""Records and results on disk: read back as written, named by all that changes the numbers, damaged ones one line."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pytest

from cyclecontrast.config import KnnConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.predictions import (
    About,
    Baseline,
    DataInfo,
    ModelInfo,
    Record,
    Result,
    find_records,
    result_path,
    results_folder,
)


def make_about(config=None, scoring=(), model="1" * 16, data="2" * 16):
    """Return the origin of a result with these settings."""
    config = config or KnnConfig(model="m", data="d")
    info = DataInfo(str(config.data), data, 3, 2)
    return About("knn", "knn", config.model_dump(mode="json"), ModelInfo("m", "s", model), info, scoring=scoring)


def test_keys_name_what_changes_the_numbers_and_nothing_else():
    """Settings, model and data do, wherever they lie; workers, device and folders do not; scoring keeps the record."""
    config = KnnConfig(model="m", data="d")
    plain = make_about(config)
    for change in (
        {"model": "n"},
        {"data": "e"},
        {"out": "o"},
        {"workers": 3},
        {"device": "cpu"},
        {"classes": "c"},
        {"baseline": "start"},
    ):
        assert make_about(KnnConfig(**{"model": "m", "data": "d", **change})).key == plain.key, change
    for change in ({"k": (1,)}, {"seed": 1}, {"level": "video"}, {"image_size": 32}, {"batch_size": 1}):
        other = make_about(config.model_copy(update=change))
        assert other.key != plain.key
        assert other.record_key != plain.record_key
    for changed in (make_about(config, model="3" * 16), make_about(config, data="3" * 16)):
        assert changed.key != plain.key
    scored, again = (make_about(config.model_copy(update={"k": k}), scoring=("k",)) for k in ((1,), (2,)))
    assert scored.key != again.key
    assert scored.record_key == again.record_key != scored.key


@pytest.mark.parametrize(
    ("now", "before", "name", "num_test", "expected"),
    [
        (0.45, 0.573, "start", 1000, "-12.3 points against its start (forgotten)"),
        (0.45, 0.573, "start", 20, "-12.3 points against its start"),
        (0.985, 1.0, "start", 10**6, "-1.5 points against its start"),
        (0.5, 0.46, "start", 1000, "+4.0 points against its start"),
        (0.5, 0.5001, "start", 1000, "+0.0 points against its start"),
        (0.45, 0.573, "random", 1000, "-12.3 points against random weights"),
    ],
)
def test_a_difference_is_told_in_words(now, before, name, num_test, expected):
    """In points; a start that was clearly better, beyond two points and the noise of the items, was forgotten."""
    about = make_about()
    about = dataclasses.replace(about, data=about.data._replace(num_test=num_test))
    result = Result(about, {"top1": now, "new": 0.5}, {}, Baseline(name, about.model, {"top1": before}))
    assert result.difference("top1") == expected
    assert result.difference("new") == ""
    assert dataclasses.replace(result, baseline=None).difference("top1") == ""


def test_a_record_is_read_back_as_it_was_written(tmp_path):
    """Its table and its origin, from the file that its key names."""
    record = Record(make_about(), pa.table({"id": ["a", "b"], "label": [0, 1]}))
    path = record.save(tmp_path)
    assert path == tmp_path / "records" / f"{record.about.record_key}.parquet"
    assert Record.load(path) == record
    assert find_records(tmp_path, "knn") == [record]
    assert find_records(tmp_path, "linear") == []


def test_a_damaged_record_is_one_line(tmp_path):
    """Cut short anywhere."""
    path = Record(make_about(), pa.table({"id": ["a"]})).save(tmp_path)
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"^{path}: the record cannot be read \(.*\); evaluate without") as caught:
            Record.load(path)
        assert len(caught.value.problems) == 1


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    """The file holds metrics, settings, fingerprints and versions, a line each, and loads to an equal result."""
    about = dataclasses.replace(make_about(), notes=("a note",), problems=("x.png: broken",), details={"c": 1.0})
    result = Result(about, {"top1": 0.5}, {"classes": ["a"], "accuracy": [None]})
    path = result.save(tmp_path)
    assert path == result_path(tmp_path, about.key)
    assert Result.load(path) == result
    content = json.loads(path.read_text())
    assert list(content) == ["metrics", *about.to_json(), "per_item"]
    assert content["versions"].keys() >= {"python", "torch", "cyclecontrast"}
    assert len(path.read_text().splitlines()) == len(content) + 2


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"metrics": 3}', '{"metrics": {"top1": 0.5}, "per_item": {}}'])
def test_a_damaged_result_is_one_line(tmp_path, text):
    """The line names the file."""
    path = tmp_path / "knn-1.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"^{path}: is not a result") as caught:
        Result.load(path)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("baseline", [{"name": "other"}, {"metrics": {"top1": "x"}}, [], "start"])
def test_a_damaged_baseline_is_one_line(tmp_path, baseline):
    """One of another kind, or with metrics that are no numbers, is not a result."""
    about = make_about()
    path = Result(about, {"top1": 0.5}, {}, Baseline("start", about.model, {"top1": 0.25})).save(tmp_path)
    assert Result.load(path).baseline.metrics == {"top1": 0.25}
    parts = json.loads(path.read_text())
    changed = parts["baseline"] | baseline if isinstance(baseline, dict) else baseline
    path.write_text(json.dumps(parts | {"baseline": changed}))
    with pytest.raises(UserError, match="is not a result"):
        Result.load(path)


def test_the_text_of_a_result_lists_the_first_problems():
    """Ten of them; the number of the others; the file has all."""
    about = dataclasses.replace(make_about(), problems=tuple(f"{number}.png: broken" for number in range(12)))
    lines = str(Result(about, {"top1": 0.5, "top5_k3": 1}, {})).splitlines()
    assert lines[0] == "knn of m (s) on d, 3 train and 2 test"
    assert lines[1:4] == ["  top1      50.00 %", "  top5_k3  100.00 %", "  left out, 12:"]
    assert lines[-2:] == ["    9.png: broken", "    ... and 2 more, in the result's file"]


def test_results_of_a_run_lie_in_the_run(tmp_path):
    """Without --out they go to <run>/results, and for anything else to ./results."""
    (tmp_path / "run").mkdir()
    assert results_folder(KnnConfig(model=str(tmp_path / "run"), data="d")) == tmp_path / "run" / "results"
    assert results_folder(KnnConfig(model="random:resnet18", data="d")) == Path("results")
    assert results_folder(KnnConfig(model=str(tmp_path / "run"), data="d", out="x")) == Path("x")
