"""Many runs at a glance: each is found once and told as its files say, and what is compared is compared rightly."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.errors import UserError
from cyclecontrast.runs import text_table
from cyclecontrast.runs.listing import HEAD
from tests import make_videos as make
from tests.unit.training.test_pretrain import run

OPTIONS = {"steps": 3, "holdout": 0.2, "health_every": 3}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Two classes of images that are hard to tell apart, in the layout of ImageNet."""
    root, rng = tmp_path_factory.mktemp("data") / "shades", np.random.default_rng(0)
    for split in ("train", "val"):
        for label, low in (("dark", 0), ("bright", 9)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(9):
                cv2.imwrite(str(folder / f"{index}.png"), rng.integers(low, low + 100, (20, 20, 3), np.uint8))
    return root


@pytest.fixture(scope="module")
def made(labeled, tmp_path_factory):
    """Two seeds of one method and a run of another, evaluated; beside them what is no run."""
    tree, root = make.write_stripes(tmp_path_factory.mktemp("stripes")), tmp_path_factory.mktemp("made")
    for name, changes in {
        "a/one": {"seed": 1},
        "a/two": {"seed": 2},
        "other": {"seed": 1, "method": "intra-video", "temperature": 0.3},
    }.items():
        run(tree, root / name, **(OPTIONS | changes))
        for k in (1, 3):
            cc.evaluate("knn", root / name, labeled, k=(k,), workers=0)
    cc.evaluate(
        "knn", "random:resnet10-small-w8", labeled, k=(1,), workers=0, out=root / "other" / "results", image_size=16
    )
    for number, name in enumerate(("other", "a/two", "a/one")):
        for file in ("run.json", "config.toml", "metrics.jsonl"):
            os.utime(root / name / file, (10**9 + number,) * 2)
    (root / "a" / "code").mkdir()
    (root / "a" / "code" / "config.toml").write_text("title = 'of another program'")
    return root


def listed(*folders, **settings):
    """Return what `ls --json` prints, by the last part of the path."""
    rows = json.loads(str(cc.runs.ls(*folders, json=True, **settings)))
    return {row["path"].rpartition("/")[2]: row for row in rows}


def test_runs_are_found_and_told_as_their_files_say(made, labeled):
    """Each run is a row in the order of its last change, with what config.toml, run.json and its results say."""
    rows = listed(made)
    assert list(rows) == ["other", "two", "one"]
    for name, folder in {"one": made / "a" / "one", "two": made / "a" / "two", "other": made / "other"}.items():
        about, row = json.loads((folder / "run.json").read_text()), rows[name]
        assert row["path"] == str(folder)
        assert [row[key] for key in ("status", "verdict", "reason")] == [
            about[key] for key in ("status", "verdict", "reason")
        ]
        assert (row["steps_done"], row["num_steps"], row["backbone"]) == (3, 3, "resnet10-small-w8")
    assert (rows["one"]["seed"], rows["two"]["seed"], rows["other"]["method"]) == (1, 2, "intra-video")


def test_results_of_a_run_are_its_own_and_not_mixed(made):
    """Each variant has its own best, and the result of random weights in the same folder is not the run's."""
    files = [json.loads(path.read_text()) for path in (made / "other" / "results").glob("knn-*.json")]
    assert len(files) == 3
    own = [file for file in files if file["model"]["source"] != "random weights"]
    expected = {(file["tag"], "shades", *next(iter(file["metrics"].items()))) for file in own}
    found = listed(made)["other"]["results"]
    assert {(best["tag"], best["data"], best["metric"], best["value"]) for best in found} == expected
    assert len(found) == 2


@pytest.mark.parametrize("damage", ["config.toml", "run.json", "metrics.jsonl", "results"])
def test_a_damaged_run_is_a_row_with_the_reason(made, tmp_path, damage):
    """Files that are cut or gone cost that run's row alone, and the row says which."""
    shutil.copytree(made, tmp_path / "all")
    hurt = tmp_path / "all" / "a" / "one"
    if damage == "results":
        next((hurt / "results").glob("*.json")).write_text("{")
    else:
        (hurt / damage).write_text("?\n")
    rows = listed(tmp_path / "all")
    assert rows["other"]["problem"] == rows["two"]["problem"] == ""
    assert damage.partition(".")[0] in rows["one"]["problem"] or damage == "config.toml"
    assert rows["one"]["problem"]
    assert (rows["one"]["status"] == "finished") is (damage == "results")
    (hurt / "run.json").unlink()
    assert "holds no run.json" in listed(tmp_path / "all")["one"]["problem"]
    line = next(line for line in str(cc.runs.ls(tmp_path / "all")).splitlines() if "a/one" in line)
    assert " damaged " in line
    assert "holds no run.json" in line


def test_the_walk_is_bounded(made, tmp_path):
    """No run is found in a run or a store, behind a link, in what is hidden or too deep, and none twice."""
    for place in ("run/inside", "store/inside", ".hidden/run", "1/2/3/run", "beside"):
        shutil.copytree(made / "a" / "one", tmp_path / "all" / place)
    shutil.copytree(made / "other", tmp_path / "all" / "run", dirs_exist_ok=True)
    (tmp_path / "all" / "store" / "store.json").write_text("{}")
    shutil.copytree(made / "other", tmp_path / "elsewhere")
    (tmp_path / "all" / "link").symlink_to(tmp_path / "elsewhere")

    def found(*folders, depth):
        return sorted(str(one.path.relative_to(tmp_path / "all")) for one in cc.runs.ls(*folders, depth=depth).runs)

    everything = tmp_path / "all"
    assert found(everything, depth=3) == ["beside", "run"]
    assert found(everything, depth=4) == ["1/2/3/run", "beside", "run"]
    assert found(everything, everything / "1", everything / "beside", depth=4) == ["1/2/3/run", "beside", "run"]


def test_no_runs_and_no_folder_are_told(tmp_path, monkeypatch, capsys):
    """Where there are none a line says where was looked, and what is no folder is an error."""
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "ls"]) == 0
    assert capsys.readouterr().out == "no runs in . and 5 levels below; --depth looks further\n"
    assert main(["runs", "ls", "nowhere", "--json"]) == 2
    assert capsys.readouterr().err == "error: folders: nowhere: is no folder; name one that runs lie below\n"
    assert main(["runs", "lss"]) == 2
    assert "did you mean ls?" in capsys.readouterr().err
    assert main(["runs", "compare"]) == 2
    assert capsys.readouterr().err == "error: runs is missing\n"


