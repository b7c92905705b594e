"""`runs ls` finds each run once and shows what its files say; `runs compare` compares only what may be compared."""

import json
import os
import shutil
import statistics
import sys
from collections import Counter

import pytest

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.errors import UserError
from cyclecontrast.runs import tables
from cyclecontrast.training import run_folder
from tests.make_reports import BACKBONE, metrics_row, write_frames, write_result, write_run

VERDICTS = {"one": "healthy", "two": "undertrained", "other": "healthy"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two seeds of one method and a run of another, with results; beside them a folder that is not a run."""
    root = tmp_path_factory.mktemp("made")
    data = write_frames(tmp_path_factory.mktemp("data") / "shades", ["a", "b"])
    folders = {"one": root / "a" / "one1", "two": root / "a" / "two2", "other": root / "other3"}
    for seed, name in ((1, "one"), (2, "two"), (3, "other")):
        about = {"verdict": VERDICTS[name], "reason": "it is so", "data_fingerprint": "0123"}
        rows = [metrics_row(10), metrics_row(20, loss=seed / 7, health_rank=seed / 3)]
        options = {"method": "intra-video", "temperature": 0.3} if name == "other" else {}
        if name == "other":
            rows = [{key: value for key, value in row.items() if key != "cycle_loss"} for row in rows]
        run = write_run(folders[name], data, seed, rows, about, **options)
        for k in (1, 3):
            tag = f"knn k={k}"
            write_result(run, {f"top1_k{k}": (seed + k) / 10, "top5": 1.0}, tag=tag, protocol=f"knn{k}", data="shades")
    write_result(root / "other3", {"top1_k1": 0.99}, model=BACKBONE, tag="knn k=1", data="shades")
    for number, name in enumerate(("other", "two", "one")):
        for file in ("run.json", "config.toml", "metrics.jsonl"):
            os.utime(folders[name] / file, (10**9 + number,) * 2)
    (root / "a" / "code").mkdir()
    (root / "a" / "code" / "config.toml").write_text("title = 'of another program'")
    return root


def listed(*folders, **settings):
    """What `ls --json` prints, by the last part of the path."""
    rows = json.loads(str(cc.runs.ls(*folders, json=True, **settings)))
    return {row["path"].rpartition("/")[2]: row for row in rows}


def test_runs_are_listed_as_their_files_say(made):
    """Each run is a row with what config.toml, run.json and metrics.jsonl say; the last changed one is at the end."""
    rows = listed(made)
    assert list(rows) == ["other3", "two2", "one1"]
    one = rows["one1"]
    assert one["path"] == str(made / "a" / "one1")
    assert [one[key] for key in ("status", "verdict", "reason")] == ["finished", "healthy", "it is so"]
    assert (one["steps_done"], one["num_steps"], one["backbone"], one["seed"]) == (20, 20, BACKBONE, 1)
    assert (rows["two2"]["seed"], rows["other3"]["method"]) == (2, "intra-video")
    assert one["data"].endswith("/shades")


def test_results_of_a_run(made, tmp_path):
    """Each protocol variant has its best value, without the result of random weights in the same folder."""
    found = listed(made)["other3"]["results"]
    assert {(best["tag"], best["data"], best["metric"], best["value"]) for best in found} == {
        ("knn k=1", "shades", "top1_k1", 0.4),
        ("knn k=3", "shades", "top1_k3", 0.6),
    }
    run = shutil.copytree(made / "other3", tmp_path / "other3")
    write_result(run, {"top1_k1": 0.7}, tag="knn k=1", protocol="another", data="shades")
    assert [best["value"] for best in listed(tmp_path)["other3"]["results"] if best["tag"] == "knn k=1"] == [0.7]


@pytest.mark.parametrize(("kept", "value"), [({}, 0.4), ({"selected_step": 0}, 0.9)])
def test_a_start_is_no_result_of_its_run(made, tmp_path, kept, value):
    """The start's result in the folder of a run is not the run's, unless the run kept its start."""
    run = shutil.copytree(made / "other3", tmp_path / "other3")
    run_folder.change_about(run, start={"model": "x", "fingerprint": "f" * 16}, **kept)
    write_result(run, {"top1_k1": 0.9}, tag="knn k=1", protocol="another", data="shades", start="f" * 16)
    assert [best["value"] for best in listed(tmp_path)["other3"]["results"] if best["tag"] == "knn k=1"] == [value]


def test_a_verdict_on_training_videos_says_so(made, tmp_path):
    """Where no videos were held out, the table has it beside the word."""
    run = shutil.copytree(made / "other3", tmp_path / "other3")
    assert "healthy (on training videos)" not in str(cc.runs.ls(tmp_path))
    run_folder.change_about(run, health={"held_out": False, "videos": 12})
    assert "healthy (on training videos)" in str(cc.runs.ls(tmp_path))
    assert [listed(tmp_path)["other3"][key] for key in ("verdict", "held_out")] == ["healthy", False]
    run_folder.change_about(run, verdict="worse than its start", selected_step=0)
    assert "worse than its start (on training videos, start kept)" in str(cc.runs.ls(tmp_path))


@pytest.mark.parametrize("damage", ["config.toml", "run.json", "metrics.jsonl", "results"])
def test_a_damaged_run_is_a_row_with_the_reason(made, tmp_path, damage):
    """A damaged file costs only the row of its run, and the row says which file it is."""
    shutil.copytree(made, tmp_path / "all")
    hurt = tmp_path / "all" / "a" / "one1"
    file = next((hurt / "results").glob("*.json")) if damage == "results" else hurt / damage
    file.write_text("?\n")
    rows = listed(tmp_path / "all")
    assert rows["other3"]["problem"] == rows["two2"]["problem"] == ""
    assert damage.partition(".")[0] in rows["one1"]["problem"] or damage == "config.toml"
    assert rows["one1"]["problem"]
    assert (rows["one1"]["status"] == "finished") is (damage == "results")
    (hurt / "run.json").unlink()
    line = next(line for line in str(cc.runs.ls(tmp_path / "all")).splitlines() if "a/one1" in line)
    assert " damaged " in line
    assert "has no run.json" in line


def test_the_search_is_bounded(made, tmp_path):
    """No run is found inside a run or a store, behind a link, in a hidden folder or too deep, and none twice."""
    for place in ("run/inside", "store/inside", ".hidden/run", "1/2/3/run", "beside"):
        shutil.copytree(made / "a" / "one1", tmp_path / "all" / place)
    shutil.copytree(made / "other3", tmp_path / "all" / "run", dirs_exist_ok=True)
    (tmp_path / "all" / "store" / "store.json").write_text("{}")
    shutil.copytree(made / "other3", tmp_path / "elsewhere")
    (tmp_path / "all" / "link").symlink_to(tmp_path / "elsewhere")

    def found(*folders, depth):
        return sorted(str(one.path.relative_to(tmp_path / "all")) for one in cc.runs.ls(*folders, depth=depth).runs)

    everything = tmp_path / "all"
    assert found(everything, depth=3) == ["beside", "run"]
    assert found(everything, depth=4) == ["1/2/3/run", "beside", "run"]
    assert found(everything, everything / "1", everything / "beside", depth=4) == ["1/2/3/run", "beside", "run"]


def test_no_runs_and_no_folder(tmp_path, monkeypatch, capsys):
    """Without runs a line says where it searched; a folder that does not exist is an error."""
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "ls"]) == 0
    assert capsys.readouterr().out == "no runs found in . within 5 levels; --depth searches deeper\n"
    assert main(["runs", "ls", "nowhere", "--json"]) == 2
    assert capsys.readouterr().err == "error: folders: nowhere: not a folder; name one that contains runs\n"
    assert main(["runs", "lss"]) == 2
    assert "did you mean ls?" in capsys.readouterr().err
    assert main(["runs", "compare"]) == 2
    assert capsys.readouterr().err == "error: runs is missing\n"


def test_a_pipe_gets_one_whole_line_per_run(made, tmp_path, monkeypatch, capsys):
    """However long names are, output to a pipe is not cut, folded or colored, so that it can be searched."""
    deep = tmp_path / ("x" * 120) / ("y" * 120) / "strange\n\x1b[31mname"
    shutil.copytree(made / "other3", deep)
    shutil.rmtree(deep / "results")
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["runs", "ls", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    head, line = printed.splitlines()
    assert line.startswith(f"{deep.parent}/strange\\n\\x1b[31mname  2001-09-09 ")
    assert line.split()[-1] == "shades"
    assert head.split()[:2] == ["run", "changed"]
    assert "\x1b" not in printed


@pytest.fixture
def terminal(monkeypatch):
    """A function that makes the output a terminal of this width."""

    def resize(width):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(width))

    return resize


def test_a_terminal_folds_long_texts(terminal):
    """On a terminal no line is wider than it, and no text is lost."""
    terminal(30)
    shown = tables.text_table(("run", "note"), [("a" * 50, "b" * 30)])
    assert max(map(len, shown.splitlines())) <= 30
    assert (shown.count("a"), shown.count("b")) == (50, 30)


@pytest.mark.parametrize("width", [8, 19, 39, 80, 120])
def test_a_narrow_terminal_has_a_block_per_run(made, terminal, width):
    """If columns would be too narrow, each text has its own line: nothing is lost or wider than the terminal."""
    found = cc.runs.ls(made)
    terminal(width)
    shown = str(found)
    assert max(map(len, shown.splitlines())) <= width
    blocks = shown.split("\n\n")
    assert len(blocks) == (3 if width < 40 else 1)
    if width < 40:
        expected = [
            "".join(f"{name}:{cell}" for name, cell in zip(tables.COLUMNS, one.cells(), strict=True) if cell)
            for one in found.runs
        ]
        assert ["".join(block.split()) for block in blocks] == [text.replace(" ", "") for text in expected]
    else:
        cells = Counter("".join(cell for one in found.runs for cell in one.cells()))
        assert {kind for kind in cells - Counter(shown) if kind.strip()} == set()


def test_json_output_keeps_problems_apart(tmp_path, monkeypatch, capsys):
    """JSON goes to stdout; each folder that cannot be listed is a printable line on stderr."""

    def walk(root, onerror):
        onerror(PermissionError(13, "Permission denied", f"{root}/shut\x1b"))
        return iter(())

    monkeypatch.setattr("cyclecontrast.runs.tables.os.walk", walk)
    assert main(["runs", "ls", str(tmp_path), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == []
    assert output.err == f"{tmp_path}/shut\\x1b: cannot be listed (Permission denied)\n"


def compared(made):
    """The comparison of all three runs, not in the order of their methods."""
    return cc.runs.compare(made / "a" / "one1", made / "other3", made / "a" / "two2")


def test_only_different_settings_are_shown(made, tmp_path):
    """All settings but the folder of the run are compared, and only those that differ are shown."""
    found = compared(made)
    assert [run.name for run in found.runs] == ["one1", "two2", "other3"]
    assert found.settings == {
        "method": ("cycle", "cycle", "intra-video"),
        "temperature": ("0.07", "0.07", "0.3"),
        "seed": ("1", "2", "3"),
    }
    other = shutil.copytree(made / "other3", tmp_path / "other")
    text = (other / "config.toml").read_text()
    (other / "config.toml").write_text(text.replace("flip = true", "flip = false"))
    assert cc.runs.compare(made / "other3", other).settings["flip"] == ("on", "off")
    alone = cc.runs.compare(made / "other3")
    assert alone.settings == {}
    assert str(alone).startswith("all settings are equal\n")


def test_last_values_and_their_means(made):
    """Runs that differ only in their seed are followed by mean ± deviation; what was not measured is a dash."""
    found = compared(made)
    assert found.columns == ("one1", "two2", "mean of 2 seeds", "other3")
    for name, values in (("loss", (1 / 7, 2 / 7)), ("health_rank", (1 / 3, 2 / 3))):
        mean, spread = statistics.mean(values), statistics.stdev(values)
        texts = [f"{value:.4g}" for value in values]
        assert found.values[name][:3] == (*texts, f"{mean:.4g} ± {spread:.2g}")
    assert found.values["cycle_loss"][3] == "–"
    assert found.values["steps"] == ("20/20", "20/20", "", "20/20")
    assert found.values["status"] == ("finished", "finished", "2 finished", "finished")
    assert found.values["verdict"] == ("healthy", "undertrained", "1 healthy, 1 undertrained", "healthy")
    assert "learning_rate" not in found.values


def test_a_copy_of_a_run_is_no_second_seed(made, tmp_path):
    """A run and its copy have no mean; beside another seed, the mean is of two seeds, and each counts once."""
    copy = shutil.copytree(made / "a" / "one1", tmp_path / "copy")
    found = cc.runs.compare(made / "a" / "one1", copy)
    assert found.columns == ("one1", "copy")
    assert "mean of" not in str(found)
    three = cc.runs.compare(made / "a" / "one1", copy, made / "a" / "two2")
    assert three.columns == ("one1", "copy", "two2", "mean of 2 seeds")
    assert three.values["loss"][3] == compared(made).values["loss"][2]


def test_results_are_compared_by_variant(made):
    """Each protocol variant is a row; random weights are beside the runs, and a mean follows its seeds."""
    found = compared(made)
    names = [row.name for row in found.results.rows]
    assert names == ["random weights", "one1", "two2", "mean of 2 seeds", "other3"]
    lines = [line for line in str(found).splitlines() if line.startswith("knn")]
    assert [line.split("  ")[0] for line in lines] == ["knn k=1 top1_k1, shades", "knn k=3 top1_k3, shades"]
    for line, values in zip(lines, ((20, 30), (40, 50)), strict=True):
        assert f"{values[0]:.1f} %" in line
        assert f"{statistics.mean(values):.1f} % ± {statistics.stdev(values):.1f}" in line


def test_what_cannot_be_compared(made, tmp_path):
    """A folder that is not a run, and one that is named twice, are errors."""
    with pytest.raises(UserError, match=r"has no config\.toml and no run\.json"):
        cc.runs.compare(made / "other3", tmp_path)
    with pytest.raises(UserError, match="the same folder is named twice"):
        cc.runs.compare(made / "other3", made / "other3")


def test_the_data_are_not_needed(made, monkeypatch):
    """The training data may be gone or far away: they are not opened."""
    monkeypatch.setattr("cyclecontrast.data.store.FrameStore.open", lambda root: pytest.fail("opened"))
    assert len(cc.runs.ls(made).runs) == 3
    assert len(cc.runs.compare(made / "other3", made / "a" / "one1").runs) == 2