def test_into_a_pipe_every_run_is_one_whole_line(made, tmp_path):
    """However long names are, what goes into a pipe is not cut, folded or coloured, and so can be searched."""
    deep = tmp_path / ("x" * 120) / ("y" * 120) / "strange\n\x1b[31mname"
    shutil.copytree(made / "a" / "one", deep)
    command = [sys.executable, "-m", "cyclecontrast", "runs", "ls", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "40"}, check=True)
    head, line = told.stdout.splitlines()
    assert line.startswith(f"{deep.parent}/strange\\n\\x1b[31mname  2001-09-09 ")
    assert line.split()[-1] == "shades"
    assert head.split()[:2] == ["run", "changed"]
    assert "\x1b" not in told.stdout


def test_a_terminal_folds_what_is_too_long(monkeypatch):
    """On a terminal no line is wider than it, and nothing of the text is lost."""
    monkeypatch.setattr(text_table.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    shown = text_table.text_table(("run", "note"), [("a" * 50, "b" * 30)])
    assert max(map(len, shown.splitlines())) <= 30
    assert (shown.count("a"), shown.count("b")) == (50, 30)


@pytest.mark.parametrize("width", [8, 19, 39, 80, 120])
def test_a_narrow_terminal_has_a_block_for_each_run(made, monkeypatch, width):
    """Where columns would be too narrow each text has a line of its own: nothing is lost or wider than the window."""
    found = cc.runs.ls(made)
    monkeypatch.setattr(text_table.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    shown = str(found)
    assert max(map(len, shown.splitlines())) <= width
    blocks = shown.split("\n\n")
    assert len(blocks) == (3 if width < 40 else 1)
    expected = [
        "".join(f"{name}:{cell}" for name, cell in zip(HEAD, one.cells(), strict=True) if cell) for one in found.runs
    ]
    if width < 40:
        assert ["".join(block.split()) for block in blocks] == [told.replace(" ", "") for told in expected]
    else:
        cells = Counter("".join(cell for one in found.runs for cell in one.cells()))
        assert {kind for kind in cells - Counter(shown) if kind.strip()} == set()


def test_for_programs_what_could_not_be_looked_into_is_told_beside(tmp_path, monkeypatch, capsys):
    """JSON goes to the output, and each folder that cannot be listed is a line on stderr, with nothing to steer it."""

    def walk(root, onerror):
        onerror(PermissionError(13, "Permission denied", f"{root}/shut\x1b"))
        return iter(())

    monkeypatch.setattr("cyclecontrast.runs.find.os.walk", walk)
    assert main(["runs", "ls", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == []
    assert told.err == f"{tmp_path}/shut\\x1b: cannot be listed (Permission denied)\n"


def test_the_settings_that_differ_are_shown_alone(made):
    """Compared are all settings but the folder of the run; none that is the same in all is shown."""
    found = cc.runs.compare(made / "a" / "one", made / "other", made / "a" / "two")
    assert [one.name for one in found.runs] == ["one", "two", "other"]
    assert {line.name: line.cells for line in found.settings} == {
        "method": ("cycle", "cycle", "intra-video"),
        "temperature": ("0.2", "0.2", "0.3"),
        "seed": ("1", "2", "1"),
    }
    assert cc.runs.compare(made / "other").settings == ()
    assert str(cc.runs.compare(made / "other")).startswith("the settings are the same\n")


def test_values_are_the_last_measured_and_repetitions_have_a_mean(made):
    """Runs that differ by their seed only have mean ± deviation beside them; what was not measured is a dash."""
    found = cc.runs.compare(made / "a" / "one", made / "other", made / "a" / "two")
    assert found.columns == ("one", "two", "mean of 2 seeds", "other")
    values = {line.name: line.cells for line in found.values}
    last = [json.loads((made / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("a/one", "a/two")]
    for name in ("loss", "intra_loss", "health_same_video", "health_rank"):
        one, two = (row[name] for row in last)
        mean, spread = statistics.mean((one, two)), statistics.stdev((one, two))
        assert values[name][:3] == (f"{one:.4g}", f"{two:.4g}", f"{mean:.4g} ± {spread:.2g}")
    assert values["cycle_loss"][3] == "–"
    assert values["steps"] == ("3/3", "3/3", "", "3/3")
    words = [json.loads((made / name / "run.json").read_text())["verdict"] for name in ("a/one", "a/two", "other")]
    assert [values["verdict"][place] for place in (0, 1, 3)] == words
    assert values["verdict"][2] == (f"2 {words[0]}" if words[0] == words[1] else f"1 {words[0]}, 1 {words[1]}")


def test_results_are_compared_by_variant(made):
    """Each variant of a protocol is a row; random weights stand beside the runs, and a mean behind its seeds."""
    found = cc.runs.compare(made / "a" / "one", made / "a" / "two", made / "other")
    assert found.results is not None
    assert [row.name for row in found.results.rows] == ["random weights", "one", "two", "mean of 2 seeds", "other"]
    lines = [line for line in str(found).splitlines() if line.startswith("knn")]
    assert len(lines) == len({line.split("  ")[0] for line in lines}) == 2
    for k in (1, 3):
        own = [
            next(
                result["metrics"][f"top1_k{k}"]
                for path in (made / name / "results").glob("knn-*.json")
                if f"top1_k{k}" in (result := json.loads(path.read_text()))["metrics"]
                and result["model"]["source"] != "random weights"
            )
            for name in ("a/one", "a/two")
        ]
        mean = f"{100 * statistics.mean(own):.1f} % ± {100 * statistics.stdev(own):.1f}"
        assert any(mean in line for line in lines), (mean, lines)


def test_what_is_no_run_cannot_be_compared(made, tmp_path):
    """A folder that is none, and one named twice, are told."""
    with pytest.raises(UserError, match=r"holds no config\.toml and no run\.json"):
        cc.runs.compare(made / "other", tmp_path)
    with pytest.raises(UserError, match="the same folder is named twice"):
        cc.runs.compare(made / "other", made / "other")


def test_neither_needs_the_data(made, tmp_path, monkeypatch):
    """What the runs were trained on may be gone or far away: it is not asked for."""
    monkeypatch.setattr("cyclecontrast.data.frames.FrameStore.open", lambda root: pytest.fail("opened"))
    assert len(cc.runs.ls(made).runs) == 3
    assert len(cc.runs.compare(made / "other", made / "a" / "one").runs) == 2
